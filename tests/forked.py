"""A process that has loaded torch and forks ``python -m MODULE`` for each command; it may be killed at a sync.

Most of the time of a command on a tiny model is the loading of its libraries, which a fork need not repeat.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NEVER = 10_000
"""Number of an ``os.fsync`` that no command reaches."""

SERVER = """
import json, os, runpy, signal, sys, traceback
import torch, torch._dynamo, torch.onnx, torch.utils.flop_counter, timm, onnx, onnxruntime
import vitrieve.cli.main, vitrieve.cli.train, vitrieve.training.run, vitrieve.evaluation.report

fsync = os.fsync

def run(module, words, num_syncs, prelude, log):
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
    sys.argv = [module, *words]
    try:
        exec(prelude, {})
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    print(num_done, flush=True)
    os._exit(status)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Every file that must survive a crash is synced: kills at a sync fall before and inside the writing of each."""


class Ended(NamedTuple):
    """How a command ended: its status, what it printed, and how often it synced (0 when it was killed)."""

    status: int
    printed: str
    num_syncs: int


class ForkedVitrieve:
    """Runs commands, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        """Start the process that forks; ``folder`` is for what commands print."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)  # type: ignore[call-overload]
        self._log = folder / "log"

    def __call__(
        self, words: Sequence[object], *, num_syncs: int = NEVER, module: str = "vitrieve", prelude: str = ""
    ) -> Ended:
        """Run ``python -m MODULE WORDS…`` after the lines of ``prelude``; kill it at its n-th ``os.fsync``."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = [module, [str(word) for word in words], num_syncs, prelude, str(self._log)]
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        printed = self._log.read_text(encoding="utf-8")
        assert "Traceback" not in printed, printed
        if status < 0:
            return Ended(status, printed, 0)
        printed, _, count = printed.rstrip("\n").rpartition("\n")
        return Ended(status, printed, int(count) if status == 0 else 0)

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate()
