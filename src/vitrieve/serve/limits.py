"""What one request, and all of them together, may take."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from vitrieve.errors import ConfigError
from vitrieve.machine import count_cores

MEBIBYTE = 2**20
MAX_TEXT = 4096
"""Characters of a text: the longest path of Linux, because an image's name is one."""
MAX_LIST = 1000
"""Entries of a list, and values of a condition; a server allows fewer, but a list is never read further than this."""
MAX_VECTOR = 16_384
"""Numbers of a vector."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of the service; every one can be met by a stranger's request, and none is exceeded.

    What a picture may take is one rule for the service and for collections, in ``data/work.py``.

    Attributes:
        address_bytes: Of one request's path and query: a name of the longest path (4,095 bytes), spelled in ``%xx``.
        header_bytes: Of one request's headers, names and values together.
        num_headers: Headers of one request.
        body_bytes: Of one request. A photograph of 50 megapixels has about 20 million.
        drained_bytes: Of a body that is refused: up to here it is received and dropped, so that the client reads the
            answer; a larger one is cut off.
        json_bytes: Of one request's JSON, in which a picture takes a third more than its file.
        json_values: Numbers, texts and fields of one request's JSON, counted by their commas before it is parsed.
        json_fields: Fields of it, counted by their colons.
        held_bytes: Of all bodies that are being received or worked on.
        k: Results on one page of an answer.
        offset: Results before that page.
        examples: Pictures, ids and vectors in one search.
        filters: Conditions in one search.
        body_seconds: To receive a body; a client that trickles is let go.
        request_seconds: To wait for a worker and its work.
        num_workers: Searches computed at the same time: one for each core, as more would only slow each other.
        num_waiting: Searches that wait for a worker; the next one is turned away.
        num_waiting_thumbnails: The same for thumbnails, of which one page asks dozens.
        retry_after_seconds: What a client that is turned away is told.
        upload_bytes: Of the pictures that the page holds, so that a result's address can be opened again.
        num_uploads: The same, counted.
        thumbnail_bytes: Of the thumbnails kept in memory.
        resident_bytes: Of the copy of the index that searches are answered from; a larger index is searched on disk.
    """

    address_bytes: int = 16 * 1024
    header_bytes: int = 32 * 1024
    num_headers: int = 100
    body_bytes: int = 25 * MEBIBYTE
    drained_bytes: int = 100 * MEBIBYTE
    json_bytes: int = 8 * MEBIBYTE
    json_values: int = 300_000
    json_fields: int = 2000
    held_bytes: int = 256 * MEBIBYTE
    k: int = 200
    offset: int = 10_000
    examples: int = 16
    filters: int = 16
    body_seconds: float = 30.0
    request_seconds: float = 20.0
    num_workers: int = field(default_factory=lambda: max(2, count_cores()))
    num_waiting: int = 32
    num_waiting_thumbnails: int = 512
    retry_after_seconds: int = 2
    upload_bytes: int = 128 * MEBIBYTE
    num_uploads: int = 1000
    thumbnail_bytes: int = 64 * MEBIBYTE
    resident_bytes: int = 1024 * MEBIBYTE

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could pass."""
        for one in fields(self):
            least = 0 if one.name in ("num_waiting", "resident_bytes") else 1
            value = getattr(self, one.name)
            if one.type != "float" and value < least:
                raise ConfigError(f"the limit {one.name} is {value}; give {least} or more.")
            if one.type == "float" and not value > 0:
                raise ConfigError(f"the limit {one.name} is {value}; give a positive number of seconds.")
