"""What a service of several collections has once: their list, probes, counts, and the way in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, cast

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from vitrieve.errors import VitrieveError
from vitrieve.quoting import count_nouns
from vitrieve.serve.api import document
from vitrieve.serve.metrics import CONTENT_TYPE
from vitrieve.serve.middleware import find_collection, get_bearer, is_one_of, may_read
from vitrieve.serve.pages import wants_page
from vitrieve.serve.schemas import HealthBody
from vitrieve.serve.service import Desk, Service, Shared
from vitrieve.serve.settings import ProxySettings, Tokens
from vitrieve.serve.views import Renderer, View, describe_samples

MAX_COUNTED = 32
"""Collections whose pictures are counted at the same time: each takes a place among the look-ups."""
router = APIRouter()


class CollectionBody(BaseModel):
    """One collection of the list."""

    name: str
    address: str = Field(description="Path of its page, below which its endpoints are.")
    is_ready: bool = Field(description="Whether it can be searched.")
    num_images: int | None = Field(description="Images in its index; null: it does not answer.")
    may_write: bool = Field(description="Whether the token that was sent may change it.")


class CollectionsBody(BaseModel):
    """The collections that may be read with what was sent."""

    collections: list[CollectionBody]


class CollectionStatesBody(BaseModel):
    """Whether every collection can be searched."""

    status: str
    collections: dict[str, bool] = Field(description="Whether each can be searched, of those that may be read.")


class CollectionsDesk(Desk):
    """The list of several collections.

    Args:
        services: The service of each collection, by its name.
        shared: What they share.
        proxy: Settings for a proxy in front.
    """

    def __init__(self, services: Mapping[str, Service], shared: Shared, proxy: ProxySettings) -> None:
        # Whoever may read one collection may see the list, which then names that one.
        all_tokens = [service.tokens for service in services.values()]
        read = _unite(tokens.read for tokens in all_tokens)
        is_open = not all(tokens.read for tokens in all_tokens)
        tokens = Tokens(read=() if is_open else read, write=_unite(tokens.write for tokens in all_tokens))
        super().__init__(shared, tokens=tokens, proxy=proxy, limits=shared.limits)
        self.login_tokens = read
        self.services = dict(services)
        self.renderer = Renderer(None, shared.limits, proxy=proxy)

    def list_readable(self, request: Request) -> list[Service]:
        """List the collections that a request may read."""
        return [service for service in self.services.values() if may_read(request, service.tokens)]


def _unite(tokens: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(tokens)))


async def _provide_desk(request: Request) -> CollectionsDesk:
    return cast(CollectionsDesk, request.app.state.service)


CurrentCollections = Annotated[CollectionsDesk, Depends(_provide_desk)]


@router.get(
    "/",
    response_model=CollectionsBody,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The list, or its page."},
        **document(503, 504),
    },
    summary="Which collections may be read?",
)
async def list_collections(request: Request, desk: CurrentCollections) -> CollectionsBody | Response:
    """List them as JSON, or as a page for a browser."""
    services = desk.list_readable(request)
    limit = asyncio.Semaphore(MAX_COUNTED)

    async def count(service: Service) -> int | None:
        async with limit:
            try:
                return await service.look_up(lambda: service.searcher.store.count())
            except (HTTPException, VitrieveError):
                return None  # its own address says why

    nums = await asyncio.gather(*map(count, services))
    given = get_bearer(request)
    if not wants_page(request):
        return CollectionsBody(
            collections=[
                CollectionBody(
                    name=service.name,
                    address=f"{service.proxy.prefix}/",
                    is_ready=service.is_ready,
                    num_images=num_images,
                    may_write=is_one_of(given, service.tokens.write),
                )
                for service, num_images in zip(services, nums, strict=True)
            ]
        )

    async def describe(service: Service, num_images: int | None) -> View:
        async with limit:
            try:
                records = await service.look_up(lambda: service.overview.find_samples()) if num_images else []
            except (HTTPException, VitrieveError):
                records = []
        place = service.proxy.mount
        samples = [{**sample, "thumbnail": place + sample["thumbnail"]} for sample in describe_samples(records[:1])]
        return {
            "name": service.name,
            "address": f"{place}/",
            "is_ready": service.is_ready,
            "num_images": num_images,
            "samples": samples,
        }

    views = await asyncio.gather(*map(describe, services, nums))
    page = await desk.look_up(
        lambda: desk.renderer.render("collections.html", collections=views, has_tokens=bool(desk.login_tokens))
    )
    return HTMLResponse(page)


@router.get("/healthz", responses=document(), summary="Does the process answer?")
async def get_health() -> HealthBody:
    """Touch nothing: whatever is computed, this answers at once."""
    return HealthBody(status="ok")


@router.get("/readyz", responses=document(503), summary="Can every collection be searched?")
async def get_readiness(request: Request, desk: CurrentCollections) -> CollectionStatesBody:
    """Say whether all collections are loaded; each has a ``/readyz`` of its own, which asks its index."""
    waiting = [service for service in desk.services.values() if not service.is_ready]
    if waiting:
        seconds = str(desk.limits.retry_after_seconds)
        collections_are = count_nouns(len(waiting), "collection is", "collections are")
        raise HTTPException(503, f"{collections_are} not ready yet.", {"Retry-After": seconds})
    return CollectionStatesBody(
        status="ready", collections={service.name: service.is_ready for service in desk.list_readable(request)}
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **document(403)},
    summary="Counters for Prometheus",
)
async def get_metrics(request: Request, desk: CurrentCollections) -> Response:
    """Requests by collection, route and status, times by stage, work in progress, memory."""
    if len(desk.list_readable(request)) < len(desk.services):
        raise HTTPException(403, "the counts are those of all collections, and this token does not open all of them.")
    return Response(desk.metrics.render(), media_type=CONTENT_TYPE)


@router.api_route("/c/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def refuse_unknown(request: Request, path: str) -> Response:
    """Answer for names that no collection has."""
    name = find_collection(request.scope["path"])[0]
    raise HTTPException(404, f"there is no collection {name[:80]!r} here.")
