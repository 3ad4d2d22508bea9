"""``vitrieve serve``: an index as a search page and a service over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrieve.cli.arguments import DeviceFlag, Engine, IndexEncoder, MapPaths, Precision, ProxyArguments, read_proxy
from vitrieve.cli.console import print_message, print_result
from vitrieve.errors import ConfigError
from vitrieve.serve.settings import check_extra, read_token, read_write_token

if TYPE_CHECKING:
    from vitrieve.serve.collections import Collections, CollectionSettings


@dataclass(frozen=True, kw_only=True)
class Arguments(ProxyArguments):
    """Serve an index, or several: a page for people, and an interface for programs. Ends with Ctrl+C."""

    index: Path | None = None
    """Folder of the index; or give --collections."""
    collections: Path | None = None
    """TOML file with a table for each collection: [NAME] and below it index = "FOLDER", and as may be needed encoder,
    map-path and tokens = [{role = "read", file = "FILE"}]. Each is served below /c/NAME/, and / lists them."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token."""
    port: int = 8000
    """Port; 0: any that is free."""
    token: str | None = None
    """What requests must bring as Authorization: Bearer; better in the variable VITRIEVE_TOKEN, which no list of
    processes shows."""
    write_token: str | None = None
    """What changes of the index must bring, another than --token; better in the variable VITRIEVE_WRITE_TOKEN. None
    given: nothing can be changed."""
    encoder: IndexEncoder = None
    map_path: MapPaths = ()
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: DeviceFlag = "auto"
    num_threads: int | None = None
    """CPU threads of one search; None: all cores, which several processes divide among them."""
    num_workers: int | None = None
    """Searches computed at the same time by a process; None: one for each of its cores, at least 2."""
    num_processes: int = 1
    """Processes that answer at the one address, each with index and encoder in its memory; SIGHUP exchanges them one
    after the other without a failed request."""
    uploads: Path | None = None
    """Folder for the pictures that visitors send, which services on several machines share; None: in memory, or with
    several processes in a folder that is removed in the end."""
    max_body_mib: int = 25
    """Largest picture that is received."""
    reads_per_minute: int = 60_000
    """Requests that a process answers a client (an address with its token) in a minute, a search counting as ten; 0:
    any number."""
    resident_mib: int = 1024
    """Memory for a copy of the index that answers several times as fast (3.9 KB an image of 384 dimensions); a larger
    index is searched on disk, with 0 every one."""


def run(arguments: Arguments) -> int:
    """Open the index and serve it until it is stopped."""
    described = _read_collections(arguments)
    has_own_tokens = bool(described) and all(one.tokens.read for one in described)
    token = read_token(arguments.host, arguments.token, has_own_tokens=has_own_tokens)
    write_token = read_write_token(arguments.write_token, token)
    if write_token is not None and arguments.map_path:
        raise ConfigError(
            "--write-token and --map-path do not go together: a change would write the mapped paths into the index."
        )
    check_extra()
    proxy = read_proxy(arguments)
    if described and (proxy.root_path + "/").startswith("/c/"):
        raise ConfigError(f"the prefix is {proxy.root_path!r}, but collections are below /c; give another, as /photos.")
    from vitrieve.search.searcher import Searcher, parse_path_map
    from vitrieve.serve.collections import open_collections
    from vitrieve.serve.processes import serve_processes
    from vitrieve.serve.server import listen, serve
    from vitrieve.serve.settings import MEBIBYTE, Limits, ServeSettings, share_cores

    num_threads, num_workers = share_cores(arguments.num_processes, arguments.num_threads, arguments.num_workers)
    body_bytes = arguments.max_body_mib * MEBIBYTE
    limits = Limits(
        num_workers=num_workers,
        body_bytes=body_bytes,
        held_bytes=max(Limits.held_bytes, body_bytes),  # one always fits
        resident_bytes=arguments.resident_mib * MEBIBYTE,
        reads_per_minute=arguments.reads_per_minute,
    )
    listen(arguments.host, arguments.port).close()  # a wrong address is told before anything is loaded
    computing: dict[str, Any] = {
        "engine": arguments.engine,
        "precision": arguments.precision,
        "num_threads": num_threads,
        "device": arguments.device,
    }
    open_service: Callable[[], Searcher | Collections]
    if arguments.collections is not None:
        open_service = partial(
            open_collections, arguments.collections, token=token, write_token=write_token, **computing
        )
    else:
        assert arguments.index is not None
        maps = [parse_path_map(text) for text in arguments.map_path]
        open_service = partial(Searcher.open, arguments.index, arguments.encoder, maps=maps, **computing)
    settings = ServeSettings(
        host=arguments.host,
        port=arguments.port,
        token=token,
        write_token=write_token,
        has_own_tokens=has_own_tokens,
        limits=limits,
        proxy=proxy,
        uploads=arguments.uploads,
    )
    if arguments.num_processes > 1:
        serve_processes(open_service, settings, num_processes=arguments.num_processes, announce=announce)
        return 0
    with open_service() as opened:
        searchers = [opened] if isinstance(opened, Searcher) else opened.searchers.values()
        for engine in sorted({f"{one.encoder.engine} {one.encoder.precision}" for one in searchers}):
            print_message(f"engine: {engine}")
        serve(opened, settings, announce=announce)
    return 0


def _read_collections(arguments: Arguments) -> list[CollectionSettings]:
    """Read the file of collections, whose faults are told before anything is loaded; empty: there is one index.

    Raises:
        ConfigError: Neither or both of an index and such a file, or as ``read_collections``.
    """
    if (arguments.index is None) == (arguments.collections is None):
        raise ConfigError("give --index FOLDER for one index, or --collections FILE for several.")
    if arguments.collections is None:
        return []
    if arguments.encoder is not None or arguments.map_path:
        raise ConfigError("--encoder and --map-path stand in the file of --collections, for each collection.")
    from vitrieve.serve.collections import read_collections

    return read_collections(arguments.collections)


def announce(address: str) -> None:
    """Tell the address once requests are answered there."""
    print_result(address)
    print_message(f"serving; open {address} in a browser, stop with Ctrl+C")
