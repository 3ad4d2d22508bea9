"""``create_app``: the service from its arguments, without globals.

A request passes the three classes of ``middleware.py``, and then reaches an endpoint of ``api.py`` or ``pages.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles

from vitrieve import __version__
from vitrieve.search.searcher import Searcher
from vitrieve.serve import api, pages, writing
from vitrieve.serve.metrics import Metrics
from vitrieve.serve.middleware import AccessControl, RequestBounds, RequestLog
from vitrieve.serve.pages import ERRORS, answer_error, answer_unauthorized
from vitrieve.serve.schemas import FeedbackBody, SearchBody, TagsBody
from vitrieve.serve.service import Service
from vitrieve.serve.settings import Limits, ProxySettings

STATIC_FOLDER = Path(__file__).parent / "static"


def create_app(  # noqa: PLR0913  # each is a decision of whoever runs the service
    searcher: Searcher,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    write_token: str | None = None,
    hosts: Collection[str] | None = None,
    proxy: ProxySettings | None = None,
    uploads: Path | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Make the service: an ASGI application for uvicorn or any other server.

    Args:
        searcher: Index and encoder to search with; the caller closes it.
        limits: Bounds of requests; None: the defaults of ``Limits``.
        token: Token that every request must bring as ``Authorization: Bearer``; None: no token is asked for.
        write_token: Token that changes of the index must bring, which also reads; None: nothing can be changed.
        hosts: Names by which it may be called, besides those of ``proxy``; None: any.
        proxy: Settings for a proxy in front; None: there is no proxy.
        uploads: Folder in which several services keep the pictures that visitors send; None: in memory.
        metrics: What counts; None: counters of this service alone.

    Raises:
        ArtifactError: The folder ``uploads`` cannot be written.
    """
    limits, proxy = limits or Limits(), proxy or ProxySettings()
    service = Service(
        searcher, limits, token, proxy, metrics=metrics or Metrics(), uploads=uploads, write_token=write_token
    )

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield
        service.close()

    # Its own pages about the API load scripts from elsewhere, which the content policy forbids.
    # A redirect to an address without its last slash would be spelled with the client's header Host.
    app = FastAPI(
        title="vitrieve", version=__version__, lifespan=run, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    app.include_router(api.router)
    app.include_router(writing.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    for error in ERRORS:
        app.add_exception_handler(error, answer_error)
    # The one added last is the outermost.
    app.add_middleware(
        AccessControl,
        token=token,
        write_token=write_token,
        hosts=hosts,
        allowed_hosts=proxy.allowed_hosts,
        answer_unauthorized=answer_unauthorized,
    )
    app.add_middleware(RequestBounds, limits=limits, root_path=proxy.root_path)
    app.add_middleware(RequestLog, metrics=service.metrics, retry_after_seconds=limits.retry_after_seconds)
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]
    return app


def build_openapi(app: FastAPI) -> dict[str, Any]:
    """Describe the endpoints for programs, with the JSON body that ``/search`` reads by itself."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        search = SearchBody.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(search.pop("$defs"))
        schemas["SearchBody"] = search
        for model in (FeedbackBody, TagsBody):
            schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for body in writing.BODIES:
            described = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas[body.__name__] = described
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
