"""``vitrieve mcp``: an index for assistants, by the Model Context Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import (
    DeviceFlag,
    Engine,
    IndexEncoder,
    MapPaths,
    Precision,
    ProxyArguments,
    Switch,
    read_proxy,
)
from vitrieve.cli.console import print_message, print_result, writing_results
from vitrieve.machine import require_packages

EXTRA_PACKAGES = ("mcp", "fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class Arguments(ProxyArguments):
    """Let an assistant search an index, look at its pictures and count its metadata (Model Context Protocol).

    Without --http it answers the program that started it, on standard input and output.
    """

    index: Path
    """Folder of the index."""
    http: Switch = False
    """Answer over HTTP at /mcp, until Ctrl+C."""
    host: str = "127.0.0.1"
    """With --http: address to listen on; one that other machines reach needs a token."""
    port: int = 8000
    """With --http: port; 0: any that is free."""
    token: str | None = None
    """With --http: what requests must bring as Authorization: Bearer; better in the variable VITRIEVE_TOKEN, which no
    list of processes shows."""
    pictures: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """Folder of this machine whose pictures the assistant may search with by their path; repeatable. None given: it
    reads no path."""
    encoder: IndexEncoder = None
    map_path: MapPaths = ()
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: DeviceFlag = "auto"
    num_threads: int | None = None
    """CPU threads of one search; None: all cores."""
    resident_mib: int = 1024
    """Memory for a copy of the index that answers several times as fast; a larger index is searched on disk, with 0
    every one."""


def run(arguments: Arguments) -> int:
    """Open the index and answer, until the client goes or the command is stopped."""
    require_packages(EXTRA_PACKAGES, "mcp")
    from vitrieve.search.searcher import Searcher, parse_path_map
    from vitrieve.serve.mcp_server import serve_mcp, serve_stdio
    from vitrieve.serve.server import listen
    from vitrieve.serve.settings import MEBIBYTE, Limits, ServeSettings, read_token

    limits = Limits(resident_bytes=arguments.resident_mib * MEBIBYTE)
    settings = None
    if arguments.http:
        token = read_token(arguments.host, arguments.token)
        settings = ServeSettings(
            host=arguments.host, port=arguments.port, token=token, limits=limits, proxy=read_proxy(arguments)
        )
        listen(arguments.host, arguments.port).close()  # a wrong address is told before anything is loaded
    with Searcher.open(
        arguments.index,
        arguments.encoder,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=arguments.num_threads,
        device=arguments.device,
        maps=[parse_path_map(text) for text in arguments.map_path],
    ) as searcher:
        if settings is None:
            with writing_results() as results:
                serve_stdio(searcher, limits, results, folders=arguments.pictures)
        else:
            serve_mcp(searcher, settings, folders=arguments.pictures, announce=announce)
    return 0


def announce(address: str) -> None:
    """Tell the address once requests are answered there."""
    print_result(address)
    print_message(f"answering assistants at {address}, stop with Ctrl+C")
