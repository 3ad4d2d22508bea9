"""The Milvus store: the same index on a cluster, through pymilvus (the extra ``milvus``).

The folder on disk holds only the manifest with the server's address and the collection's name. Beside the collection
of images stands a small one that says which encoder made them and which metadata columns there are. Every call reads
with strong consistency: it sees every change that was acknowledged before it.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import groupby, islice
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.index.claims import Claim, Claims
from vitrieve.index.filter import NOTHING, FilterLike, Kinds, read_kinds, resolve_filter
from vitrieve.index.folder import Identity, guarded
from vitrieve.index.milvus_rows import (
    NO_IMAGE_KEY,
    ROW_FIELDS,
    build_rows,
    from_key,
    other_kinds_expression,
    read_records,
    read_texts,
    read_vectors,
    to_expression,
    to_key,
    unknown_kinds_expression,
)
from vitrieve.index.open import open_index, settling_claims
from vitrieve.index.store import (
    BLOCK_ROWS,
    MAX_BATCH_ROWS,
    PQ_SUB_VECTOR_WIDTH,
    Hit,
    IndexKind,
    IndexSettings,
    StoreInfo,
    TextBlock,
    check_batch,
    check_queries,
    check_size,
    choose,
    count_candidates,
    describe,
    error_bound,
    find_row_faults,
    rank_candidates,
    require_fingerprint,
    sort_names,
)
from vitrieve.similarity import FloatArray

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MAX_CANDIDATES = 16_384
"""What Milvus returns for one query at most."""
MIN_CANDIDATES = 32
CANDIDATES_PER_HIT: dict[IndexKind, int] = {"flat": 2, "ivf_hnsw_sq": 4, "ivf_pq": 40, "ivf_rq": 10}
"""Candidates from the short codes for each image to find: shorter codes need more."""
PAGE_ROWS = 1_000
GET_ROWS = 500
"""Images fetched with their vectors at a time: an answer stays far below Milvus's 64 MB."""
SNAPSHOT_POLL_SECONDS = 1.0
TOKEN_VARIABLE = "VITRIEVE_MILVUS_TOKEN"
TLS_VARIABLES = ("VITRIEVE_MILVUS_CA", "VITRIEVE_MILVUS_CERT", "VITRIEVE_MILVUS_KEY")
"""Files in PEM: who signed the certificate of the server; what the client shows where it is asked, and its key."""
TLS_PORT = 443
TIMEOUT_SECONDS = 60.0
CHANGE_KEY = "change"
"""Key of the row that every change writes anew; those of columns begin with x."""


