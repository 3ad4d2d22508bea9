from __future__ import annotations

import pytest

from vitrieve.errors import ConfigError
from vitrieve.train.reduce import require_reducible


def test_require_reducible_accepts_what_a_pca_can_give() -> None:
    require_reducible(64, 64, 65)
    require_reducible(1, 64, 2)


@pytest.mark.parametrize(("width", "num_images"), [(63, 1000), (1000, 64)])
def test_require_reducible_refuses_more_dimensions_than_there_can_be(width: int, num_images: int) -> None:
    with pytest.raises(ConfigError, match="expected at most 63, for"):
        require_reducible(64, width, num_images)
