"""The contrastive loss of 64 anchors against a memory: forward and backward, beside the matrix products alone.

    python benchmarks/loss.py [--quick] [--json FILE]

59,551 rows (the size of SOP's training set) and 1,000,000, of 384 dimensions, 11,318 classes, random unit vectors with
the paper's margin 0.5, and 0.1, where more pairs cost something. The products alone are what nobody can do without:
anchors with memory, and weights with memory for the gradient. The sides alternate, each in a process of its own; the
memory is what the process held at most beyond what it held before the first call.
"""

from __future__ import annotations

from collections.abc import Callable

from contest import FP32, alternate_processes, main, max_seconds
from lines import Line, time_lines

SECTION = "loss and memory"
NUM_ANCHORS, NUM_DIMS, NUM_CLASSES = 64, 384, 11_318
OURS, PEER, PRODUCTS = "vitrieve", "pytorch-metric-learning", "matrix products alone"
SIDES = (PRODUCTS, OURS, PEER)


def build_side(side: str, num_rows: int, margin: float) -> Callable[[], object]:
    import torch
    from torch.nn.functional import normalize

    generator = torch.Generator().manual_seed(0)
    anchors = normalize(torch.randn(NUM_ANCHORS, NUM_DIMS, generator=generator), dim=1).requires_grad_()
    rows = torch.randn(num_rows, NUM_DIMS, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    labels = torch.randint(NUM_CLASSES, (NUM_ANCHORS,), generator=generator)
    row_labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
    if side == PRODUCTS:
        return lambda: (anchors.detach() @ rows.T) @ rows
    if side == OURS:
        from vitrieve.objective.contrastive import contrastive_loss
        from vitrieve.objective.memory import MemoryRows

        memory = MemoryRows(rows, row_labels, torch.arange(num_rows))
        images = torch.full((NUM_ANCHORS,), -1)
        return lambda: contrastive_loss(anchors, labels, margin=margin, rows=images, memory=memory).backward()
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

    loss = ContrastiveLoss(pos_margin=1.0, neg_margin=margin, distance=CosineSimilarity())
    peer = CrossBatchMemory(loss, NUM_DIMS, memory_size=num_rows)
    peer.embedding_memory[:], peer.label_memory[:], peer.has_been_filled = rows, row_labels, True
    return lambda: peer(anchors, labels).backward()


def measure(is_quick: bool) -> list[Line]:
    lines: list[Line] = []
    cases = [(59_551, 0.5)] + ([] if is_quick else [(59_551, 0.1), (1_000_000, 0.5)])
    for num_rows, margin in cases:
        found = alternate_processes(
            __file__, SIDES, 5 if is_quick else 15, max_seconds(is_quick), num_rows=num_rows, margin=margin
        )
        for side, rounds in found.items():
            lines += time_lines(
                SECTION,
                f"{NUM_ANCHORS} anchors, {num_rows:,} rows, margin {margin}",
                {side: rounds.seconds},
                "ms",
                gflop=4 * NUM_ANCHORS * num_rows * NUM_DIMS / 1e9,
                ceiling=FP32,
                peak_mib=rounds.extra_mib,
            )
    return lines


if __name__ == "__main__":
    main(measure, __doc__, build_side)
