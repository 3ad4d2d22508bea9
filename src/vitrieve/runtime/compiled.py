"""Compiled graphs kept in the cache, so that a new process need not compile: a third of what a search waits for.

A file holds what OpenVINO writes of a compiled graph, and behind it a checksum of that. Its name is a digest of all
that the result depends on: the graph's own checksum, what was cut and added, the settings, OpenVINO's version, and the
processor. A file that is damaged, or that OpenVINO refuses, counts as missing; a folder that cannot be written to costs
time only. The files that were used last are kept, up to ``MAX_BYTES``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitrieve.errors import ConfigError
from vitrieve.machine import cache_folder, count_cores

if TYPE_CHECKING:
    import openvino

MAX_BYTES = 512 * 2**20
"""Of all files together; a graph of which one takes more is not kept."""
FORMAT = 1
"""Counts up when what is written, or how a graph is made before it is compiled, changes."""
SUFFIX = ".blob"
_DIGEST_BYTES = 32
_DEVICE = "CPU"


class CompiledGraph(NamedTuple):
    """A compiled graph.

    Attributes:
        compiled: What OpenVINO runs.
        memory: Mapped file that it may read from, which must live as long; None where it was compiled here.
    """

    compiled: openvino.CompiledModel
    memory: np.ndarray | None = None


def compile_kept(
    core: openvino.Core, build: Callable[[], openvino.Model], settings: Mapping[str, Any], identity: Mapping[str, Any]
) -> CompiledGraph:
    """Return a compiled graph: the one that was kept, else a new one, which is kept.

    Args:
        core: The core of this process.
        build: Builds the graph; not called where a compiled one is there.
        settings: Settings of the compilation.
        identity: All that tells the graph from every other, as JSON values.

    Raises:
        RuntimeError: The graph cannot be compiled.
    """
    try:
        path = _find_path(core, settings, identity)
    except ConfigError:  # a user without a home folder has no cache
        return CompiledGraph(core.compile_model(build(), _DEVICE, dict(settings)))
    kept = _load(core, path, settings)
    if kept is not None:
        return kept
    compiled = core.compile_model(build(), _DEVICE, dict(settings))
    with suppress(OSError, RuntimeError, MemoryError):  # the graph is there, and the next process compiles it again
        _keep(path, compiled)
    return CompiledGraph(compiled)


def _find_path(core: openvino.Core, settings: Mapping[str, Any], identity: Mapping[str, Any]) -> Path:
    import openvino

    said = {
        "format": FORMAT,
        "openvino": openvino.get_version(),
        "processor": core.get_property(_DEVICE, "FULL_DEVICE_NAME"),
        "instructions": sorted(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")),
        "num_cores": count_cores(),
        "settings": dict(settings),
        "graph": dict(identity),
    }
    name = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "compiled" / f"{name}{SUFFIX}"


def _load(core: openvino.Core, path: Path, settings: Mapping[str, Any]) -> CompiledGraph | None:
    """Load a compiled graph; None where there is none, or one that is damaged."""
    import openvino

    try:
        whole = np.memmap(path, dtype=np.uint8, mode="c")  # OpenVINO wants memory that could be written to
        written = whole[:-_DIGEST_BYTES]
        if hashlib.sha256(written.data).digest() != whole[-_DIGEST_BYTES:].tobytes():
            return None
        compiled = core.import_model(openvino.Tensor(written, shared_memory=True), _DEVICE, dict(settings))
    except (OSError, ValueError, RuntimeError):  # missing, empty, or of an OpenVINO that reads it no longer
        return None
    with suppress(OSError):
        os.utime(path)
    return CompiledGraph(compiled, memory=whole)


def _keep(path: Path, compiled: openvino.CompiledModel) -> None:
    written = compiled.export_model().getbuffer()
    if len(written) > MAX_BYTES:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:  # not made durable: a checksum tells what a power cut has left
            file.write(written)
            file.write(hashlib.sha256(written).digest())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _drop_oldest(path.parent)


def _drop_oldest(folder: Path) -> None:
    """Remove what was used longest ago, until the rest takes no more than ``MAX_BYTES``."""
    found = []
    for path in folder.iterdir():  # temporary files too, which a killed process leaves
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    num_bytes = 0
    for _, size, path in sorted(found, reverse=True):
        num_bytes += size
        if num_bytes > MAX_BYTES:
            path.unlink(missing_ok=True)
