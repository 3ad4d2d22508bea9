"""How the head of ELViS (``head.py``) is learned: from pairs of a user's own labeled pictures, in minutes on a CPU.

A pair is two pictures of one class, or two that the embeddings take for like and are not: such pairs stand in the
shortlists that the head will order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.progress import track
from vitrieve.rerank.head import HEAD_WIDTH, NORM_EPSILON, VOTE_WIDTH, Head
from vitrieve.rerank.matching import SINKHORN_ITERATIONS, SINKHORN_SHARPNESS
from vitrieve.rerank.parts import ByteArray, from_bytes
from vitrieve.similarity import FloatArray, IntArray, order_nearest, similarity

NUM_STEPS = 500
BATCH_SIZE = 64
"""Pairs of a step, half of them of one class."""
NUM_CONFUSABLE = 50
"""Nearest images of other classes that a negative of an image is drawn from."""
LEARNING_RATE = 5e-3
"""Five times that of ELViS, which takes thirty epochs of Stanford Online Products: in 300 steps on drawn patches it
lowers the loss to 0.4, where 1e-3 gets to 0.6."""
WEIGHT_DECAY = 5e-4
WARM_UP_FRACTION = 0.05
"""Decay and warm-up with a cosine are those of ELViS."""


class HeadModule(nn.Module):
    """The head as torch trains it; its parameters have the names of ``Head.arrays``.

    Args:
        width: Width of a patch, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, HEAD_WIDTH)
        self.projection_norm = nn.LayerNorm(HEAD_WIDTH, eps=NORM_EPSILON)
        self.dustbin_hidden = nn.Linear(HEAD_WIDTH, HEAD_WIDTH)
        self.dustbin = nn.Linear(HEAD_WIDTH, 1)
        self.vote_hidden = nn.Linear(1, VOTE_WIDTH)
        self.vote_norm = nn.LayerNorm(VOTE_WIDTH, eps=NORM_EPSILON)
        self.vote = nn.Linear(VOTE_WIDTH, 1)
        for layer in (self.projection, self.dustbin_hidden, self.dustbin, self.vote_hidden, self.vote):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.corner = nn.Parameter(torch.ones(1))
        self.scale = nn.Parameter(torch.full((1,), 4.0))  # votes lie in (0, 1), and begin near 0.5
        self.offset = nn.Parameter(torch.full((1,), -2.0))

    def forward(self, queries: Tensor, images: Tensor) -> Tensor:
        """Compute the logit that both pictures of each pair show the same: ``(B, P, D)`` twice to ``(B,)``."""
        asked, found = self._project(queries), self._project(images)
        similarities = asked @ found.transpose(1, 2)  # (B, P, R)
        matched = self._match(similarities, self._compare_with_dustbin(asked), self._compare_with_dustbin(found))
        best = torch.cat([matched.amax(dim=2), matched.amax(dim=1)], dim=1)[..., None]  # (B, P + R, 1)
        hidden = functional.gelu(self.vote_norm(self.vote_hidden(best)), approximate="tanh")
        votes = torch.sigmoid(self.vote(hidden)).mean(dim=(1, 2))
        return self.scale * votes + self.offset

    def _project(self, patches: Tensor) -> Tensor:
        return functional.normalize(self.projection_norm(self.projection(patches)), dim=-1)

    def _compare_with_dustbin(self, patches: Tensor) -> Tensor:
        hidden = functional.gelu(self.dustbin_hidden(patches), approximate="tanh")
        return torch.tanh(self.dustbin(hidden))[..., 0]

    def _match(self, similarities: Tensor, query_dustbin: Tensor, image_dustbin: Tensor) -> Tensor:
        """Match as ``match_by_transport`` does, with gradients."""
        num_pairs, num_query, num_parts = similarities.shape
        last = torch.cat([image_dustbin, self.corner.expand(num_pairs, 1)], dim=1)[:, None]  # (B, 1, R + 1)
        whole = torch.cat([torch.cat([similarities, query_dustbin[..., None]], dim=2), last], dim=1)
        kernel = torch.exp(SINKHORN_SHARPNESS * whole)
        row_masses, column_masses = torch.ones(num_query + 1, 1), torch.ones(1, num_parts + 1)
        row_masses[-1], column_masses[:, -1] = num_parts, num_query
        columns = torch.ones(num_pairs, 1, num_parts + 1)
        for _ in range(SINKHORN_ITERATIONS):
            rows = row_masses / (kernel * columns).sum(dim=2, keepdim=True)
            columns = column_masses / (kernel * rows).sum(dim=1, keepdim=True)
        return (kernel * rows * columns)[:, :-1, :-1]


def to_head(module: HeadModule) -> Head:
    """Take the weights out of torch."""
    arrays = {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}
    return Head(arrays=arrays)


def learn_head(
    parts: ByteArray, vectors: FloatArray, labels: IntArray, *, seed: int = 0, show_progress: bool = False
) -> Head:
    """Learn a head on labeled pictures.

    Args:
        parts: ``(N, P, D)`` patches of the pictures.
        vectors: ``(N, E)`` their embeddings, which choose the negatives.
        labels: ``(N,)`` their classes; two at least, one of them with two pictures.
        seed: Seed of the first weights and of the pairs.
        show_progress: Report progress on standard error.

    Returns:
        The head after the last step; the same for the same seed and number of threads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = HeadModule(parts.shape[-1])
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    pairs = draw_pairs(vectors, labels, np.random.default_rng(seed))
    steps = track(
        zip(range(NUM_STEPS), pairs, strict=False), "learning to compare", total=NUM_STEPS, is_shown=show_progress
    )
    for _, (first, second, is_same) in steps:
        logits = module(*(torch.from_numpy(from_bytes(parts[rows])) for rows in (first, second)))
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(is_same))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return to_head(module)


def _rate(step: int) -> float:
    """Return the share of the full rate: a linear warm-up, then a cosine to zero."""
    warm_up = WARM_UP_FRACTION * NUM_STEPS
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (NUM_STEPS - warm_up)))


def draw_pairs(
    vectors: FloatArray, labels: IntArray, generator: np.random.Generator
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Draw batches of pairs without end.

    Args:
        vectors: ``(N, E)`` embeddings.
        labels: ``(N,)`` classes.
        generator: All randomness comes from it.

    Yields:
        Rows of the first and of the second pictures, ``(BATCH_SIZE,)`` each, and 1 where both are of one class, else 0:
        the first half of a batch. The other half has a picture and one of its nearest of other classes.
    """
    similarities = similarity(vectors, vectors)
    similarities[labels[:, None] == labels] = -np.inf
    num_others = (labels[:, None] != labels).sum(axis=1)
    confusable = order_nearest(similarities, NUM_CONFUSABLE)[1]  # (N, K)
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    paired = np.array([row for row, label in enumerate(labels) if len(members[label]) > 1])
    half = BATCH_SIZE // 2
    is_same = np.repeat(np.array([1, 0], dtype=np.float32), half)
    while True:
        anchors = generator.choice(paired, half)
        others = [generator.choice(members[labels[row]][members[labels[row]] != row]) for row in anchors]
        rows = generator.integers(len(labels), size=half)
        wrong = [confusable[row, generator.integers(min(NUM_CONFUSABLE, num_others[row]))] for row in rows]
        yield np.concatenate([anchors, rows]), np.array([*others, *wrong]), is_same
