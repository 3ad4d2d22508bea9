"""What whoever runs the service decides: bounds of requests, the proxy in front, the token; and what must be installed.

It imports no package of the service, so that a missing one is told in a sentence.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vitrieve.errors import ConfigError
from vitrieve.machine import count_cores, require_packages

if TYPE_CHECKING:
    from starlette.requests import Request

MEBIBYTE = 2**20
MAX_TEXT = 4096
"""Characters of a text: the longest path of Linux, because an image's name is one."""
COMMAS = ",\u060c\uff0c\u3001"
"""Commas of several scripts: people write several tags with them, so that no tag has one."""
MAX_LIST = 1000
"""Entries of a list, and values of a condition; a server allows fewer, but a list is never read further than this."""
MAX_VECTOR = 16_384
"""Numbers of a vector."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of the service; every one can be met by a stranger's request, and none is exceeded.

    What a picture may take is one rule for the service and for collections, in ``data/work.py``.

    Attributes:
        address_bytes: Size of a request's path and query: the longest path (4,095 bytes) fits, spelled in ``%xx``.
        header_bytes: Size of a request's headers, names and values together.
        num_headers: Headers of one request.
        body_bytes: Size of a request's body. A photograph of 50 megapixels has about 20 million bytes.
        drained_bytes: Size up to which a refused body is received and dropped, so that the client reads the
            answer; a larger one is cut off.
        json_bytes: Size of a request's JSON, in which a picture takes a third more than its file.
        json_values: Numbers, texts and fields of one request's JSON, counted by their commas before it is parsed.
        json_fields: Fields of it, counted before it is parsed; a batch of 100 changes of 64 columns each has 6,801.
        held_bytes: Size of all bodies that are being received or worked on.
        k: Results on one page of an answer.
        offset: Results before that page.
        examples: Pictures, ids and vectors in one search.
        filters: Conditions in one search.
        body_seconds: Time to receive a body; the connection of a client that takes longer is closed.
        request_seconds: Time to wait for a worker and its work.
        num_workers: Searches computed at the same time: one for each core, as more would only slow each other.
        num_waiting: Searches that wait for a worker; the next one is turned away.
        num_waiting_thumbnails: Thumbnails that wait for a worker; one page asks for dozens.
        retry_after_seconds: Time after which a client that is turned away is told to come again.
        upload_bytes: Size of the pictures that visitors sent, kept so that a result's address can be opened again.
        num_uploads: Number of those pictures.
        upload_seconds: Time for which one is kept that nobody looks at, where they are kept in a folder.
        thumbnail_bytes: Size of the thumbnails kept in memory.
        resident_bytes: Size of the copy of the index that answers searches; a larger index is searched on disk.
        reads_per_minute: Requests of one client that a process answers in a minute, one after a pause at once; a search
            counts as ``SEARCH_READS`` of them. 0: any number.
        writes_per_minute: Changes of indexes that a process makes in a minute.
        free_bytes: Space on the disk that no picture that is sent may take.
    """

    address_bytes: int = 16 * 1024
    header_bytes: int = 32 * 1024
    num_headers: int = 100
    body_bytes: int = 25 * MEBIBYTE
    drained_bytes: int = 100 * MEBIBYTE
    json_bytes: int = 8 * MEBIBYTE
    json_values: int = 300_000
    json_fields: int = 8000
    held_bytes: int = 256 * MEBIBYTE
    k: int = 200
    offset: int = 10_000
    examples: int = 16
    filters: int = 16
    body_seconds: float = 30.0
    request_seconds: float = 20.0
    num_workers: int = field(default_factory=lambda: max(2, count_cores()))
    num_waiting: int = 32
    num_waiting_thumbnails: int = 512
    retry_after_seconds: int = 2
    upload_bytes: int = 128 * MEBIBYTE
    num_uploads: int = 1000
    upload_seconds: float = 24 * 3600.0
    thumbnail_bytes: int = 64 * MEBIBYTE
    resident_bytes: int = 1024 * MEBIBYTE
    reads_per_minute: int = 60_000
    writes_per_minute: int = 600
    free_bytes: int = 1024 * MEBIBYTE

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could pass."""
        for one in fields(self):
            least = 0 if one.name in ("num_waiting", "resident_bytes", "reads_per_minute") else 1
            value = getattr(self, one.name)
            if one.type != "float" and value < least:
                raise ConfigError(f"the limit {one.name} is {value}; give {least} or more.")
            if one.type == "float" and not value > 0:
                raise ConfigError(f"the limit {one.name} is {value}; give a positive number of seconds.")

    def divide(self, num_processes: int) -> Limits:
        """Return the bounds of one of several processes, so that all together hold no more memory than one would.

        What is divided are the bodies held, but one fits, and the thumbnails kept.
        """
        return replace(
            self,
            held_bytes=max(self.held_bytes // num_processes, self.body_bytes),
            thumbnail_bytes=max(1, self.thumbnail_bytes // num_processes),
        )


SEARCH_READS = 10
"""Requests that a search counts as, and whatever else computes as much."""


def share_cores(num_processes: int, num_threads: int | None, num_workers: int | None) -> tuple[int | None, int]:
    """Return threads of a search and searches at a time, of each of several processes, where they are not given.

    Raises:
        ConfigError: There is no process.
    """
    if num_processes < 1:
        raise ConfigError(f"--num-processes is {num_processes}; give 1 or more.")
    num_cores = max(1, count_cores() // num_processes)
    if num_threads is None and num_processes > 1:
        num_threads = num_cores
    return num_threads, max(2, num_cores) if num_workers is None else num_workers


OWN_PATHS = (
    *("columns", "compare", "explain", "facets", "feedback", "healthz", "images", "login", "map", "mcp", "metrics"),
    *("openapi.json", "readyz", "search", "static", "thumbnails", "uploads"),
)
"""First parts of the service's own paths; a prefix that begins with one could not be told from them.

