from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from vitrieve.rerank.head import Head
from vitrieve.rerank.matching import SINKHORN_ITERATIONS, SINKHORN_SHARPNESS
from vitrieve.rerank.parts import from_bytes, to_bytes
from vitrieve.rerank.reranker import RERANKERS, Shortlist, build_learnt
from vitrieve.similarity import normalize

torch = pytest.importorskip("torch", reason="needs vitrieve[train]")

from vitrieve.rerank import learning  # noqa: E402  needs torch
from vitrieve.rerank.learning import HeadModule, draw_pairs, learn_head, to_head  # noqa: E402


def draw_parts(*shape: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return normalize(generator.normal(size=(int(np.prod(shape[:-1])), shape[-1]))).reshape(shape)


def draw_head(width: int, seed: int = 0) -> HeadModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = HeadModule(width)
        for parameter in module.parameters():  # no bias is zero, no norm is one
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return module


def score_slowly(head: Head, query: np.ndarray, image: np.ndarray) -> float:
    """One pair, layer by layer and patch by patch, with matching in logarithms."""
    arrays = {name: array.astype(np.float64) for name, array in head.arrays.items()}

    def linear(name: str, row: np.ndarray) -> np.ndarray:
        return np.array([weights @ row for weights in arrays[f"{name}.weight"]]) + arrays[f"{name}.bias"]

    def norm(name: str, row: np.ndarray) -> np.ndarray:
        deviation = math.sqrt(np.mean((row - row.mean()) ** 2) + 1e-6)
        return (row - row.mean()) / deviation * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def gelu(row: np.ndarray) -> np.ndarray:
        return np.array([0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) for x in row])

    sides, dustbins = [], []
    for parts in (query, image):
        rows = [norm("projection_norm", linear("projection", part)) for part in parts]
        rows = [row / math.sqrt(row @ row) for row in rows]
        sides.append(rows)
        dustbins.append([math.tanh(linear("dustbin", gelu(linear("dustbin_hidden", row)))[0]) for row in rows])
    table = [[float(a @ b) for b in sides[1]] + [dustbins[0][i]] for i, a in enumerate(sides[0])]
    table.append([*dustbins[1], float(arrays["corner"][0])])
    logs = SINKHORN_SHARPNESS * np.array(table)
    row_logs = np.log([1.0] * len(query) + [len(image)])
    column_logs = np.log([1.0] * len(image) + [len(query)])
    u, v = np.zeros(len(row_logs)), np.zeros(len(column_logs))
    for _ in range(SINKHORN_ITERATIONS):
        u = row_logs - np.log(np.exp(logs + v).sum(axis=1))
        v = column_logs - np.log(np.exp(logs + u[:, None]).sum(axis=0))
    matched = np.exp(logs + u[:, None] + v)[:-1, :-1]
    votes = []
    for value in [*matched.max(axis=1), *matched.max(axis=0)]:
        hidden = gelu(norm("vote_norm", linear("vote_hidden", np.array([value]))))
        votes.append(1 / (1 + math.exp(-linear("vote", hidden)[0])))
    return 1 / (1 + math.exp(-(arrays["scale"][0] * np.mean(votes) + arrays["offset"][0])))


