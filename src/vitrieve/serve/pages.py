"""The pages for people, whose content is in the address alone; and the answer to an exception, as a page or JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from vitrieve.data.decode import encode_jpeg
from vitrieve.data.records import ImageRecord
from vitrieve.errors import (
    ArtifactError,
    DataError,
    DecodeError,
    DiskFullError,
    InputError,
    PictureTooLargeError,
    UnreachableError,
    WeightsError,
)
from vitrieve.feedback.events import MAX_NAME
from vitrieve.index.filter import require_column, resolve_filter
from vitrieve.index.store import VectorStore
from vitrieve.search.explain import explain_result
from vitrieve.search.request import Example, SearchAnswer, SearchRequest
from vitrieve.serve.api import answer_jpeg, check_side
from vitrieve.serve.body import parse_form
from vitrieve.serve.middleware import (
    COOKIE,
    MAX_SESSIONS,
    OUT_OF_MEMORY,
    build_cookie,
    find_sessions,
    is_one_of,
    log_failure,
)
from vitrieve.serve.schemas import build_example, check_search, has_next_page
from vitrieve.serve.service import CurrentDesk, CurrentService, Desk, Service, get_desk
from vitrieve.serve.settings import Limits
from vitrieve.serve.uploads import Upload
from vitrieve.serve.views import (
    YOUR_PICTURE,
    Address,
    View,
    describe_conditions,
    describe_examples,
    describe_facets,
    describe_results,
    describe_samples,
    find_title,
    parse_address,
    thumbnail_url,
    upload_url,
)

router = APIRouter(include_in_schema=False)
login_router = APIRouter(include_in_schema=False)

MAX_VALUES = 200
MAX_VALUE_LENGTH = 60
_HELPER_FIELDS = ("column", "operator", "value", "words", "sign", "x_1", "y_1", "x_2", "y_2", "range", "least", "most")
MAX_LOGIN_BYTES = 64 * 1024
"""Size of the one form that strangers may send: their bodies must not take the memory that pictures need."""
NO_MAP: View = {
    "status": 404,
    "title": "There is no map yet",
    "detail": "The command vitrieve map --index INDEX draws one; it is shown here from then on.",
}
NOTHING_TO_MAP: View = {
    "status": 404,
    "title": "There is nothing to map",
    "detail": "The index holds no pictures. Add some with vitrieve sync --data FOLDER --index INDEX; vitrieve map then "
    "draws the map.",
}
EXPIRED = "This picture is no longer here"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The one picture of a query, on which a box can be drawn.

    Attributes:
        picture: Address of a copy of it.
        title: Name of what the picture shows.
        width_px: Width after EXIF orientation.
        height_px: Height after EXIF orientation.
        has_box_tool: Flag that a box can be drawn; it is off where only a region of the picture was indexed.
    """

    picture: str
    title: str
    width_px: int
    height_px: int
    has_box_tool: bool


@router.get("/")
async def show_search(request: Request, service: CurrentService) -> Response:
    """Show the start page, or the results of the search that the address spells."""
    asked = request.state.address = parse_address(request.query_params, service.limits)
    if any(name in _HELPER_FIELDS or not value for name, value in request.query_params.multi_items()):
        return RedirectResponse(service.proxy.prefix + asked.spell(), 303)  # a form's long address gives way
    allowed = _allow(asked, service.limits)
    if not allowed.num_examples:
        return await _show_start(request, service, allowed)
    answer, problem = await _search(request, service, asked)
    address = await _find_accepted(service, allowed, problem)
    status = problem["status"] if problem else 200
    query = await _describe_query(service, address)
    facets = await service.look_up(lambda: service.overview.find_facets(address.filter)) if answer else ()

    def render() -> str:
        return service.renderer.render(
            "results.html",
            address=address,
            results=describe_results(answer, address) if answer else [],
            answer=answer,
            has_next=answer is not None and has_next_page(answer, service.limits, address.page * address.k),
            problem=problem,
            is_part_refused=address != allowed,
            columns=service.searcher.store.columns(),
            values=_list_values(answer),
            conditions=describe_conditions(address),
            feedback=_describe_feedback(service, address),
            facets=describe_facets(facets, address),
            **query,
        )

    # In a worker: a page of many groups takes a while, in which the event loop would answer nobody.
    return HTMLResponse(await service.look_up(render), status, headers=_retry(status, service))


