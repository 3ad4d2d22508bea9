"""Receiving a body, bounded in bytes and time, and taking a form apart. Next file: ``schemas.py``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.formparsers import MultiPartException, MultiPartParser

from vitrieve.serve.limits import Limits

DRAINED_BYTES = 100 * 2**20
"""A refused body is received (and dropped) up to here; a larger one is cut off."""
MAX_FORM_FIELDS = 100
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form as a browser sends it.

    Attributes:
        files: Contents of the files of each field, in order; fields that were left empty are missing.
        texts: The other fields.
    """

    files: dict[str, list[bytes]]
    texts: dict[str, list[str]]


class BodyReader:
    """Receives bodies and knows how many bytes all of them together hold.

    Attributes:
        held_bytes: Of all bodies inside ``receive`` now.
    """

    def __init__(self, limits: Limits) -> None:
        self.held_bytes = 0
        self._limits = limits

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """Receive the whole body, which counts as held until the block is left.

        Raises:
            HTTPException: 408 too slow, 413 too large (nothing more of it is kept then), 503 too many large
                bodies at once.
        """
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await self._collect(request, chunks)
            yield b"".join(chunks)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise HTTPException(408, f"the body did not arrive within {seconds:g} seconds.") from None
        finally:
            self.held_bytes -= sum(map(len, chunks))

    async def _collect(self, request: Request, chunks: list[bytes]) -> None:
        """Receive chunk after chunk.

        Of a body that is too large the rest is received too, up to a point, and dropped: a browser reads an answer
        only when it has sent everything.
        """
        announced, num_bytes = _read_length(request), 0
        if announced > DRAINED_BYTES:
            raise self._is_too_large()
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > DRAINED_BYTES:
                raise self._is_too_large()
            if max(num_bytes, announced) <= self._limits.body_bytes:
                self._hold(chunk, chunks)
        if num_bytes > self._limits.body_bytes:
            raise self._is_too_large()

    def _hold(self, chunk: bytes, chunks: list[bytes]) -> None:
        if self.held_bytes + len(chunk) > self._limits.held_bytes:
            seconds = self._limits.retry_after_seconds
            reason = f"the server is busy receiving other pictures. Try again in {seconds} seconds."
            raise HTTPException(503, reason, {"Retry-After": str(seconds)})
        self.held_bytes += len(chunk)
        chunks.append(chunk)

    def _is_too_large(self) -> HTTPException:
        largest = self._limits.body_bytes / 2**20
        return HTTPException(413, f"the body is larger than {largest:g} MiB; send a smaller picture.")


def _read_length(request: Request) -> int:
    """Return what the client announces; 0 when it announces nothing that can be read."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 20 else 0


def is_form(request: Request) -> bool:
    """Say whether the header announces a browser's form; no other content shows by itself where it is divided."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def parse_form(request: Request, body: bytes, *, max_files: int) -> Form:
    """Take a multipart form apart.

    Raises:
        HTTPException: 422 when it is not one, or has more files or fields than allowed.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, stream(), max_files=max_files, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(422, f"the form cannot be read: {error.message}") from None
    files: dict[str, list[bytes]] = {}
    texts: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            texts.setdefault(name, []).append(value)
        elif value.size:
            files.setdefault(name, []).append(await value.read())
    await form.close()
    return Form(files=files, texts=texts)