class MilvusStore:
    """An index in a Milvus collection; satisfies ``VectorStore``. May be sent to another process."""

    def __init__(self, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> None:
        """Join a folder with its collection; use ``open_index``."""
        self._folder = folder
        self._identity = identity
        self._info = info
        self._uri = str(manifest["uri"])
        self._name = str(manifest["collection"])
        self._kind: IndexKind = manifest["index_kind"]
        self._open_client: MilvusClient | None = connect(self._uri)

    @classmethod
    def open(cls, folder: Path, info: StoreInfo, manifest: dict[str, Any], identity: Identity) -> MilvusStore:
        """Open an index; ``open_index`` calls it."""
        store = cls(folder, info, manifest, identity)
        with reported(store._uri):
            if not store._client.has_collection(store._about):
                raise ArtifactError(f"{store._uri} has no collection {store._name!r}; make the index again.")
            for name in (store._name, store._about):  # a server that was started again has loaded nothing
                store._client.load_collection(name)
            found = store._client.get(store._about, ids=["fingerprint"], output_fields=["value"])
        require_fingerprint(folder, info, found[0]["value"] if found else "")
        return store

    @classmethod
    def create(
        cls,
        folder: Path,
        info: StoreInfo,
        vectors: np.ndarray,
        records: Sequence[ImageRecord],
        settings: IndexSettings,
        claims: Claims,
    ) -> MilvusStore:
        """Make a new collection, and let an empty folder name it; ``build_index`` has checked the arguments.

        Args:
            folder: Where the manifest is written.
            info: What the index says about itself.
            vectors: ``(N, E)`` float32, any number; may be a memory map.
            records: The ``N`` images.
            settings: Address of the server, and which codes to search in.
            claims: Told of the collection before it is made.
        """
        uri, kind = str(settings.uri), settings.index_kind
        manifest = {"uri": uri, "collection": f"vitrieve_{uuid.uuid4().hex}", "index_kind": kind}
        store = cls(folder, info, manifest, Identity(folder))
        claims.add(Claim(kind="milvus", uri=uri, name=store._name, folder=folder.name))
        with reported(uri):
            create_collection(store._client, store._name, info.embedding_dim, kind, settings.code_bytes)
            create_about(store._client, store._about, info.fingerprint)
        for start in range(0, len(records), MAX_BATCH_ROWS):
            store.upsert(vectors[start : start + MAX_BATCH_ROWS], records[start : start + MAX_BATCH_ROWS])
        write_manifest(folder, "index", {**describe(info), **manifest})
        store._identity = Identity(folder)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_index, (self._folder,))

    @property
    def info(self) -> StoreInfo:
        """Return what the index says about itself."""
        return self._info

    @property
    def _about(self) -> str:
        return about_name(self._name)

    @property
    def _client(self) -> MilvusClient:
        if self._open_client is None:
            raise ArtifactError(f"the index {self._folder} is closed; open it again.")
        return self._open_client

    def upsert(self, vectors: np.ndarray, records: Sequence[ImageRecord]) -> None:
        """Add images, and replace those whose ``image_id`` is there; one message, so all of it or nothing."""
        checked = check_batch(vectors, records, self._info.embedding_dim)
        if not records:
            return
        self._identity.require()
        new = {name for record in records for name in record.metadata} - set(self.columns())
        with reported(self._uri):
            if new:  # before the images: a column without images harms nobody
                rows = [about_row(to_key(name), name) for name in sorted(new)]
                self._client.upsert(self._about, rows)
            self._client.upsert(self._name, build_rows(checked, records))
            self._client.upsert(self._about, [about_row(CHANGE_KEY, uuid.uuid4().hex)])

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove images; return how many were there."""
        check_size(len(image_ids))
        if not image_ids:
            return 0
        self._identity.require()
        keys = [to_key(image_id) for image_id in dict.fromkeys(image_ids)]
        with reported(self._uri):
            present = [row["key"] for row in self._client.get(self._name, ids=keys, output_fields=["key"])]
            if present:
                self._client.delete(self._name, ids=present)
                self._client.upsert(self._about, [about_row(CHANGE_KEY, uuid.uuid4().hex)])
        return len(present)

    @guarded
    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Find the nearest images of every query, at most ``MAX_CANDIDATES``; as ``VectorStore.search``."""
        checked = check_queries(queries, k, self._info.embedding_dim)
        if k > MAX_CANDIDATES:
            raise ConfigError(f"k is {k}; Milvus finds at most {MAX_CANDIDATES} images.")
        expression = self._to_expression(filter)
        with reported(self._uri):
            return [self._search_one(query, k, expression) for query in checked]

    @guarded
    def get(self, image_ids: Sequence[str]) -> tuple[FloatArray, list[ImageRecord]]:
        """Return vectors and images by name; as ``VectorStore.get``."""
        wanted = [to_key(image_id) for image_id in dict.fromkeys(image_ids)]
        found: dict[str, dict[str, Any]] = {}
        with reported(self._uri):
            for start in range(0, len(wanted), GET_ROWS):
                keys = wanted[start : start + GET_ROWS]
                rows = self._client.get(self._name, ids=keys, output_fields=list(ROW_FIELDS))
                found |= {from_key(row["key"]): row for row in rows}
        rows = choose(image_ids, found)
        return read_vectors(rows, self._info.embedding_dim), list(read_records(rows))

    @guarded
    def image_ids(self) -> Iterator[str]:
        """Return the names of all images, rising."""
        names = (from_key(row["key"]) for row in self._iterate(self._name, ["key"]))
        blocks = iter(lambda: pa.array(islice(names, BLOCK_ROWS), pa.string()), pa.array([], pa.string()))
        return (name for name, _ in groupby(sort_names(blocks)))  # see optimize: a row may recur

    @guarded
    def sample_ids(self, num_images: int) -> list[str]:
        """Return the names of the first images that the server lists."""
        return sorted({from_key(row["key"]) for row in islice(self._iterate(self._name, ["key"]), num_images)})

    @guarded
    def columns(self) -> tuple[str, ...]:
        """Return the names of the metadata columns, sorted."""
        values = {row["key"]: row["value"] for row in self._iterate(self._about, ["key", "value"])}
        require_fingerprint(self._folder, self._info, values.pop("fingerprint", ""))
        values.pop(CHANGE_KEY, None)
        return tuple(sorted(values.values()))

    @guarded
    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find of which kinds the values of some metadata columns are; as ``VectorStore.kinds``."""
        with reported(self._uri):
            return {column: self._find_kinds(column) for column in columns}

    @guarded
    def count(self, filter: FilterLike = ()) -> int:
        """Count the images that pass the filter."""
        expression = self._to_expression(filter)
        with reported(self._uri):
            rows = self._client.query(self._name, filter=expression, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    @guarded
    def read_texts(self) -> Iterator[TextBlock]:
        """Return the texts of all images."""
        rows = {
            row["key"]: row for row in self._iterate(self._name, ["key", "record"])
        }  # see optimize: a row may recur
        return iter([read_texts(list(rows.values()))] if rows else [])

    def read_stamp(self) -> Hashable:
        """Return the number of the newest change, which is written after it."""
        with reported(self._uri):
            found = self._client.get(self._about, ids=[CHANGE_KEY], output_fields=["value"])
        return str(found[0]["value"]) if found else ""

    def optimize(self) -> None:
        """Ask the server to write out what it holds in memory and to merge its segments; it indexes them itself.

        It also mends what milvus-lite (3.2) leaves when it was killed during a flush. Killed between the removals of
        two logs, it reads the older one again, shows its rows instead of newer ones, and refuses to flush until a
        change is newer than both: the removal of an image that is not there is such a change. Killed before the
        removals, it keeps every row of the log a second time: such images are written once more.
        """
        self._identity.require()
        with reported(self._uri):
            if self._client.get_server_version().startswith("milvus_lite"):
                self._client.delete(self._name, ids=[NO_IMAGE_KEY])
                self._client.flush(self._name)
            self._mend_repeated()
            self._client.flush(self._name)
            self._client.compact(self._name)

    def verify(self) -> list[str]:
        """Read every vector; say which are not normalized, and whether the server counts what it holds."""
        entities = self._iterate(self._name, ["key", "vector"])
        pages = iter(lambda: list(islice(entities, PAGE_ROWS)), [])
        num_rows, faults = find_row_faults(
            (([row["key"] for row in rows], read_vectors(rows, self._info.embedding_dim)) for rows in pages),
            advice="; optimize mends that",
        )
        if self.count() != num_rows:
            faults.append(f"the server counts {self.count()} images, but returns {num_rows}.")
        return faults

    def snapshot(self, out: Path) -> None:
        """Copy the collection on the server, and write a folder that names the copy.

        Raises:
            ConfigError: The server has no snapshots: milvus-lite, and Milvus before them.
        """
        from pymilvus.exceptions import MilvusException

        copy, snapshot = f"vitrieve_{uuid.uuid4().hex}", f"snapshot_{uuid.uuid4().hex}"
        with settling_claims(out) as claims:
            prepare_folder(out, is_resumable=False)
            claims.add(Claim(kind="milvus", uri=self._uri, name=copy))
            try:
                for name, target in ((self._name, copy), (self._about, about_name(copy))):
                    self._client.flush(name)
                    self._client.create_snapshot(f"{snapshot}_{target}", name)
                    job = self._client.restore_snapshot(f"{snapshot}_{target}", name, target)
                    self._wait_for_restore(job)
                    self._client.drop_snapshot(f"{snapshot}_{target}", name)
            except (MilvusException, grpc_error()) as error:
                reason = reason_of(error)
                raise ConfigError(f"{self._uri} cannot make snapshots ({reason}); use milvus-backup.") from None
            manifest = {"uri": self._uri, "collection": copy, "index_kind": self._kind}
            write_manifest(out, "index", {**describe(self._info), **manifest})

    def hold(self, max_bytes: int) -> bool:
        """Hold nothing: the server has its own."""
        return False

    def close(self) -> None:
        """Close the connection."""
        if self._open_client is not None:
            self._open_client.close()
            self._open_client = None

    @staticmethod
    def release(uri: str, name: str) -> None:
        """Remove the collections of an index from its server, for good; there may be none.

        Args:
            uri: Address of the server.
            name: Name of the collection of images.

        Raises:
            ArtifactError: The server refused or did not answer.
        """
        client = connect(uri)
        try:
            with reported(uri):
                for collection in (name, about_name(name)):
                    if client.has_collection(collection):
                        client.drop_collection(collection)
        finally:
            client.close()

    def _to_expression(self, filter: FilterLike) -> str:
        return to_expression(resolve_filter(filter, self.columns(), self.kinds))

    def _find_kinds(self, column: str) -> Kinds:
        """Ask for an image whose value is of another kind than those found, until there is none."""
        unknown = unknown_kinds_expression(column)
        if self._client.query(self._name, filter=unknown, output_fields=["key"], limit=1):
            return Kinds.TEXT | Kinds.NUMBER  # it may be anything, so the column takes every comparison, as before
        found: list[Kinds] = []
        while True:
            expression = other_kinds_expression(column, found)
            rows = self._client.query(self._name, filter=expression, output_fields=["record"], limit=1)
            if not rows:
                return reduce(or_, found, NOTHING)
            (record,) = read_records(rows)
            found.append(read_kinds(record.metadata[column]))

    def _mend_repeated(self) -> None:
        counts = Counter(row["key"] for row in self._iterate(self._name, ["key"]))
        repeated = [key for key, count in counts.items() if count > 1]
        for start in range(0, len(repeated), GET_ROWS):
            vectors, records = self.get([from_key(key) for key in repeated[start : start + GET_ROWS]])
            self.upsert(vectors, records)

    def _wait_for_restore(self, job: int) -> None:
        while (state := self._client.get_restore_snapshot_state(job)).progress < 100:
            if "fail" in str(state.state).lower():
                raise ConfigError(f"{self._uri} failed to restore a snapshot ({state.reason}).")
            time.sleep(SNAPSHOT_POLL_SECONDS)

    def _iterate(self, name: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        with reported(self._uri):
            iterator = self._client.query_iterator(name, batch_size=PAGE_ROWS, output_fields=fields)
            while page := iterator.next():
                yield from page
            iterator.close()

    def _search_one(self, query: FloatArray, k: int, expression: str) -> list[Hit]:
        num_candidates = count_candidates(k, CANDIDATES_PER_HIT[self._kind], MIN_CANDIDATES)
        while True:  # images that tie with the last candidate would be left out by chance
            num_candidates = min(num_candidates, MAX_CANDIDATES)
            (found,) = self._client.search(
                self._name,
                data=[query.tolist()],
                anns_field="vector",
                limit=num_candidates,
                filter=expression,
                output_fields=list(ROW_FIELDS),
                search_params={"metric_type": "IP", "params": search_parameters(self._kind, num_candidates)},
            )
            rows = [{"key": hit["key"], **hit["entity"]} for hit in found]
            ranked = self._rank(query, rows, k)
            is_all = len(rows) < num_candidates or num_candidates == MAX_CANDIDATES or self._kind != "flat"
            farthest = min((hit["distance"] for hit in found), default=0.0)  # a similarity, whatever its name
            if is_all or ranked[-1].score > farthest + 2 * float(error_bound(query)):
                return ranked
            num_candidates *= 4

    def _rank(self, query: FloatArray, rows: list[dict[str, Any]], k: int) -> list[Hit]:
        rows = list({row["key"]: row for row in rows}.values())  # see optimize: a row may occur twice
        vectors, names = read_vectors(rows, self._info.embedding_dim), [from_key(row["key"]) for row in rows]
        return rank_candidates(query, vectors, names, k, lambda ranked: read_records([rows[row] for row in ranked]))


# The server


def check_address(uri: str) -> None:
    """Refuse what is no address of a Milvus server, or holds a password.

    Raises:
        ConfigError: As it says; a message about a password does not repeat it.
    """
    if "@" in uri:
        raise ConfigError(
            "the uri holds a password, which lists of processes and the index would show; leave it out, and give "
            f"USER:PASSWORD or the token by {TOKEN_VARIABLE}."
        )
    if not uri.startswith(("http://", "https://", "tcp://")):
        raise ConfigError(f"{uri!r} is no address of a Milvus server; give one like http://localhost:19530.")


def read_tls(uri: str) -> dict[str, str]:
    """Read from the environment how an encrypted server is recognized, and what it is shown.

    Args:
        uri: Address of the server, with TLS where it begins with ``https://``.

    Returns:
        Arguments for pymilvus. Without ``VITRIEVE_MILVUS_CA`` the server needs a certificate of a public authority.

    Raises:
        ConfigError: A file is not there, a part is missing, or the address is one without TLS.
        ArtifactError: The certificate of the server is not of that authority, or of another name.
    """
    paths = {name: os.environ[name] for name in TLS_VARIABLES if os.environ.get(name)}
    if not paths:
        return {}
    names = " and ".join(paths)
    if not uri.startswith("https://"):
        raise ConfigError(f"{names} is for a server with TLS, and {uri} has none; give an address of https://.")
    for name, path in paths.items():
        if not Path(path).is_file():
            raise ConfigError(f"{name} names {path}, which is no file.")
    if len(paths) not in (1, len(TLS_VARIABLES)) or TLS_VARIABLES[0] not in paths:
        raise ConfigError(f"{names} is not all: a certificate of the client needs {', '.join(TLS_VARIABLES)}.")
    _require_trusted(uri, *(paths.get(name) for name in TLS_VARIABLES))
    arguments = ("ca_pem_path", "client_pem_path", "client_key_path") if len(paths) > 1 else ("server_pem_path",)
    return dict(zip(arguments, paths.values(), strict=True))


def _require_trusted(uri: str, authority: str | None, certificate: str | None, key: str | None) -> None:
    """Shake hands once: the client only waits, and does not tell why it trusts nobody."""
    address = urlsplit(uri)
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"the files that {', '.join(TLS_VARIABLES)} name are no certificates ({error}).") from None
    try:
        with (
            socket.create_connection((str(address.hostname), address.port or TLS_PORT), TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.hostname),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise ArtifactError(
            f"the Milvus server {uri} is not trusted: its certificate cannot be verified ({error.verify_message})."
        ) from None
    except OSError:  # the client says what is wrong
        return


def connect(uri: str) -> MilvusClient:
    """Connect to a server.

    Raises:
        ConfigError: pymilvus is not installed, ``uri`` is no address, or as ``read_tls``.
        ArtifactError: The server does not answer, or is not trusted.
    """
    check_address(uri)
    options: dict[str, Any] = {"token": os.environ.get(TOKEN_VARIABLE, ""), "timeout": TIMEOUT_SECONDS, **read_tls(uri)}
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise ConfigError("the store milvus needs pymilvus: pip install 'vitrieve[milvus]'.") from None
    # It logs every failed call with a traceback before it raises; the errors below say what is wrong.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    try:
        return MilvusClient(uri, **options)
    except (MilvusException, grpc_error()):
        # Clients of one address share a channel, and a server may just have closed it (milvus-lite calls the client's
        # pings too many). The client tries other calls again by itself, but not its first.
        with reported(uri):
            return MilvusClient(uri, **options)


def create_collection(
    client: MilvusClient, name: str, embedding_dim: int, kind: IndexKind, code_bytes: int | None
) -> None:
    """Make the collection of images."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=65_535)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=embedding_dim)
    schema.add_field("record", DataType.JSON)
    schema.add_field("terms", DataType.JSON)
    index = client.prepare_index_params()
    engine_kind, parameters = _index_parameters(kind, code_bytes or max(1, embedding_dim // PQ_SUB_VECTOR_WIDTH))
    index.add_index("vector", index_type=engine_kind, metric_type="IP", params=parameters)
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def create_about(client: MilvusClient, name: str, fingerprint: str) -> None:
    """Make the small collection beside it: the encoder's fingerprint, and the names of the metadata columns."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=65_535)
    schema.add_field("value", DataType.VARCHAR, max_length=65_535)
    schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants a vector in every collection
    index = client.prepare_index_params()
    index.add_index("nothing", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
    client.upsert(name, [about_row("fingerprint", fingerprint)])


def about_name(name: str) -> str:
    """Name the small collection beside that of the images."""
    return f"{name}_about"


def about_row(key: str, value: str) -> dict[str, Any]:
    """Build an entity of the small collection."""
    return {"key": key, "value": value, "nothing": [0.0, 0.0]}


def _index_parameters(kind: IndexKind, code_bytes: int) -> tuple[str, dict[str, Any]]:
    """Return Milvus's name and settings of an index kind; 1,024 lists suit its segments of about a million images."""
    parameters: dict[IndexKind, tuple[str, dict[str, Any]]] = {
        "flat": ("FLAT", {}),
        "ivf_hnsw_sq": ("HNSW_SQ", {"M": 20, "efConstruction": 200, "sq_type": "SQ8"}),
        "ivf_pq": ("IVF_PQ", {"nlist": 1024, "m": code_bytes, "nbits": 8}),
        "ivf_rq": ("IVF_RABITQ", {"nlist": 1024}),
    }
    return parameters[kind]


def search_parameters(kind: IndexKind, num_candidates: int) -> dict[str, Any]:
    """Return how thoroughly to search an index of a kind."""
    if kind == "flat":
        return {}
    return {"ef": max(2 * num_candidates, 100)} if kind == "ivf_hnsw_sq" else {"nprobe": 64}


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turn what the client raises into our error."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc_error()) as error:
        raise ArtifactError(f"the Milvus server {uri} refused or did not answer: {reason_of(error)}") from None


def grpc_error() -> type[Exception]:
    """Return what a call raises that the server does not know, or that does not reach it."""
    from grpc import RpcError

    return RpcError  # type: ignore[no-any-return]


def reason_of(error: Exception) -> str:
    """Return the first line of what a server says."""
    lines = str(getattr(error, "message", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
