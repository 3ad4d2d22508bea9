"""The parts of one running service, made from arguments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar, cast

from fastapi import Depends, HTTPException, Request
from PIL import Image
from prometheus_client import Gauge

from vitrieve.errors import ArtifactError, ReplacedError
from vitrieve.search.request import SearchAnswer, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.body import BodyReader
from vitrieve.serve.changes import Changes
from vitrieve.serve.feedback import ServedFeedback
from vitrieve.serve.map_page import KeptMap
from vitrieve.serve.metrics import Metrics
from vitrieve.serve.middleware import TIMINGS, log_event, log_failure
from vitrieve.serve.overview import Overview
from vitrieve.serve.pictures import Pictures
from vitrieve.serve.rates import Rate, ReadRates
from vitrieve.serve.settings import Limits, ProxySettings, Tokens
from vitrieve.serve.uploads import KeptUploads, SharedUploads, Uploads
from vitrieve.serve.views import Address, Renderer

T = TypeVar("T")


class WorkerPool:
    """Threads with a bounded queue.

    Attributes:
        name: Name of the pool in metrics, and of its threads.
        num_unfinished: Pieces of work that run or wait.
        num_refused: Pieces turned away because the queue was full.
    """

    def __init__(
        self,
        name: str,
        *,
        num_workers: int,
        num_waiting: int,
        retry_after_seconds: int,
        gauge: Gauge | None = None,
    ) -> None:
        self.name = name
        self._gauge = gauge
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
            raise self.refuse(503, f"the server is busy: {self.num_unfinished} requests are being worked on or wait.")
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work)
        self._count(1)  # after it: where no thread can be started, nothing is in work
        # A done callback runs in the worker's thread; the counter belongs to the event loop.
        future.add_done_callback(lambda _: _call_soon(loop, self._count, -1))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            raise self.refuse(504, f"the server did not finish within {seconds:g} seconds; it may be busy.") from None

    def close(self) -> None:
        """Begin nothing more; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _count(self, num: int) -> None:
        self.num_unfinished += num
        if self._gauge is not None:
            self._gauge.inc(num)

    def refuse(self, status: int, reason: str) -> HTTPException:
        """Build the answer to a request that is turned away for now."""
        seconds = self._retry_after_seconds
        return HTTPException(status, f"{reason} Try again in {seconds} seconds.", {"Retry-After": str(seconds)})


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[int], None], num: int) -> None:
    """Call on the event loop, unless the service has stopped in the meantime."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback, num)


NUM_LOOKUP_WORKERS = 2
NUM_THUMBNAIL_WORKERS = 2
REOPEN_PAUSE_SECONDS = 5.0
"""Time between two attempts to open an index that was replaced, where the first failed: its encoder may be gone."""
WARM_UP_PAUSE_SECONDS = 1.0
"""Time between the first two attempts to warm up; each further one is twice as long, up to the next number."""
MAX_WARM_UP_PAUSE_SECONDS = 60.0
CLEAN_PAUSE_SECONDS = 300.0
"""Time between two looks for uploads that have expired."""


class Shared:
    """What the collections of a process share, so that all of them together keep within the bounds.

    Three pools, so that no kind of work waits behind another: searches, thumbnails, and look-ups in the index.

    Args:
        limits: The bounds.
        metrics: What counts.
        uploads: Folder in which several services keep the pictures that visitors send; None: in memory.

    Raises:
        ArtifactError: The folder cannot be written.
    """

    def __init__(self, limits: Limits, metrics: Metrics | None = None, uploads: Path | None = None) -> None:
        self.limits = limits
        self.metrics = metrics or Metrics()
        self.bodies = BodyReader(limits, self.metrics.held_bytes)
        self.read_rates = ReadRates(limits.reads_per_minute)
        self.write_rate = Rate(limits.writes_per_minute)
        self.uploads: KeptUploads = Uploads(limits) if uploads is None else SharedUploads(uploads, limits)
        self.searches = self._build_pool("search", limits.num_workers, limits.num_waiting)
        self.thumbnails = self._build_pool("thumbnail", NUM_THUMBNAIL_WORKERS, limits.num_waiting_thumbnails)
        self.lookups = self._build_pool("look-up", NUM_LOOKUP_WORKERS, limits.num_waiting_thumbnails)
        self._cleaning: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin what goes on in the background; to be called on the event loop."""
        if isinstance(self.uploads, SharedUploads):
            self._cleaning = asyncio.create_task(_clean_from_time_to_time(self.uploads))

    def close(self) -> None:
        """Begin no more work."""
        for pool in (self.searches, self.thumbnails, self.lookups):
            pool.close()
        if self._cleaning is not None:
            self._cleaning.cancel()

    def _build_pool(self, name: str, num_workers: int, num_waiting: int) -> WorkerPool:
        return WorkerPool(
            name,
            num_workers=num_workers,
            num_waiting=num_waiting,
            retry_after_seconds=self.limits.retry_after_seconds,
            gauge=self.metrics.in_work.labels(name),
        )


