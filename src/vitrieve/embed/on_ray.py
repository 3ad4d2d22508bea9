"""Embedding on Ray: actors hold the encoder and write the parts, the program that started them joins these.

The parts are those of ``unfinished.py``, in a folder that all machines see. What crosses the network is the records of
a few parts at a time, and the reasons of pictures that cannot be read. The actors read and decode their pictures
themselves: nothing else asks the cluster for processors, so that actors that fill it leave nobody waiting. An actor
that dies is replaced, and its parts go to the others.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from vitrieve.artifacts import check_replacing, replacing_folder
from vitrieve.data.records import Dataset, ImageRecord, find_absolute
from vitrieve.embed import unfinished
from vitrieve.embed.collection import (
    EmbedSettings,
    check_any,
    check_failures,
    describe_encoder,
    finish_parts,
    name_labels,
    write_missing_parts,
)
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.unfinished import count_records, find_failures, find_missing, num_parts, open_parts, part_path
from vitrieve.errors import ClusterError, ConfigError, FingerprintError, VitrieveError
from vitrieve.machine import count_cores
from vitrieve.progress import print_message, track
from vitrieve.runtime.encoder import Encoder

MAX_PARTS_IN_TASK = 4
"""Parts that an actor is given at once: between them it goes on decoding while it encodes."""
NUM_TASKS_AHEAD = 2
"""Tasks that an actor has: the one at hand, and the next."""
NUM_TRIES = 5
"""Deaths of actors over one task, or at their start in a row, after which the work is given up."""
POLL_SECONDS = 10.0
"""Seconds without an answer after which it is looked whether parts appear."""
HOST_AND_PORT = re.compile(r"(?:ray://)?(?P<host>[^:/]+|\[[^\]]+\]):(?P<port>\d+)")
"""An address of a cluster that names a machine."""
SECONDS_TO_ANSWER = 20.0
"""Seconds in which a machine of that address must take a connection."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Memory for what is sent, on a machine where Ray is started here; Ray asks for 75 MB at least."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Which cluster works, and how many actors."""

    address: str | None = None
    """Address of a cluster as ``ray.init`` takes it, HOST:PORT or auto; None: Ray is started on this machine, and
    ended afterwards."""
    num_actors: int | None = None
    """Actors, each of which holds the encoder; None: as many as the cluster has GPUs, or processors for."""
    num_cpus: int = 1
    """Processors of one actor."""
    is_on_gpu: bool | None = None
    """Whether each actor has a GPU; None: where the cluster has GPUs."""
    patience_seconds: float = 1800.0
    """Seconds without a part or a new actor after which the work ends with an error."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("num_actors", "num_cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more.")


def embed_on_ray(
    load: Callable[[], Encoder],
    dataset: Dataset,
    out: Path | str,
    *,
    cluster: RaySettings | None = None,
    settings: EmbedSettings | None = None,
    is_resume: bool = False,
    is_overwrite: bool = False,
) -> Embeddings:
    """Embed a collection on Ray, into a folder that all its machines see; the artifact is that of ``embed_collection``.

    Whatever is killed, the same call with ``is_resume`` goes on: no finished part is made twice.

    Args:
        load: Function that loads the encoder, called in each actor: ``functools.partial(load_encoder, "runs/mine")``
            with an absolute path.
        dataset: The collection, by paths that all machines see.
        out: Folder to write.
        cluster: Address, and number and size of the actors; None: all cores of this machine.
        settings: Batch size, decoding threads of one actor, share of unreadable images; None: the defaults.
        is_resume: Go on with an unfinished folder.
        is_overwrite: Replace what is there.

    Returns:
        The embeddings, read back from the folder.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: The cluster cannot be reached, has no room for an actor, makes no progress, or lets actors die.
        DataError: No image, no readable image, or more unreadable ones than allowed; what is done is kept.
        ArtifactError: The folder is finished or of another collection.
        FingerprintError: The folder was begun with another encoder, or two actors have different ones.
    """
    settings, cluster, out = settings or EmbedSettings(), cluster or RaySettings(), Path(out)
    ray = _import_ray()
    records = name_labels(dataset)
    check_any(records)
    check_replacing(out, kind="embeddings", is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=True)
    with _connected(ray, cluster), closing(_Crew(ray, load, cluster, settings)) as crew:
        fields = crew.start()
        if settings.show_progress:
            print_message(f"engine: {fields['engine']} {fields['precision']}, on up to {crew.size} actors of Ray")
        with replacing_folder(out, kind="embeddings", is_overwrite=is_overwrite, is_resume=is_resume) as folder:
            parts = open_parts(folder, fields["fingerprint"], records)
            _write_parts(crew, records, parts, settings)
            finish_parts(folder, dataset, records, fields)
    return load_embeddings(out)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports its use over the network
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import ray
    except ImportError:
        raise ConfigError("embedding on Ray needs the package ray: pip install 'vitrieve[ray]'.") from None
    return ray


