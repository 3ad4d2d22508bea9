"""Why losses with proxies fail where classes are many and steps are few, on synthetic features; in three minutes.

    python benchmarks/proxies.py [--num-steps 100]

Features of 384 dimensions imitate those of a frozen backbone: all images share a direction (cosines of 0.56 on
average), classes differ in 40 directions, and images of a class in 40 others. A linear layer that begins as the
identity is trained with the losses of the package in batches of 64, on 800 classes of 6 images or 41 classes of 117,
and measured on 200 other classes. Of Proxy-Anchor it also prints what becomes of the proxies. A linear layer cannot be
damaged as a network can: what the table shows is which proxies learn their class in time.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vitrieve.config import Sampling
from vitrieve.data.loader import Sampler
from vitrieve.objective.margin_softmax import MarginSoftmaxConfig
from vitrieve.objective.multi_similarity import MultiSimilarityConfig
from vitrieve.objective.normalized_softmax import NormalizedSoftmaxConfig
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.objective.term import LossBatch, Sizes, TermConfig

WIDTH, NUM_DIRECTIONS = 384, 40
MANY, FEW = (800, 6), (41, 117)
TEST = (200, 6)


class Case(NamedTuple):
    """A loss, the rate of its proxies, and the sampler."""

    name: str
    term: TermConfig
    proxy_rate: float = 1e-3
    sampling: Sampling = "random"
    classes: tuple[int, int] = MANY
    has_trace: bool = False


ANCHOR = ProxyAnchorConfig(weight=1.0)
BEGUN = ProxyAnchorConfig(weight=1.0, from_images=True)
CENTERED = ProxyAnchorConfig(weight=1.0, from_images=True, base=0.5)
SOFT = ProxyAnchorConfig(weight=1.0, from_images=True, base=0.5, alpha=8.0)
SOFTMAX = NormalizedSoftmaxConfig(weight=1.0)
SOFTMAX_BEGUN = NormalizedSoftmaxConfig(weight=1.0, from_images=True)
ARCFACE = MarginSoftmaxConfig(weight=1.0, from_images=True, num_centers=3, temperature=1 / 32)
CASES = (
    Case("multi-similarity", MultiSimilarityConfig(weight=1.0), sampling="m_per_class"),
    Case("Proxy-Anchor, 41 classes", ANCHOR, 1e-2, classes=FEW, has_trace=True),
    Case("Proxy-Anchor", ANCHOR, 1e-2, has_trace=True),
    Case("Proxy-Anchor, slow proxies", ANCHOR),
    Case("Proxy-Anchor, 4 a class", ANCHOR, 1e-2, "m_per_class"),
    Case("Proxy-Anchor, begun at images", BEGUN, has_trace=True),
    Case("Proxy-Anchor, begun at images, around 0.5", CENTERED, has_trace=True),
    Case("Proxy-Anchor, begun at images, around 0.5, alpha 8", SOFT, has_trace=True),
    Case("Proxy-Anchor, begun at images, around 0.5, 4 a class", CENTERED, sampling="m_per_class"),
    Case("normalized softmax, 4 a class", SOFTMAX, sampling="m_per_class"),
    Case("normalized softmax, begun at images, 4 a class", SOFTMAX_BEGUN, sampling="m_per_class"),
    Case("normalized softmax, begun at images", SOFTMAX_BEGUN),
    Case("ArcFace, scale 32, begun at images", ARCFACE),
    Case("ArcFace, scale 16, begun at images", MarginSoftmaxConfig(weight=1.0, from_images=True, temperature=1 / 16)),
)


def draw_features(classes: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw features ``(N, 384)`` and labels; the directions are the same for every seed."""
    fixed, generator = (torch.Generator().manual_seed(number) for number in (99, seed))
    shared = normalize(torch.randn(WIDTH, generator=fixed), dim=0)
    of_class, of_image = (torch.linalg.qr(torch.randn(WIDTH, NUM_DIRECTIONS, generator=fixed))[0].T for _ in range(2))
    num_classes, num_copies = classes
    labels = torch.arange(num_classes).repeat_interleave(num_copies)
    centers = normalize(torch.randn(num_classes, NUM_DIRECTIONS, generator=generator), dim=1) @ of_class
    styles = normalize(torch.randn(len(labels), NUM_DIRECTIONS, generator=generator), dim=1) @ of_image
    noise = normalize(torch.randn(len(labels), WIDTH, generator=generator), dim=1)
    return normalize(0.75 * shared + 0.4 * centers[labels] + 0.5 * styles + 0.2 * noise, dim=1), labels


def measure(embeddings: Tensor, labels: Tensor, num_copies: int) -> str:
    """Measure Recall@1 and MAP@R, in percent, of classes of equal size."""
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-2).topk(num_copies - 1, dim=1).indices
    hits = (labels[nearest] == labels[:, None]).double()
    precision = hits.cumsum(dim=1) / torch.arange(1, num_copies)
    return f"{100 * hits[:, 0].mean():.1f} / {100 * (precision * hits).mean():.1f}"


def describe_proxies(proxies: Tensor, embeddings: Tensor, labels: Tensor) -> str:
    proxies = normalize(proxies, dim=1)
    means = normalize(torch.zeros_like(proxies).index_add_(0, labels, embeddings), dim=1)
    average = normalize(embeddings.mean(dim=0), dim=0)
    return (
        f"proxies to their class {(proxies * means).sum(dim=1).mean():.2f}, to the mean of all images "
        f"{(proxies @ average).mean():.2f}; images to each other {embeddings.mean(dim=0).square().sum():.2f}"
    )


def run_case(case: Case, num_steps: int) -> None:
    """Train and measure one case, and print its row."""
    (features, labels), (others, other_labels) = draw_features(case.classes, 0), draw_features(TEST, 1000)
    torch.manual_seed(0)
    layer = torch.eye(WIDTH).requires_grad_()
    state = case.term.build(Sizes(case.classes[0], len(labels), WIDTH))
    groups = [{"params": [layer], "lr": 1e-4}, {"params": list(state.parameters()), "lr": case.proxy_rate}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    sampler = Sampler(labels.tolist(), batch_size=64, sampling=case.sampling, images_per_class=4, seed=0)
    trace = []
    for step in range(num_steps):
        rows = torch.from_numpy(sampler.batch_rows(step))
        batch = LossBatch(normalize(features[rows] @ layer, dim=1), labels[rows], rows, step, None, None)
        optimizer.zero_grad()
        case.term.compute(batch, state).backward()
        optimizer.step()
        if case.has_trace and step + 1 in (5, 20, 50, num_steps):
            with torch.no_grad():
                told = describe_proxies(next(state.parameters()), normalize(features @ layer, dim=1), labels)
            trace.append(f"    after step {step + 1}: {told}")
    with torch.no_grad():
        print("\n".join([f"{case.name:55} {measure(normalize(others @ layer, dim=1), other_labels, TEST[1])}", *trace]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=100)
    arguments = parser.parse_args()
    print(f"{'not trained':55} {measure(*draw_features(TEST, 1000), TEST[1])}")
    for case in CASES:
        run_case(case, arguments.num_steps)


if __name__ == "__main__":
    main()
