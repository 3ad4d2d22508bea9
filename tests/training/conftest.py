"""What runs of tests need not repeat."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _costs_are_counted_once() -> Iterator[None]:
    """The same tiny model is counted by dozens of runs, at half a second each."""
    from vitrieve.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "count_cost", functools.cache(run.count_cost))
        yield
