from __future__ import annotations

import pytest

from vitrieve.similarity import nearest, product


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let many queries go by bfloat16, also on a processor where torch emulates it: slowly, with the same sums."""
    pytest.importorskip("torch")
    monkeypatch.setattr(product, "has_fast_bfloat16", lambda num_dims: True)
    assert nearest.has_bfloat16_for is product.has_bfloat16_for
