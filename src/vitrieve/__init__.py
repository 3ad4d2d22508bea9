"""vitrieve: train a vision transformer to find the same thing again, measure it, and search with it.

The files of this package in reading order, which is also the order of running and the allowed direction
of import: ``errors``, ``progress``, ``cache`` | ``config``, ``recipes`` | ``similarity`` | ``artifacts`` |
``data/`` | ``model/`` | ``runtime/`` | ``objective/`` | ``training/`` | ``embed/`` | ``evaluation/`` | ``index/`` |
``search/`` | ``cli/``. The public names below are loaded when they are first used, so that importing
``vitrieve`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrieve.data.sources import read_collection, read_source
    from vitrieve.embed.collection import Embeddings, embed_images, load_embeddings
    from vitrieve.evaluation.metrics import map_at_r, r_precision, recall_at_k
    from vitrieve.evaluation.revisited import revisited_metrics
    from vitrieve.index.open import build_index, open_index
    from vitrieve.runtime.encoder import Encoder, load_encoder
    from vitrieve.search.request import Example, SearchAnswer, SearchRequest, SearchResult
    from vitrieve.search.searcher import Searcher

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "Embeddings": "vitrieve.embed.collection",
    "Encoder": "vitrieve.runtime.encoder",
    "Example": "vitrieve.search.request",
    "SearchAnswer": "vitrieve.search.request",
    "SearchRequest": "vitrieve.search.request",
    "SearchResult": "vitrieve.search.request",
    "Searcher": "vitrieve.search.searcher",
    "build_index": "vitrieve.index.open",
    "embed_images": "vitrieve.embed.collection",
    "load_embeddings": "vitrieve.embed.collection",
    "load_encoder": "vitrieve.runtime.encoder",
    "map_at_r": "vitrieve.evaluation.metrics",
    "open_index": "vitrieve.index.open",
    "r_precision": "vitrieve.evaluation.metrics",
    "read_collection": "vitrieve.data.sources",
    "read_source": "vitrieve.data.sources",
    "recall_at_k": "vitrieve.evaluation.metrics",
    "revisited_metrics": "vitrieve.evaluation.revisited",
}

__all__ = [
    "Embeddings",
    "Encoder",
    "Example",
    "SearchAnswer",
    "SearchRequest",
    "SearchResult",
    "Searcher",
    "__version__",
    "build_index",
    "embed_images",
    "load_embeddings",
    "load_encoder",
    "map_at_r",
    "open_index",
    "r_precision",
    "read_collection",
    "read_source",
    "recall_at_k",
    "revisited_metrics",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'vitrieve' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return __all__
