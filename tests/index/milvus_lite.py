"""A milvus-lite server for the tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path


class Server:
    """A milvus-lite server in a process of its own, reached over its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["-m", "milvus_lite.cmdline", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command = [sys.executable, *words, "--data-dir", str(self.folder)]
        with (self.folder.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder.parent / "server.log").read_text()
                time.sleep(0.05)
        raise AssertionError("milvus-lite does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
