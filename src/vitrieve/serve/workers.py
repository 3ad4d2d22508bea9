"""Work in threads, bounded: who waits, who is turned away, and for how long. Next file: ``content.py``.

The event loop only receives, waits and sends, so the health check answers however long an encoder computes. A thread
cannot be stopped: work whose client has been sent away still ends in its thread and counts as running until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException

T = TypeVar("T")


class WorkerPool:
    """Threads with a bounded queue.

    Attributes:
        name: For people: of the threads, in metrics and messages.
        num_unfinished: Pieces of work that run or wait.
        num_refused: Pieces turned away because the queue was full.
    """

    def __init__(self, name: str, *, num_workers: int, num_waiting: int, retry_after_seconds: int) -> None:
        self.name = name
        self.num_unfinished = 0
        self.num_refused = 0
        self._num_most = num_workers + num_waiting
        self._retry_after_seconds = retry_after_seconds
        self._executor = ThreadPoolExecutor(num_workers, thread_name_prefix=name)

    async def run(self, work: Callable[[], T], *, seconds: float | None) -> T:
        """Run ``work`` in a thread and wait for its result, at most ``seconds``; to be called on the event loop.

        Raises:
            HTTPException: 503 when the queue is full, 504 when waiting and working take longer than ``seconds``; work
                that has not begun by then is not begun.
        """
        if self.num_unfinished >= self._num_most:
            self.num_refused += 1
            raise self._refuse(503, f"the server is busy: {self.num_unfinished} requests are being worked on or wait.")
        self.num_unfinished += 1
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work)
        # A done callback runs in the worker's thread; the counter belongs to the event loop.
        future.add_done_callback(lambda _: _call_soon(loop, self._finish))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            raise self._refuse(504, f"the server did not finish within {seconds:g} seconds; it may be busy.") from None

    def close(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _finish(self) -> None:
        self.num_unfinished -= 1

    def _refuse(self, status: int, reason: str) -> HTTPException:
        seconds = self._retry_after_seconds
        return HTTPException(status, f"{reason} Try again in {seconds} seconds.", {"Retry-After": str(seconds)})


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call on the event loop, unless the service has stopped in the meantime."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)
