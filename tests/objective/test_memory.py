from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.errors import ConfigError
from vitrieve.objective.memory import CrossBatchMemory, Division, MemoryCost, _list_equal


def enqueue_numbers(memory, numbers):
    tensor = torch.tensor(numbers, dtype=torch.int64)
    memory.enqueue(tensor[:, None].float().expand(-1, 2), tensor % 3, tensor)


@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=12))
def test_trap_memory_is_a_true_fifo_for_any_batch_sizes(memory_size, batch_sizes):
    memory, fifo, count = CrossBatchMemory(memory_size, 2), deque(maxlen=memory_size), 0
    for size in batch_sizes:
        enqueue_numbers(memory, list(range(count, count + size)))
        fifo.extend(range(count, count + size))
        count += size
        kept = memory.contents()
        assert sorted(kept.rows.tolist()) == sorted(fifo)
        assert torch.equal(kept.labels, kept.rows % 3)
        assert torch.equal(kept.embeddings[:, 0], kept.rows.float())
        assert len(memory) == len(fifo)


def test_trap_memory_state_dict_carries_pointer_and_fill():
    memory = CrossBatchMemory(5, 2)
    enqueue_numbers(memory, list(range(7)))
    restored = CrossBatchMemory(5, 2)
    restored.load_state_dict(memory.state_dict())
    for each in (memory, restored):
        enqueue_numbers(each, [7, 8])
    assert torch.equal(memory.contents().rows, restored.contents().rows)
    assert sorted(restored.contents().rows.tolist()) == [4, 5, 6, 7, 8]


def test_trap_label_zero_is_a_label_like_any_other():
    memory = CrossBatchMemory(4, 2)
    memory.enqueue(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert len(memory) == 1
    assert memory.contents().labels.tolist() == [0]


def test_memory_keeps_no_gradient():
    memory = CrossBatchMemory(4, 2)
    memory.enqueue(torch.ones(2, 2, requires_grad=True) * 2, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert not memory.contents().embeddings.requires_grad


def test_memory_refuses_no_room():
    with pytest.raises(ConfigError, match="at least 1"):
        CrossBatchMemory(0, 2)


@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=8), st.integers(2, 4))
def test_parts_of_a_divided_memory_hold_what_a_whole_one_does_and_cost_the_same(memory_size, batch_sizes, num_parts):
    whole = CrossBatchMemory(memory_size, 2)
    # What the processes would sum is taken as it is, and added up below.
    parts = [CrossBatchMemory(memory_size, 2, Division(part, num_parts, torch.clone)) for part in range(num_parts)]
    for start, size in zip([0, *torch.tensor(batch_sizes).cumsum(0).tolist()], batch_sizes, strict=False):
        for memory in (whole, *parts):
            enqueue_numbers(memory, list(range(start, start + size)))
    assert sum(len(part.embeddings) for part in parts) == memory_size
    assert [len(part) for part in parts] == [len(whole)] * num_parts
    for part, places in zip(parts, parts[0].list_places(), strict=True):
        for name in ("embeddings", "labels", "rows"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[places])
    anchors, labels = torch.tensor([[0.5, 1.0], [-0.3, 0.2]], requires_grad=True), torch.tensor([0, 1])
    costs = [MemoryCost.apply(anchors, labels, labels + 3, each.contents(), 0.1) for each in (whole, *parts)]
    gradients = [torch.autograd.grad(cost, anchors)[0] for cost in costs]
    torch.testing.assert_close(sum(costs[1:]), costs[0])
    torch.testing.assert_close(sum(gradients[1:]), gradients[0])


@pytest.mark.parametrize("others", [[], [7], [3, -2, 7, 7, 10**12, 0, 3, -5], [1, 2]])
def test_list_equal_finds_the_pairs_of_the_whole_table_in_its_order(others):
    labels, others = torch.tensor([7, -2, 3, 7, 10**12, 4]), torch.tensor(others, dtype=torch.int64)
    expected = (labels[:, None] == others).nonzero(as_tuple=True)
    for one, other in zip(_list_equal(labels, others), expected, strict=True):
        assert torch.equal(one, other)
