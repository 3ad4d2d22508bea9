"""Flags about a proxy in front of a service, which ``vitrieve serve`` and ``vitrieve up`` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from vitrieve.cli.arguments import Switch

if TYPE_CHECKING:
    from vitrieve.serve.place import Place


@dataclass(frozen=True, kw_only=True)
class ProxyArguments:
    """What a service must know of a proxy in front of it."""

    public_url: str | None = None
    """What browsers open when a proxy stands in front, such as https://example.org/photos: allows the name, says the
    prefix, and lets cookies travel by TLS alone."""
    root_path: str | None = None
    """Prefix of every path at the proxy, such as /photos; it may take it off or leave it on."""
    allowed_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further name by which browsers reach the service through a proxy; repeatable."""
    proxy_headers: Switch = False
    """Believe the proxy's X-Forwarded-Proto, so that cookies travel by TLS alone where the browser came by TLS."""


def read_place(arguments: ProxyArguments) -> Place:
    """Read where a proxy shows the service.

    Raises:
        ConfigError: As ``build_place`` says.
    """
    from vitrieve.serve.place import build_place

    return build_place(
        public_url=arguments.public_url,
        root_path=arguments.root_path,
        allowed_hosts=arguments.allowed_host,
        has_proxy_headers=arguments.proxy_headers,
    )
