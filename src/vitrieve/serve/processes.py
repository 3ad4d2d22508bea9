"""Several processes answer at one address: they accept connections from one socket, which the first process opened.

The first process answers nothing itself. It starts the others, starts another one where one has ended, and tells the
address once. On SIGHUP it exchanges them one after the other: a new process answers before an old one is told to stop,
and whoever has asked an old one is answered by it. uvicorn's own supervisor is not used, because it closes connections
on which a request is on its way, leaves its processes behind where it is killed, and lets a process accept connections
before its index is loaded.

The processes share a folder for this service alone, with their counts and, unless another folder is named, what
visitors sent. It is removed in the end.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from socket import socket

from vitrieve.errors import ArtifactError, ConfigError, VitrieveError
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_served_app
from vitrieve.serve.collections import Collections
from vitrieve.serve.metrics import share_counts
from vitrieve.serve.middleware import log_event, write_logs_to_standard_error
from vitrieve.serve.server import FAREWELL_SECONDS, STOP_SECONDS, list_hosts, open_listener, run_server, spell_address
from vitrieve.serve.settings import ServeSettings

START_PAUSE_SECONDS = 2.0
"""Time before another process is started in place of one that ended before it answered anything."""
KILL_SECONDS = FAREWELL_SECONDS + STOP_SECONDS + 10
"""Time after which a process is killed that was told to stop."""
_SPAWN = multiprocessing.get_context("spawn")  # neither LanceDB nor torch survives a fork


def serve_processes(
    open_service: Callable[[], Searcher | Collections],
    settings: ServeSettings,
    *,
    num_processes: int,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve with several processes until this one is told to stop (SIGINT, SIGTERM); as ``server.serve``.

    Args:
        open_service: Opens index and encoder, or several collections; sent to every process and called there.
        settings: Where to listen, and what to allow; ``Limits.divide`` says which bounds are divided.
        num_processes: Number of processes that answer.
        announce: Called with the address once a process answers there.

    Raises:
        ConfigError: As ``server.serve``, or the system is Windows, where a process is ended without a word.
        VitrieveError: As ``open_service``, where not even the first process could open the index.
    """
    if sys.platform == "win32":
        raise ConfigError("several processes answer at one address on Linux and macOS only; leave --num-processes out.")
    write_logs_to_standard_error()
    with open_listener(settings) as (listener, _), _making_folder() as folder:
        settings = replace(
            settings, limits=settings.limits.divide(num_processes), uploads=settings.uploads or folder / "uploads"
        )
        work = Work(open=open_service, settings=settings, listener=listener, folder=folder)
        address = spell_address(listener, settings.proxy)
        Supervisor(work, num_processes, lambda: announce(address) if announce else None).run()


