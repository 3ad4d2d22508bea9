"""The table of the losses: the objective of a run has a line for each.

Their order is that of the sum, which the last bits of a run depend on, so a new loss comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Annotated, ClassVar

import tyro

from vitrieve.objective.circle import CircleConfig
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.objective.distillation import DistillationConfig
from vitrieve.objective.hyperbolic import HyperbolicConfig
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.objective.margin_softmax import MarginSoftmaxConfig
from vitrieve.objective.multi_similarity import MultiSimilarityConfig
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxConfig
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.objective.proxy_nca import ProxyNcaConfig
from vitrieve.objective.recall_at_k import RecallAtKConfig
from vitrieve.objective.scalable_nca import ScalableNcaConfig
from vitrieve.objective.smooth_ap import SmoothApConfig
from vitrieve.objective.supervised_contrastive import SupervisedContrastiveConfig
from vitrieve.objective.term import TermConfig
from vitrieve.objective.triplet import TripletConfig
from vitrieve.objective.tuple_contrastive import TupleContrastiveConfig
from vitrieve.settings import BelowOne, CountOrZero, Needs, NotNegative, Range


def _are_different(lengths: tuple[int, ...]) -> bool:
    return len(set(lengths)) == len(lengths)


Prefixes = Annotated[
    tuple[int, ...],
    Range("different whole numbers above 0", lambda lengths: min(lengths, default=1) > 0 and _are_different(lengths)),
    tyro.conf.arg(help_behavior_hint="(optional)"),
]
MEMORY = Needs("a memory", lambda config: config.objective.memory_fraction > 0)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The weighted sum of terms that training minimizes. Each loss has a table of its own."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    multi_similarity: MultiSimilarityConfig = MultiSimilarityConfig()
    proxy_anchor: ProxyAnchorConfig = ProxyAnchorConfig()
    normalized_softmax: NormalizedSoftmaxConfig = NormalizedSoftmaxConfig()
    proxy_nca: ProxyNcaConfig = ProxyNcaConfig()
    scalable_nca: ScalableNcaConfig = ScalableNcaConfig()
    tuple_contrastive: TupleContrastiveConfig = TupleContrastiveConfig()
    koleo: KoleoConfig = KoleoConfig()
    supervised_contrastive: SupervisedContrastiveConfig = SupervisedContrastiveConfig()
    smooth_ap: SmoothApConfig = SmoothApConfig()
    recall_at_k: RecallAtKConfig = RecallAtKConfig()
    hyperbolic: HyperbolicConfig = HyperbolicConfig()
    margin_softmax: MarginSoftmaxConfig = MarginSoftmaxConfig()
    circle: CircleConfig = CircleConfig()
    triplet: TripletConfig = TripletConfig()
    distillation: DistillationConfig = DistillationConfig()

    memory_fraction: NotNegative = 0.0
    """Rows of the cross-batch memory as a share of the training set; 0 is off."""
    memory_start_step: Annotated[CountOrZero, MEMORY] = 0
    """First step at which the memory counts in the loss (it fills from the start)."""
    memory_momentum: Annotated[BelowOne | None, MEMORY] = None
    """Fill the memory by a momentum encoder, the moving average of the encoder with this decay; None is off."""

    prefixes: Prefixes = ()
    """Lengths of leading parts of the embedding, for example 64 128 256. Every loss of the package is computed on each
    of them too, normalized, and added up (Matryoshka); none: on the whole embedding only."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "contrastive_weight": "contrastive.weight",
            "margin": "contrastive.margin",
            "mean_nonzero": "contrastive.mean_nonzero",
            "multi_similarity_weight": "multi_similarity.weight",
            "multi_similarity_beta": "multi_similarity.beta",
            "multi_similarity_base": "multi_similarity.base",
            "proxy_anchor_weight": "proxy_anchor.weight",
            "normalized_softmax_weight": "normalized_softmax.weight",
            "normalized_softmax_temperature": "normalized_softmax.temperature",
            "proxy_nca_weight": "proxy_nca.weight",
            "proxy_nca_temperature": "proxy_nca.temperature",
            "scalable_nca_weight": "scalable_nca.weight",
            "scalable_nca_temperature": "scalable_nca.temperature",
            "scalable_nca_momentum": "scalable_nca.momentum",
            "tuple_contrastive_weight": "tuple_contrastive.weight",
            "tuple_margin": "tuple_contrastive.margin",
            "koleo_weight": "koleo.weight",
        }
    )
    """Names of the time when all losses shared one flat table: flags, and ``config.json`` of older runs."""

    @property
    def losses(self) -> dict[str, TermConfig]:
        """The settings of all losses, by name, in the order of the sum."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, TermConfig)}

    @property
    def terms(self) -> dict[str, TermConfig]:
        """The losses whose weight is not 0, by name, in the order of the sum."""
        return {name: loss for name, loss in self.losses.items() if loss.weight > 0}

    def without_terms(self) -> ObjectiveConfig:
        """Return these settings with every weight 0 and without a memory."""
        losses = {name: replace(loss, weight=0.0) for name, loss in self.losses.items()}
        return replace(self, **losses, memory_fraction=0.0)  # type: ignore[arg-type]
