"""LanceDB, imported without the client of its cloud.

``import lancedb`` also imports a generated client of a server that is never asked here, which takes half of its two
seconds, for the sake of a few classes that stand in a module beside it. A search in a new process would wait for that.
So the package that holds both runs its own body only when somebody asks for something that the body defines.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Literal

CLOUD_CLIENT = "lance_namespace_urllib3_client"


class _OnDemand(ModuleType):
    """A package of which submodules can be imported before its own body has run."""

    def __getattr__(self, name: str) -> Any:
        """Run the body, once: only what is not there yet is asked for here."""
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec: Any = self.__spec__
        spec.loader.exec_module(self)
        return getattr(self, name)


def postpone(package: str) -> None:
    """Let a package's body wait until it is needed; where it is imported already, or not installed, do nothing."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is not None:
        module = module_from_spec(spec)
        module.__class__ = _OnDemand
        sys.modules[package] = module


postpone(CLOUD_CLIENT)

import lancedb  # noqa: E402
from lancedb.index import BTree, HnswSq, IvfPq, IvfRq  # noqa: E402
from lancedb.table import Table  # noqa: E402

from vitrieve.index.store import IndexKind  # noqa: E402

__all__ = ["BTree", "Table", "build_config", "lancedb"]

PQ_SUB_VECTOR_WIDTH = 8
"""Dimensions that one byte of a product-quantized code stands for, unless ``code_bytes`` says otherwise."""
PQ_DISTANCE: Literal["l2"] = "l2"
"""Of unit vectors it orders as the inner product does; for it LanceDB codes the differences from the centers of the
lists, for the inner product the vectors themselves, which finds far fewer of the nearest (dev/LOG.md)."""


def build_config(kind: IndexKind, code_bytes: int | None, embedding_dim: int) -> HnswSq | IvfPq | IvfRq:
    """Say how LanceDB is to build an index of one of the kinds of short codes."""
    if kind == "ivf_pq":
        num_bytes = code_bytes or max(1, embedding_dim // PQ_SUB_VECTOR_WIDTH)
        return IvfPq(distance_type=PQ_DISTANCE, num_sub_vectors=num_bytes)
    return IvfRq(distance_type="dot") if kind == "ivf_rq" else HnswSq(distance_type="dot")
