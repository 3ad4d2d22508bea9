"""Files on servers (``s3://``, ``gs://``, ``https://``): how they are named, and how a server is asked through fsspec.

``/s3:/BUCKET/SHARDS/000003.tar`` is how a path spells ``s3://BUCKET/SHARDS/000003.tar``: absolute, so that embeddings,
indexes and states store it as they store every path, and whoever opens them finds the picture on any machine.
Credentials come from the environment of each kind of server, and stand in no address. What a server sends too little
of, or too late, is asked for again, a few times; ``blocks.py`` keeps what was sent.

All questions run in the event loop of fsspec, in its thread, which dies with this process and is made anew in a fork.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from vitrieve.errors import ConfigError, DataError, UnreachableError

T = TypeVar("T")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
"""Of each scheme the package that fsspec needs."""
EXTRA = "remote"
"""The extra that brings them, but for gcsfs."""
RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0)
"""Waits between the attempts, of which there is one more."""
TIMEOUT_SECONDS = 30.0
"""Time for an answer."""
BYTES_PER_SECOND = 100_000.0
"""Speed below which a server counts as stalled: it has so much more time for long answers."""
NUM_QUESTIONS_AT_ONCE = 32
_OPTIONS: dict[str, dict[str, Any]] = {
    # One attempt of theirs for each of ours; so that the message tells the truth about their number.
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}},
    # A range of compressed bytes is no range of the file. trust_env: proxies, and passwords in ~/.netrc.
    "http": {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}},
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SECRETS = (
    (re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@"), r"\1…@"),
    (re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?#'\")]*)[?#][^\s'\")]*"), r"\1?…"),
)


class FileInfo(NamedTuple):
    """What a server says of a file.

    Attributes:
        num_bytes: Its size.
        stamp: Text that changes with its content (ETag, time of change); empty where the server tells nothing.
        modified_ns: Time of its last change, to the second, and behind that a number made of the stamp; the present
            time where the server does not tell.
    """

    num_bytes: int
    stamp: str
    modified_ns: int


def is_remote(source: str) -> bool:
    """Say whether what stands after ``shards:`` is an address.

    >>> is_remote("s3://bucket/shards"), is_remote("/data/shards")
    (True, False)
    """
    return _SCHEME.match(source) is not None


def shorten_addresses(text: str) -> str:
    """Leave passwords and queries out of all addresses in a text: a query may be a signature.

    >>> shorten_addresses("from https://me:secret@host/a?signature=1: refused")
    'from https://…@host/a?… refused'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def check_address(address: str) -> str:
    """Check the address of a folder, and take the slashes from its end.

    Raises:
        ConfigError: Of a scheme that is not read, with a password or a query in it, or none that a path can spell.
    """
    shown = shorten_addresses(address)
    parts = urlsplit(address)
    if parts.scheme not in PACKAGES:
        schemes = ", ".join(f"{scheme}://" for scheme in PACKAGES)
        raise ConfigError(f"shards:{shown}: {parts.scheme}:// is not read; accepted: {schemes}.")
    if "?" in address or "#" in address or "@" in parts.netloc or not parts.netloc:
        raise ConfigError(
            f"shards:{shown}: the address of shards is SCHEME://HOST/PATH, without a query and a password, which would "
            "be stored with every picture. Credentials come from the environment: AWS_ACCESS_KEY_ID and its like, "
            "GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc."
        )
    address = address.rstrip("/")
    if {"", ".", ".."} & set(urlsplit(address).path.split("/")[1:]) or "\0" in address:
        raise ConfigError(f"shards:{shown}: an address of shards has no empty part, '.' or '..' in its path.")
    return address


def spell_address(address: str) -> Path:
    """Spell an address as a path.

    >>> spell_address("s3://bucket/shards").as_posix(), parse_address(spell_address("s3://bucket/shards"))
    ('/s3:/bucket/shards', 's3://bucket/shards')
    """
    scheme, _, place = address.partition("://")
    return Path(f"/{scheme}:/{place}")


def parse_address(path: Path) -> str | None:
    """Read a path that ``spell_address`` spelled; None for any other."""
    scheme = path.parts[1][:-1] if len(path.parts) > 3 and path.parts[1].endswith(":") else ""
    return f"{scheme}://{'/'.join(path.parts[2:])}" if scheme in PACKAGES and path.anchor else None


# Asking a server


