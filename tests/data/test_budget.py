from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vitrieve.data.work import PixelBudget

SECONDS = 60


def test_budget_is_never_exceeded_and_all_get_their_turn() -> None:
    budget = PixelBudget(100)
    most = 0
    lock = threading.Lock()

    def work(num_pixels: int) -> None:
        nonlocal most
        with budget.hold(num_pixels), lock:
            most = max(most, budget.num_held)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 60, 100, 5000, 1] * 100))
    assert 100 >= most > 0
    assert budget.num_held == 0


def test_large_picture_is_not_passed_by_small_ones() -> None:
    budget = PixelBudget(100)
    order: list[str] = []
    first = budget.hold(50)
    first.__enter__()

    def hold(name: str, num_pixels: int) -> None:
        with budget.hold(num_pixels):
            order.append(name)

    threads = []
    for place, (name, num_pixels) in enumerate([("large", 100), ("small", 10)], start=1):
        threads.append(threading.Thread(target=hold, args=(name, num_pixels)))
        threads[-1].start()
        while len(budget._turns) < place:
            threading.Event().wait(0.001)
    assert not order
    first.__exit__(None, None, None)
    for thread in threads:
        thread.join(SECONDS)
    assert order == ["large", "small"]


def test_budget_is_given_back_after_a_fault() -> None:
    budget = PixelBudget(100)
    with pytest.raises(ZeroDivisionError), budget.hold(100):
        raise ZeroDivisionError
    assert budget.num_held == 0
