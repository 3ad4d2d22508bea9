"""``vitrieve up``: a folder of photographs becomes a search page, in one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vitrieve.cli.arguments import (
    Adopt,
    DeviceFlag,
    ExcludeAsBefore,
    IndexImageSize,
    NewStoreName,
    NewStoreUri,
    NoOcr,
    NumThreads,
    Ocr,
    ProxyArguments,
    Switch,
    read_data,
    read_ocr,
    read_proxy,
)
from vitrieve.cli.console import ask, print_message
from vitrieve.cli.serve import announce
from vitrieve.cli.sync import print_findings
from vitrieve.errors import DataError
from vitrieve.serve.settings import ServeSettings, check_extra, read_token

if TYPE_CHECKING:
    from vitrieve.runtime.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Arguments(ProxyArguments):
    """Sync an index with a folder, then serve it until Ctrl+C; what is embedded once is kept for the next time."""

    folder: tyro.conf.Positional[Path | None] = None
    """The same as --data."""
    data: Path | None = None
    """Folder of pictures, at any depth; an image's id is its path below it."""
    exclude: ExcludeAsBefore = ()
    port: int = 8000
    """Port; 0: any that is free."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token."""
    token: str | None = None
    """What requests must bring as Authorization: Bearer; better in the variable VITRIEVE_TOKEN."""
    encoder: str | None = None
    """A run, an encoder folder, a weights name or hf:OWNER/NAME; None: the default of `vitrieve weights list`."""
    index: Path | None = None
    """Folder of the index; None: one of this folder and encoder in the cache (vitrieve doctor says where that is)."""
    store: NewStoreName = "lance"
    uri: NewStoreUri = None
    image_size: IndexImageSize = None
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable; above it nothing is removed from the index."""
    allow_removals: Switch = False
    """Remove from the index what has vanished even when it is much: a tenth of it, or all of a top folder."""
    adopt: Adopt = False
    ocr: Ocr = False
    no_ocr: NoOcr = False


def run(arguments: Arguments) -> int:
    """Sync and serve; whatever may be refused comes before the first picture is embedded."""
    token = read_token(arguments.host, arguments.token)
    check_extra()
    proxy = read_proxy(arguments)
    from vitrieve.search.searcher import Searcher
    from vitrieve.serve.server import listen, serve

    listen(arguments.host, arguments.port).close()
    index, encoder = _sync(arguments)
    with Searcher.open(index, encoder) as searcher:
        settings = ServeSettings(host=arguments.host, port=arguments.port, token=token, proxy=proxy)
        serve(searcher, settings, announce=announce)
    return 0


def _sync(arguments: Arguments) -> tuple[Path, Encoder]:
    """Bring the folder's index up to date."""
    from vitrieve.data.records import find_absolute
    from vitrieve.machine import cache_folder
    from vitrieve.syncing.scan import choose_exclude, scan_collection
    from vitrieve.syncing.sync import NewIndex, SyncSettings, default_index_folder, load_sync_encoder, sync

    folder = read_data(arguments.data, arguments.folder, is_note=False)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with pictures, at any depth.")
    source = find_absolute(folder)  # always the folder, even if it is called as a data set is: emoji
    # Before the encoder is loaded, because the folder may be wrong. What the cache holds is nobody's photograph.
    collection = scan_collection(source, arguments.index or cache_folder(), exclude=arguments.exclude)
    encoder = load_sync_encoder(
        arguments.index,
        arguments.encoder,
        image_size=arguments.image_size,
        num_threads=arguments.num_threads,
        device=arguments.device,
    )
    where = NewIndex(kind=arguments.store, uri=arguments.uri)
    index = arguments.index or default_index_folder(folder, encoder.fingerprint, where)
    settings = SyncSettings(
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        is_removal_allowed=arguments.allow_removals,
        is_text_read=read_ocr(is_on=arguments.ocr, is_off=arguments.no_ocr),
        confirm=ask,
        show_progress=True,
    )
    if arguments.index is None:
        exclude, exclusion = choose_exclude(source, index, arguments.exclude)
        print_message(*([exclusion] if exclusion else []))
        if exclude != collection.exclude:
            collection = scan_collection(source, cache_folder(), exclude=exclude)
    print_message(f"the index is {index}")
    report = sync(collection, index, encoder, settings=settings, store=where, adopt=arguments.adopt)
    print_message(str(report))
    print_findings(report)
    if not report.num_indexed:
        raise DataError(f"no picture of {folder} could be indexed; the reasons are above.")
    return index, encoder