def _allow(address: Address, limits: Limits) -> Address:
    """Ask for no more results than are allowed, where a page offers a search: it would only be refused."""
    return replace(address, k=min(address.k, limits.k))


def _describe_feedback(service: Service, address: Address) -> View | None:
    """Describe what feedback on the results is about, and what was said of them; None where it is off."""
    is_image = address.num_examples == 1 and len(address.plus) == 1 and address.box is None
    query_id = address.plus[0] if is_image else ""
    query = "" if is_image else _spell_query(address)
    said = service.feedback.find_said(query_id, query)
    if said is None:
        return None
    return {
        "count": said.num_new,
        "said": said.about,
        "query_id": query_id,
        "query": query,
        "fingerprint": service.searcher.store.info.fingerprint,
    }


def _spell_query(address: Address) -> str:
    """Spell all that is asked for, so that what is said of this search counts for no other.

    How results are chosen (conditions, groups) is no part of it: it changes nothing about whether a result is right.
    """
    described = [
        *address.texts,
        *address.plus,
        # The number of a picture that was sent in is a hash of it, so that this says which one it was.
        *(f"{YOUR_PICTURE} {number}" for number in address.uploads),
        *(f"less of {unwanted}" for unwanted in (*address.minus_texts, *address.minus)),
        *(f"region {box}" for name, box in address.fields() if name == "box"),
    ]
    spelled = ", ".join(described)
    if len(spelled) <= MAX_NAME:
        return spelled
    digest = hashlib.sha256(spelled.encode()).hexdigest()[:16]  # long ones may begin alike
    return f"{spelled[: MAX_NAME - len(digest) - 2]}… {digest}"


def _list_values(answer: SearchAnswer | None) -> list[str]:
    """List values of the metadata in sight, to choose a condition from."""
    values = {value for result in answer.results for value in result.metadata.values()} if answer else set()
    return sorted(value for value in values if 0 < len(value) <= MAX_VALUE_LENGTH)[:MAX_VALUES]


async def _show_start(request: Request, service: Service, address: Address) -> Response:
    """Show where a search begins; an address without examples may say how the results are to be chosen.

    Raises:
        InputError: The index refuses a condition or the group; a search on the page that says so keeps all else.
    """

    def look_up() -> tuple[int, list[ImageRecord]]:
        store = service.searcher.store
        try:
            _check_choosing(address, store)
        except InputError:
            request.state.accepted = _keep_accepted(address, store)
            raise
        return store.count(), service.overview.find_samples()

    num_images, records = await service.look_up(look_up)
    page = service.renderer.render(
        "start.html",
        address=address,
        conditions=describe_conditions(address),
        num_images=num_images,
        samples=describe_samples(records, address),
        has_map=service.map.is_there(),
    )
    return HTMLResponse(page)


def _check_choosing(address: Address, store: VectorStore) -> None:
    """Look at what an address says of how results are chosen.

    Raises:
        InputError: The index refuses a condition, or has no such column to group by.
    """
    resolve_filter(address.filter, store.columns(), store.kinds)
    if address.group_by:
        require_column(address.group_by, store.columns())


def _keep_accepted(address: Address, store: VectorStore) -> Address:
    """Leave out of an address what ``_check_choosing`` refuses."""
    kept = replace(address, filter=(), group_by="")
    parts = [Address(filter=(condition,)) for condition in address.filter] + [Address(group_by=address.group_by)]
    for part in parts:
        with suppress(InputError):
            _check_choosing(part, store)
            kept = replace(kept, filter=(*kept.filter, *part.filter), group_by=part.group_by)
    return kept


