"""``create_app``: the service from its arguments, without globals.

A request passes the classes of ``middleware.py``, and then reaches an endpoint of ``api.py`` or ``pages.py``. Where
there are several collections, each is an application with its own gate; ``front.py`` has what belongs to none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles

from vitrieve import __version__
from vitrieve.search.searcher import Searcher
from vitrieve.serve import api, front, pages, writing
from vitrieve.serve.collections import NAME_PATTERN, Collections, divide_memory
from vitrieve.serve.front import CollectionsDesk
from vitrieve.serve.metrics import Metrics
from vitrieve.serve.middleware import AccessControl, ChooseCollection, RequestBounds, RequestLog
from vitrieve.serve.pages import ERRORS, answer_error, answer_unauthorized
from vitrieve.serve.schemas import FeedbackBody, SearchBody, TagsBody
from vitrieve.serve.service import Desk, Service, Shared
from vitrieve.serve.settings import Limits, ProxySettings, ServeSettings, Tokens

STATIC_FOLDER = Path(__file__).parent / "static"


def create_app(
    searcher: Searcher,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    write_token: str | None = None,
    hosts: Collection[str] | None = None,
    proxy: ProxySettings | None = None,
    uploads: Path | None = None,
) -> FastAPI:
    """Make the service: an ASGI application for uvicorn or any other server.

    Args:
        searcher: Index and encoder to search with; the caller closes it. When the index is replaced, the service closes
            this searcher, and opens and later closes its own.
        limits: Bounds of requests; None: the defaults of ``Limits``.
        token: Token that every request must bring as ``Authorization: Bearer``; None: no token is asked for.
        write_token: Token that changes of the index must bring, which also reads; None: nothing can be changed.
        hosts: Names by which it may be called, besides those of ``proxy``; None: any.
        proxy: Settings for a proxy in front; None: there is no proxy.
        uploads: Folder in which several services keep the pictures that visitors send; None: in memory.

    Raises:
        ArtifactError: The folder ``uploads`` cannot be written.
    """
    shared = Shared(limits or Limits(), uploads=uploads)
    return _serve_one(searcher, shared, Tokens.of(token, write_token), hosts, proxy or ProxySettings())


def create_served_app(
    opened: Searcher | Collections,
    settings: ServeSettings,
    hosts: Collection[str] | None = None,
    folder: Path | None = None,
) -> FastAPI:
    """Make the service of what was opened, as the settings say.

    Args:
        opened: One index, or several collections; the caller closes it.
        settings: What to allow.
        hosts: Names by which the service may be called; None: any.
        folder: Folder of the counts, where several processes are one service.

    Raises:
        ArtifactError: The folder for uploads cannot be written.
    """
    has_collections = isinstance(opened, Collections)
    shared = Shared(settings.limits, Metrics(folder, has_collections=has_collections), settings.uploads)
    if isinstance(opened, Collections):
        return _serve_several(opened, shared, hosts, settings.proxy)
    return _serve_one(opened, shared, Tokens.of(settings.token, settings.write_token), hosts, settings.proxy)


def _serve_one(
    searcher: Searcher, shared: Shared, tokens: Tokens, hosts: Collection[str] | None, proxy: ProxySettings
) -> FastAPI:
    service = Service(searcher, shared, tokens=tokens, proxy=proxy)
    app = _build_app(service, hosts)
    app.include_router(api.metrics_router)
    _add_lifespan(app, [service], shared)
    _bound(app, shared, proxy)
    return app


def _serve_several(
    collections: Collections, shared: Shared, hosts: Collection[str] | None, proxy: ProxySettings
) -> FastAPI:
    """Make a service of several collections: each as ``create_app`` makes it, below ``/c/NAME``, and their list.

    The limits of ``shared`` hold for all collections together.
    """
    limits = shared.limits
    memory = divide_memory(collections.count_bytes(), limits.resident_bytes)
    services = {}
    for name, searcher in collections.searchers.items():
        own = replace(
            limits,
            resident_bytes=memory[name],
            thumbnail_bytes=max(1, limits.thumbnail_bytes // len(collections.searchers)),
        )
        place = replace(proxy, mount=f"/c/{name}")
        services[name] = Service(searcher, shared, tokens=collections.tokens[name], proxy=place, limits=own, name=name)
    app = _build_front(CollectionsDesk(services, shared, proxy), hosts)
    apps = {name: _build_app(service, hosts) for name, service in services.items()}
    _add_lifespan(app, list(services.values()), shared)
    app.add_middleware(ChooseCollection, apps=apps)
    _bound(app, shared, proxy)
    described = next(iter(apps.values()))
    app.openapi = lambda: build_collections_openapi(app, described)  # type: ignore[method-assign]
    return app


def _add_lifespan(app: FastAPI, services: Sequence[Service], shared: Shared) -> None:
    """Let the application begin and end the work in the background."""

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
        shared.begin()
        for service in services:
            service.begin()
        yield
        for service in services:
            service.close()
        shared.close()

    app.router.lifespan_context = run
    app.state.services = services


def _build_app(service: Service, hosts: Collection[str] | None) -> FastAPI:
    """Make the application of one index, with its gate, and without what stands before all collections."""
    app = _make(service, hosts)
    app.include_router(api.router)
    app.include_router(writing.router)
    app.include_router(pages.router)
    app.include_router(pages.login_router)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    app.openapi = lambda: build_openapi(app)  # type: ignore[method-assign]
    return app


def _build_front(desk: CollectionsDesk, hosts: Collection[str] | None) -> FastAPI:
    """Make the application of what belongs to no collection."""
    app = _make(desk, hosts)
    app.include_router(front.router)
    app.include_router(pages.login_router)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    return app


def _make(desk: Desk, hosts: Collection[str] | None) -> FastAPI:
    # Its own pages about the API load scripts from elsewhere, which the content policy forbids.
    # A redirect to an address without its last slash would be spelled with the client's header Host.
    app = FastAPI(title="vitrieve", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = desk
    for error in ERRORS:
        app.add_exception_handler(error, answer_error)
    app.add_middleware(
        AccessControl,
        tokens=desk.tokens,
        hosts=hosts,
        allowed_hosts=desk.proxy.allowed_hosts,
        answer_unauthorized=answer_unauthorized,
        answer_error=answer_error,
        rates=desk.shared.read_rates,
    )
    return app


def _bound(app: FastAPI, shared: Shared, proxy: ProxySettings) -> None:
    """Add what every request passes first; the one added last is the outermost."""
    app.add_middleware(RequestBounds, limits=shared.limits, root_path=proxy.root_path)
    app.add_middleware(RequestLog, metrics=shared.metrics, retry_after_seconds=shared.limits.retry_after_seconds)


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
        name_server(document, app)
        app.openapi_schema = document
    return app.openapi_schema


def build_collections_openapi(app: FastAPI, described: FastAPI) -> dict[str, Any]:
    """Describe the list of collections, and what each of them answers below ``/c/{name}``.

    Args:
        app: The application that is described.
        described: The application of one collection; those of the others are the same.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        one = build_openapi(described)
        parameter = {
            "name": "name",
            "in": "path",
            "required": True,
            "description": "Name of the collection.",
            "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        }
        unknown = {
            "404": {
                "description": "There is no collection of this name, or it has no such image.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
            }
        }
        for path, methods in one["paths"].items():
            document["paths"][f"/c/{{name}}{path}"] = {
                method: {
                    **operation,
                    "operationId": f"collection_{operation['operationId']}",
                    "parameters": [parameter, *operation.get("parameters", [])],
                    "responses": {**unknown, **operation["responses"]},
                }
                for method, operation in methods.items()
            }
        document["components"]["schemas"] |= one["components"]["schemas"]
        document["components"]["securitySchemes"] = one["components"]["securitySchemes"]
        name_server(document, app)
        app.openapi_schema = document
    return app.openapi_schema


def name_server(document: dict[str, Any], app: FastAPI) -> None:
    """Say in a document below which path the application is, where that is not the root."""
    prefix = app.state.service.proxy.prefix
    if prefix:
        document["servers"] = [{"url": prefix}]