``/c`` is one where there are several collections, and is refused there alone, by ``vitrieve serve``.
"""


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """What browsers see of the service.

    Attributes:
        allowed_hosts: Names in the browser's address, each with or without a port; without: any port.
        root_path: Prefix of every path, such as ``/photos``; empty: none.
        is_secure: Flag that every browser comes by TLS.
        has_proxy_headers: Flag that a proxy says in ``X-Forwarded-Proto`` how the browser came. Who forges it only
            changes the cookie that it is given itself.
        mount: Path of one of several collections behind that prefix, such as ``/c/shoes``; empty: there is one.
    """

    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    is_secure: bool = False
    has_proxy_headers: bool = False
    mount: str = ""

    @property
    def prefix(self) -> str:
        """Return what stands before every path that a page names."""
        return self.root_path + self.mount

    def is_by_tls(self, request: Request) -> bool:
        """Say whether a browser sent a request by TLS, so that its cookie never leaves without it."""
        forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
        return self.is_secure or request.scope["scheme"] == "https" or (self.has_proxy_headers and forwarded == "https")


def build_proxy_settings(
    *, public_url: str | None, root_path: str | None, allowed_hosts: Sequence[str], has_proxy_headers: bool
) -> ProxySettings:
    """Build the settings from what the command line says; the public address says name, prefix and TLS at once.

    Raises:
        ConfigError: An address, a prefix or a name that cannot be one, or a prefix said twice.

    >>> address = "https://a.example/photos/"
    >>> settings = build_proxy_settings(public_url=address, root_path=None, allowed_hosts=(), has_proxy_headers=False)
    >>> settings.allowed_hosts, settings.root_path, settings.is_secure
    (('a.example',), '/photos', True)
    """
    names = tuple(map(check_name, allowed_hosts))
    if public_url is None:
        return ProxySettings(
            allowed_hosts=names, root_path=check_prefix(root_path or ""), has_proxy_headers=has_proxy_headers
        )
    try:
        parts = urlsplit(public_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc:
        raise ConfigError(
            f"--public-url is {public_url!r}; give what browsers open, such as https://example.org/photos."
        )
    prefix = check_prefix(parts.path)
    if root_path is not None and check_prefix(root_path) != prefix:
        raise ConfigError(f"--public-url has the prefix {prefix!r} and --root-path is {root_path!r}; leave one out.")
    return ProxySettings(
        allowed_hosts=(check_name(parts.netloc), *names),
        root_path=prefix,
        is_secure=parts.scheme == "https",
        has_proxy_headers=has_proxy_headers,
    )


def check_prefix(text: str) -> str:
    """Return a prefix in its one spelling: a slash in front, none at its end; ``/`` is none at all.

    Raises:
        ConfigError: Characters that a prefix cannot have, or a first part that is a path of the service itself.
    """
    prefix = "/" + text.strip("/")
    if prefix == "/":
        return ""
    parts = prefix[1:].split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9_~.-]+", part) and part not in (".", "..") for part in parts):
        raise ConfigError(f"the prefix is {text!r}; give one of letters, digits, - _ . ~ such as /photos.")
    if parts[0] in OWN_PATHS:
        raise ConfigError(
            f"the prefix is {text!r}, but /{parts[0]} is a path of the service; give another, as /photos."
        )
    return prefix


def check_name(text: str) -> str:
    """Return a name, with or without a port, as browsers spell it in an address.

    Raises:
        ConfigError: Anything else, such as a whole address or a pattern.
    """
    if not re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", text):
        raise ConfigError(
            f"{text!r} is no host name; give one as browsers show it, such as photos.example or [::1]:8443."
        )
    return text.lower()


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where a service listens, and what it allows.

    Attributes:
        host: Address to listen on.
        port: Port; 0: any that is free.
        token: Token that requests must bring; None: no token, on a loopback alone.
        write_token: Token that changes of the index must bring, which also reads; None: nothing can be changed.
        has_own_tokens: Flag that each of several collections asks for a token of its own.
        limits: Bounds of requests.
        proxy: Settings for a proxy in front.
        uploads: Folder in which several services keep the pictures that visitors send; None: in memory, or with
            several processes in a folder that is removed in the end.
    """

    host: str
    port: int
    token: str | None = None
    write_token: str | None = None
    has_own_tokens: bool = False
    limits: Limits = field(default_factory=Limits)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    uploads: Path | None = None

    @property
    def is_open(self) -> bool:
        """Say whether anything can be read without a token."""
        return self.token is None and not self.has_own_tokens


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Who may read and who may write.

    Attributes:
        read: Tokens that open what can be read; empty: everybody may read.
        write: Tokens that open changes, and what ``read`` opens; empty: nothing can be changed.
    """

    read: tuple[str, ...] = field(default=(), repr=False)
    write: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, token: str | None, write_token: str | None = None) -> Tokens:
        """Hold one of each, or none."""
        return cls(read=() if token is None else (token,), write=() if write_token is None else (write_token,))


TOKEN_VARIABLE = "VITRIEVE_TOKEN"
WRITE_TOKEN_VARIABLE = "VITRIEVE_WRITE_TOKEN"
EXTRA_PACKAGES = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
MIN_TOKEN_LENGTH = 16
"""A token can be tried as fast as the network allows; shorter ones are words."""


def check_extra() -> None:
    """Refuse to go on without the packages of the service.

    Raises:
        ConfigError: One is missing.
    """
    require_packages(EXTRA_PACKAGES, "serve")


def read_token(host: str, token: str | None, *, has_own_tokens: bool = False) -> str | None:
    """Return the token, from the flag or the variable VITRIEVE_TOKEN; None on a local address without one.

    Args:
        host: Address to listen on.
        token: What the flag says.
        has_own_tokens: Flag that each of several collections asks for a token of its own, so that none is needed.

    Raises:
        ConfigError: None although other machines can reach the address, or one that is too short or no ASCII.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None:
        check_token(token, "token")
    elif not has_own_tokens and not is_local(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, so it needs a token: set {TOKEN_VARIABLE} "
            "(python -c 'import secrets; print(secrets.token_urlsafe())' makes one), or leave --host out."
        )
    return token


