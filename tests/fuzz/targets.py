"""What is fuzzed: functions of bytes that may raise the documented errors and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import HTTPException
from PIL import Image, features
from safetensors.numpy import save
from starlette.datastructures import QueryParams

from vitrieve.artifacts import MANIFEST_NAME, read_manifest
from vitrieve.data.decode import decode_image, find_note, measure_image, read_date_taken, read_header, read_image
from vitrieve.data.layout import read_restricted_pickle
from vitrieve.data.records import GroundTruth
from vitrieve.data.shards import SCHEMA as SHARD_SCHEMA
from vitrieve.data.shards import Shard, ShardSet, add_set, read_shards
from vitrieve.data.table import read_table
from vitrieve.embed.embeddings import load_embeddings, read_vectors_file
from vitrieve.embed.rows import SCHEMA, build_table
from vitrieve.errors import DataError, DecodeError, InputError
from vitrieve.index.filter import Kinds, format_condition, parse_filter, passes, resolve_filter
from vitrieve.model.artifact import read_spec
from vitrieve.model.tensors import read_arrays
from vitrieve.serve.schemas import parse_json
from vitrieve.serve.settings import Limits
from vitrieve.serve.views import parse_address
from vitrieve.syncing.state import STATE_NAME, StateFile

MAX_PIXELS = 1 << 20
"""Larger pictures are legal, but slow."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that reads bytes of strangers.

    Attributes:
        run: Reads an input; ``folder`` is empty at first, and may be written.
        seeds: Good inputs.
    """

    run: Callable[[bytes, Path], None]
    seeds: tuple[bytes, ...]


def decode(data: bytes, folder: Path) -> None:
    for use in (read_header, measure_image, find_note):
        with contextlib.suppress(DecodeError):
            use(data)
    read_date_taken(data)
    with contextlib.suppress(DecodeError):
        picture = decode_image(data, max_pixels=MAX_PIXELS)
        assert picture.mode == "RGB"
        assert min(picture.size) >= 1
        assert measure_image(data) == picture.size


def read_json(data: bytes, folder: Path) -> None:
    refusal = None
    try:
        parse_json(data, Limits())
    except HTTPException as error:
        refusal = error
    assert refusal is None or refusal.status_code in (413, 422)
    assert refusal is None or len(refusal.detail) < 10_000


def read_address(data: bytes, folder: Path) -> None:
    with contextlib.suppress(InputError):
        address = parse_address(QueryParams(data.decode("latin-1")), Limits())
        spelled = address.spell()
        assert parse_address(QueryParams(spelled.partition("?")[2]), Limits()).spell() == spelled


def read_filter(data: bytes, folder: Path) -> None:
    with contextlib.suppress(InputError):
        conditions = parse_filter(data.decode("utf-8", "surrogateescape").split("\x1f"))
        assert parse_filter(map(format_condition, conditions)) == conditions
        columns = {condition.column for condition in conditions}
        for kinds in (Kinds.TEXT, Kinds.NUMBER, Kinds.BOOLEAN, Kinds.DATE | Kinds.YEAR, Kinds.TEXT | Kinds.NUMBER):
            with contextlib.suppress(InputError):
                tests = resolve_filter(conditions, columns, lambda names, kinds=kinds: dict.fromkeys(names, kinds))
                for metadata in ({}, {"label": "apple"}, {"price": "2.5", "date": "2026-01-01"}):
                    passes(metadata, tests)


def read_csv(data: bytes, folder: Path) -> None:
    (folder / "table.csv").write_bytes(data)
    with contextlib.suppress(DataError):
        read_table(folder / "table.csv")


def read_parquet(data: bytes, folder: Path) -> None:
    (folder / "table.parquet").write_bytes(data)
    with contextlib.suppress(DataError):
        read_table(folder / "table.parquet")


def read_settings(data: bytes, folder: Path) -> None:
    for name in (MANIFEST_NAME, "encoder.json"):
        (folder / name).write_bytes(data)
    for kind in ("encoder", "index"):
        with contextlib.suppress(InputError):
            read_manifest(folder, kind)  # type: ignore[arg-type]
    with contextlib.suppress(InputError):
        read_spec(folder)


def read_weights(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with contextlib.suppress(InputError):
        read_arrays(folder / "model.safetensors")


def read_vectors(data: bytes, folder: Path) -> None:
    (folder / "vectors.npy").write_bytes(data)
    with contextlib.suppress(InputError):
        read_vectors_file(folder / "vectors.npy", (3, 4))


def read_embeddings(data: bytes, folder: Path) -> None:
    """The three files follow each other, so that one mutation may meet any of them."""
    manifest, rows, vectors = (*data.split(_DIVIDER, 2), b"", b"")[:3]
    for name, content in ((MANIFEST_NAME, manifest), ("rows.parquet", rows), ("vectors.npy", vectors)):
        (folder / name).write_bytes(content)
    with contextlib.suppress(InputError):
        load_embeddings(folder)


def read_pickle(data: bytes, folder: Path) -> None:
    (folder / "a.pkl").write_bytes(data)
    with contextlib.suppress(DataError):
        read_restricted_pickle(folder / "a.pkl")


def read_states(data: bytes, folder: Path) -> None:
    for suffix in ("", "-journal", "-wal"):
        (folder / f"{STATE_NAME}{suffix}").unlink(missing_ok=True)
    (folder / STATE_NAME).write_bytes(data)
    with contextlib.suppress(InputError):
        states = StateFile(folder)
        try:
            states.read()
        finally:
            states.close()


def read_shard_index(data: bytes, folder: Path) -> None:
    (folder / "000000.tar").write_bytes(bytes(2048))
    (folder / "index.parquet").write_bytes(data)
    with contextlib.suppress(DataError):
        for record in read_shards(folder).records:
            with contextlib.suppress(DecodeError):
                read_image(record)


def read_archive(data: bytes, folder: Path) -> None:
    (folder / "index.parquet").unlink(missing_ok=True)
    (folder / "a.tar").write_bytes(data)
    with contextlib.suppress(DataError), contextlib.redirect_stderr(io.StringIO()):
        for record in read_shards(folder).records:
            with contextlib.suppress(DecodeError):
                read_image(record)


_DIVIDER = b"\n--\n"


def _encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def build_pictures() -> tuple[bytes, ...]:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:11:23 10:00:00"
    frames = {"save_all": True, "append_images": [noise.rotate(180), noise.rotate(180)]}
    made = [_encode(noise, name, exif=exif) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    made += [_encode(noise, name) for name in ("GIF", "BMP")]
    made += [_encode(noise, name, **frames) for name in ("GIF", "PNG", "WEBP", "TIFF", "MPO")]
    made += [
        _encode(noise, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    made += [_encode(noise.convert("1"), "TIFF", compression=name) for name in ("group3", "group4")]
    made += [_encode(noise.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    made += [_encode(noise.convert(mode), "TIFF") for mode in ("F", "CMYK", "LAB", "YCbCr")]
    made += [_encode(noise, "JPEG", progressive=True), _encode(noise.convert("CMYK"), "JPEG")]
    made += [_encode(noise, "JPEG", restart_marker_blocks=1), _encode(noise, "JPEG")[:-2]]
    made += [_encode(noise, "WEBP", lossless=True), _encode(noise.convert("P"), "PNG", transparency=3)]
    return tuple(made + ([_encode(noise, "AVIF", exif=exif)] if features.check("avif") else []))


def build_tables() -> tuple[bytes, ...]:
    columns = {"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["train", "test"], "price": [1.5, None]}
    tables = [pa.table(columns), pa.table({**columns, "label": pa.array(["x", "y"]).dictionary_encode()})]
    tables += [pa.table({**columns, "label": pa.array([["x"], ["y"]])}), pa.table({**columns, "x_1": [1, 2]})]
    written = []
    for table in tables:
        file = pa.BufferOutputStream()
        pq.write_table(table, file)
        written.append(file.getvalue().to_pybytes())
    return tuple(written)


def build_embeddings() -> bytes:
    manifest = {"kind": "embeddings", "format_version": 1, "fingerprint": "a", "encoder_source": "b", "image_size": 32}
    file, vectors = pa.BufferOutputStream(), io.BytesIO()
    pq.write_table(build_table([], [], 0).cast(SCHEMA), file)
    np.save(vectors, np.zeros((0, 4), np.float32))
    parts = json.dumps({**manifest, "embedding_dim": 4, "license": ""}).encode(), file.getvalue().to_pybytes()
    return _DIVIDER.join((*parts, vectors.getvalue()))


def build_vectors() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype=np.float32).reshape(3, 4))
    return file.getvalue()


def build_states(folder: Path) -> bytes:
    states = StateFile(folder)
    states.write_fact("a", "b")
    states.close()
    return (folder / STATE_NAME).read_bytes()


def build_shard_index(is_packed: bool) -> bytes:
    said = ShardSet(
        name="a",
        protocol="b",
        label_names=("x", "y"),
        shards=(Shard(name="000000.tar", num_bytes=2048),),
        is_packed=is_packed,
        positive_pairs=(("1", "2"),),
        ground_truth={"1": GroundTruth(easy=("2",))},
    )
    rows = [
        {"key": "1", "image_id": "1", "offset": 512, "length": 9, "label": "x", "metadata": [("a", "b")]},
        {"key": "2", "image_id": "2", "offset": 1536, "length": 9, "label": "y", "metadata": []},
    ]
    same = {"shard": "000000.tar", "suffix": ".jpg", "split": "train", "is_query": True, "is_gallery": True}
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{**row, **same} for row in rows], add_set(SHARD_SCHEMA, said)), file)
    return file.getvalue().to_pybytes()


def build_archives() -> tuple[bytes, ...]:
    picture = _encode(Image.new("RGB", (4, 4)), "JPEG")
    contents = {"a/1.jpg": picture, "a/1.cls": b"3", "2.png": b"x", "2.json": b'{"label": "b", "c": 1}', "2.txt": b"d"}
    made = []
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
            for name, content in {**contents, "long" * 40 + ".jpg": picture}.items():
                if tar_format != tarfile.USTAR_FORMAT or len(name) < 100:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        made.append(file.getvalue())
    return tuple(made)


def build_targets(folder: Path) -> dict[str, Target]:
    """Build all targets with their seeds.

    Args:
        folder: An empty one.
    """
    pickles = [pickle.dumps({"a": [1, 2.0, "x", np.arange(3)], "b": {1, 2}}, protocol) for protocol in range(5)]
    requests = [
        {"id": "a.jpg", "filter": ["label=apple|pear"], "k": 5, "offset": 0, "group_by": "label"},
        {"examples": [{"id": "a", "sign": "plus"}, {"vector": [0.5, -1e3], "sign": "minus"}], "reranking": "none"},
        {"examples": [{"image": "aGVsbG8=", "box": [0, 0, 1, 1]}], "is_near_duplicate_grouped": True},
        {"vector": [0.1] * 8, "box": [1, 2, 3, 4.5]},
    ]
    manifest = {"kind": "index", "format_version": 1, "store": "exact", "sha256": {}, "fingerprint": "0" * 64}
    weights = save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16), "c": np.arange(3)})
    return {
        "decode": Target(run=decode, seeds=build_pictures()),
        "json": Target(run=read_json, seeds=tuple(json.dumps(one).encode() for one in requests)),
        "address": Target(
            run=read_address,
            seeds=(
                b"plus=a%20b.jpg&plus=c&minus=d&filter=label%3Dapple&k=24&page=2&near_duplicates=together",
                b"upload=0123456789abcdef0123456789abcdef&box=0,0,10.5,20&group_by=label",
                b"plus=a&column=price&operator=%3C%3D&value=2.5&x_1=1&y_1=2&x_2=3&y_2=4",
            ),
        ),
        "filter": Target(
            run=read_filter, seeds=(b"label=apple|pear", b"price<2.5\x1fdate>=2026-01-01", b"a b!=", b'"x = y">=1e3')
        ),
        "csv": Target(
            run=read_csv,
            seeds=(
                b"path,label,split,is_query,is_gallery,color\na.png,x,train,1,0,red\nb.png,y,test,true,false,\n",
                b'\xef\xbb\xbfpath,label,x_1,y_1,x_2,y_2\r\n"a,1.png",x,0,0,5,5.5\r\n"b\n.png",y,,,,\r\n',
            ),
        ),
        "parquet": Target(run=read_parquet, seeds=build_tables()),
        "settings": Target(run=read_settings, seeds=(json.dumps(manifest).encode(), json.dumps(requests[0]).encode())),
        "weights": Target(run=read_weights, seeds=(weights,)),
        "vectors": Target(run=read_vectors, seeds=(build_vectors(),)),
        "embeddings": Target(run=read_embeddings, seeds=(build_embeddings(),)),
        "pickle": Target(run=read_pickle, seeds=tuple(pickles)),
        "shard index": Target(run=read_shard_index, seeds=tuple(map(build_shard_index, (True, False)))),
        "archive": Target(run=read_archive, seeds=build_archives()),
        "stamps": Target(run=read_states, seeds=(build_states(folder),)),
    }


def find_real_pictures() -> tuple[bytes, ...]:
    """Find a few small photographs in the folder that VITRIEVE_DATA names, or beside the checkout; none is fine."""
    root = Path(os.environ.get("VITRIEVE_DATA", "../shared/datasets"))
    paths = (path for _, path in zip(range(2000), root.rglob("*.jpg"), strict=False))
    return tuple(path.read_bytes() for path in sorted(paths, key=lambda path: path.stat().st_size)[:8])
