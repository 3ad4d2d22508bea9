"""How an example is written on the command line: a picture's file, or ``id:`` and the name of an image of the index.

Next: ``search.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrieve.search.request import Box, Example

ID_PREFIX = "id:"
"""A file whose name begins so is written ``./id:…``."""


def read_example_word(word: str, box: Box | None = None) -> Example:
    """Make an example of a word.

    Args:
        word: ``PICTURE`` or ``id:IMAGE_ID``.
        box: The region of the picture to look at.

    Raises:
        ConfigError: A box on an image of the index, or no box.
    """
    from vitrieve.search.request import Example

    if word.startswith(ID_PREFIX):
        return Example(image_id=word.removeprefix(ID_PREFIX), box=box)
    return Example(picture=Path(word), box=box)