@contextmanager
def _connected(ray: Any, cluster: RaySettings) -> Iterator[None]:
    """Be connected to the cluster in the block; a program that is connected already stays so."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    hint = ""
    try:
        _require_answer(cluster.address)
        if cluster.address is None:
            num_cpus = max(count_cores(), (cluster.num_actors or 1) * cluster.num_cpus)
            here = {"num_cpus": num_cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init("local", object_store_memory=OBJECT_STORE_BYTES, **here, **quiet)
        else:
            hint = " (a cluster that asks for a token needs RAY_AUTH_MODE=token and the right RAY_AUTH_TOKEN)"
            ray.init(cluster.address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # a port above 65535 overflows
        where = "on this machine" if cluster.address is None else f"at {cluster.address}"
        raise ClusterError(f"Ray cannot be reached {where}: {error}{hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray itself would try a quarter of an hour.

    Raises:
        OSError: The address has no such host, or nothing listens at its port.
    """
    found = HOST_AND_PORT.fullmatch(address or "")
    if found is not None:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=SECONDS_TO_ANSWER).close()


@dataclass(frozen=True)
class _Window(Sequence[ImageRecord]):
    """Some records that stand at their place among all: what an actor is sent of a collection.

    Attributes:
        length: Number of all records.
        first: Place of the first one that is here.
        records: Those that are here.
    """

    length: int
    first: int
    records: tuple[ImageRecord, ...]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, place: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[ImageRecord, ...]: ...

    def __getitem__(self, place: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        if isinstance(place, slice):
            start, stop, _ = place.indices(self.length)
            return self.records[start - self.first : stop - self.first]
        return self.records[place - self.first]


def _cut_window(records: Sequence[ImageRecord], task: range) -> _Window:
    """Cut out the records of neighboring parts; their paths hold wherever the actor runs."""
    first, end = task.start * unfinished.PART_SIZE, task.stop * unfinished.PART_SIZE
    chosen = (replace(record, path=Path(find_absolute(record.path))) for record in records[first:end])
    return _Window(len(records), first, tuple(chosen))


class _Worker:
    """What an actor is."""

    def __init__(self, load: Callable[[], Encoder], settings: EmbedSettings) -> None:
        self._load, self._settings = load, settings

    def start(self) -> tuple[str, dict[str, Any]]:
        """Load the encoder; return the name of the machine, and what the encoder says about itself."""
        self._encoder = self._load()
        return socket.gethostname(), describe_encoder(self._encoder)

    def write(self, records: _Window, parts: Path, task: range) -> list[tuple[str, str]]:
        """Write the parts of a task that are not there; return the pictures that have no vector."""
        if not parts.is_dir():
            raise ClusterError(
                f"the machine {socket.gethostname()} does not see {parts}: give an --out that all machines see."
            )
        return write_missing_parts(self._encoder, records, parts, self._settings, {}, numbers=task)


@dataclass(eq=False)
class _Member:
    """An actor, and the tasks that it has, in the order in which it works on them."""

    handle: Any
    tasks: dict[Any, range] = field(default_factory=dict)


class _Crew:
    """The actors: started, watched, and replaced when they die."""

    def __init__(self, ray: Any, load: Callable[[], Encoder], cluster: RaySettings, settings: EmbedSettings) -> None:
        self._ray, self._load, self._cluster = ray, load, cluster
        # The share of unreadable pictures is counted over all actors.
        self._settings = replace(settings, max_bad_fraction=1.0, show_progress=False)
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        self._is_on_gpu = num_gpus > 0 if cluster.is_on_gpu is None else cluster.is_on_gpu
        room = num_gpus if self._is_on_gpu else int(ray.cluster_resources().get("CPU", 0)) // cluster.num_cpus
        self.size = cluster.num_actors or max(1, room)
        self._starting: dict[Any, _Member] = {}
        self._members: list[_Member] = []
        self._deaths: Counter[int] = Counter()
        self._num_failed_starts = 0
        self._fields: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Start the actors, and wait for the first; return what its encoder says about itself."""
        for _ in range(self.size):
            self._add()
        while not self._members:
            self._greet(self._wait(None))
        return self._fields

    def work(
        self, records: Sequence[ImageRecord], parts: Path, tasks: Sequence[range]
    ) -> Iterator[tuple[range, list[tuple[str, str]]]]:
        """Yield each task when it is done, in whatever order, with the pictures that have no vector."""
        waiting = deque(tasks)
        while waiting or any(member.tasks for member in self._members):
            for member in self._members:
                while waiting and len(member.tasks) < NUM_TASKS_AHEAD:
                    task = waiting.popleft()
                    sent = member.handle.write.remote(_cut_window(records, task), parts, task)
                    member.tasks[sent] = task
            answer = self._wait(parts)
            if answer in self._starting:
                self._greet(answer)
                continue
            member = next(one for one in self._members if answer in one.tasks)
            try:
                failures = self._get(answer)
            except self._ray.exceptions.RayError as error:
                waiting.extendleft(reversed(self._bury(member, error)))
                continue
            yield member.tasks.pop(answer), failures

    def close(self) -> None:
        """End the actors."""
        for member in [*self._starting.values(), *self._members]:
            self._ray.kill(member.handle)

    def _add(self) -> None:
        resources = {"num_cpus": self._cluster.num_cpus, "num_gpus": int(self._is_on_gpu)}
        handle = self._ray.remote(**resources)(_Worker).remote(self._load, self._settings)
        self._starting[handle.start.remote()] = _Member(handle)

    def _get(self, answer: Any) -> Any:
        """Return an answer; raise an error of ours as it was raised, and RayError where the actor died."""
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, VitrieveError | OSError):
                raise cause from None
            raise RuntimeError(f"an actor failed: {error}") from None

    def _greet(self, answer: Any) -> None:
        """Take in an actor that has loaded its encoder, or replace it where it died over that."""
        member = self._starting.pop(answer)
        try:
            host, fields = self._get(answer)
        except self._ray.exceptions.RayError as error:
            self._num_failed_starts += 1
            if self._num_failed_starts >= NUM_TRIES:
                raise ClusterError(f"{NUM_TRIES} actors in a row died while they loaded the encoder: {error}") from None
            self._add()
            return
        self._num_failed_starts = 0
        self._fields = self._fields or fields
        if fields != self._fields:
            raise FingerprintError(
                f"the actors have different encoders: that on {host} has {fields}, the first {self._fields}. Give all "
                "machines the same, and name --engine and --precision where the machines differ."
            )
        self._members.append(member)

    def _bury(self, member: _Member, error: Exception) -> list[range]:
        """Replace an actor that died; return its tasks."""
        self._members.remove(member)
        self._ray.kill(member.handle)  # where it is only out of reach
        tasks = list(member.tasks.values())
        first = tasks[0]  # that it worked on
        self._deaths[first.start] += 1
        if self._deaths[first.start] >= NUM_TRIES:
            rows = range(first.start * unfinished.PART_SIZE, first.stop * unfinished.PART_SIZE)
            raise ClusterError(
                f"{NUM_TRIES} actors died while they embedded the images from number {rows.start} to {rows.stop - 1}; "
                f"what is done is kept. The last: {error}"
            )
        self._add()
        return tasks

    def _wait(self, parts: Path | None) -> Any:
        """Wait for the next answer of an actor.

        Raises:
            ClusterError: No answer and no part for longer than the settings allow.
        """
        pending = [*self._starting, *(answer for member in self._members for answer in member.tasks)]
        num_done, since, is_told = -1, time.monotonic(), False
        while True:
            seconds = min(POLL_SECONDS, self._cluster.patience_seconds)
            answers, _ = self._ray.wait(pending, num_returns=1, timeout=seconds)
            if answers:
                return answers[0]
            found = self._count_parts(parts)
            if found != num_done:
                num_done, since = found, time.monotonic() if num_done >= 0 else since
            if time.monotonic() - since >= self._cluster.patience_seconds:
                raise ClusterError(
                    f"Ray has made no progress for {self._cluster.patience_seconds:g} s: {self._describe_state()}. "
                    "What is done is kept."
                )
            if not self._members and not is_told:
                print_message(f"waiting for Ray: {self._describe_state()}")
                is_told = True

    def _count_parts(self, parts: Path | None) -> int:
        """Count the parts that are written of those that actors have."""
        tasks = [task for member in self._members for task in member.tasks.values()]
        return sum(part_path(parts, number).is_file() for task in tasks for number in task) if parts else 0

    def _describe_state(self) -> str:
        has, free = self._ray.cluster_resources(), self._ray.available_resources()
        amounts = [f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}s are free" for name in ("CPU", "GPU")]
        return (
            f"{len(self._members)} of {self.size} actors have started, each of which needs {self._cluster.num_cpus} "
            f"CPUs{' and a GPU' if self._is_on_gpu else ''}; {', '.join(amounts)}"
        )


def _write_parts(crew: _Crew, records: Sequence[ImageRecord], parts: Path, settings: EmbedSettings) -> None:
    """Let the actors write the parts that are missing."""
    missing = find_missing(parts, range(num_parts(len(records))))
    is_missing = set(missing)
    there = [number for number in range(num_parts(len(records))) if number not in is_missing]
    failures = find_failures(records, parts, there)
    check_failures(failures, len(records), settings.max_bad_fraction)
    size = max(1, min(MAX_PARTS_IN_TASK, len(missing) // (2 * NUM_TASKS_AHEAD * crew.size)))
    results = crew.work(records, parts, _cut_tasks(missing, size))
    done = (found for task, found in results for found in [found, *[[]] * (len(task) - 1)])
    tracked = track(
        done,
        "embed",
        total=count_records(records, missing),
        weight=unfinished.PART_SIZE,
        is_shown=settings.show_progress,
    )
    with closing(tracked):
        for found in tracked:
            failures += found
            check_failures(failures, len(records), settings.max_bad_fraction)
    left = find_missing(parts, missing)
    if left:
        raise ClusterError(
            f"{len(left)} parts that actors have written are not in {parts}: give an --out that all machines see."
        )


def _cut_tasks(numbers: Sequence[int], size: int) -> list[range]:
    """Join neighbors to tasks of up to ``size`` parts.

    >>> _cut_tasks([0, 1, 2, 5, 6], 2)
    [range(0, 2), range(2, 3), range(5, 7)]
    """
    tasks: list[range] = []
    for number in numbers:
        if tasks and tasks[-1].stop == number and len(tasks[-1]) < size:
            tasks[-1] = range(tasks[-1].start, number + 1)
        else:
            tasks.append(range(number, number + 1))
    return tasks
