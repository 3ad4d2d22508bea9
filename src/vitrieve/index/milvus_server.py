"""Talking to a Milvus server: connection, collections, errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.index.store import IndexKind

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN_VARIABLE = "VITRIEVE_MILVUS_TOKEN"
TIMEOUT_SECONDS = 60.0
PQ_SUB_VECTOR_WIDTH = 8
"""Dimensions that one byte of a product-quantized code stands for, unless ``code_bytes`` says otherwise."""


def connect(uri: str) -> MilvusClient:
    """Connect to a server.

    Raises:
        ConfigError: pymilvus is not installed, or ``uri`` is no address.
        ArtifactError: The server does not answer.
    """
    if not uri.startswith(("http://", "https://", "tcp://")):
        raise ConfigError(f"{uri!r} is no address of a Milvus server; give one like http://localhost:19530.")
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise ConfigError("the store milvus needs pymilvus: pip install 'vitrieve[milvus]'.") from None
    # It logs every failed call with a traceback before it raises; the errors below say what is wrong.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    token = os.environ.get(TOKEN_VARIABLE, "")
    try:
        return MilvusClient(uri, token=token, timeout=TIMEOUT_SECONDS)
    except (MilvusException, grpc_error()):
        # Clients of one address share a channel, and a server may just have closed it (milvus-lite calls the client's
        # pings too many). The client tries other calls again by itself, but not its first.
        with reported(uri):
            return MilvusClient(uri, token=token, timeout=TIMEOUT_SECONDS)


def create_collection(
    client: MilvusClient, name: str, embedding_dim: int, kind: IndexKind, code_bytes: int | None
) -> None:
    """Make the collection of images; arguments as ``MilvusStore.create``."""
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