async def _find_accepted(service: Service, address: Address, problem: View | None) -> Address:
    """Find what the forms and links of a page may ask for: the address, or what is left of it where it is refused."""
    if problem is None or problem["status"] != 422:
        return address
    return await service.look_up(lambda: _keep_accepted(address, service.searcher.store))


async def _search(request: Request, service: Service, address: Address) -> tuple[SearchAnswer | None, View | None]:
    """Search, or say in the page's own words what is wrong."""
    try:
        return await service.search(request, lambda: build_page_request(address, service)), None
    except (HTTPException, InputError, MemoryError) as error:
        status, detail = get_refusal(error)
        title = EXPIRED if status == 410 and address.uploads else _PROBLEMS.get(status, _PROBLEMS[422])
        return None, {"status": status, "title": title, "detail": detail}


_PROBLEMS = {
    404: "There is no such picture",
    410: "This picture is gone",
    413: "This picture is too large",
    422: "This cannot be searched for",
    503: "Many people are searching",
    504: "This took too long",
}


def build_page_request(address: Address, service: Service) -> SearchRequest:
    """Turn an address into a request; in a worker.

    Raises:
        HTTPException: 410 when an upload is no longer held, or as ``check_search`` and ``build_example``.
    """
    offset = (address.page - 1) * address.k
    check_search(
        service.limits,
        k=address.k,
        offset=offset,
        num_examples=address.num_examples,
        num_filters=len(address.filter),
        box=address.box,
    )
    uploads = [find_upload(service, upload_id).data for upload_id in address.uploads]
    return SearchRequest(
        plus=(
            *(Example(picture=data, box=address.box) for data in uploads),
            *(build_example(service.pictures, id=image_id, box=address.box) for image_id in address.plus),
            *(Example(text=text, box=address.box) for text in address.texts),
        ),
        minus=(
            *(Example(image_id=image_id) for image_id in address.minus),
            *(Example(text=text) for text in address.minus_texts),
        ),
        k=address.k,
        offset=offset,
        filter=address.filter,
        group_by=address.group_by or None,
        is_near_duplicate_grouped=address.is_near_duplicate_grouped,
    )


def find_upload(service: Service, upload_id: str) -> Upload:
    """Find a picture that was sent in.

    Raises:
        HTTPException: 410 when it is no longer held.
    """
    upload = service.uploads.find(upload_id, service.name)
    if upload is None:
        raise HTTPException(
            410,
            "Pictures that are sent in are kept for a while only. Send the same picture again: the address works then.",
        )
    return upload


async def _describe_query(service: Service, address: Address) -> View:
    """Describe what is asked for: the examples, and the stage when there is a single one."""

    def look_up() -> tuple[dict[str, ImageRecord], list[str]]:
        records = _find_records(service, (*address.plus, *address.minus))
        return records, [upload for upload in address.uploads if service.uploads.find(upload, service.name)]

    records, uploads = await service.look_up(look_up)
    titles = {image_id: find_title(image_id, record.metadata) for image_id, record in records.items()}
    titles |= dict.fromkeys(uploads, YOUR_PICTURE)
    stage = None
    if address.num_examples == 1 and (address.uploads or address.plus):
        stage = await service.draw(lambda: build_stage(service, address, records))
    return {"examples": describe_examples(address, titles), "stage": stage}


def _find_records(service: Service, image_ids: tuple[str, ...]) -> dict[str, ImageRecord]:
    """Find those of some images that the index has."""
    found = {}
    for image_id in image_ids[: service.limits.examples]:
        try:
            found[image_id] = service.pictures.find(image_id)
        except HTTPException:
            continue
    return found


