"""Where a proxy shows the service: names, prefix, and whether browsers speak TLS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from vitrieve.errors import ConfigError

OWN_PATHS = (
    *("compare", "explain", "healthz", "images", "login", "metrics", "openapi.json", "readyz", "search", "static"),
    *("thumbnails", "uploads"),
)
"""First parts of the service's own paths; a prefix that begins with one could not be told from them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What browsers see of the service.

    Attributes:
        allowed_hosts: Names in the browser's address, each with or without a port; without: any port.
        root_path: Prefix of every path, such as ``/photos``; empty: none.
        is_secure: Whether every browser comes by TLS.
        has_proxy_headers: Whether a proxy says in ``X-Forwarded-Proto`` how the browser came. Who forges it only
            changes the cookie that it is given itself.
    """

    allowed_hosts: tuple[str, ...] = ()
    root_path: str = ""
    is_secure: bool = False
    has_proxy_headers: bool = False

    def is_by_tls(self, request: Request) -> bool:
        """Say whether a browser sent a request by TLS, so that its cookie never leaves without it."""
        forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
        return self.is_secure or request.scope["scheme"] == "https" or (self.has_proxy_headers and forwarded == "https")


def build_place(
    *, public_url: str | None, root_path: str | None, allowed_hosts: Sequence[str], has_proxy_headers: bool
) -> Place:
    """Build a place from what the command line says; the public address says name, prefix and TLS at once.

    Raises:
        ConfigError: An address, a prefix or a name that cannot be one, or a prefix said twice.

    >>> build_place(public_url="https://a.example/photos/", root_path=None, allowed_hosts=(), has_proxy_headers=False)
    Place(allowed_hosts=('a.example',), root_path='/photos', is_secure=True, has_proxy_headers=False)
    """
    names = tuple(map(check_name, allowed_hosts))
    if public_url is None:
        return Place(allowed_hosts=names, root_path=check_prefix(root_path or ""), has_proxy_headers=has_proxy_headers)
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
    return Place(
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
