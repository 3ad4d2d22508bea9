"""Processes that train together as torchrun would start them, forked from one that has loaded torch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

SECONDS_MAX = 120
"""After this a test gives up."""
LOADED = ["torch", "torch._dynamo", "timm", "vitrieve.cli.train", "vitrieve.training.run", "vitrieve.evaluation.report"]


class EndedRank(NamedTuple):
    """How a rank ended: its exit status (minus the number of a signal), what it printed, and what it returned."""

    status: int
    printed: str
    result: Any


def run_ranks(
    size: int,
    folder: Path,
    function: Callable[..., Any],
    *args: Any,
    environment: dict[str, str] | None = None,
    num_awake: int | None = None,
) -> list[EndedRank]:
    """Call ``function(*args)`` in as many processes, which find each other by torchrun's variables.

    Args:
        size: Number of processes.
        folder: Existing folder for what they print and return.
        function: Function of a module; a process ends with what it returns.
        args: Its arguments, the same for all; a list stands for one argument for each rank.
        environment: Variables of the processes beside torchrun's.
        num_awake: Number of the first processes that must end before the others, which stand still, are sent SIGCONT;
            None: nobody stands still.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    processes = []
    for rank in range(size):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        own = [value[rank] if isinstance(value, list) else value for value in args]
        given = (variables, folder / f"printed{rank}", folder / f"result{rank}", function, own)
        processes.append(context.Process(target=_run, args=given))
    with _finding_tests():
        for process in processes:
            process.start()
    for number, process in enumerate(processes):
        if number == num_awake:
            for still in processes[number:]:
                assert still.pid is not None
                os.kill(still.pid, signal.SIGCONT)
        process.join(SECONDS_MAX)
    ended = []
    for rank, process in enumerate(processes):
        if process.exitcode is None:
            process.kill()
            process.join()
        printed = (folder / f"printed{rank}").read_text(encoding="utf-8")
        result = folder / f"result{rank}"
        ended.append(
            EndedRank(process.exitcode or 0, printed, pickle.loads(result.read_bytes()) if result.exists() else None)
        )
        result.unlink(missing_ok=True)
    return ended


@contextmanager
def _finding_tests() -> Iterator[None]:
    """Let processes that are started in the block import this package: they get the path of this one.

    ``python -m pytest`` puts the current folder on it; ``pytest`` does not.
    """
    before = list(sys.path)
    sys.path.append(str(Path(__file__).parents[1]))
    try:
        yield
    finally:
        sys.path[:] = before


def _run(variables: dict[str, str], printed: Path, result: Path, function: Callable[..., Any], args: list[Any]) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    written = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    returned = function(*args)
    result.write_bytes(pickle.dumps(returned))
    sys.stdout.flush()
    os._exit(returned if isinstance(returned, int) else 0)