def read_write_token(token: str | None, read_token: str | None) -> str | None:
    """Return the token for changes, from the flag or the variable VITRIEVE_WRITE_TOKEN; None: nothing can be changed.

    Raises:
        ConfigError: One that is too short or no ASCII, or the same as the token for reading.
    """
    token = token or os.environ.get(WRITE_TOKEN_VARIABLE) or None
    if token is not None:
        check_token(token, "write token")
        if token == read_token:
            raise ConfigError("the write token is the token for reading, too; give two that differ.")
    return token


def check_token(token: str, name: str) -> None:
    """Refuse a token that could be guessed or not be sent.

    Raises:
        ConfigError: It is too short, or holds something else than printable ASCII without spaces.
    """
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the {name} has {len(token)} characters; it must be {MIN_TOKEN_LENGTH} or more printable ASCII "
            "characters without spaces."
        )


LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(host: str) -> bool:
    """Say whether an address, or every address of a name, can be reached from this machine only.

    >>> is_local("127.0.0.2"), is_local("127.1"), is_local("0.0.0.0"), is_local("::1")
    (True, True, False, True)
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)} if host else ()
    except (OSError, UnicodeError):  # listening there will say what is wrong with it
        return False
    return bool(found) and all(_is_loopback(address) for address in found)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(normalize_address(address).partition("%")[0]).is_loopback


def normalize_address(name: str) -> str:
    """Spell an address in its one way; a name that is no address stays as it is.

    >>> normalize_address("::ffff:7f00:1"), normalize_address("0:0:0:0:0:0:0:1"), normalize_address("localhost")
    ('127.0.0.1', '::1', 'localhost')
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


IPV6_NETWORK_BITS = 64
"""Length of the prefix of the addresses that one household or machine gets as a whole."""


def find_network(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the network of an IPv6 address.

    >>> find_network("192.0.2.7"), find_network("::ffff:192.0.2.7"), find_network("2001:db8::7")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK_BITS), strict=False))
