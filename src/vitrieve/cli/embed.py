"""``vitrieve embed``: a collection of pictures becomes embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vitrieve.cli.arguments import (
    MAY_BE_EMPTY,
    BatchSize,
    DeviceFlag,
    Engine,
    Exclude,
    Json,
    NumThreads,
    Overwrite,
    Precision,
    Resume,
    Switch,
    spell_command,
)
from vitrieve.cli.console import print_failure, print_json, print_message, print_result
from vitrieve.errors import ConfigError, IncompleteError
from vitrieve.quoting import count_nouns

if TYPE_CHECKING:
    from vitrieve.data.records import Dataset
    from vitrieve.embed.collection import EmbedSettings
    from vitrieve.embed.embeddings import Embeddings
    from vitrieve.runtime.encoder import Encoder

NUM_FAILURES_SHOWN = 10
NUM_COMMANDS_SHOWN = 16


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a collection of pictures into embeddings; a stopped run goes on with --resume."""

    data: str
    """A folder of pictures, or a source: grocery:DIR, emoji, sop:DIR, folder:DIR, table:FILE, …"""
    out: Path
    """Folder to write."""
    encoder: str | None = None
    """A run, an encoder folder, a weights name, or hf:OWNER/NAME@REVISION of the hub; None: the default of `vitrieve
    weights list`. With --shard, --join and --ray it is named, because machines may have different defaults."""
    protocol: str | None = None
    """One of the source's protocols, where they hold different pictures; None: its first."""
    exclude: Exclude = ()
    reuse: Path | None = None
    """Embeddings of the same encoder: pictures that are in there and have not changed since are not encoded again."""
    shard: str | None = None
    """Embed one share of the collection, as a job among others: 3/16 is the third of 16. All jobs have the same --out;
    a job that is started again goes on."""
    join: Switch = False
    """Make the embeddings of what all jobs with --shard have written; say which are missing."""
    ray: tuple[str, ...] | None = None
    """Embed on Ray, at an address as Ray takes it: --ray head:6379, or --ray auto; without one, on this machine."""
    ray_actors: int | None = None
    """With --ray: actors, each with an encoder and --num-threads cores (1) or a GPU; None: as many as there is room."""
    batch_size: BatchSize = None
    image_size: int | None = None
    """Side of the square input in pixels; None: the encoder's own."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. None given: the encoder's own."""
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Embed, or a share of it, and report what could not be read."""
    from vitrieve.data.sources import read_collection
    from vitrieve.embed.collection import EmbedSettings, embed_collection

    _check(arguments)
    settings = EmbedSettings(
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        show_progress=True,
    )
    dataset = read_collection(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    if arguments.shard is not None:
        return _embed_shard(arguments, dataset, settings)
    if arguments.join:
        embeddings = _join(arguments, dataset, settings)
    elif arguments.ray is not None:
        embeddings = _embed_on_ray(arguments, dataset, settings)
    else:
        embeddings = embed_collection(
            _load(arguments),
            dataset,
            arguments.out,
            settings=settings,
            reuse=arguments.reuse,
            is_resume=arguments.resume,
            is_overwrite=arguments.overwrite,
        )
    _report(embeddings, arguments)
    return 0


def _check(arguments: Arguments) -> None:
    if arguments.shard is not None and arguments.join:
        raise ConfigError("--shard embeds a share, and --join joins the shares of all: give one of them.")
    if arguments.overwrite and (arguments.shard is not None or arguments.join):
        raise ConfigError("--overwrite would remove what other shards have written: give another --out.")
    if arguments.ray is None and arguments.ray_actors is not None:
        raise ConfigError("--ray-actors is the number of actors of Ray: give --ray too.")
    if arguments.ray is not None and (arguments.shard is not None or arguments.join or arguments.reuse is not None):
        raise ConfigError("--ray divides the whole work itself: leave out --shard, --join and --reuse.")
    if arguments.ray is not None and len(arguments.ray) > 1:
        raise ConfigError(f"--ray takes one address or none, not {' '.join(arguments.ray)}.")
    if arguments.encoder is None and (arguments.shard is not None or arguments.join or arguments.ray is not None):
        raise ConfigError("With --shard, --join and --ray name an --encoder: machines may have different defaults.")
    if arguments.reuse is not None and arguments.join:
        raise ConfigError("--join encodes nothing: --reuse belongs to the calls with --shard.")


def _prepare_loading(arguments: Arguments, source: str, num_threads: int | None) -> Callable[[], Encoder]:
    from vitrieve.runtime.encoder import load_encoder

    return partial(
        load_encoder,
        source,
        image_size=arguments.image_size,
        scales=arguments.scales or None,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=num_threads,
        device=arguments.device,
    )


def _load(arguments: Arguments) -> Encoder:
    from vitrieve.model.default import choose_default_encoder

    encoder = _prepare_loading(arguments, arguments.encoder or choose_default_encoder(), arguments.num_threads)()
    print_message(f"engine: {encoder.engine} {encoder.precision}")
    return encoder


def _embed_on_ray(arguments: Arguments, dataset: Dataset, settings: EmbedSettings) -> Embeddings:
    from vitrieve.data.records import find_absolute
    from vitrieve.embed.on_ray import RaySettings, embed_on_ray

    num_threads = arguments.num_threads or 1
    cluster = RaySettings(
        address=arguments.ray[0] if arguments.ray else None,
        num_actors=arguments.ray_actors,
        num_cpus=num_threads,
        is_on_gpu={"auto": None, "cpu": False}.get(arguments.device, True),
    )
    assert arguments.encoder is not None
    # An actor has a folder of work of its own.
    source = find_absolute(arguments.encoder) if os.path.exists(arguments.encoder) else arguments.encoder
    return embed_on_ray(
        _prepare_loading(arguments, source, num_threads),
        dataset,
        arguments.out,
        cluster=cluster,
        settings=replace(settings, num_threads=num_threads),
        is_resume=arguments.resume,
        is_overwrite=arguments.overwrite,
    )


def _embed_shard(arguments: Arguments, dataset: Dataset, settings: EmbedSettings) -> int:
    from vitrieve.embed.job_array import embed_shard

    assert arguments.shard is not None
    result = embed_shard(
        _load(arguments), dataset, arguments.out, shard=arguments.shard, settings=settings, reuse=arguments.reuse
    )
    failures = _describe_failures(result.failures)
    if arguments.json:
        counts = {"num_images": result.num_images, "num_failed": len(failures), "failures": failures}
        print_json({"out": str(arguments.out), "shard": arguments.shard, **counts})
    else:
        print_result(
            f"{arguments.out}: shard {arguments.shard} done, {result.num_images} pictures, {len(failures)} unreadable"
        )
        print_message("next, once all shards are done: the same command with --join instead of --shard")
    return 0


def _join(arguments: Arguments, dataset: Dataset, settings: EmbedSettings) -> Embeddings:
    from vitrieve.embed.job_array import join_shards

    try:
        return join_shards(_load(arguments), dataset, arguments.out, settings=settings)
    except IncompleteError as error:
        for shard in error.shards[:NUM_COMMANDS_SHOWN]:
            print_failure(f"missing: {spell_command('embed', replace(arguments, shard=shard, join=False))}")
        raise


def _describe_failures(failures: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    for image_id, reason in failures[:NUM_FAILURES_SHOWN]:
        print_failure(f"not embedded: {image_id}: {reason}")
    if len(failures) > NUM_FAILURES_SHOWN:
        print_failure(f"and {len(failures) - NUM_FAILURES_SHOWN} more")
    return [{"image_id": image_id, "reason": reason} for image_id, reason in failures]


def _report(embeddings: Embeddings, arguments: Arguments) -> None:
    num_embedded, embedding_dim = embeddings.vectors.shape
    failures = _describe_failures(embeddings.failures)
    if len(failures) > NUM_FAILURES_SHOWN:
        print_failure(f"all are listed in {arguments.out}/rows.parquet")
    if arguments.json:
        print_json(
            {
                "out": str(arguments.out),
                "num_images": num_embedded + len(failures),
                "num_embedded": num_embedded,
                "num_failed": len(failures),
                "failures": failures,
                "embedding_dim": embedding_dim,
                "fingerprint": embeddings.fingerprint,
            }
        )
    else:
        print_result(
            f"{arguments.out}: {num_embedded} embeddings of {embedding_dim} dimensions, "
            f"{count_nouns(len(failures), 'picture', 'pictures')} unreadable"
        )
        print_message(f"next: vitrieve index --embeddings {arguments.out} --out INDEX")
