"""From an exception to a status and a message, for programs as JSON and for browsers as a page."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vitrieve.errors import ArtifactError, DataError, DecodeError, InputError, PictureTooLargeError, WeightsError
from vitrieve.serve.observe import OUT_OF_MEMORY, log_failure
from vitrieve.serve.service import get_service


def get_refusal(error: Exception) -> tuple[int, str]:
    """Return the status and the message of something that was raised on purpose.

    An ``InputError`` is 422, but for three kinds: a ``DataError`` that is no ``DecodeError`` is an ``image_id`` that
    the index does not have, 404; a picture that is too large is 413; and what is wrong with the index or its encoder is
    no fault of the client's, so it is 503, as a shortage of memory, and the log says what it is.
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
    if isinstance(error, SERVICE_ERRORS):  # its message names paths of this machine; the log has it
        log_failure("the index cannot be read")
        return 503, "the index is gone, damaged or being replaced; the service reads it again once it is whole."
    is_unknown_id = isinstance(error, DataError) and not isinstance(error, DecodeError)
    return 404 if is_unknown_id else 422, str(error)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the refusal: a page where a browser opens a page, JSON everywhere else."""
    status, detail = get_refusal(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in (503, 504):
        headers.setdefault("Retry-After", str(get_service(request).limits.retry_after_seconds))
    if not is_page(request):
        return JSONResponse({"detail": detail}, status, headers)
    title = HTTPStatus(status).phrase
    if (status, detail) == (404, "Not Found"):
        title, detail = "Page not found", "Nothing is at this address. Start a new search here."
    problem = {"status": status, "title": title, "detail": detail}
    page = get_service(request).renderer.render("problem.html", problem=problem, back="/")
    return HTMLResponse(page, status, headers)


def answer_unauthorized(request: Request) -> Response:
    """Ask for the token: with a form where a browser opens a page, with the standard's header everywhere else."""
    headers = {"WWW-Authenticate": "Bearer"}
    if not wants_page(request):
        detail = "this service needs its token: send the header Authorization: Bearer TOKEN."
        return JSONResponse({"detail": detail}, 401, headers)
    # Not request.url: it begins with whatever the client wrote into the header Host.
    query = request.scope["query_string"].decode("latin-1")
    after = quote(request.scope["path"]) + (f"?{query}" if query else "")
    page = get_service(request).renderer.render("login.html", is_wrong=False, after=after)
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