def test_head_equals_a_slow_reference_and_torch() -> None:
    module = draw_head(6)
    head, query, images = to_head(module), draw_parts(5, 6), draw_parts(3, 4, 6, seed=1)
    found = head.score(query, images)
    np.testing.assert_allclose(found, [score_slowly(head, query, image) for image in images], atol=1e-5)
    with torch.inference_mode():
        queries = torch.from_numpy(np.repeat(query[None], 3, axis=0))
        expected = torch.sigmoid(module(queries, torch.from_numpy(images)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert head.score(query, images[:0]).shape == (0,)


def test_the_gradient_of_the_head_is_right() -> None:
    module = draw_head(3).double()
    queries = torch.from_numpy(draw_parts(2, 3, 3).astype(np.float64)).requires_grad_()
    images = torch.from_numpy(draw_parts(2, 2, 3, seed=1).astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(module, (queries, images), atol=1e-4)


def test_pairs_are_of_one_class_or_confusable() -> None:
    vectors, labels = draw_parts(40, 4), np.repeat(np.arange(8), 5)
    labels[0] = 99  # alone in its class: it can only be a negative
    first, second, is_same = next(draw_pairs(vectors, labels, np.random.default_rng(0)))
    np.testing.assert_array_equal((labels[first] == labels[second]), is_same > 0)
    assert (first != second).all()
    assert is_same.sum() == len(first) / 2


def make_labeled(num_classes: int, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of four patches, one of which says the class and lies among clutter; embeddings that say nothing."""
    generator = np.random.default_rng(seed)
    # What says the class lives in the first half of the dimensions, clutter in the second, and clutter is louder.
    things = np.concatenate([generator.normal(size=(num_classes, 8)), np.zeros((num_classes, 8))], axis=1)
    clutter = np.concatenate([np.zeros((5, 8)), generator.normal(size=(5, 8))], axis=1)
    labels = np.repeat(np.arange(num_classes), num_images)
    parts = clutter[generator.integers(5, size=(len(labels), 4))] + 0.3 * generator.normal(size=(len(labels), 4, 16))
    parts[:, 0] = things[labels] + 0.3 * generator.normal(size=(len(labels), 16))
    vectors = normalize(generator.normal(size=(len(labels), 4)))
    return to_bytes(normalize(parts.reshape(-1, 16)).reshape(parts.shape)), vectors, labels


def test_a_head_learns_what_counts_on_classes_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "NUM_STEPS", 250)
    head = learn_head(*make_labeled(30, 4, seed=0))
    parts, vectors, labels = make_labeled(10, 4, seed=1)
    reranker = build_learnt(head)
    hits, free = [], []
    for row, label in enumerate(labels):
        others = np.flatnonzero(np.arange(len(labels)) != row)
        shortlist = Shortlist(
            query=vectors[row],
            vectors=vectors[others],
            find_parts=lambda kind, row=row, others=others: (parts[row], parts[others]),
        )
        scores = head.score(from_bytes(parts[row]), from_bytes(parts[others]))
        hits.append(labels[others[np.argmax(scores)]] == label)
        free.append(labels[others[np.argmax(RERANKERS["optimal_transport"].score(shortlist))]] == label)
        assert reranker.score(shortlist).shape == (len(others),)
    assert np.mean(hits) > max(0.3, 2 * np.mean(free))  # by chance 0.08


def test_learning_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "NUM_STEPS", 3)
    given = make_labeled(4, 3, seed=0)
    one, again, other = learn_head(*given), learn_head(*given), learn_head(*given, seed=1)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert any((array != other.arrays[name]).any() for name, array in one.arrays.items())


def test_a_head_scores_without_torch(without_torch: str) -> None:
    script = without_torch + (
        "import numpy as np\n"
        "from vitrieve.rerank.reranker import RERANKERS\n"
        "from vitrieve.rerank.head import Head, HEAD_WIDTH, VOTE_WIDTH\n"
        "ones = lambda *shape: np.ones(shape, np.float32)\n"
        "names = {'projection': (HEAD_WIDTH, 4), 'dustbin_hidden': (HEAD_WIDTH, HEAD_WIDTH),\n"
        "         'dustbin': (1, HEAD_WIDTH), 'vote_hidden': (VOTE_WIDTH, 1), 'vote': (1, VOTE_WIDTH)}\n"
        "arrays = {f'{n}.weight': ones(*s) for n, s in names.items()}\n"
        "arrays |= {f'{n}.bias': ones(s[0]) for n, s in names.items()}\n"
        "for n, w in (('projection_norm', HEAD_WIDTH), ('vote_norm', VOTE_WIDTH)):\n"
        "    arrays |= {f'{n}.weight': ones(w), f'{n}.bias': ones(w)}\n"
        "arrays |= {name: ones(1) for name in ('corner', 'scale', 'offset')}\n"
        "print(Head(arrays=arrays).score(ones(2, 4) / 2, ones(3, 2, 4) / 2).shape, 'superglobal' in RERANKERS)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "(3,) True\n", done.stderr