class Desk:
    """What a visitor meets first, at a collection or at the list of several.

    Args:
        shared: What the collections of the process share; it is begun and closed by whoever made it.
        tokens: Who may read and who may write.
        proxy: Settings for a proxy in front, with the place of the collection behind it.
        limits: Bounds.

    Attributes:
        login_tokens: Tokens that ``/login`` takes.
    """

    renderer: Renderer

    def __init__(self, shared: Shared, *, tokens: Tokens, proxy: ProxySettings, limits: Limits) -> None:
        self.shared = shared
        self.tokens = tokens
        self.login_tokens = tokens.read
        self.proxy = proxy
        self.limits = limits
        self.metrics = shared.metrics
        self.bodies = shared.bodies

    async def look_up(self, work: Callable[[], T]) -> T:
        """Do something small in a worker."""
        return await self.shared.lookups.run(work, seconds=self.limits.request_seconds)


class Service(Desk):
    """What every endpoint of an index needs.

    Args:
        searcher: Index and encoder; whoever gives it closes it, and the service does when the index is replaced.
        shared: As for ``Desk``.
        tokens: Who may read and who may write.
        proxy: As for ``Desk``.
        limits: Bounds, where they are others than those of ``shared``: its share of memory.
        name: Name of the collection, where there are several.
    """

    def __init__(
        self,
        searcher: Searcher,
        shared: Shared,
        *,
        tokens: Tokens | None = None,
        proxy: ProxySettings | None = None,
        limits: Limits | None = None,
        name: str = "",
    ) -> None:
        super().__init__(
            shared,
            tokens=tokens or Tokens(),
            proxy=proxy or ProxySettings(),
            limits=limits or shared.limits,
        )
        self.num_changes = 0
        self.name = name
        self.is_ready = False
        self.readiness = "the encoder and the index are being loaded."
        self.uploads = shared.uploads
        self._serve(searcher)
        self._given = searcher
        self._reopening: asyncio.Task[bool] | None = None
        self._warming_up: asyncio.Task[None] | None = None
        self._may_reopen_at = 0.0
        self._searches, self._thumbnails, self._lookups = shared.searches, shared.thumbnails, shared.lookups

    def _serve(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.pictures = Pictures(searcher.store, self.limits)
        self.overview = Overview(searcher.store)
        self.feedback = ServedFeedback(searcher.folder, searcher.store, self.pictures)
        prefix = self.proxy.prefix
        self.map = KeptMap(searcher.folder, lambda image_id: prefix + Address(plus=(image_id,)).spell())
        self.renderer = Renderer(searcher.store.info, self.limits, proxy=self.proxy, collection=self.name)

    def begin(self) -> None:
        """Begin what goes on in the background; to be called on the event loop."""
        if not self.is_ready:
            self.begin_warm_up()

    def begin_warm_up(self) -> None:
        """Warm up in the background; a warming up for an earlier index ends. To be called on the event loop."""
        if self._warming_up is not None:
            self._warming_up.cancel()
        self._warming_up = asyncio.create_task(self._warm_up())

    async def _warm_up(self) -> None:
        """Prepare in a worker.

        What fails is told in the log and by ``/readyz``, and tried again until it works: memory becomes free, and an
        index that is being replaced becomes whole.
        """
        pause = WARM_UP_PAUSE_SECONDS
        while True:
            try:
                await self._searches.run(self.prepare, seconds=None)
                return
            except Exception as error:
                self.readiness = (
                    f"the first search failed; the log says why. It is tried again every {pause:g} seconds."
                )
                log_failure("not ready", next_attempt_seconds=pause, **self._named)
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_WARM_UP_PAUSE_SECONDS)
                if isinstance(error, ReplacedError):
                    await self._wait_for_index(None)  # it begins another warming up, and ends this one

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
        """Ask the index something small; as ``Desk.look_up``, and again where the index is exchanged."""
        return await self._run(self._lookups, work)

    def close(self) -> None:
        """Begin no more work of this index."""
        self.is_ready = False
        for task in (self._reopening, self._warming_up):
            if task is not None:
                task.cancel()
        if self.searcher is not self._given:
            self.searcher.close()

    async def _run(self, pool: WorkerPool, work: Callable[[], T]) -> T:
        """Run something in a pool; where the index turns out to be another one, run it again on that.

        So a request that meets the exchange of two indexes waits for the new one, and is answered from it.
        """
        loop = asyncio.get_running_loop()
        seconds = self.limits.request_seconds
        until = loop.time() + seconds
        while True:
            searcher = self.searcher
            try:
                return await pool.run(work, seconds=seconds)
            except ArtifactError as error:
                is_exchanged = self.searcher is not searcher  # and the old one is closed
                if not is_exchanged and not (isinstance(error, ReplacedError) and await self._wait_for_index(until)):
                    raise
                seconds = max(0.01, round(until - loop.time(), 2))

    async def _wait_for_index(self, until: float | None) -> bool:
        """Wait for the index that is there now, and return whether it is served; soon after a failure it is not tried.

        Raises:
            HTTPException: 504 where it is not open by ``until``, a time of the event loop.
        """
        if self._reopening is None or self._reopening.done():
            if time.monotonic() < self._may_reopen_at:
                return False
            self._reopening = asyncio.create_task(self._reload())
        try:
            async with asyncio.timeout_at(until):
                return await asyncio.shield(self._reopening)
        except TimeoutError:
            raise self._searches.refuse(504, "the index was replaced, and the new one is not open yet.") from None

    async def _reload(self) -> bool:
        """Serve the index that is there now, and begin to warm up for it; return whether it could be opened."""
        is_open = await self._reopen()
        if is_open:
            self.begin_warm_up()
        return is_open

    async def _reopen(self) -> bool:
        """Open the index that is there now, and return whether that worked."""
        old = self.searcher
        try:
            new = await asyncio.to_thread(old.reopen)
        except Exception:
            log_failure("not reloaded", **self._named)
            self._may_reopen_at = time.monotonic() + REOPEN_PAUSE_SECONDS
            return False
        self._serve(new)
        old.close()  # with its copy in memory; whoever gave the first one closes it a second time
        log_event("reloaded", encoder_fingerprint=new.store.info.fingerprint, **self._named)
        return True

    def prepare(self) -> None:
        """Load the index into memory, where it fits, and answer a first search, which loads what is loaded once."""
        is_resident = self.limits.resident_bytes > 0 and self.searcher.store.hold(self.limits.resident_bytes)
        side = self.searcher.encoder.preprocessing.image_size
        vector = self.searcher.encoder.encode([Image.new("RGB", (side, side))])
        self.searcher.store.search(vector, 1)
        if self.searcher.encoder.text_part is not None:
            self.searcher.encoder.encode_text([])
        self.searcher.words.find()
        self.is_ready = True
        self._settle()
        log_event("ready", is_index_resident=is_resident, **self._named)

    def _settle(self) -> None:
        """End a change that a killed process began; what cannot be ended now is ended by the next change."""
        if self.tokens.write and self.searcher.folder is not None:
            try:
                Changes(self.searcher, self.limits).settle()
            except Exception:
                log_failure("an unfinished change was not ended", **self._named)

    @property
    def _named(self) -> dict[str, str]:
        """Name the collection for the log, where there are several."""
        return {"collection": self.name} if self.name else {}


async def _clean_from_time_to_time(uploads: SharedUploads) -> None:
    while True:
        try:
            await asyncio.to_thread(uploads.clean)
        except OSError:
            log_failure("uploads not cleaned")
        await asyncio.sleep(CLEAN_PAUSE_SECONDS)


def get_service(request: Request) -> Service:
    """Return the service of the application that a request came to."""
    return cast(Service, request.app.state.service)


def get_desk(request: Request) -> Desk:
    """Return what a request came to: a service of an index, or the list of collections."""
    return cast(Desk, request.app.state.service)


async def _provide_service(request: Request) -> Service:
    return get_service(request)  # async, because FastAPI runs anything else in a thread


async def _provide_desk(request: Request) -> Desk:
    return get_desk(request)


CurrentService = Annotated[Service, Depends(_provide_service)]
"""The service, for an endpoint."""
CurrentDesk = Annotated[Desk, Depends(_provide_desk)]