def build_stage(service: Service, address: Address, records: dict[str, ImageRecord]) -> Stage | None:
    """Describe the only picture of a query; None when it is not there."""
    if address.uploads:
        upload = service.uploads.find(address.uploads[0], service.name)
        if upload is None:
            return None
        picture = upload_url(upload.upload_id, 640)
        return Stage(
            picture=picture,
            title=YOUR_PICTURE,
            width_px=upload.width_px,
            height_px=upload.height_px,
            has_box_tool=True,
        )
    record = records.get(address.plus[0])
    size = None if record is None else service.pictures.measure(record)
    if record is None or size is None:
        return None
    return Stage(
        picture=thumbnail_url(record.image_id, 640),
        title=find_title(record.image_id, record.metadata),
        width_px=size[0],
        height_px=size[1],
        has_box_tool=record.box is None,
    )


@router.get("/compare")
async def show_comparison(request: Request, image_id: str, service: CurrentService) -> Response:
    """Show the query and one result side by side."""
    address = request.state.address = parse_address(request.query_params, service.limits)
    answer, problem = await _search(request, service, address)
    results = await service.look_up(lambda: describe_results(answer, address)) if answer else []
    found = [result for one in results for result in (one, *one["others"])]
    row = next((number for number, result in enumerate(found) if result["image_id"] == image_id), None)
    if problem is None and row is None:
        problem = {
            "status": 404,
            "title": "There is no such result",
            "detail": "It is not on this page of the results.",
        }
    if problem is not None or row is None:
        accepted = request.state.accepted = await _find_accepted(service, address, problem)
        return _show_problem(request, problem or {}, _allow(accepted, service.limits).spell())
    page = service.renderer.render(
        "compare.html",
        address=address,
        result=found[row],
        large=thumbnail_url(image_id, 640),
        overlay=address.spell("/compare/overlay", image_id=image_id)
        if address.num_examples == 1 and not address.texts
        else None,
        previous=found[row - 1]["compare"] if row > 0 else None,
        following=found[row + 1]["compare"] if row + 1 < len(found) else None,
        **await _describe_query(service, address),
    )
    return HTMLResponse(page)


@router.get("/compare/overlay")
async def get_overlay(request: Request, image_id: str, service: CurrentService) -> Response:
    """Draw which parts of the query and one result match."""
    address = parse_address(request.query_params, service.limits)

    def draw() -> bytes:
        examples = build_page_request(address, service).plus
        if len(examples) != 1:
            raise HTTPException(422, "only a search by one picture can be explained.")
        return encode_jpeg(explain_result(service.searcher, examples[0], image_id).overlay)

    return answer_jpeg(await service.compute(draw))


@router.get("/map")
async def show_map(request: Request, service: CurrentService) -> Response:
    """Show the map of the collection."""

    def render() -> str | View:
        served = service.map.find()
        num_images = service.searcher.store.count()
        if served is None or num_images == 0:
            return NO_MAP if num_images else NOTHING_TO_MAP
        return service.renderer.render(
            "map.html",
            view=served.view,
            num_images=num_images,
            max_examples=service.limits.examples,
            fingerprint=None if service.feedback.find_obstacle() else service.searcher.store.info.fingerprint,
        )

    page = await service.look_up(render)
    return HTMLResponse(page) if isinstance(page, str) else _show_problem(request, page)


@router.get("/map/data")
async def get_map_data(request: Request, service: CurrentService) -> Response:
    """Send what the map's script draws; a browser that has it is only told so."""
    served = await service.look_up(lambda: service.map.find())
    if served is None:
        raise HTTPException(404, str(NO_MAP["detail"]))
    headers = {"ETag": served.tag}
    if request.headers.get("if-none-match") == served.tag:
        return Response(status_code=304, headers=headers)
    return Response(served.data, media_type="application/json", headers=headers)