class _Systems:
    """The file systems of fsspec, one for each scheme; a forked process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: dict[str, Any] = {}

    def open(self, address: str) -> Any:
        """Open the file system for an address.

        Raises:
            ConfigError: Its package is not installed.
        """
        scheme = address.partition("://")[0]
        with self._lock:
            if scheme not in self._opened:
                self._opened[scheme] = _open_system(scheme)
            return self._opened[scheme]


def _open_system(scheme: str) -> Any:
    package = PACKAGES[scheme]
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(package)
    except ImportError:
        install = package if scheme == "gs" else f"'vitrieve[{EXTRA}]'"
        raise ConfigError(f"shards:{scheme}://… needs the package {package}: pip install {install}.") from None
    options = _OPTIONS.get(scheme.removesuffix("s") if package == "aiohttp" else scheme, {})
    system = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
    system.retries = 1  # of s3fs; others have no such number
    return system


_systems = _Systems()
_of_parent: list[_Systems] = []
"""Kept in a fork: their connections belong to the process that opened them, and are not to be closed here."""


def _forget_systems() -> None:
    global _systems
    _of_parent.append(_systems)
    _systems = _Systems()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_systems)


def start(address: str, answer: Callable[[Any], Coroutine[Any, Any, T]]) -> Future[T]:
    """Begin to work for an answer in the event loop.

    Args:
        address: Where the answer comes from.
        answer: Coroutine function of fsspec's file system.
    """
    system = _systems.open(address)
    return asyncio.run_coroutine_threadsafe(answer(system), system.loop)


async def ask(address: str, question: Callable[[], Awaitable[T]], num_bytes: int = 0) -> T:
    """Ask a server, and again where the answer may be another the next time.

    Args:
        address: What is asked for, for messages.
        question: Makes one attempt.
        num_bytes: Length of the answer, for the time that it may take.

    Raises:
        FileNotFoundError: The server says that there is no such file.
        UnreachableError: It refuses access, or gives no good answer in all attempts.
        DataError: It sends whole files where a part is asked for.
    """
    reason = ""
    for delay in (*RETRY_DELAYS_SECONDS, None):
        try:
            return await asyncio.wait_for(question(), TIMEOUT_SECONDS + num_bytes / BYTES_PER_SECOND)
        except DataError:
            raise
        except TimeoutError:
            reason = "no answer in time"
        except Exception as error:  # each library has its own kinds of them
            reason = _explain(address, error)
        if delay is not None:
            await asyncio.sleep(delay)
    raise UnreachableError(
        f"the shard server is gone: {shorten_addresses(address)} was not read in {len(RETRY_DELAYS_SECONDS) + 1} "
        f"attempts ({reason}). What is done is kept: when the server answers, repeat the command, with --resume where "
        "it has that."
    )


def _explain(address: str, error: Exception) -> str:
    """Return why an attempt failed; raise where another one would not help."""
    cause = error.__cause__
    status = getattr(error, "status", getattr(cause, "status", None))
    # Over HTTP fsspec calls every file missing that it knows nothing of.
    is_unsure = address.startswith("http") and cause is not None and status not in (404, 410)
    if isinstance(error, FileNotFoundError) and not is_unsure:
        raise FileNotFoundError(2, "No such file", shorten_addresses(address)) from error
    text = shorten_addresses(" ".join(str(cause if is_unsure else error).split()))[:300]
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ == "NoCredentialsError":
        raise UnreachableError(
            f"{shorten_addresses(address)}: access is refused ({text}). Check the address, and give credentials in the "
            "environment (AWS_ACCESS_KEY_ID and its like, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc); FSSPEC_S3_ANON="
            "true asks a public bucket without any."
        ) from error
    return text or type(error).__name__


async def fetch(system: Any, address: str, first: int, stop: int) -> bytes:
    """Fetch the bytes from ``first`` to ``stop`` of a file.

    Raises:
        FileNotFoundError: It is gone.
        UnreachableError: The server does not send them.
        DataError: It sends the whole file.
    """

    async def fetch_once() -> bytes:
        data = await system._cat_file(address, start=first, end=stop)
        if len(data) > stop - first:
            raise DataError(
                f"{shorten_addresses(address)}: the server sends the whole file where a part is asked for. Serve the "
                "shards with one that answers range requests, as nginx, Caddy and S3 do (python -m http.server does "
                "not)."
            )
        if len(data) < stop - first:
            raise OSError(f"{len(data):,} of {stop - first:,} bytes were sent")
        return bytes(data)

    return await ask(address, fetch_once, stop - first)


def find_infos(addresses: Sequence[str]) -> list[FileInfo]:
    """Ask for many files at a time, of one scheme.

    Raises:
        FileNotFoundError: One is missing; its ``filename`` says which.
        UnreachableError: The server does not answer.
        DataError: It does not say how many bytes one has.
    """
    if not addresses:
        return []

    async def ask_all(system: Any) -> list[FileInfo]:
        turn = asyncio.Semaphore(NUM_QUESTIONS_AT_ONCE)

        async def ask_one(address: str) -> FileInfo:
            async with turn:
                return _read_info(address, await ask(address, lambda: system._info(address)))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask_one(address)) for address in addresses]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    return start(addresses[0], ask_all).result()


def list_files(address: str) -> dict[str, FileInfo]:
    """List the files below an address by their names below it, sorted; HTTP cannot.

    Raises:
        FileNotFoundError: There is no such place.
        UnreachableError: The server does not answer.
    """

    async def list_all(system: Any) -> dict[str, FileInfo]:
        found = await ask(address, lambda: system._find(address, detail=True))
        base = system._strip_protocol(address).rstrip("/") + "/"
        return {
            name.removeprefix(base): _read_info(name, info)
            for name, info in sorted(found.items())
            if name.startswith(base)
        }

    return start(address, list_all).result()


def _read_info(address: str, info: dict[str, Any]) -> FileInfo:
    """Read what fsspec says of a file, in the words of each kind of server."""
    num_bytes = info.get("size")
    if info.get("type") == "directory":
        raise FileNotFoundError(2, "No such file", shorten_addresses(address))
    if not isinstance(num_bytes, int):
        raise DataError(
            f"{shorten_addresses(address)}: the server does not say how many bytes it has, so that nothing in it can "
            "be read by itself."
        )
    tag = next((str(info[key]) for key in ("ETag", "etag") if info.get(key)), "")
    changed = next((info[key] for key in ("LastModified", "Last-Modified", "updated", "mtime") if info.get(key)), None)
    stamp = f"{tag} {changed}" if tag or changed else ""
    seconds = _read_time(changed)
    if seconds is None:
        return FileInfo(num_bytes, stamp, time.time_ns())
    behind = int(hashlib.sha256(f"{num_bytes} {stamp}".encode()).hexdigest()[:12], 16) % 10**9
    return FileInfo(num_bytes, stamp, seconds * 10**9 + behind)


def _read_time(changed: Any) -> int | None:
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed) if changed[:4].isdigit() else parsedate_to_datetime(changed)
        except ValueError:
            return None
    return int(changed.timestamp()) if isinstance(changed, datetime) else None
