"""A process that forks ``vitrieve`` and kills it, and what runs of tests need not repeat."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

NEVER = 10_000
"""Number of an ``os.fsync`` that no run reaches."""

SERVER = """
import json, os, signal, sys
import torch, torch._dynamo, torch.onnx, torch.utils.flop_counter, timm, onnx, onnxruntime
import vitrieve.cli.train, vitrieve.training.run
from vitrieve.cli.main import main

fsync = os.fsync

def run(words, num_syncs, log):
    num_done = 0

    def fsync_or_die(descriptor):
        nonlocal num_done
        if num_done == num_syncs:
            os.kill(os.getpid(), signal.SIGKILL)
        num_done += 1
        fsync(descriptor)

    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    os.fsync = fsync_or_die
    status = main(words)
    print(num_done, flush=True)
    os._exit(status)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Imports torch once, and forks a process for each command. Every file that must survive a crash is synced, so that
kills at a sync fall before and inside the writing of each."""


class Ended(NamedTuple):
    """How a process ended: its status, what it printed, and how often it synced (0 when it was killed)."""

    status: int
    printed: str
    num_syncs: int


class ForkedVitrieve:
    """Runs ``vitrieve WORDS…`` in a process of its own, which may be killed at its n-th ``os.fsync``."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)  # type: ignore[call-overload]
        self._log = folder / "log"

    def __call__(self, words: Sequence[object], *, num_syncs: int = NEVER) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([[str(word) for word in words], num_syncs, str(self._log)]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        printed = self._log.read_text(encoding="utf-8")
        assert "Traceback" not in printed, printed
        return Ended(status, printed, int(printed.split()[-1]) if status == 0 else 0)

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(scope="session")
def forked_vitrieve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedVitrieve]:
    forked = ForkedVitrieve(tmp_path_factory.mktemp("forked"))
    yield forked
    forked.close()


@pytest.fixture(scope="session", autouse=True)
def _costs_are_counted_once() -> Iterator[None]:
    """The same tiny model is counted by dozens of runs, at half a second each."""
    from vitrieve.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "count_cost", functools.cache(run.count_cost))
        yield