@router.post("/uploads")
async def receive_upload(request: Request, service: CurrentService) -> Response:
    """Keep a picture, and lead on to the address of its search."""
    async with service.bodies.receive(request) as body:
        content_type = request.headers.get("content-type", "")

        def keep() -> Address:
            form = parse_form(content_type, body, max_files=service.limits.examples)
            given = [(name, value) for name, values in form.texts.items() for value in values]
            narrowing = parse_address(QueryParams(given), service.limits).narrowing()
            address = request.state.address = parse_address(QueryParams(narrowing), service.limits)
            files = form.files.get("image", [])
            if not files:
                raise HTTPException(422, "No picture was chosen. Choose one, and search again.")
            try:
                upload = service.uploads.add(files[0], service.name)
            except OSError:  # the folder of uploads is gone, or its disk is full
                log_failure("upload not kept")
                raise HTTPException(
                    503, "The picture cannot be kept at the moment; the server's log says why."
                ) from None
            return replace(address, uploads=(upload.upload_id,))

        address = service.proxy.prefix + (await service.compute(keep)).spell()
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"address": address})
    return RedirectResponse(address, 303)


@router.get("/uploads/{upload_id}")
async def get_upload(upload_id: str, service: CurrentService, side_px: Annotated[int, Query()] = 320) -> Response:
    """Send a small copy of a picture that was sent in."""
    check_side(side_px)
    jpeg = await service.draw(
        lambda: service.pictures.shrink_upload(upload_id, find_upload(service, upload_id).data, side_px)
    )
    return answer_jpeg(jpeg)


@login_router.get("/login")
async def show_login(service: CurrentDesk) -> Response:
    """Ask for the token."""
    return HTMLResponse(service.renderer.render("login.html", is_wrong=False, after="/"))


@login_router.post("/login")
async def log_in(request: Request, service: CurrentDesk) -> Response:
    """Give a browser that knows the token a cookie."""
    content_type = request.headers.get("content-type", "")
    async with service.bodies.receive(request, MAX_LOGIN_BYTES) as body:
        form = await service.look_up(lambda: parse_form(content_type, body, max_files=1))
    token, after = (form.texts.get(name, [""])[-1] for name in ("token", "after"))
    if not is_local_path(after):
        after = "/"
    answer = RedirectResponse(service.proxy.prefix + after, 303)
    if not service.login_tokens:
        return answer
    if not is_one_of(token.strip(), service.login_tokens):
        return HTMLResponse(service.renderer.render("login.html", is_wrong=True, after=after), 401)
    # One cookie proves all that this browser knows: each collection may have its own token, and so may a service at
    # another port, which browsers take for the same place.
    proof = build_cookie(token.strip())
    proofs = [proof, *(one for one in find_sessions(request) if one != proof)][:MAX_SESSIONS]
    # Lax: an address that a colleague shares opens; what changes anything is a POST, which the gate looks at.
    answer.set_cookie(
        COOKIE,
        ".".join(proofs),
        path=service.proxy.root_path or "/",
        httponly=True,
        samesite="lax",
        secure=service.proxy.is_by_tls(request),
    )
    return answer


def is_local_path(text: str) -> bool:
    r"""Say whether a redirect stays on this service.

    >>> is_local_path("/?plus=a"), is_local_path("//evil.example"), is_local_path("/\\evil.example")
    (True, False, False)
    """
    return text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()


def _show_problem(
    request: Request, problem: View, back: str = "/", headers: Mapping[str, str] | None = None
) -> Response:
    """Show what is wrong; what is refused for now can be asked for again.

    Its forms search as ``request.state.address`` chooses results, where that is known. After a 422 to a GET they keep
    only ``request.state.accepted``, or nothing.
    """
    status, desk = problem["status"], get_desk(request)
    address: Address | None = getattr(request.state, "address", None)
    if status == 422 and request.method == "GET":  # the address is all that it asks with
        address = getattr(request.state, "accepted", None)
    is_for_now = status in (429, 503, 504)
    again = _spell_request(request) if is_for_now and request.method == "GET" else ""
    page = desk.renderer.render(
        "problem.html",
        problem=problem,
        address=address and _allow(address, desk.limits),
        back=back,
        is_too_often=status == 429 and bool(again),
        again=again if is_local_path(again) else "",
    )
    return HTMLResponse(page, status, headers={**_retry(status, desk), **(headers or {})})


