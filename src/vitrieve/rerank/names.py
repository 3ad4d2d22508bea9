"""The names of the re-rankings, without what they need: settings and commands read them at import."""

from __future__ import annotations

from typing import Literal

RerankerName = Literal[
    "average_query_expansion",
    "alpha_query_expansion",
    "k_reciprocal",
    "superglobal",
    "chamfer",
    "optimal_transport",
    "query_tiles",
    "image_tiles",
    "tiles",
    "elvis",
]
Reranking = Literal["auto", "none", RerankerName]
"""``auto`` is what the index remembers (``vitrieve evaluate --rerank auto --index``)."""
LEARNT = "elvis"
"""Name of what is learned on the user's own pictures."""
AUTO = "auto"
NO_RERANKING = "none"
