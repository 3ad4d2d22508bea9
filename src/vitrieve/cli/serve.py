"""``vitrieve serve``: an index as a search page and a service over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitrieve.cli.arguments import DeviceFlag, Engine, MapPaths, Precision, ProxyArguments, read_proxy
from vitrieve.cli.console import print_message, print_result
from vitrieve.errors import ConfigError
from vitrieve.serve.settings import check_extra, read_token, read_write_token


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
    write_token: str | None = None
    """What changes of the index must bring, another than --token; better in the variable VITRIEVE_WRITE_TOKEN. None
    given: nothing can be changed."""
    encoder: str | None = None
    """Where the index's encoder is now; None: where it was when the index was made."""
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
    resident_mib: int = 1024
    """Memory for a copy of the index that answers several times as fast (3.9 KB an image of 384 dimensions); a larger
    index is searched on disk, with 0 every one."""


def run(arguments: Arguments) -> int:
    """Open the index and serve it until it is stopped."""
    token = read_token(arguments.host, arguments.token)
    write_token = read_write_token(arguments.write_token, token)
    if write_token is not None and arguments.map_path:
        raise ConfigError(
            "--write-token and --map-path do not go together: a change would write the mapped paths into the index."
        )
    check_extra()
    proxy = read_proxy(arguments)
    from vitrieve.search.searcher import Searcher, parse_path_map
    from vitrieve.serve.processes import serve_processes
    from vitrieve.serve.server import listen, serve
    from vitrieve.serve.settings import MEBIBYTE, Limits, ServeSettings, share_cores

    num_threads, num_workers = share_cores(arguments.num_processes, arguments.num_threads, arguments.num_workers)
    limits = Limits(
        num_workers=num_workers,
        body_bytes=arguments.max_body_mib * MEBIBYTE,
        resident_bytes=arguments.resident_mib * MEBIBYTE,
    )
    listen(arguments.host, arguments.port).close()  # a wrong address is told before anything is loaded
    open_searcher = partial(
        Searcher.open,
        arguments.index,
        arguments.encoder,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=num_threads,
        device=arguments.device,
        maps=[parse_path_map(text) for text in arguments.map_path],
    )
    settings = ServeSettings(
        host=arguments.host,
        port=arguments.port,
        token=token,
        write_token=write_token,
        limits=limits,
        proxy=proxy,
        uploads=arguments.uploads,
    )
    if arguments.num_processes > 1:
        serve_processes(open_searcher, settings, num_processes=arguments.num_processes, announce=announce)
        return 0
    with open_searcher() as searcher:
        print_message(f"engine: {searcher.encoder.engine} {searcher.encoder.precision}")
        serve(searcher, settings, announce=announce)
    return 0


def announce(address: str) -> None:
    """Tell the address once requests are answered there."""
    print_result(address)
    print_message(f"serving; open {address} in a browser, stop with Ctrl+C")
