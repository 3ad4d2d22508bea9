"""Make this process of Linux one where files and signals are as on Windows, as far as Python tells them.

What Windows lacks is gone, and its rules hold: whoever opens a folder is refused, a file that is open can neither be
removed nor replaced, a folder with an open file cannot be renamed, and a rename replaces nothing. Which files are open,
``/proc`` tells, so what other languages have opened counts too. Paths stay those of Linux.

This stands in for a machine of Windows, which is not here. It cannot show what only the real one does.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

MISSING_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses")
MISSING_IN_OS = (
    *("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_SYNC", "O_NOCTTY"),
    *("pread", "preadv", "pwrite", "pwritev", "readv", "writev", "sendfile", "fchmod", "fchown", "chown", "lchown"),
    *("fork", "forkpty", "register_at_fork", "setsid", "getpgid", "getpgrp", "killpg", "nice", "posix_spawn"),
    *("getuid", "geteuid", "getgid", "getegid", "getgroups", "getrandom", "ctermid", "ttyname", "mkfifo", "mknod"),
    *("sched_getaffinity", "sched_setaffinity", "sched_yield", "sysconf", "pathconf", "statvfs", "fstatvfs", "uname"),
    *("posix_fadvise", "posix_fallocate", "getloadavg", "sync", "wait3", "wait4", "getpriority", "memfd_create"),
)
MISSING_SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGWINCH")
MISSING_IN_SIGNAL = ("setitimer", "getitimer", "ITIMER_REAL", "alarm", "pause", "pthread_sigmask", "pthread_kill")
OF_OTHERS = (
    *("asyncio", "concurrent.futures.process", "multiprocessing.connection", "subprocess", "tempfile"),
    *("anyio._backends._asyncio", "fastapi", "lancedb", "onnxruntime", "prometheus_client", "pyarrow.dataset", "tyro"),
    *("pyarrow.parquet", "rich.console", "scipy.stats", "starlette.testclient", "tensorboard", "timm", "torchvision"),
    *("mcp.server", "mcp.server.stdio", "mcp.server.streamable_http_manager", "mcp_types", "openvino", "faiss"),
    *("torch.utils.tensorboard", "uvicorn", "watchfiles"),
)
"""What takes something from the system that they would not ask for on Windows."""
LOCKED_AT: set[int] = set()
"""Places in files that were locked."""

_flock, _rename, _replace, _unlink, _open, _utime = (
    fcntl.flock,
    os.rename,
    os.replace,
    os.unlink,
    os.open,
    os.utime,
)


def list_open() -> Iterator[str]:
    """Name every file that this process has open or mapped."""
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            yield line[73:].rstrip("\n")


def _refuse(path: Any) -> PermissionError:
    error = PermissionError(13, "The process cannot access the file because it is being used by another process")
    error.filename = os.fspath(path)
    return error


def _find(path: Any) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))


def _require_closed(path: Any) -> None:
    whole = _find(path)
    if any(name == whole or name.startswith(f"{whole}/") for name in list_open()):
        raise _refuse(path)


def rename(source: Any, target: Any) -> None:
    _require_closed(source)
    if os.path.lexists(target):
        raise FileExistsError(17, "Cannot create a file when that file already exists", os.fspath(target))
    _rename(source, target)


def replace(source: Any, target: Any) -> None:
    _require_closed(source)
    if os.path.isdir(target):
        raise PermissionError(13, "Access is denied", os.fspath(target))
    _require_closed(target)
    _replace(source, target)


def unlink(path: Any) -> None:
    _require_closed(path)
    _unlink(path)


def open_descriptor(path: Any, flags: int, mode: int = 0o777) -> int:
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return _open(path, flags, mode)


def utime(path: Any, times: Any = None, *, ns: Any = None, follow_symlinks: bool = True) -> None:
    if not follow_symlinks:
        raise NotImplementedError("utime: follow_symlinks unavailable on this platform")
    _utime(path, times) if ns is None else _utime(path, ns=ns)


def locking(descriptor: int, mode: int, num_bytes: int) -> None:
    """Lock as ``msvcrt.locking``: without waiting, and for one open file."""
    LOCKED_AT.add(os.lseek(descriptor, 0, os.SEEK_CUR))
    assert (mode, num_bytes) == (2, 1)
    try:
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


def _make_no_link(*_: Any, **__: Any) -> None:
    raise OSError(1314, "A required privilege is not held by the client")


def pretend() -> None:
    """Begin. What was imported before keeps what it has taken from the system's modules."""
    disk_usage: Callable[[Any], Any] = shutil.disk_usage
    statvfs = os.statvfs

    def find_usage(path: Any) -> Any:
        os.statvfs = statvfs  # type: ignore[method-assign]
        try:
            return disk_usage(path)
        finally:
            del os.statvfs

    for name in MISSING_IN_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in (*MISSING_SIGNALS, *MISSING_IN_SIGNAL):
        if hasattr(signal, name):
            delattr(signal, name)
    for name in MISSING_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    windows = types.ModuleType("msvcrt")
    windows.locking, windows.LK_NBLCK = locking, 2  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = windows
    os.supports_follow_symlinks.discard(_utime)
    shutil.disk_usage = find_usage  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.O_BINARY = 0  # type: ignore[attr-defined]
    os.rename, os.replace, os.unlink, os.remove, os.open = rename, replace, unlink, unlink, open_descriptor  # type: ignore[assignment]
    os.utime, os.symlink = utime, _make_no_link  # type: ignore[assignment]
    sys.platform = "win32"


