"""``vitrieve serve``: an index as a search page and a service over HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vitrieve.cli.arguments import MapPaths, Switch
from vitrieve.cli.console import print_message, print_result
from vitrieve.config import Device
from vitrieve.errors import ConfigError
from vitrieve.runtime.choice import EngineChoice, PrecisionChoice

if TYPE_CHECKING:
    from vitrieve.serve.place import Place

TOKEN_VARIABLE = "VITRIEVE_TOKEN"
EXTRA_PACKAGES = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
MIN_TOKEN_LENGTH = 16
"""A token can be tried as fast as the network allows; shorter ones are words."""


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


@dataclass(frozen=True, kw_only=True)
class Arguments(ProxyArguments):
    """Serve an index: a page for people, and an interface for programs. Ends with Ctrl+C."""

    index: Path
    """Folder of the index."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token."""
    port: int = 8000
    """Port; 0: any that is free."""
    token: str | None = None
    """What requests must bring as Authorization: Bearer; better in the variable VITRIEVE_TOKEN, which no list of
    processes shows."""
    encoder: str | None = None
    """Where the index's encoder is now; None: where it was when the index was made."""
    map_path: MapPaths = ()
    """OLD=NEW: photographs that lay below OLD when the index was made lie below NEW here, as in a container."""
    engine: EngineChoice = "auto"
    """What computes; auto: the fastest that is installed (vitrieve[fast])."""
    precision: PrecisionChoice = "auto"
    """Of the matrix products; auto: bf16 where engine and processor have it, else fp32."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    num_threads: int | None = None
    """CPU threads of one search; None: all cores."""
    num_workers: int | None = None
    """Searches computed at the same time; None: one for each core, at least 2."""
    max_body_mib: int = 25
    """Largest picture that is received."""
    resident_mib: int = 1024
    """Memory for a copy of the index that answers several times as fast (3.9 KB an image of 384 dimensions); a larger
    index is searched on disk, with 0 every one."""


def run(arguments: Arguments) -> int:
    """Open the index and serve it until it is stopped."""
    token = read_token(arguments.host, arguments.token)
    check_extra()
    place = read_place(arguments)
    from vitrieve.search.mapped import parse_path_map
    from vitrieve.search.searcher import Searcher
    from vitrieve.serve.limits import MEBIBYTE, Limits

    limits = Limits(
        **({} if arguments.num_workers is None else {"num_workers": arguments.num_workers}),
        body_bytes=arguments.max_body_mib * MEBIBYTE,
        resident_bytes=arguments.resident_mib * MEBIBYTE,
    )
    with Searcher.open(
        arguments.index,
        arguments.encoder,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=arguments.num_threads,
        device=arguments.device,
        maps=[parse_path_map(text) for text in arguments.map_path],
    ) as searcher:
        print_message(f"engine: {searcher.encoder.engine} {searcher.encoder.precision}")
        from vitrieve.serve.run import serve

        serve(
            searcher,
            host=arguments.host,
            port=arguments.port,
            token=token,
            limits=limits,
            place=place,
            announce=announce,
        )
    return 0


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


def check_extra() -> None:
    """Refuse to go on without the packages of the service.

    Raises:
        ConfigError: One is missing.
    """
    for package in EXTRA_PACKAGES:
        if find_spec(package) is None:
            raise ConfigError(
                f"this needs the package {package!r}, which is not installed: pip install 'vitrieve[serve]'."
            )


def announce(address: str) -> None:
    """Tell the address once requests are answered there."""
    print_result(address)
    print_message(f"serving; open {address} in a browser, stop with Ctrl+C")


def read_token(host: str, token: str | None) -> str | None:
    """Return the token, from the flag or the variable VITRIEVE_TOKEN; None on a local address without one.

    Raises:
        ConfigError: None although other machines can reach the address, or one that is too short or no ASCII.
    """
    from vitrieve.serve.gate import is_local

    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        if not is_local(host):
            raise ConfigError(
                f"--host {host} can be reached from other machines, so it needs a token: set {TOKEN_VARIABLE} "
                "(python -c 'import secrets; print(secrets.token_urlsafe())' makes one), or leave --host out."
            )
        return None
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token has {len(token)} characters; it must be {MIN_TOKEN_LENGTH} or more printable ASCII "
            "characters without spaces."
        )
    return token
