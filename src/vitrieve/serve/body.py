"""This file receives a body within bounds of bytes and time, recognizes it, and takes a form apart in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from fastapi import HTTPException, Request
from prometheus_client import Gauge
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header

from vitrieve.data.isobmff import HEAD_BYTES, find_kind
from vitrieve.data.raw import RAW_BEGINNINGS
from vitrieve.serve.middleware import read_length
from vitrieve.serve.settings import Limits

Content = Literal["image", "json", "unknown"]

NUM_BYTES = HEAD_BYTES
"""Length of the beginning that tells what a body is."""

_BEGINNINGS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("image/jpeg", lambda head: head.startswith(b"\xff\xd8\xff")),
    ("image/png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/gif", lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    ("image/webp", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP"),
    ("image/tiff", lambda head: head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"))),
    ("image/avif", lambda head: find_kind(head) == "avif"),
    ("image/heic", lambda head: find_kind(head) == "heic"),
    ("image/x-raw", lambda head: head.startswith(RAW_BEGINNINGS) or head[4:12] == b"ftypcrx "),
    ("image/bmp", lambda head: head.startswith(b"BM")),
)
"""Media type and its test, for the formats of ``data/decode.py``."""


def find_image_type(head: bytes) -> str | None:
    """Name the media type of an image by its first bytes; None when they begin no accepted format.

    >>> find_image_type(b"GIF89a..."), find_image_type(b"<svg xmlns=")
    ('image/gif', None)
    """
    return next((media_type for media_type, begins in _BEGINNINGS if begins(head)), None)


def recognize(data: bytes) -> Content:
    """Tell an image and a JSON object apart, whatever the request's header says.

    >>> recognize(b' {"id": "a.jpg"}')
    'json'
    """
    if find_image_type(data[:NUM_BYTES]):
        return "image"
    return "json" if data[:NUM_BYTES].lstrip()[:1] == b"{" else "unknown"


MAX_FORM_FIELDS = 100
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form as a browser sends it.

    Attributes:
        files: Contents of the files of each field, in order; fields that were left empty are missing.
        texts: The other fields.
    """

    files: dict[str, list[bytes]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)


class BodyReader:
    """Receives bodies and knows how many bytes all of them together hold.

    Attributes:
        held_bytes: Number of bytes of all bodies that are inside ``receive`` now.
    """

    def __init__(self, limits: Limits, gauge: Gauge | None = None) -> None:
        self.held_bytes = 0
        self._limits = limits
        self._gauge = gauge

    @asynccontextmanager
    async def receive(self, request: Request, max_bytes: int | None = None) -> AsyncIterator[bytes]:
        """Receive the whole body, which counts as held until the block is left.

        ``RequestBounds`` receives and drops what is left of a body that is refused.

        Args:
            request: Request whose body is received.
            max_bytes: Most that is received; None: as ``Limits`` says.

        Raises:
            HTTPException: 408 too slow, 413 too large (nothing more of it is kept then), 503 too many large
                bodies at once.
        """
        chunks: list[bytes] = []
        try:
            await self._collect_in_time(request, chunks, max_bytes or self._limits.body_bytes)
            yield b"".join(chunks)
        finally:
            self._count(-sum(map(len, chunks)))

    async def _collect_in_time(self, request: Request, chunks: list[bytes], max_bytes: int) -> None:
        seconds = self._limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._collect(request, chunks, max_bytes)
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {seconds:g} seconds.") from None

    async def _collect(self, request: Request, chunks: list[bytes], max_bytes: int) -> None:
        num_bytes = read_length(request.headers)
        if num_bytes > max_bytes:
            raise _is_too_large(max_bytes)
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise _is_too_large(max_bytes)
            self._hold(chunk, chunks)

    def _hold(self, chunk: bytes, chunks: list[bytes]) -> None:
        if self.held_bytes + len(chunk) > self._limits.held_bytes:
            seconds = self._limits.retry_after_seconds
            reason = f"the server is busy receiving other pictures. Try again in {seconds} seconds."
            raise HTTPException(503, reason, {"Retry-After": str(seconds)})
        self._count(len(chunk))
        chunks.append(chunk)

    def _count(self, num_bytes: int) -> None:
        self.held_bytes += num_bytes
        if self._gauge is not None:
            self._gauge.inc(num_bytes)


def _is_too_large(max_bytes: int) -> HTTPException:
    largest = f"{max_bytes / 2**20:g} MiB" if max_bytes >= 2**20 else f"{max_bytes:,} bytes"
    return HTTPException(413, f"the body is larger than {largest}; send a smaller picture.")


def is_form(content_type: str) -> bool:
    """Say whether the header announces a browser's form; no other content shows by itself where it is divided."""
    return content_type.lower().startswith("multipart/form-data")


def parse_form(content_type: str, body: bytes, *, max_files: int) -> Form:
    """Take a multipart form apart, in memory alone; to be called in a worker.

    Args:
        content_type: The header, which says how the parts are divided.
        body: All of it.
        max_files: Files that it may have.

    Raises:
        HTTPException: 422 when it is not one, or has more files or fields than allowed.
    """
    form = Form()

    def keep_file(file: File) -> None:
        if sum(map(len, form.files.values())) >= max_files:
            raise HTTPException(422, f"the form has more than {max_files} files.")
        file.file_object.seek(0)
        if data := file.file_object.read():
            form.files.setdefault(_decode(file.field_name), []).append(data)

    def keep_text(text: Field) -> None:
        if sum(map(len, form.texts.values())) >= MAX_FORM_FIELDS:
            raise HTTPException(422, f"the form has more than {MAX_FORM_FIELDS} fields.")
        value = text.value or b""
        if len(value) > MAX_FIELD_BYTES:
            raise HTTPException(
                422, f"a field of the form has {len(value):,} bytes; at most {MAX_FIELD_BYTES:,} are read."
            )
        form.texts.setdefault(_decode(text.field_name), []).append(_decode(value))

    boundary = parse_options_header(content_type)[1].get(b"boundary") if is_form(content_type) else None
    if not boundary:
        raise HTTPException(422, "send a form as multipart/form-data, with its boundary in the header Content-Type.")
    config = {"MAX_MEMORY_FILE_SIZE": len(body)}  # nothing that is sent in is written to disk
    try:
        parser = FormParser("multipart/form-data", keep_text, keep_file, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(422, f"the form cannot be read: {str(error)[:200]}") from None
    return form


def _decode(text: bytes | None) -> str:
    try:
        return (text or b"").decode()
    except UnicodeDecodeError:
        raise HTTPException(422, "the form has a field that is not in UTF-8.") from None
