"""Methods to compare under equal budgets: `small` with another objective each.

Backbone, image size, number of images, sampler, optimizer, hold-out and share of the frozen weights are those of
`small`; a method brings its loss with the values of its source, and the learning rate of what the loss learns. So they
differ in the method alone, and a setting that deserves tuning is a flag. None of these settings was chosen on a test
class. Losses with learned vectors for each class begin them at images (``from_images``) and draw random batches, as
they need no pairs: under this budget a class is met a few times (docs/method/losses.md, Proxy-Anchor).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitrieve.config import Config, ObjectiveConfig
from vitrieve.objective.circle import CircleConfig
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.objective.hyperbolic import HyperbolicConfig
from vitrieve.objective.margin_softmax import MarginSoftmaxConfig
from vitrieve.objective.multi_similarity import MultiSimilarityConfig
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxConfig
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.objective.proxy_nca import ProxyNcaConfig
from vitrieve.objective.recall_at_k import RecallAtKConfig
from vitrieve.objective.smooth_ap import SmoothApConfig
from vitrieve.objective.supervised_contrastive import SupervisedContrastiveConfig
from vitrieve.objective.triplet import TripletConfig
from vitrieve.recipes.small import small

PROXY_RATE = 1e-3
"""Learning rate of vectors of about unit length that begin at images: Adam turns one of 384 dimensions by at most 0.02
radians in a step. Chosen for this bound, not measured."""
LARGE_BATCH_SIZE = 256


def contrastive() -> Config:
    """The contrastive loss of the paper, over the batch alone; `irt_l_small` has its memory.

    Source: El-Nouby et al., arXiv:2102.05644, Eq. 1 with margin 0.5.
    Command: ``vitrieve train contrastive --data folder:DIR --out runs/contrastive``.
    """
    return _vary_small(ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0, margin=0.5)))


def multi_similarity() -> Config:
    """Multi-similarity with the values of its authors: β = 50, λ = 0.5; `small` has other ones.

    Source: Wang et al., arXiv:1904.06627, section 4.1.
    Command: ``vitrieve train multi_similarity --data folder:DIR --out runs/multi_similarity``.
    """
    return _vary_small(ObjectiveConfig(multi_similarity=MultiSimilarityConfig(weight=1.0, beta=50.0, base=0.5)))


def supervised_contrastive() -> Config:
    """The supervised contrastive loss, on the embedding itself.

    Source: Khosla et al., arXiv:2004.11362, Eq. 2 with temperature 0.1. What differs: no projection head, one view of
    each image.
    Command: ``vitrieve train supervised_contrastive --data folder:DIR --out runs/supervised_contrastive``.
    """
    loss = SupervisedContrastiveConfig(weight=1.0, temperature=0.1)
    return _vary_small(ObjectiveConfig(supervised_contrastive=loss))


def triplet() -> Config:
    """The triplet loss with semi-hard mining.

    Source: Schroff et al., arXiv:1503.03832, section 3 with margin 0.2. Not stated in the paper: which semi-hard
    negative of a pair is taken; here all.
    Command: ``vitrieve train triplet --data folder:DIR --out runs/triplet``.
    """
    return _vary_small(ObjectiveConfig(triplet=TripletConfig(weight=1.0, margin=0.2)))


def circle() -> Config:
    """The circle loss.

    Source: Sun et al., arXiv:2002.10857, with m = 0.4 and γ = 80 as in their image retrieval.
    Command: ``vitrieve train circle --data folder:DIR --out runs/circle``.
    """
    return _vary_small(ObjectiveConfig(circle=CircleConfig(weight=1.0, margin=0.4, temperature=1 / 80)))


def smooth_ap() -> Config:
    """Smooth-AP: smooth average precision of the batch.

    Source: Brown et al., arXiv:2007.12163, with temperature 0.01. What differs: the paper's batches are larger (up to
    384 images), as they can be here with ``--batch-size``.
    Command: ``vitrieve train smooth_ap --data folder:DIR --out runs/smooth_ap``.
    """
    return _vary_small(ObjectiveConfig(smooth_ap=SmoothApConfig(weight=1.0, temperature=0.01)))


def recall_at_k() -> Config:
    """The Recall@k surrogate, over the batch alone.

    Source: Patel et al., arXiv:2108.11179, with temperatures 0.01 and 1, k of 1, 2, 4, 8 and 16. What differs: batches
    of 64 where theirs have 400 (CUB-200) to 4,000; ``--objective.memory-fraction 1`` ranks embeddings of earlier steps,
    too. No similarity mixup.
    Command: ``vitrieve train recall_at_k --data folder:DIR --out runs/recall_at_k``.
    """
    return _vary_small(ObjectiveConfig(recall_at_k=RecallAtKConfig(weight=1.0)))


def hyperbolic() -> Config:
    """Hyp-ViT: pairwise cross-entropy in the Poincaré ball.

    Source: Ermolov et al., arXiv:2203.10833, with curvature 0.1, clip radius 2.3, temperature 0.2 and 128 dimensions.
    What differs: the layer to 128 dimensions is a part of the loss, and search compares what comes before it by cosine;
    four images of a class in batches of 64, where theirs have two in 900.
    Command: ``vitrieve train hyperbolic --data folder:DIR --out runs/hyperbolic``.
    """
    return _vary_small(ObjectiveConfig(hyperbolic=HyperbolicConfig(weight=1.0)), proxy_learning_rate=2e-4)


def spherical() -> Config:
    """Sph-ViT: the pairwise cross-entropy of Hyp-ViT on the sphere, on the embedding itself.

    Source: Ermolov et al., arXiv:2203.10833, with temperature 0.1. What differs: no layer to 128 dimensions; batches as
    in ``hyperbolic``.
    Command: ``vitrieve train spherical --data folder:DIR --out runs/spherical``.
    """
    loss = HyperbolicConfig(weight=1.0, curvature=0.0, temperature=0.1, projection_dim=None)
    return _vary_small(ObjectiveConfig(hyperbolic=loss))


def normalized_softmax() -> Config:
    """The normalized softmax loss; class weights begin at images.

    Source: Zhai and Wu, arXiv:1811.12649, with temperature 0.05. What differs: their class weights begin at random and
    train alone in the first epoch; no layer norm before the embedding.
    Command: ``vitrieve train normalized_softmax --data folder:DIR --out runs/normalized_softmax``.
    """
    loss = NormalizedSoftmaxConfig(weight=1.0, temperature=0.05, from_images=True)
    return _learn_vectors(ObjectiveConfig(normalized_softmax=loss))


def proxy_nca_pp() -> Config:
    """ProxyNCA++; proxies begin at images.

    Source: Teh et al., arXiv:2004.01113, with temperature 1/9. What differs: their proxies begin at random and learn
    100,000 times as fast as the backbone, by an optimizer that is nearly momentum SGD; pooling is the backbone's, not
    the maximum; no layer norm before the embedding.
    Command: ``vitrieve train proxy_nca_pp --data folder:DIR --out runs/proxy_nca_pp``.
    """
    loss = ProxyNcaConfig(weight=1.0, temperature=1 / 9, from_images=True)
    return _learn_vectors(ObjectiveConfig(proxy_nca=loss))


def proxy_anchor() -> Config:
    """Proxy-Anchor around the similarity 0.5, less sharp; proxies begin at images, and learn slowly.

    Source: Kim et al., arXiv:2003.13911, with margin 0.1. What differs: their α is 32, 8 here; their proxies begin at
    random, learn 100 times as fast as the backbone, and train alone in the first epoch, and similarities are weighed
    around 0; docs/method/losses.md tells why that collapses in a few steps.
    Command: ``vitrieve train proxy_anchor --data folder:DIR --out runs/proxy_anchor``.
    """
    loss = ProxyAnchorConfig(weight=1.0, margin=0.1, alpha=8.0, base=0.5, from_images=True)
    return _learn_vectors(ObjectiveConfig(proxy_anchor=loss))


def cosface() -> Config:
    """CosFace with three sub-centers, which begin at images.

    Source: Wang et al., arXiv:1801.09414, with margin 0.35; sub-centers: Deng et al., ECCV 2020, three of a class. What
    differs: a scale of 32, where faces have 64, better than 16 on synthetic features (benchmarks/proxies.py).
    Command: ``vitrieve train cosface --data folder:DIR --out runs/cosface``.
    """
    loss = MarginSoftmaxConfig(
        weight=1.0, margin_on="cosine", margin=0.35, temperature=1 / 32, num_centers=3, from_images=True
    )
    return _learn_vectors(ObjectiveConfig(margin_softmax=loss))


def arcface() -> Config:
    """ArcFace with three sub-centers, which begin at images.

    Source: Deng et al., arXiv:1801.07698, with margin 0.5; sub-centers: Deng et al., ECCV 2020, three of a class. What
    differs: the scale, as in ``cosface``.
    Command: ``vitrieve train arcface --data folder:DIR --out runs/arcface``.
    """
    loss = MarginSoftmaxConfig(
        weight=1.0, margin_on="angle", margin=0.5, temperature=1 / 32, num_centers=3, from_images=True
    )
    return _learn_vectors(ObjectiveConfig(margin_softmax=loss))


def large_batch() -> Config:
    """Multi-similarity in batches of 256 with one low, constant rate for all layers.

    Source: arXiv:2503.13045, values of the authors' code (gmberton/image-retrieval, main.py): multi-similarity and its
    miner as the library has them (β = 50, λ = 0.5), batches of 256 with 4 images of a class, Adam. What differs: as
    many images as `small` sees are 30 steps, so the rate is 1e-5, where their 1e-6 has up to 100 epochs; their backbone
    is DINOv2 ViT-B/14.
    Command: ``vitrieve train large_batch --data folder:DIR --out runs/large_batch``. Less memory:
    ``--train.memory-limit-gib 4`` embeds each batch twice.
    """
    config = multi_similarity()
    optimizer = replace(
        config.optimizer,
        algorithm="adam",
        learning_rate=1e-5,
        layer_decay=1.0,
        num_warmup_steps=0,
        schedule="constant",
        weight_decay=0.0,
    )
    num_steps = config.train.num_steps * config.train.batch_size // LARGE_BATCH_SIZE
    train = replace(
        config.train,
        num_steps=num_steps,
        batch_size=LARGE_BATCH_SIZE,
        evaluate_every=num_steps // 3,
        checkpoint_every=num_steps // 3,
    )
    return replace(config, optimizer=optimizer, train=train)


def _learn_vectors(objective: ObjectiveConfig) -> Config:
    config = _vary_small(objective, proxy_learning_rate=PROXY_RATE)
    return replace(config, loader=replace(config.loader, sampling="random"))


def _vary_small(objective: ObjectiveConfig, **optimizer: Any) -> Config:
    config = small()
    return replace(
        config,
        objective=objective,
        optimizer=replace(config.optimizer, **optimizer),
        train=replace(config.train, try_larger_image=False),  # equal sizes
    )
