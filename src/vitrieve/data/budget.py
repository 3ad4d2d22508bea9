"""A bound on the pixels that a process works on at the same time, whichever pool the work is in."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vitrieve.data.work import MAX_PIXELS

LARGE_PIXELS = 4_000_000
"""From here on the C library is asked to give freed memory back: it keeps blocks of up to 32 MiB for itself."""


class PixelBudget:
    """Lets work on pictures begin as long as all of it together stays below a number of pixels, in order of arrival.

    A thread that holds a part of the budget must not ask for another part: two such threads could wait for each other
    for ever.

    Attributes:
        num_pixels: The budget.
        num_held: Pixels of the pictures in work now.
    """

    def __init__(self, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self.num_held = 0
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_pixels: int) -> Iterator[None]:
        """Wait until a picture fits, and count it until the block is left.

        Args:
            num_pixels: Size of the picture; one that is larger than the budget takes all of it.
        """
        taken = min(num_pixels, self.num_pixels)
        turn = object()
        with self._changed:
            self._turns.append(turn)
            try:
                self._changed.wait_for(lambda: self._turns[0] is turn and self.num_held + taken <= self.num_pixels)
                self.num_held += taken
            finally:
                self._turns.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.num_held -= taken
                self._changed.notify_all()
            if taken >= LARGE_PIXELS:
                _give_memory_back()


BUDGET = PixelBudget(MAX_PIXELS)
"""The budget of this process, over all its pools of threads."""


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not the GNU C library, or not Linux
        return None


_TRIM = _find_trim()


def _give_memory_back() -> None:
    if _TRIM is not None:
        _TRIM(0)
