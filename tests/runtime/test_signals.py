"""A signal finds its handler's stack, however encoders are let go: OpenVINO gives threads such stacks, and takes them.

The programs run in a process of their own, because what is tested for is its end in a segmentation fault.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

PROGRAM = """
import gc
import os
import signal
import sys
import threading

from vitrieve import load_encoder


def load():
    return load_encoder(sys.argv[2], engine="openvino")


if sys.argv[1] == "by another thread":
    encoders = [load()]
    thread = threading.Thread(target=encoders.clear)
    thread.start()
    thread.join()
else:
    first, second = load(), load()
    del first
    gc.collect()
    del second
gc.collect()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: print("handled", number, flush=True))
    os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize("way", ["by another thread", "first the first"])
def test_a_signal_is_handled_after_encoders_were_let_go(way: str, tiny_encoder_folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, way, str(tiny_encoder_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled 2\nhandled 15\n"), done.stderr[-3000:]
