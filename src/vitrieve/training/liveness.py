"""Which of a training's processes has failed: signs of life and last words in the store that all of them reach.

A process that waits for another in a collective operation learns at best that a connection was closed, and not whose.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own list lacks it

BEAT_SECONDS = 1.0
SILENT_SECONDS = 4.0
"""Silence after which a process whose connection is closed counts as dead."""
LOST_SECONDS = 25.0
"""Silence after which a process counts as dead though nothing else says so: it stands still, or its host has lost power
or network. torchrun then gives those that stand still 30 s more before it kills them."""
STATUS_LOST = 1
_FAILED = "failed"


class Watch:
    """A thread that gives signs of life and looks for those of the others, and one that judges by what was seen.

    The first may wait for a store that stands still, without end. Silence is counted while this process runs: what it
    did not hear while it stood still itself says nothing about the others.

    Args:
        address: Host and port of the store, which torchrun or the first process keeps.
        rank: Number of this process, from 0.
        size: Number of processes.
        name: Name of this process for people.
    """

    def __init__(self, address: tuple[str, int], rank: int, size: int, name: str) -> None:
        # A client of its own: others wait on theirs, for as long as a measurement takes.
        self._store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=LOST_SECONDS))
        # A restart of all processes under the same torchrun meets the keys of before.
        self._prefix = f"vitrieve/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._address = address
        self._names = {rank: name}
        self._rank, self._size = rank, size
        self._lock = threading.Lock()
        self._awake = 0.0  # seconds that this process has watched
        self._answered = 0.0  # those at the last answer of the store
        self._seen = {other: ("", 0.0) for other in range(size) if other != rank}
        self._is_over = threading.Event()
        self._store.set(self._key(f"name/{rank}"), name)
        self._count = 0
        self._beat()
        self._talking = threading.Thread(target=self._talk, daemon=True, name="vitrieve-life")
        self._judging = threading.Thread(target=self._judge, daemon=True, name="vitrieve-watch")
        self._talking.start()
        self._judging.start()

    def name(self, rank: int) -> str:
        """Return a process's name for people.

        Raises:
            RuntimeError: It was never asked for, and the store is gone.
        """
        if rank not in self._names:
            key = self._key(f"name/{rank}")
            with self._lock:
                if not self._store.check([key]):
                    return f"rank {rank} of {self._size}"
                self._names[rank] = self._store.get(key).decode()
        return self._names[rank]

    def has_store(self) -> bool:
        """Say whether the store answers; it is gone with the process that keeps it, or with its host."""
        with suppress(RuntimeError), self._lock:
            self._store.check([self._key(f"name/{self._rank}")])
            return True
        return False

    def describe_lost_store(self) -> str:
        """Say what is gone where the store is."""
        host, port = self._address
        return (
            f"the store of the training at {host}, port {port}, is gone: torchrun or rank 0, which kept it there, was "
            "killed or stands still, or its host or network failed"
        )

    def claim_failure(self) -> bool:
        """Return whether this process is the first to fail, and so the one that tells; later ones keep quiet."""
        try:
            with self._lock:
                first = self._store.compare_set(self._key(_FAILED), "", str(self._rank))
        except RuntimeError:  # the store is gone with the process or the launcher that kept it
            return True
        return first.decode() == str(self._rank)

    def find_failed(self) -> list[int]:
        """Return who has died: those that are silent for some seconds.

        None where another tells of its failure, and where the store is gone, so that nobody can be heard.

        Waits until each of the others has given a sign of life, or has been silent for so long.
        """
        seen = {other: 0 for other in self._seen}
        before = {other: beat for other, (beat, _) in self._seen.items()}
        while self.has_store() and not self.has_failed():
            with suppress(RuntimeError):
                self._look()
            silent = self._list_silent(SILENT_SECONDS, self._awake)
            for other, (beat, _) in self._seen.items():
                seen[other] += beat != before[other]
                before[other] = beat
            # One sign may be the last, read late.
            if silent or all(count > 1 for count in seen.values()):
                return silent
            time.sleep(BEAT_SECONDS / 4)
        return []

    def has_failed(self) -> bool:
        """Say whether another process tells of its failure."""
        with suppress(RuntimeError), self._lock:
            return bool(self._store.check([self._key(_FAILED)]))
        return False

    def close(self) -> None:
        """End the threads; a process that has closed its watch is not missed by the others."""
        self._is_over.set()
        self._judging.join()
        self._talking.join(LOST_SECONDS)
        if not self._talking.is_alive():
            with suppress(RuntimeError), self._lock:
                self._store.set(self._key(f"beat/{self._rank}"), "over")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _talk(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            with suppress(RuntimeError):  # the store is gone; that is judged by its silence
                self._beat()
                self._look()
                self._answered = self._awake

    def _beat(self) -> None:
        self._count += 1
        with self._lock:
            self._store.set(self._key(f"beat/{self._rank}"), str(self._count))

    def _look(self) -> None:
        """Read the signs of life of the others.

        Raises:
            RuntimeError: The store is gone.
        """
        for other, (before, _) in self._seen.items():
            key = self._key(f"beat/{other}")
            with self._lock:
                beat = self._store.get(key).decode() if self._store.check([key]) else ""
            if beat != before:
                self._seen[other] = beat, self._awake

    def _list_silent(self, seconds: float, until: float) -> list[int]:
        return [other for other, (beat, since) in self._seen.items() if beat != "over" and until - since > seconds]

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._is_over.wait(BEAT_SECONDS):
            now = time.monotonic()
            # Much more than a beat has passed where this process stood still, or its host did.
            self._awake += min(now - before, 2 * BEAT_SECONDS)
            before = now
            is_store_lost = self._awake - self._answered > LOST_SECONDS
            # Nobody is heard of from a store that does not answer, and nobody is missed who has ended.
            silent = self._list_silent(LOST_SECONDS, self._awake if is_store_lost else self._answered)
            if silent:
                self._end(silent, is_store_lost=is_store_lost)

    def _end(self, silent: list[int], *, is_store_lost: bool) -> None:
        """End this process, whose main thread waits for others that no longer are."""
        if not is_store_lost:  # the store may stop answering just now
            last = threading.Timer(LOST_SECONDS / 2, self._end, [silent], {"is_store_lost": True})
            last.daemon = True
            last.start()
        if is_store_lost or self.claim_failure():
            try:
                names = [] if is_store_lost else [self.name(other) for other in silent]
            except RuntimeError:
                names = []
            silence = f"{', '.join(names)} gave no sign of life for {LOST_SECONDS:.0f} s"
            lost = silence if names else self.describe_lost_store()
            text = f"vitrieve: error: {lost}; the training ends. --resume goes on from the last state.\n"
            os.write(2, text.encode())
        os._exit(STATUS_LOST)


def ignore_sigterm() -> None:
    """Let a process that is ending finish its last words, although torchrun ends it already."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