def _spell_request(request: Request) -> str:
    """Spell the address of a request; not request.url, which begins with what the client wrote into its header Host."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


def _retry(status: int, desk: Desk) -> dict[str, str]:
    return {"Retry-After": str(desk.limits.retry_after_seconds)} if status in (503, 504) else {}


def get_refusal(error: Exception) -> tuple[int, str]:
    """Return the status and the message of something that was raised on purpose.

    An ``InputError`` is 422, but for four kinds: a ``DataError`` that is no ``DecodeError`` is an ``image_id`` that
    the index does not have, 404; a picture that is too large is 413; a full disk is 507; and what is wrong with the
    index or its encoder is no fault of the client's, so it is 503, as a shortage of memory, and the log says what it
    is. So it is with a server that holds pictures and does not answer.
    """
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        parts = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return 422, "; ".join(list(parts)[:5])
    if isinstance(error, PictureTooLargeError):
        return 413, str(error)
    if isinstance(error, MemoryError):
        log_failure("out of memory")
        return 503, OUT_OF_MEMORY
    if isinstance(error, UnreachableError):
        log_failure("a server with pictures does not answer")
        return 503, "the server that holds this picture does not answer; try again later."
    if isinstance(error, SERVICE_ERRORS):  # its message names paths of this machine; the log has it
        log_failure("the index cannot be read")
        return 503, "the index is gone, damaged or being replaced; the service reads it again once it is whole."
    if isinstance(error, DiskFullError):  # so does this one
        log_failure("the disk is full")
        return 507, "the disk is full; try again once there is room."
    is_unknown_id = isinstance(error, DataError) and not isinstance(error, DecodeError)
    return 404 if is_unknown_id else 422, str(error)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the refusal: a page where a browser opens a page, JSON everywhere else."""
    status, detail = get_refusal(error)
    headers = _retry(status, get_desk(request)) | dict(getattr(error, "headers", None) or {})
    if not is_page(request):
        return JSONResponse({"detail": detail}, status, headers)
    title = _PROBLEMS[422] if status == 422 else HTTPStatus(status).phrase.capitalize()
    if (status, detail) == (404, "Not Found"):
        title, detail = "Page not found", "Nothing is at this address. Start a new search here."
    return _show_problem(request, {"status": status, "title": title, "detail": detail}, headers=headers)


def answer_unauthorized(request: Request) -> Response:
    """Ask for the token: with a form where a browser opens a page, with the standard's header everywhere else."""
    headers = {"WWW-Authenticate": "Bearer"}
    desk = get_desk(request)
    if not wants_page(request):  # also to the page's own scripts, where a browser's token holds no longer
        detail = (
            f"this service needs its token: sign in at {desk.proxy.prefix}/login, or send the header Authorization: "
            "Bearer TOKEN."
        )
        return JSONResponse({"detail": detail}, 401, headers)
    after = _spell_request(request) if request.method == "GET" else "/"  # a form that was sent is gone
    page = desk.renderer.render("login.html", is_wrong=False, after=after)
    return HTMLResponse(page, 401, headers)


def is_page(request: Request) -> bool:
    """Say whether an answer is looked at in a browser: not when it comes from an endpoint for programs."""
    is_documented = getattr(request.scope.get("route"), "include_in_schema", False)
    return wants_page(request) and not is_documented


def wants_page(request: Request) -> bool:
    """Say whether the client prefers a page."""
    return "text/html" in request.headers.get("accept", "")


SERVICE_ERRORS = (ArtifactError, WeightsError)
"""What is no fault of the client's: an index or an encoder that is gone, damaged or cannot be reached."""
ERRORS = (HTTPException, RequestValidationError, InputError, MemoryError)
"""What is answered so; anything else is a fault of ours."""
