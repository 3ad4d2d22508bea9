"""The endpoints that change an index; each needs the token for writing, sent as ``Authorization: Bearer``.

A browser's cookie opens none of them: a page cannot be made to change anything.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vitrieve.serve.api import BINARY, ImageId, document
from vitrieve.serve.body import recognize
from vitrieve.serve.changes import MAX_FIELDS, Author, Change, Changed, Changes
from vitrieve.serve.middleware import REQUEST_ID, get_bearer, is_one_of, log_failure
from vitrieve.serve.pages import ERRORS, get_refusal
from vitrieve.serve.rates import spell_seconds
from vitrieve.serve.schemas import FILE_BYTES, FileBytes, Text, check_json, validate_json
from vitrieve.serve.service import CurrentService, Service
from vitrieve.serve.settings import MAX_TEXT

MAX_BATCH = 100
"""Changes of one batch."""
OPTIMIZE_EVERY = 256
"""Changes after which the store brings up to date what makes searching fast."""

Metadata = Annotated[
    dict[Text, Text | None],
    Field(max_length=MAX_FIELDS, description="Columns and their values; null takes a column away, others stay."),
]


class PutBody(BaseModel):
    """A picture with its metadata, in place of the picture's bytes alone."""

    model_config = ConfigDict(extra="forbid")

    image: FileBytes = Field(description=FILE_BYTES)
    metadata: Metadata = Field(default_factory=dict)


class PatchBody(BaseModel):
    """Changes of an image's metadata."""

    model_config = ConfigDict(extra="forbid")

    metadata: Metadata


class ChangeBody(BaseModel):
    """One change of a batch."""

    model_config = ConfigDict(extra="forbid")

    do: Literal["put", "patch", "delete"] = Field(description="put needs an image, patch needs metadata.")
    image_id: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT)]
    image: FileBytes | None = Field(None, description=FILE_BYTES)
    metadata: Metadata | None = None


class BatchBody(BaseModel):
    """Several changes, made in order."""

    model_config = ConfigDict(extra="forbid")

    changes: list[ChangeBody] = Field(min_length=1, max_length=MAX_BATCH)


class ChangedBody(BaseModel):
    """What became of a change."""

    image_id: str
    status: Literal["created", "replaced", "updated", "deleted"]
    metadata: dict[str, str] = Field(description="Metadata that the image has now.")


class RefusedBody(BaseModel):
    """Why one change of a batch was not made."""

    image_id: str
    status: Literal["refused", "not_tried"] = Field(
        description="not_tried: a change before it met a failure of the server, such as a full disk."
    )
    detail: str


class BatchAnswerBody(BaseModel):
    """What became of each change, in order.

    One that is refused stops no other. Where the server fails after some are made, the one that met the failure is
    refused, and those behind it are not tried.
    """

    results: list[ChangedBody | RefusedBody]
    num_refused: int = Field(description="Changes that were refused or not tried.")


async def require_writer(request: Request, service: CurrentService) -> Author:
    """Refuse a request without the token for writing, and return who sent one with it.

    Raises:
        HTTPException: 401 no token or a wrong one; 403 the token for reading, or the service is for reading alone.
    """
    given = get_bearer(request)
    if not service.tokens.write:
        raise HTTPException(403, "this service is for reading alone; it is started without a token for writing.")
    if not is_one_of(given, service.tokens.write):
        if is_one_of(given, service.tokens.read):
            raise HTTPException(403, "this token is for reading; changes need the token for writing.")
        detail = "changes need the token for writing: send the header Authorization: Bearer TOKEN."
        raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})
    return Author(
        token=hashlib.sha256(given.encode()).hexdigest()[:8],
        address=request.client.host if request.client else "",
        request_id=str(request.scope.get(REQUEST_ID, "")),
    )


Writer = Annotated[Author, Depends(require_writer)]
router = APIRouter()
_PICTURE_BODY = {
    "required": True,
    "description": "The bytes of an image file (its content tells the format), or JSON with image and metadata.",
    "content": {
        "image/*": BINARY,
        "application/octet-stream": BINARY,
        "application/json": {"schema": {"$ref": "#/components/schemas/PutBody"}},
    },
}


