"""From an exception to a status and a message, for programs as JSON and for browsers as a page. Next: ``app.py``."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vitrieve.errors import DataError, DecodeError, InputError, PictureTooLargeError
from vitrieve.serve.service import get_service


def get_refusal(error: Exception) -> tuple[int, str]:
    """Return the status and the message of something that was raised on purpose.

    An ``InputError`` is 422, whatever the kind, but for a ``DataError`` that is no ``DecodeError``: an ``image_id``
    that the index does not have, 404. A picture that is too large is 413; a shortage of memory 503.
    """
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        parts = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return 422, "; ".join(list(parts)[:5])
    if isinstance(error, PictureTooLargeError):
        return 413, str(error)
    if isinstance(error, MemoryError):
        return 503, "the server has too little free memory for this now; try again later, or with a smaller picture."
    is_unknown_id = isinstance(error, DataError) and not isinstance(error, DecodeError)
    return 404 if is_unknown_id else 422, str(error)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with the refusal: a page where a browser opens a page, JSON everywhere else."""
    status, detail = get_refusal(error)
    headers = getattr(error, "headers", None)
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
    after = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    page = get_service(request).renderer.render("login.html", is_wrong=False, after=after)
    return HTMLResponse(page, 401, headers)


def is_page(request: Request) -> bool:
    """Say whether an answer is looked at in a browser: not when it comes from an endpoint for programs."""
    is_documented = getattr(request.scope.get("route"), "include_in_schema", False)
    return wants_page(request) and not is_documented


def wants_page(request: Request) -> bool:
    """Say whether the client prefers a page."""
    return "text/html" in request.headers.get("accept", "")


ERRORS = (HTTPException, RequestValidationError, InputError, MemoryError)
"""What is answered so; anything else is a fault of ours."""