def walk(work: Path, pictures: Path, encoder: Path) -> None:
    """Go the whole way that needs no torch: every module, index, search, changes, replacing, the service."""
    import vitrieve

    failed = {}
    for module in pkgutil.walk_packages(vitrieve.__path__, "vitrieve."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
    torch_free = {name: text for name, text in failed.items() if "torch" not in text and "timm" not in text}
    assert torch_free == {}, torch_free

    from vitrieve.cli.main import main
    from vitrieve.index.folder import writing
    from vitrieve.index.open import open_index
    from vitrieve.search.searcher import Searcher

    words = ["--encoder", str(encoder), "--num-threads", "1"]
    embeddings = work / "embeddings"
    assert main(["embed", "--data", str(pictures), "--out", str(embeddings), *words]) == 0
    for store in ("exact", "lance"):
        index = work / store
        make = ["index", "--embeddings", str(embeddings), "--out", str(index), "--store", store]
        assert main(make) == 0
        assert main(["search", "--index", str(index), str(pictures / "01.png"), "-k", "1", *words]) == 0
        assert main([*make, "--overwrite"]) == 0
        assert main(["index", "--verify", "--index", str(index)]) == 0
        opened = open_index(index)
        vectors, records = opened.get(["01.png", "02.png"])
        opened.upsert(vectors, records)
        assert opened.delete(["02.png"]) == 1
        opened.optimize()
        assert opened.count() == len(list(pictures.iterdir())) - 1
        opened.close()
        with writing(index):
            assert (work / f".{index.name}.writer.lock").is_file()
        synced = work / f"synced-{store}"
        sync = ["sync", "--data", str(pictures), "--index", str(synced), "--store", store, *words]
        assert main(sync) == 0
        (pictures / "01.png").rename(pictures / "moved.png")
        assert main(sync) == 0
        (pictures / "moved.png").rename(pictures / "01.png")
    (work / "exact" / "held").touch()
    with (work / "exact" / "held").open("rb"):  # another program, as far as a rename can tell
        assert main(["index", "--embeddings", str(embeddings), "--out", str(work / "exact"), "--overwrite"]) == 2
    with Searcher.open(work / "exact", str(encoder)) as searcher:
        serve(searcher, pictures, work)


def serve(searcher: Any, pictures: Path, work: Path) -> None:
    """Ask a service for everything that touches files."""
    from starlette.testclient import TestClient

    from vitrieve.errors import ConfigError
    from vitrieve.serve.app import create_app
    from vitrieve.serve.processes import serve_processes
    from vitrieve.serve.settings import Limits, ServeSettings

    picture = (pictures / "01.png").read_bytes()
    limits = Limits(free_bytes=1, num_uploads=2)
    app = create_app(searcher, limits=limits, write_token="a-token-to-write-with", uploads=work / "uploads")
    headers = {"Authorization": "Bearer a-token-to-write-with"}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        while client.get("/readyz").status_code == 503:
            pass
        assert client.get("/images/01.png").content == picture
        for name in ("01.png", "03.png", "01.png"):
            data = (pictures / name).read_bytes()
            answer = client.post("/search", files={"image": ("x.png", data)}, data={"k": "1"})
            assert answer.status_code == 200, answer.text
        for _ in range(2):
            sent = client.put("/images/sent.png", content=picture, headers=headers)
            assert sent.status_code in (200, 201), sent.text
        assert client.delete("/images/sent.png", headers=headers).status_code == 200
        assert "vitrieve_requests_total" in client.get("/metrics", headers=headers).text
    try:
        serve_processes(lambda: searcher, ServeSettings(host="127.0.0.1", port=0), num_processes=2)
    except ConfigError as error:
        assert "--num-processes" in str(error)  # noqa: PT017
    else:
        raise AssertionError("several processes are refused on Windows")


def main() -> None:
    """Import what other packages need from the system, pretend, and go the whole way."""
    for name in OF_OTHERS:
        with suppress(ImportError):
            importlib.import_module(name)
    load = ctypes.CDLL.__init__

    def load_named(self: Any, name: Any, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        load(self, name, *args, **kwargs)

    ctypes.CDLL.__init__ = load_named  # type: ignore[method-assign]
    pretend()
    walk(*map(Path, sys.argv[1:4]))
    from vitrieve.systems import LOCK_AT

    assert {LOCK_AT} == LOCKED_AT
    print("the whole way")


if __name__ == "__main__":
    main()