def _describe_json(name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


BODIES: tuple[type[BaseModel], ...] = (PutBody, PatchBody, BatchBody)
"""The JSON that these endpoints read by themselves; ``build_openapi`` describes it."""
_CHANGE_ANSWERS = document(403, 404, 408, 409, 413, 422, 429, 503, 504, 507)
_PUT: dict[str, Any] = {
    "responses": {**_CHANGE_ANSWERS, 201: {"model": ChangedBody, "description": "A new image."}},
    "openapi_extra": {"requestBody": _PICTURE_BODY},
}
_PATCH: dict[str, Any] = {"responses": _CHANGE_ANSWERS, "openapi_extra": _describe_json("PatchBody")}


@router.put("/images", **_PUT, summary="As PUT /images/{image_id}, any name")
async def put_named_image(
    request: Request, response: Response, image_id: ImageId, service: CurrentService, author: Writer
) -> ChangedBody:
    """Take names that a path cannot carry, too."""
    async with service.bodies.receive(request) as body:
        changed = await _make(service, author, lambda: _read_put(image_id, body, service))
    if changed.status == "created":
        response.status_code = 201
    return changed


@router.put("/images/{image_id:path}", **_PUT, summary="Add an image, or replace its picture")
async def put_image(
    request: Request, response: Response, image_id: str, service: CurrentService, author: Writer
) -> ChangedBody:
    """Embed the picture with the index's encoder and keep its file; metadata that is not mentioned stays."""
    return await put_named_image(request, response, image_id, service, author)


@router.patch("/images", **_PATCH, summary="As PATCH /images/{image_id}, any name")
async def patch_named_image(
    request: Request, image_id: ImageId, service: CurrentService, author: Writer
) -> ChangedBody:
    """Take names that a path cannot carry, too."""
    async with service.bodies.receive(request, service.limits.json_bytes) as body:
        return await _make(service, author, lambda: _read_patch(image_id, body, service))


@router.patch("/images/{image_id:path}", **_PATCH, summary="Change the metadata of an image")
async def patch_image(request: Request, image_id: str, service: CurrentService, author: Writer) -> ChangedBody:
    """Set the columns that are named; null takes one away."""
    return await patch_named_image(request, image_id, service, author)


@router.delete("/images", responses=_CHANGE_ANSWERS, summary="As DELETE /images/{image_id}, any name")
async def delete_named_image(image_id: ImageId, service: CurrentService, author: Writer) -> ChangedBody:
    """Take names that a path cannot carry, too."""
    return await _make(service, author, lambda: Change(kind="delete", image_id=image_id))


@router.delete("/images/{image_id:path}", responses=_CHANGE_ANSWERS, summary="Remove an image from the index")
async def delete_image(image_id: str, service: CurrentService, author: Writer) -> ChangedBody:
    """Remove its row, and its file only where it was sent to the service."""
    return await delete_named_image(image_id, service, author)


@router.post(
    "/images:batch",
    responses=_CHANGE_ANSWERS,
    openapi_extra=_describe_json("BatchBody"),
    summary="Several changes, in order",
)
async def change_images(request: Request, service: CurrentService, author: Writer) -> BatchAnswerBody:
    """Make each change that can be made, and say of each what became of it.

    A failure of the server, such as a full disk, is the answer only where nothing was made before it.
    """
    async with service.bodies.receive(request, service.limits.json_bytes) as body:

        def read() -> list[ChangeBody]:
            check_json(body, service.limits)
            return validate_json(BatchBody, body).changes

        asked = await service.look_up(read)
        _take(service, len(asked))
        results: list[ChangedBody | RefusedBody] = []
        for one in asked:
            read_one = partial(Change, kind=one.do, image_id=one.image_id, image=one.image, metadata=one.metadata)
            try:
                results.append(await _make(service, author, read_one, is_counted=True))
                continue
            except Exception as error:
                status, detail = _describe_failure(error)
                if status >= 500 and not any(isinstance(result, ChangedBody) for result in results):
                    raise
            results.append(RefusedBody(image_id=one.image_id, status="refused", detail=detail))
            if status >= 500:
                detail = f"not tried, because the change of {one.image_id[:200]!r} met a failure of the server."
                rest = (later.image_id for later in asked[len(results) :])
                results += [RefusedBody(image_id=name, status="not_tried", detail=detail) for name in rest]
                break
    num_refused = sum(isinstance(one, RefusedBody) for one in results)
    return BatchAnswerBody(results=results, num_refused=num_refused)


def _describe_failure(error: Exception) -> tuple[int, str]:
    """Return the status and the message of what a change raised, on purpose or not."""
    if isinstance(error, ERRORS):
        return get_refusal(error)
    log_failure("a change of a batch failed")
    return 500, "the server failed; its log says why."


def _read_put(image_id: str, body: bytes, service: Service) -> Change:
    if not body:
        raise HTTPException(422, "the body is empty; send the bytes of an image, or JSON.")
    if recognize(body) != "json":
        return Change(kind="put", image_id=image_id, image=body)
    check_json(body, service.limits)
    read = validate_json(PutBody, body)
    return Change(kind="put", image_id=image_id, image=read.image, metadata=read.metadata)


def _read_patch(image_id: str, body: bytes, service: Service) -> Change:
    check_json(body, service.limits)
    return Change(kind="patch", image_id=image_id, metadata=validate_json(PatchBody, body).metadata)


def _take(service: Service, num_changes: int) -> None:
    most = service.limits.writes_per_minute
    if num_changes > most:
        raise HTTPException(422, f"the batch has {num_changes} changes; this server takes at most {most} a minute.")
    seconds = service.shared.write_rate.take(num_changes)
    if seconds:
        raise HTTPException(
            429, f"this server takes {most:,} changes a minute.", {"Retry-After": spell_seconds(seconds)}
        )


async def _make(
    service: Service, author: Author, read: Callable[[], Change], *, is_counted: bool = False
) -> ChangedBody:
    """Read, embed and make one change in a worker."""
    if not is_counted:
        _take(service, 1)

    def work() -> Changed:
        change = read()
        if change.kind == "put" and change.image is None:
            raise HTTPException(422, "put needs an image.")
        if change.kind == "patch" and change.metadata is None:
            raise HTTPException(422, "patch needs metadata.")
        changes = Changes(service.searcher, service.limits)
        return changes.make(change, changes.encode(change), author)

    changed = await service.compute(work)
    service.num_changes += 1
    if service.num_changes % OPTIMIZE_EVERY == 0:
        asyncio.get_running_loop().run_in_executor(None, _optimize, service)
    return ChangedBody(image_id=changed.image_id, status=changed.status, metadata=dict(changed.metadata))


def _optimize(service: Service) -> None:
    try:
        service.searcher.store.optimize()
    except Exception:
        log_failure("not optimized")
