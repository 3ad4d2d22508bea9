"""The endpoints for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from vitrieve.data.decode import encode_jpeg
from vitrieve.feedback.store import MAX_CORRECTIONS
from vitrieve.index.filter import name_kind
from vitrieve.index.store import VectorStore
from vitrieve.search.explain import explain_result
from vitrieve.search.request import SearchRequest
from vitrieve.serve.metrics import CONTENT_TYPE
from vitrieve.serve.middleware import may_read
from vitrieve.serve.pictures import SIDES_PX
from vitrieve.serve.schemas import (
    AnswerBody,
    ColumnsBody,
    Conditions,
    CorrectionBody,
    ErrorBody,
    ExplanationBody,
    FacetBody,
    FacetsBody,
    FeedbackBody,
    FeedbackCountBody,
    FeedbackListBody,
    HealthBody,
    MatchBody,
    ReadyBody,
    SearchBody,
    SearchParameters,
    TaggedBody,
    TagsBody,
    ValueBody,
    build_request,
    has_next_page,
    read_request,
    to_answer_body,
    validate,
    validate_json,
)
from vitrieve.serve.service import CurrentDesk, CurrentService, Service
from vitrieve.serve.settings import MAX_TEXT

router = APIRouter()

THUMBNAIL_SECONDS = 300
"""How long a browser keeps a picture without asking again; a changed file shows after that."""
# Whoever opens a picture by itself gets it without any rights, even if it were no picture after all.
PICTURE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": f"private, max-age={THUMBNAIL_SECONDS}",
}

_REASONS = {
    400: "The service is called by a name that is not its own.",
    401: "The token is missing or wrong.",
    403: "A page of another site sent the request, or the token is not for this.",
    404: "The index has no image of this name.",
    409: "The index was replaced since, feedback is off, or this image is not changed by a service.",
    408: "The body arrived too slowly.",
    410: "The picture's file is gone or can no longer be read.",
    413: "Too many bytes, pixels or scans.",
    414: "The address is too long.",
    422: "It cannot be searched for: no picture, or values that do not fit.",
    429: "Too many requests or changes in a minute; try again after the seconds in Retry-After.",
    431: "The headers are too long, or too many.",
    503: "Busy or not ready; try again after the seconds in Retry-After.",
    504: "Not finished in time.",
    507: "The disk is full, or nearly so.",
}


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """List the answers of an endpoint that are refusals; every one can be turned away before it."""
    refusals = sorted({400, 401, 414, 429, 431, *statuses})
    return {status: {"model": ErrorBody, "description": _REASONS[status]} for status in refusals}


BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "minus_image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "id": {"type": "array", "items": {"type": "string"}},
        "minus_id": {"type": "array", "items": {"type": "string"}},
        "text": {"type": "array", "items": {"type": "string"}},
        "minus_text": {"type": "array", "items": {"type": "string"}},
        "k": {"type": "integer", "minimum": 1},
        "offset": {"type": "integer", "minimum": 0},
        "box": {"type": "string"},
        "filter": {"type": "array", "items": {"type": "string"}},
        "group_by": {"type": "string"},
        "is_near_duplicate_grouped": {"type": "boolean"},
        "reranking": {"type": "string"},
    },
    "additionalProperties": False,
}
SEARCH_BODY = {
    "required": True,
    "description": "An image's bytes (its content tells the format, not the header), a form, or JSON.",
    "content": {
        "image/*": BINARY,
        "application/octet-stream": BINARY,
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": {"$ref": "#/components/schemas/SearchBody"}},
    },
}
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": BINARY}, "description": "A JPEG picture."}}


@router.post(
    "/search",
    responses=document(403, 404, 408, 410, 413, 422, 503, 504),
    openapi_extra={"requestBody": SEARCH_BODY},
    summary="Find the images most like a picture, an image of the index, a vector, words or several examples",
)
async def search(
    request: Request, parameters: Annotated[SearchParameters, Query()], service: CurrentService
) -> AnswerBody:
    """Send an image's bytes as the body, a browser's form, or JSON; the content decides which it is."""
    content_type = request.headers.get("content-type", "")
    async with service.bodies.receive(request) as body:
        next_offset = 0

        def read() -> SearchRequest:
            nonlocal next_offset
            asked = read_request(content_type, body, parameters, service.pictures, service.limits)
            next_offset = asked.offset + asked.k  # a body may say both
            return asked

        answer = await service.search(request, read)
    return to_answer_body(answer, has_more=has_next_page(answer, service.limits, next_offset))


class OpenFileResponse(FileResponse):
    """Sends a file that is open already: its path may lead elsewhere by now."""

    def __init__(self, file: BinaryIO, **values: Any) -> None:
        super().__init__(f"/dev/fd/{file.fileno()}", **values)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, and close it however that ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def read_and_close(file: BinaryIO) -> bytes:
    """Read an open file to its end, and close it."""
    with file:
        return file.read()


FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": BINARY}, "description": "The file."},
    **document(404, 410, 422, 503, 504),
}
ImageId = Annotated[str, Query(max_length=MAX_TEXT, description="Name of the image in the index.")]
SidePx = Annotated[int, Query(description=f"Longest side: one of {', '.join(map(str, SIDES_PX))}.")]


@router.get("/images", response_class=FileResponse, responses=FILE_ANSWERS, summary="As /images/{image_id}, any name")
async def get_named_image(image_id: ImageId, service: CurrentService) -> Response:
    """Take names that a path cannot carry, too: with line breaks, or ``..`` as a part."""
    file = await service.look_up(lambda: service.pictures.find_file(image_id))
    if sys.platform == "win32":  # a descriptor has no path there
        data = await service.look_up(lambda: read_and_close(file.file))
        return Response(data, media_type=file.media_type, headers=PICTURE_HEADERS)
    return OpenFileResponse(file.file, media_type=file.media_type, headers=PICTURE_HEADERS)


@router.get(
    "/images/{image_id:path}",
    response_class=FileResponse,
    responses=FILE_ANSWERS,
    summary="The file of an image, as it is",
)
async def get_image(image_id: str, service: CurrentService) -> Response:
    """Look the image up by its exact name in the index."""
    return await get_named_image(image_id, service)


@router.get(
    "/thumbnails",
    response_class=Response,
    responses={**JPEG, **document(404, 410, 422, 503, 504)},
    summary="As /thumbnails/{image_id}, any name",
)
async def get_named_thumbnail(image_id: ImageId, service: CurrentService, side_px: SidePx = 320) -> Response:
    """Take names that a path cannot carry, too."""
    check_side(side_px)
    jpeg = await service.draw(lambda: service.pictures.build_thumbnail(image_id, side_px))
    return answer_jpeg(jpeg)


@router.get(
    "/thumbnails/{image_id:path}",
    response_class=Response,
    responses={**JPEG, **document(404, 410, 422, 503, 504)},
    summary="A small JPEG copy of an image",
)
async def get_thumbnail(image_id: str, service: CurrentService, side_px: SidePx = 320) -> Response:
    """Look the image up by its exact name in the index; the region that was embedded is shown."""
    return await get_named_thumbnail(image_id, service, side_px)


EXPLAIN_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/jpeg": BINARY},
        "description": "Both pictures side by side with lines between what matches, or the matches as JSON.",
        "model": ExplanationBody,
    },
    **document(403, 404, 408, 410, 413, 422, 503, 504),
}
ResultId = Annotated[str, Query(max_length=MAX_TEXT, description="The result, an image of the index.")]
QueryId = Annotated[str, Query(max_length=MAX_TEXT, description="The query, an image of the index.")]
QueryBox = Annotated[
    str | None, Query(max_length=MAX_TEXT, description="Region of the query: x_1,y_1,x_2,y_2 in pixels.")
]
Format = Annotated[Literal["picture", "json"], Query(description="A picture, or the matches as JSON.")]


@router.get(
    "/explain", response_class=Response, responses=EXPLAIN_ANSWERS, summary="Why an image matches one of the index"
)
async def explain(
    service: CurrentService,
    image_id: ResultId,
    id: QueryId,
    box: QueryBox = None,
    format: Format = "picture",
) -> Response:
    """Show which patches of the query and of the result match."""

    def build() -> SearchRequest:
        parameters, body = validate(SearchParameters, {"box": box}), validate(SearchBody, {"id": id})
        return build_request(parameters, body, service.pictures, service.limits)

    return await answer_explanation(service, build, image_id, format)


@router.post(
    "/explain",
    response_class=Response,
    responses=EXPLAIN_ANSWERS,
    openapi_extra={"requestBody": SEARCH_BODY},
    summary="Why a picture matches an image of the index",
)
async def explain_picture(
    request: Request,
    service: CurrentService,
    image_id: ResultId,
    box: QueryBox = None,
    format: Format = "picture",
) -> Response:
    """Send the query as for ``/search``; it must be one picture."""
    content_type = request.headers.get("content-type", "")
    async with service.bodies.receive(request) as body:
        parameters = validate(SearchParameters, {"box": box})
        return await answer_explanation(
            service,
            lambda: read_request(content_type, body, parameters, service.pictures, service.limits),
            image_id,
            format,
        )


async def answer_explanation(
    service: Service, build: Callable[[], SearchRequest], image_id: str, format: str
) -> Response:
    """Build the request and explain in a worker, and answer in the form that was asked for.

    Raises:
        HTTPException: 422 when the query is not one picture, or as ``build_request``.
    """

    def work() -> Response:
        request = build()
        if len(request.plus) != 1 or request.minus:
            raise HTTPException(422, "only a search by one picture can be explained.")
        explanation = explain_result(service.searcher, request.plus[0], image_id)
        if format == "picture":
            return answer_jpeg(encode_jpeg(explanation.overlay))
        body = ExplanationBody(
            matches=[MatchBody.model_validate(match, from_attributes=True) for match in explanation.matches],
            query_box=explanation.query_box,
            result_box=explanation.result_box,
        )
        return Response(body.model_dump_json(), media_type="application/json")

    return await service.compute(work)


def check_side(side_px: int) -> None:
    """Refuse sizes that are not made.

    Raises:
        HTTPException: 422.
    """
    if side_px not in SIDES_PX:
        raise HTTPException(422, f"side_px is {side_px}; accepted: {', '.join(map(str, SIDES_PX))}.")


def answer_jpeg(jpeg: bytes) -> Response:
    """Answer with a picture that a browser may keep for a while."""
    return Response(jpeg, media_type="image/jpeg", headers=PICTURE_HEADERS)


MAX_FEEDBACK_BYTES = 64 * 1024
MAX_TAGS_BYTES = 2 * 1024 * 1024
"""As many names as one request may have, of the longest."""
FEEDBACK_BODY, TAGS_BODY = (
    {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    for name in ("FeedbackBody", "TagsBody")
)


@router.post(
    "/feedback",
    responses=document(403, 404, 408, 409, 413, 422, 503, 504, 507),
    openapi_extra={"requestBody": FEEDBACK_BODY},
    summary="Say that a result is right, wrong or of the same group, or tag it",
)
async def add_feedback(request: Request, service: CurrentService) -> FeedbackCountBody:
    """Keep it beside the index, for ``vitrieve train --pairs``."""
    async with service.bodies.receive(request, MAX_FEEDBACK_BYTES) as body:
        num_new = await service.look_up(lambda: service.feedback.add(validate_json(FeedbackBody, body)))
    return FeedbackCountBody(num_since_training=num_new)


@router.post(
    "/feedback/tags",
    responses=document(403, 404, 408, 409, 413, 422, 503, 504, 507),
    openapi_extra={"requestBody": TAGS_BODY},
    summary="Add tags to several images",
)
async def add_tags(request: Request, service: CurrentService) -> TaggedBody:
    """Keep for each image what the person said of it before, and the tags: of all that are there, or of none."""
    async with service.bodies.receive(request, MAX_TAGS_BYTES) as body:
        num_new, gone = await service.look_up(lambda: service.feedback.add_tags(validate_json(TagsBody, body)))
    return TaggedBody(num_since_training=num_new, gone=gone)


@router.get("/feedback", responses=document(422, 503, 504), summary="The corrections that count, oldest first")
async def get_feedback(
    service: CurrentService,
    offset: Annotated[int, Query(ge=0, le=MAX_CORRECTIONS)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> FeedbackListBody:
    """Export a page of them; of each person the last word about each pair counts."""

    def read() -> FeedbackListBody:
        corrections, num_new = service.feedback.read()
        return FeedbackListBody(
            corrections=[
                CorrectionBody.model_validate(one, from_attributes=True) for one in corrections[offset : offset + limit]
            ],
            num_corrections=len(corrections),
            num_since_training=num_new,
        )

    return await service.look_up(read)


@router.get("/healthz", responses=document(), summary="Does the process answer?")
async def get_health() -> HealthBody:
    """Touch nothing: whatever is computed, this answers at once."""
    return HealthBody(status="ok")


@router.get("/readyz", responses=document(503, 504), response_model_exclude_none=True, summary="Can it search?")
async def get_readiness(request: Request, service: CurrentService) -> ReadyBody:
    """Ask the index how many images it has; without the token it is only said that it answers."""
    if not service.is_ready:
        seconds = str(service.limits.retry_after_seconds)
        raise HTTPException(503, service.readiness, {"Retry-After": seconds})

    def count() -> tuple[VectorStore, int, tuple[str, ...]]:
        store = service.searcher.store
        return store, store.count(), store.columns()

    store, num_images, columns = await service.look_up(count)
    if not may_read(request, service.tokens):
        return ReadyBody(status="ready")
    return ReadyBody(
        status="ready",
        num_images=num_images,
        encoder_fingerprint=store.info.fingerprint,
        embedding_dim=store.info.embedding_dim,
        columns=list(columns),
    )


@router.get("/columns", responses=document(503, 504), summary="Which metadata columns are there, and of which kind?")
async def get_columns(service: CurrentService) -> ColumnsBody:
    """Find the kinds in the values of the index as it is now."""

    def find() -> ColumnsBody:
        store = service.searcher.store
        kinds = store.kinds(store.columns())
        return ColumnsBody(columns={column: name_kind(kinds[column]) for column in sorted(kinds)})

    return await service.look_up(find)


@router.get("/facets", responses=document(422, 503, 504), summary="How often does each metadata value occur?")
async def get_facets(
    service: CurrentService,
    filter: Annotated[
        Conditions,
        Query(default_factory=list, description="Conditions that the counted images meet, as in a search."),
    ],
) -> FacetsBody:
    """Count the values of columns with few different ones; an index of more than 300,000 images has no facets."""

    def find() -> FacetsBody:
        if len(filter) > service.limits.filters:
            raise HTTPException(
                422, f"there are {len(filter)} conditions; at most {service.limits.filters} are allowed."
            )
        return FacetsBody(
            facets=[
                FacetBody(
                    column=facet.column,
                    kind=facet.kind,
                    values=[ValueBody(value=value, count=count) for value, count in facet.values],
                    num_values=facet.num_values,
                    num_without=facet.num_without,
                    least=facet.least,
                    most=facet.most,
                )
                for facet in service.overview.find_facets(tuple(filter))
            ]
        )

    return await service.look_up(find)


metrics_router = APIRouter()
"""What a service has once, however many collections it has."""


@metrics_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **document()},
    summary="Counters for Prometheus",
)
async def get_metrics(service: CurrentDesk) -> Response:
    """Requests by route and status, times by stage, work in progress, memory."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)
