"""What a vector store is: the one protocol behind every kind of index, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar
from unicodedata import normalize

import numpy as np

from vitrieve.artifacts import read_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, ConfigError, DataError, InputError
from vitrieve.index.filter import FilterLike, Kinds
from vitrieve.model.artifact import require_made_by
from vitrieve.quoting import count_nouns
from vitrieve.similarity import FloatArray, as_embeddings, top_k

if TYPE_CHECKING:
    import pyarrow as pa

    from vitrieve.index.folder import Identity

T = TypeVar("T")

StoreKind = str
"""One of ``BUILT_IN_STORES``, or the name of a store that another package adds (``plugins.py``)."""
BUILT_IN_STORES = ("lance", "exact", "milvus", "pgvector")
IndexKind = Literal["flat", "ivf_hnsw_sq", "ivf_pq", "ivf_rq"]
"""What an approximate store searches in: the full vectors; a graph over codes of a byte a dimension; product-quantized
codes; codes of a bit a dimension (RaBitQ). The last three choose candidates, whose full vectors are compared. The graph
of pgvector is over two bytes a dimension, and it has no shorter codes."""
SERVERS: dict[StoreKind, str] = {"milvus": "Milvus", "pgvector": "PostgreSQL"}
"""The stores that hold an index on a server, and what the server is."""
MAX_BATCH_ROWS = 4096
"""Images in one change: a change is atomic, and Milvus takes at most 64 MB in one message."""
BLOCK_ROWS = 65_536
"""Vectors checked or copied at a time."""
LISTED_ROWS = 256
"""Names of a sorted block that are Python's at a time."""
NORM_TOLERANCE = 1e-3
"""How far from one the length of an L2-normalized float32 row may be."""
PQ_SUB_VECTOR_WIDTH = 8
"""Dimensions that one byte of a product-quantized code stands for, unless ``code_bytes`` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What an index says about itself.

    Attributes:
        kind: Which store holds it.
        fingerprint: Fingerprint of the encoder that made the vectors, and must make the queries.
        encoder_source: Where that encoder came from: a folder or a weights name.
        image_size: Side of that encoder's input in pixels.
        embedding_dim: Length of a vector.
        license: License and attribution of the images; empty when unknown.
    """

    kind: StoreKind
    fingerprint: str
    encoder_source: str
    image_size: int
    embedding_dim: int
    license: str = ""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How an approximate store searches, and where its server is; the exact store has nothing to set."""

    index_kind: IndexKind = "ivf_hnsw_sq"
    """What is searched for candidates: full vectors, a graph over bytes, product-quantized codes, or bits."""
    code_bytes: int | None = None
    """Bytes of one code of ivf_pq, a divisor of the dimensions; None: an eighth of them."""
    uri: str | None = None
    """Address of the server: of Milvus as http://localhost:19530, its token is read from VITRIEVE_MILVUS_TOKEN; of
    PostgreSQL as postgresql://user@localhost/database, its password from PGPASSWORD or ~/.pgpass."""

    def check(self, info: StoreInfo) -> None:
        """Refuse settings that do not belong together.

        Raises:
            ConfigError: As it says.
        """
        if (info.kind in SERVERS) != (self.uri is not None):
            raise ConfigError(
                f"uri is the address of a server: give it with the store {' or '.join(SERVERS)}, and only there."
            )
        if info.kind in ("exact", "pgvector") and self.index_kind not in ("flat", "ivf_hnsw_sq"):
            raise ConfigError(
                f"index_kind {self.index_kind!r} is for the stores lance and milvus; {info.kind} has no codes."
            )
        if self.code_bytes is None:
            return
        if self.index_kind != "ivf_pq":
            raise ConfigError(f"code_bytes belongs to the index_kind ivf_pq, not to {self.index_kind}.")
        if self.code_bytes < 1 or info.embedding_dim % self.code_bytes:
            raise ConfigError(f"code_bytes is {self.code_bytes}; it must divide the {info.embedding_dim} dimensions.")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image found.

    Attributes:
        record: The image.
        score: Cosine similarity to the query, in [-1, 1]; higher is nearer. From the full vectors, not from the
            short codes that an approximate index searches.
    """

    record: ImageRecord
    score: float


class TextBlock(NamedTuple):
    """The texts of some images, a row an image.

    Attributes:
        image_ids: Their names, strings of Arrow.
        paths: Their files, as ``spell_path`` spells them.
        columns: Their metadata by column; null where an image has none. A column that none of them has may be left out.
    """

    image_ids: pa.Array
    paths: pa.Array
    columns: Mapping[str, pa.Array]


FEEDBACK_KEY = "feedback"
"""Field of the manifest of an index of pgvector that was made anew: the key that ``find_feedback_key`` found before."""


class VectorStore(Protocol):
    """Vectors with their images, to be changed and searched; ``tests/index/conformance.py`` is what one must pass.

    One process writes at a time; any number read. A call that changes the store returns when its change is on disk
    (or acknowledged by the cluster): a process killed later loses nothing of it, and a call that was killed has
    changed everything it was given or nothing.
    """

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        ...

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there.

        Args:
            vectors: ``(N, E)`` float32, finite, L2-normalized; N at most ``MAX_BATCH_ROWS``, nothing happens for none.
            records: Their ``N`` images, each ``image_id`` once.

        Raises:
            DataError: Too many, another shape, vectors that are not normalized, an ``image_id`` that occurs twice, or
                text that is not UTF-8.
            ArtifactError: Another process is writing, and does not finish.
        """
        ...

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images, at most ``MAX_BATCH_ROWS``; return how many were there.

        Raises:
            DataError: Too many.
        """
        ...

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query.

        Args:
            queries: ``(Q, E)`` float32 embeddings of the same encoder.
            k: Images to find for each, at least 1; fewer come back when fewer pass the filter.
            filter: Conditions that all hold for what is found.

        Returns:
            For each query its hits, nearest first; equal scores ordered by ``image_id``.

        Raises:
            InputError: ``k`` below 1, another width, a number that is not finite, an unknown column, or a condition
                that does not fit the kind of its column.
        """
        ...

    def get(self, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        """Return vectors ``(N, E)`` and images by name, in the order asked for (twice, where asked for twice).

        Raises:
            DataError: An ``image_id`` is not there.
        """
        ...

    def image_ids(self) -> Iterator[str]:
        """Yield the name of every image, rising."""
        ...

    def sample_ids(self, num_images: int) -> list[str]:
        """Return the names of some images, sorted, at a cost that does not grow with the index.

        Args:
            num_images: Largest number of names.

        Returns:
            As many as there are, at most ``num_images``; the same ones as long as nothing changes.
        """
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted: what a filter may use.

        A column stays known when the last image with it is gone.
        """
        ...

    def kinds(self, columns: Sequence[str]) -> Mapping[str, Kinds]:
        """Find of which kinds the values of some metadata columns are, as the images are now.

        Args:
            columns: Names out of ``columns()``.
        """
        ...

    def count(self, filter: FilterLike = ()) -> int:
        """Count the images that pass the filter.

        Raises:
            InputError: An unknown column, or a condition that does not fit the kind of its column.
        """
        ...

    def read_texts(self) -> Iterator[TextBlock]:
        """Yield the texts of all images, each image once, in any order."""
        ...

    def read_stamp(self) -> Hashable:
        """Return what every change of the index changes, made by any process.

        None: the index is being replaced.
        """
        ...

    def optimize(self) -> None:
        """Build or bring up to date what makes searching fast, and drop what is no longer needed."""
        ...

    def verify(self) -> list[str]:
        """Check the whole index; return its faults in words, none when it is sound."""
        ...

    def snapshot(self, out: Path) -> None:
        """Write a copy of the index as it is now to a new folder, which opens as an index of its own.

        Raises:
            ArtifactError: ``out`` is not free.
            ConfigError: The engine has no snapshots.
        """
        ...

    def hold(self, max_bytes: int) -> bool:
        """Keep in memory what makes searching fast, for a process that will answer many.

        What is found stays what the index on disk holds, changes by other processes included; right after a change
        searches take as long as without a copy.

        Args:
            max_bytes: Memory for it; an index that needs more is not held.

        Returns:
            Whether something is held now; False too where the engine gains nothing by it.
        """
        ...

    def close(self) -> None:
        """Release files and connections; the store cannot be used afterwards. Closing twice is allowed."""
        ...


class PluginStore(VectorStore, Protocol):
    """How the class of another package's store makes and opens an index; ``tests/plugin_example`` has one."""

    @classmethod
    def create(
        cls, folder: Path, info: StoreInfo, vectors: np.ndarray, records: Sequence[ImageRecord], settings: IndexSettings
    ) -> PluginStore:
        """Write a new index into an empty folder, its manifest last: ``write_manifest(folder, "index", …)``.

        Args:
            folder: Where to write.
            info: What the index says about itself; ``describe(info)`` makes fields of the manifest of it.
            vectors: ``(N, E)`` float32, finite, L2-normalized, any number; may be a memory map.
            records: The ``N`` images.
            settings: How it searches, as far as it can be set.
        """
        ...

    @classmethod
    def open(cls, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> PluginStore:
        """Open an index.

        Args:
            folder: Its folder.
            info: What the index says about itself.
            manifest: The whole manifest.
            identity: Says whether the folder still holds the same index.
        """
        ...


def find_feedback_key(manifest: Mapping[str, Any]) -> str:
    """Return what stands for an index of pgvector among the corrections in its database.

    It is the ID of the index's table: its name without ``vitrieve_``. An index that is made anew has another table, and
    takes the key over. The whole name would not do: ``claims.py`` keeps every table that a manifest names, so the old
    table would never be removed.

    Args:
        manifest: The whole manifest of the index.
    """
    return str(manifest.get(FEEDBACK_KEY) or str(manifest["table"]).removeprefix("vitrieve_"))


def read_info(folder: Path) -> tuple[StoreInfo, dict[str, Any]]:
    """Read the manifest of an index.

    Returns:
        What the index says about itself, and the whole manifest with the fields of its kind of store.

    Raises:
        ArtifactError: The folder is missing, unfinished, damaged or of another kind.
    """
    manifest = read_manifest(folder, "index")
    try:
        info = StoreInfo(
            kind=manifest["store"],
            fingerprint=manifest["fingerprint"],
            encoder_source=manifest["encoder_source"],
            image_size=manifest["image_size"],
            embedding_dim=manifest["embedding_dim"],
            license=manifest["license"],
        )
    except KeyError as error:
        raise ArtifactError(f"{folder} is damaged: its manifest has no {error}; make the index again.") from None
    return info, manifest


def describe(info: StoreInfo) -> dict[str, Any]:
    """Turn ``info`` into the fields of a manifest that ``read_info`` reads."""
    fields = asdict(info)
    return {"store": fields.pop("kind"), **fields, "dtype": "float32"}


@contextmanager
def needing_psycopg() -> Iterator[None]:
    """Explain an import that fails without psycopg, or where psycopg finds no libpq.

    Raises:
        ConfigError: The block raised ``ImportError``.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"the store pgvector needs psycopg ({error}): pip install 'vitrieve[pgvector]'.") from None


def require_fingerprint(where: Path | str, info: StoreInfo, fingerprint: str) -> None:
    """Refuse vectors that are not of the encoder that the manifest names.

    Args:
        where: The index, for the message.
        info: What its manifest says.
        fingerprint: What stands beside the vectors.

    Raises:
        FingerprintError: They differ.
    """
    require_made_by(
        f"the vectors of {where} were",
        fingerprint,
        "its manifest says",
        info.fingerprint,
        advice="Somebody exchanged one of the two; make the index again.",
    )


def sort_names(blocks: Iterable[pa.Array]) -> Iterator[str]:
    """Return the names of blocks in order, as Arrow's strings until each is asked for.

    Args:
        blocks: Strings, any number in each; all are read before this returns.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    runs: list[pa.Array] = []
    parts: list[pa.Array] = []

    def end_run() -> None:
        names = pa.concat_arrays(parts)
        runs.append(names.take(pc.sort_indices(names)))
        parts.clear()

    for block in blocks:
        parts.append(block)
        if sum(map(len, parts)) >= BLOCK_ROWS:
            end_run()
    if parts:
        end_run()
    return merge(*map(_list_names, runs))


def _list_names(names: pa.Array) -> Iterator[str]:
    for start in range(0, len(names), LISTED_ROWS):
        yield from names.slice(start, LISTED_ROWS).to_pylist()


def find_name(store: VectorStore, image_id: str) -> str:
    """Find the name of an image that is asked for in whichever Unicode form: as it is, NFC or NFD.

    Returns:
        The name that the index has; ``image_id`` itself where it has none of the three.
    """
    if image_id.isascii():  # its forms are all the same
        return image_id
    for name in dict.fromkeys((image_id, normalize("NFC", image_id), normalize("NFD", image_id))):
        with suppress(DataError):
            store.get([name])
            return name
    return image_id


# What every store checks before it changes or searches anything


def check_batch(vectors: np.ndarray, records: Sequence[ImageRecord], embedding_dim: int) -> FloatArray:
    """Check the arguments of ``upsert``; return the vectors as float32.

    Raises:
        DataError: As ``VectorStore.upsert``.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape != (len(records), embedding_dim):
        raise DataError(
            f"vectors of shape {given.shape} do not belong to {len(records)} images in an index of {embedding_dim} "
            "dimensions."
        )
    check_size(len(records))
    check_vectors(given, records)
    return np.ascontiguousarray(given, dtype=np.float32)


def check_size(num_images: int) -> None:
    """Refuse a change of more images than one change may have."""
    if num_images > MAX_BATCH_ROWS:
        raise DataError(f"{num_images} images in one change; give at most {MAX_BATCH_ROWS}, one batch after another.")


def check_vectors(vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
    """Check any number of vectors and their images.

    Raises:
        DataError: Vectors that are not normalized or not finite, an ``image_id`` that occurs twice, or text that is
            not UTF-8.
    """
    for start in range(0, len(vectors), BLOCK_ROWS):
        norms, wrong = find_wrong_norms(vectors[start : start + BLOCK_ROWS])
        if wrong.size:
            image_id = records[start + int(wrong[0])].image_id
            raise DataError(
                f"the vector of {image_id} has the length {norms[wrong[0]]:.4g}; "
                "vectors must be finite and L2-normalized."
            )
    hashes = np.empty(len(records), dtype=np.int64)  # a set of ten million names would take a gigabyte
    for row, record in enumerate(records):
        _check_text(record)
        hashes[row] = hash(record.image_id)
    hashes.sort()
    suspect = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for record in records if suspect else ():
        if record.image_id in seen:
            raise DataError(f"the image_id {record.image_id!r} occurs twice; every image needs its own.")
        if hash(record.image_id) in suspect:
            seen.add(record.image_id)


def find_wrong_norms(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of all rows, and which rows have a length that is neither one nor zero."""
    with np.errstate(over="ignore"):  # an infinite length is wrong, and counts so
        norms = np.linalg.norm(vectors, axis=1)
    # Written so that NaN counts as wrong. A length of zero is what normalizing zeros gives.
    return norms, np.flatnonzero(~((np.abs(norms - 1) <= NORM_TOLERANCE) | (norms == 0)))


def _check_text(record: ImageRecord) -> None:
    """Refuse lone surrogates and NUL, which no engine stores."""
    texts = [record.image_id, *record.metadata.keys(), *record.metadata.values()]
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{text!r} of {record.image_id!r} is not UTF-8.") from None
        if "\0" in text:
            raise DataError(f"{text!r} of {record.image_id!r} holds the character NUL.")


def check_queries(queries: np.ndarray, k: int, embedding_dim: int) -> FloatArray:
    """Check the arguments of ``search``; return the queries as float32.

    Raises:
        InputError: ``k`` below 1, another width, or a number that is not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1.")
    checked = as_embeddings(queries, "query embeddings")
    if checked.shape[1] != embedding_dim:
        raise InputError(
            f"query embeddings have {checked.shape[1]} dimensions and the index {embedding_dim}; "
            "they must come from the same encoder."
        )
    return checked


# What stores do with the rows of their engine


def choose(image_ids: Sequence[str], found: Mapping[str, T]) -> list[T]:
    """Return what was found of images, in the order asked for.

    Raises:
        DataError: One of them is missing.
    """
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"the image {missing[0]!r}{others} is not in the index.")
    return [found[image_id] for image_id in image_ids]


def count_candidates(k: int, per_hit: int, at_least: int) -> int:
    """Return how many candidates short codes are asked for, so that the nearest ``k`` images are among them.

    It is computed from a power of two, so that neighboring ``k`` look at the same candidates: pages of one answer fit
    together.
    """
    return max(at_least, per_hit * (1 << (k - 1).bit_length()))


def rank_candidates(
    query: FloatArray,
    vectors: np.ndarray,
    image_ids: Sequence[str],
    k: int,
    read_records: Callable[[list[int]], Sequence[ImageRecord]],
) -> list[Hit]:
    """Compare candidates exactly.

    Args:
        query: ``(E,)``.
        vectors: ``(N, E)`` full vectors of the candidates.
        image_ids: Names of the candidates.
        k: How many to keep.
        read_records: Reads the records of some candidates, given their rows.

    Returns:
        The hits, nearest first; equal scores ordered by ``image_id``.
    """
    if not image_ids:
        return []
    order = sorted(range(len(image_ids)), key=lambda row: image_ids[row])
    (scores,), (ranks,) = top_k(query[None], np.asarray(vectors)[order], k)
    records = read_records([order[row] for row in ranks])
    return [Hit(record=record, score=float(score)) for record, score in zip(records, scores, strict=True)]


def error_bound(query: FloatArray) -> np.float32:
    """Bound the distance of a float32 product with a normalized row from the exact similarity.

    Summing E rounded products in any order errs by less than about ``E * 2^-24`` of the product of the norms; the
    grid and the rounding of ``similarity`` add less than that again. Doubled for the norms' tolerance.
    """
    return np.float32(query.size * 2.0**-22 * max(1.0, float(np.linalg.norm(query))))


def find_row_faults(blocks: Iterable[tuple[Sequence[str], np.ndarray]], *, advice: str = "") -> tuple[int, list[str]]:
    """Check the names and vectors of all rows of an index.

    Args:
        blocks: ``(image_ids, vectors)`` of some rows at a time.
        advice: A clause that says what mends images that occur twice.

    Returns:
        The number of rows, and the faults in words.
    """
    seen: set[str] = set()
    num_rows = num_wrong = 0
    for image_ids, vectors in blocks:
        num_rows += len(image_ids)
        seen.update(image_ids)
        num_wrong += find_wrong_norms(vectors)[1].size
    faults = [count_nouns(num_wrong, "vector is", "vectors are") + " not L2-normalized."] if num_wrong else []
    if len(seen) != num_rows:
        faults.append(f"{count_nouns(num_rows - len(seen), 'image occurs', 'images occur')} twice{advice}.")
    return num_rows, faults