@contextmanager
def _making_folder() -> Iterator[Path]:
    """Make the folder that the processes share; it may be gone in the end, where they were left alone before."""
    folder = Path(tempfile.mkdtemp(prefix="vitrieve-serve-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process is given.

    Attributes:
        open: Opens index and encoder, or several collections.
        settings: What to allow, for this one process.
        listener: Socket to accept connections from.
        folder: Folder of this service alone, with the counts.
    """

    open: Callable[[], Searcher | Collections]
    settings: ServeSettings
    listener: socket
    folder: Path


def answer_requests(work: Work, teller: connection.Connection) -> None:
    """Be one of the processes: load everything, answer, and tell None once connections are accepted, or the error."""
    threading.Thread(target=_end_with_parent, args=(work.folder,), daemon=True).start()
    write_logs_to_standard_error()
    share_counts(work.folder)
    try:
        with work.open() as opened:
            is_open = opened.is_open if isinstance(opened, Collections) else work.settings.is_open
            hosts = list_hosts(work.settings.host, work.listener, is_open=is_open)
            app = create_served_app(opened, work.settings, hosts, work.folder)
            for service in app.state.services:
                service.prepare()
            run_server(app, work.listener, lambda: teller.send(None))
    except (VitrieveError, OSError, MemoryError) as error:
        with suppress(OSError):
            teller.send(error)
        sys.exit(1)


def _end_with_parent(folder: Path) -> None:
    """Stop when the first process is gone, however it ended, and remove what visitors sent in its place."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(eq=False, kw_only=True)
class _Process:
    """One of the processes, as the first one sees it.

    Attributes:
        process: The process.
        ears: What it tells comes here.
        generation: Number of restarts before it was started.
        is_ready: Flag that it answers.
        error: Error that ended it, as far as it told one.
        killed_at: Time at which it is killed, because it was told to stop; None: it was not.
    """

    process: SpawnProcess
    ears: connection.Connection
    generation: int
    is_ready: bool = False
    error: Exception | None = None
    killed_at: float | None = None


class Supervisor:
    """Keeps a number of processes running; see the top of the file.

    Args:
        work: What each of them is given.
        num_processes: Number of processes that answer.
        announce: Called when the first of them answers.
    """

    def __init__(self, work: Work, num_processes: int, announce: Callable[[], None]) -> None:
        self._work = work
        self._num_processes = num_processes
        self._announce = announce
        self._processes: list[_Process] = []
        self._generation = 0
        self._may_start_at = 0.0
        self._is_announced = False
        self._is_stopping = False

    def run(self) -> None:
        """Run until SIGINT or SIGTERM; raises as ``serve_processes``."""
        resource_tracker.ensure_running()  # it would change which signals are blocked later
        with _receiving_signals() as signals:
            try:
                while not self._is_stopping:
                    self._fill_up()
                    self._wait(signals)
            finally:
                self._is_stopping = True
                for one in self._processes:
                    self._stop(one)
                while self._processes:
                    self._wait(signals)

    def _fill_up(self) -> None:
        """Start what is missing, and stop what a newer process has replaced."""
        staying = [one for one in self._processes if one.killed_at is None]
        new = [one for one in staying if one.generation == self._generation]
        old = sorted((one for one in staying if one not in new), key=lambda one: one.is_ready)
        while old and sum(one.is_ready for one in new) + len(old) > self._num_processes:
            self._stop(old.pop(0))
        if time.monotonic() >= self._may_start_at:
            for _ in range(self._num_processes + bool(old) - len(new) - len(old)):
                self._start()

    def _start(self) -> None:
        if sys.platform == "win32":
            raise NotImplementedError
        ears, teller = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=answer_requests, args=(self._work, teller))
        # Ctrl-C and the end of a terminal reach all processes; this one decides what they mean.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            teller.close()
        self._processes.append(_Process(process=process, ears=ears, generation=self._generation))

    def _stop(self, one: _Process) -> None:
        if one.killed_at is None:
            one.killed_at = time.monotonic() + KILL_SECONDS
            one.process.terminate()

    def _wait(self, signals: connection.Connection) -> None:
        """Wait until something happens, and see to it."""
        now = time.monotonic()
        times = [one.killed_at for one in self._processes if one.killed_at is not None]
        if self._may_start_at > now and not self._is_stopping:
            times.append(self._may_start_at)
        ears = {one.ears: one for one in self._processes if not (one.is_ready or one.error)}
        sentinels = [one.process.sentinel for one in self._processes]
        timeout = max(0.0, min(times) - now) if times else None
        happened = connection.wait([signals, *ears, *sentinels], timeout)
        for one in [one for ear, one in ears.items() if ear in happened]:
            self._listen(one)
        for one in [one for one in self._processes if one.process.sentinel in happened]:
            self._remove(one)
        for one in self._processes:
            if one.killed_at is not None and time.monotonic() >= one.killed_at:
                one.process.kill()
        if signals in happened:
            self._obey(signals.recv())

    def _obey(self, number: int) -> None:
        if sys.platform == "win32":
            raise NotImplementedError
        if number == signal.SIGHUP:
            log_event("restarting", processes=self._num_processes)
            self._generation += 1
            return
        for one in self._processes if self._is_stopping and number == signal.SIGINT else ():
            one.process.kill()  # the second Ctrl-C
        self._is_stopping = True

    def _listen(self, one: _Process) -> None:
        try:
            one.error = one.ears.recv()
        except (EOFError, OSError):
            one.error = ArtifactError("a process of the service ended before it answered; the log may say why.")
        if one.error is None:
            one.is_ready = True
            log_event("process ready", process_id=one.process.pid)
            if not self._is_announced:
                self._is_announced = True
                self._announce()

    def _remove(self, one: _Process) -> None:
        """Let go of a process that has ended, and note why, where it was not told to."""
        self._processes.remove(one)
        one.process.join()
        status, process_id = one.process.exitcode, one.process.pid
        one.process.close()
        if not (one.is_ready or one.error):
            self._listen(one)
        one.ears.close()
        if one.killed_at is not None or self._is_stopping:
            return
        log_event("process ended", process_id=process_id, exit_status=status, reason=str(one.error or ""))
        if not self._is_announced:
            assert one.error is not None
            raise one.error
        if not one.is_ready:
            self._may_start_at = time.monotonic() + START_PAUSE_SECONDS
            for other in self._processes:  # those that answer stay: the restart is given up
                other.generation = self._generation


@contextmanager
def _receiving_signals() -> Iterator[connection.Connection]:
    """Give the block what the numbers of signals come out of, in place of what they would do."""
    if sys.platform == "win32":
        raise NotImplementedError
    receiver, sender = _SPAWN.Pipe(duplex=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: sender.send(got)) for number in numbers}
    try:
        yield receiver
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        receiver.close()
        sender.close()
