"""The parts of one running service, made from arguments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar, cast

from fastapi import Depends, HTTPException, Request
from PIL import Image

from vitrieve.errors import ReplacedError
from vitrieve.search.request import SearchAnswer, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.body import BodyReader
from vitrieve.serve.middleware import TIMINGS, Metrics, log_event, log_failure
from vitrieve.serve.pictures import Pictures, Uploads
from vitrieve.serve.settings import Limits, ProxySettings
from vitrieve.serve.views import Renderer

T = TypeVar("T")


class WorkerPool:
    """Threads with a bounded queue.

    Attributes:
        name: Name of the pool in metrics, and of its threads.
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
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work)
        self.num_unfinished += 1  # after it: where no thread can be started, nothing is in work
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


NUM_LOOKUP_WORKERS = 2
NUM_THUMBNAIL_WORKERS = 2
RELOAD_PAUSE_SECONDS = 5.0
"""Time between two attempts to open an index that was replaced: its encoder may take seconds to load, or be gone."""
WARM_UP_PAUSE_SECONDS = 1.0
"""Time between the first two attempts to warm up; each further one is twice as long, up to the next number."""
MAX_WARM_UP_PAUSE_SECONDS = 60.0


class Service:
    """What every endpoint needs.

    Three pools, so that no kind of work waits behind another: searches, thumbnails, and look-ups in the index.
    """

    def __init__(self, searcher: Searcher, limits: Limits, token: str | None, proxy: ProxySettings) -> None:
        self.limits = limits
        self.token = token
        self.proxy = proxy
        self.is_ready = False
        self.readiness = "the encoder and the index are being loaded."
        self.metrics = Metrics()
        self.bodies = BodyReader(limits)
        self._serve(searcher)
        self.uploads = Uploads(limits)
        self._given = searcher
        self._reloading: asyncio.Task[None] | None = None
        self._may_reload_at = 0.0
        self._searches = self._build_pool("search", limits.num_workers, limits.num_waiting)
        self._thumbnails = self._build_pool("thumbnail", NUM_THUMBNAIL_WORKERS, limits.num_waiting_thumbnails)
        self._lookups = self._build_pool("look-up", NUM_LOOKUP_WORKERS, limits.num_waiting_thumbnails)
        self.metrics.held_bytes.set_function(lambda: self.bodies.held_bytes)

    def _serve(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.pictures = Pictures(searcher.store, self.limits)
        self.renderer = Renderer(searcher.store.info, self.limits, root_path=self.proxy.root_path)

    async def warm_up(self) -> None:
        """Load the index into memory, where it fits, and answer a first search, which loads what is loaded once.

        What fails is told in the log and by ``/readyz``, and tried again until it works: memory becomes free, and an
        index that is being replaced becomes whole.
        """
        pause = WARM_UP_PAUSE_SECONDS
        while True:
            try:
                is_resident = await self._searches.run(self._prepare, seconds=None)
                self.is_ready = True
                log_event("ready", is_index_resident=is_resident)
                return
            except Exception as error:
                self.readiness = (
                    f"the first search failed; the log says why. It is tried again every {pause:g} seconds."
                )
                log_failure("not ready", next_attempt_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_WARM_UP_PAUSE_SECONDS)
                if isinstance(error, ReplacedError):
                    await self._reopen()

    async def search(self, request: Request, build: Callable[[], SearchRequest]) -> SearchAnswer:
        """Build a request and answer it, both in a worker; leave the times for the log.

        Raises:
            HTTPException: From ``build``, or 503 and 504 as ``WorkerPool.run``.
            VitrieveError: As ``Searcher.answer``.
        """
        asked = time.perf_counter()

        def work() -> tuple[float, SearchAnswer]:
            begun = time.perf_counter()
            return begun - asked, self.searcher.answer(build())

        waited, answer = await self._run(self._searches, work)
        request.scope[TIMINGS] = {"wait": waited, **answer.timings_seconds}
        return answer

    async def compute(self, work: Callable[[], T]) -> T:
        """Run something as heavy as a search, in the searches' workers."""
        return await self._run(self._searches, work)

    async def draw(self, work: Callable[[], T]) -> T:
        """Decode or shrink a picture."""
        return await self._run(self._thumbnails, work)

    async def look_up(self, work: Callable[[], T]) -> T:
        """Ask the index something small."""
        return await self._run(self._lookups, work)

    def close(self) -> None:
        """Begin no more work."""
        self.is_ready = False
        for pool in (self._searches, self._thumbnails, self._lookups):
            pool.close()
        if self._reloading is not None:
            self._reloading.cancel()
        if self.searcher is not self._given:
            self.searcher.close()

    async def _run(self, pool: WorkerPool, work: Callable[[], T]) -> T:
        """Run something in a pool; where the index turns out to be another one, begin to load that."""
        try:
            return await pool.run(work, seconds=self.limits.request_seconds)
        except ReplacedError:
            self._begin_reload()
            raise

    def _begin_reload(self) -> None:
        is_running = self._reloading is not None and not self._reloading.done()
        if not is_running and time.monotonic() >= self._may_reload_at:
            self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        """Serve the index that is there now, and warm up for it."""
        if await self._reopen():
            await self.warm_up()

    async def _reopen(self) -> bool:
        """Open the index that is there now, and return whether that worked; what still uses the old one is refused."""
        old = self.searcher
        try:
            new = await asyncio.to_thread(old.reopen)
        except Exception:
            log_failure("not reloaded")
            return False
        finally:
            self._may_reload_at = time.monotonic() + RELOAD_PAUSE_SECONDS
        self._serve(new)
        if old is not self._given:
            old.close()
        log_event("reloaded", encoder_fingerprint=new.store.info.fingerprint)
        return True

    def _prepare(self) -> bool:
        is_resident = self.limits.resident_bytes > 0 and self.searcher.store.hold(self.limits.resident_bytes)
        side = self.searcher.encoder.preprocessing.image_size
        vector = self.searcher.encoder.encode([Image.new("RGB", (side, side))])
        self.searcher.store.search(vector, 1)
        return is_resident

    def _build_pool(self, name: str, num_workers: int, num_waiting: int) -> WorkerPool:
        pool = WorkerPool(
            name,
            num_workers=num_workers,
            num_waiting=num_waiting,
            retry_after_seconds=self.limits.retry_after_seconds,
        )
        self.metrics.in_work.labels(name).set_function(lambda: pool.num_unfinished)
        return pool


def get_service(request: Request) -> Service:
    """Return the service of the application that a request came to."""
    return cast(Service, request.app.state.service)


async def _provide_service(request: Request) -> Service:
    return get_service(request)  # async, because FastAPI runs anything else in a thread


CurrentService = Annotated[Service, Depends(_provide_service)]
"""The service, for an endpoint."""
