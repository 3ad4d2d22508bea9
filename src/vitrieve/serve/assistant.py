"""What an assistant (a language model with tools) may ask of a service; ``mcp_server.py`` speaks its protocol.

A tool is a model of its arguments, which is also what the assistant reads about it, and a method of ``Tools``. Bounds,
workers and refusals are those of the service, and a tool only reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vitrieve.curation.duplicates import DuplicateReport, Level, find_exact, find_near
from vitrieve.curation.material import hold_store
from vitrieve.data.decode import read_image_bytes
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.index.filter import name_kind
from vitrieve.search.facets import count_values
from vitrieve.search.request import Example, SearchRequest, check_text
from vitrieve.serve.pictures import SIDES_PX
from vitrieve.serve.schemas import (
    FILE_BYTES,
    Conditions,
    FileBytes,
    Text,
    Words,
    check_search,
    has_next_page,
    to_answer_body,
    validate,
)
from vitrieve.serve.service import Service
from vitrieve.serve.sheet import CELL_PX, draw_sheet

MAX_SHEET = 48
"""Pictures of one contact sheet: eight rows of six."""
MAX_DUPLICATE_IMAGES = 20_000
"""Images of an index in which an assistant may look for duplicates; a larger one takes longer than it waits."""
DUPLICATES_SECONDS = 40.0
"""Time after which an assistant is told to ask again for duplicates; many give up after 60 s."""
MAX_GROUP = 100
"""Names shown of one group of duplicates."""

Cursor = Annotated[
    str | None,
    Field(None, max_length=20, description="Where the answer goes on: next_cursor of the answer before, nothing else."),
]
Filter = Annotated[
    Conditions,
    Field(
        default_factory=list,
        description="Conditions on the metadata that must all hold, such as label=apple, label=apple|pear, year>=2020. "
        "The tool facets tells the columns and their values.",
    ),
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Arguments(BaseModel):
    """The arguments of a tool; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid")


class SearchArguments(Arguments):
    """A search by any of text, image_id, image and path; several of them together are several examples."""

    text: Words | None = Field(
        None, description="What is wanted, in words: names, metadata, and the pictures' content."
    )
    image_id: Text | None = Field(None, description="Name of an image of the collection, to find what is like it.")
    image: FileBytes | None = Field(None, description=FILE_BYTES)
    path: Text | None = Field(None, description="Path of an image file on the server, in a folder that it allows.")
    filter: Filter
    group_by: Text | None = Field(None, description="Metadata column: only the nearest image of each value is shown.")
    k: int = Field(10, ge=1, description="Results on a page.")
    cursor: Cursor


class ImageArguments(Arguments):
    """One image of the collection."""

    image_id: Name = Field(description="Name of the image, as a search gives it.")
    side_px: Literal[160, 320, 640, 1280] = Field(640, description="Longest side of the picture that is returned.")


class FacetArguments(Arguments):
    """The metadata columns, or how often each value of one occurs."""

    column: Text | None = Field(None, description="Column whose values are counted; without it the columns are listed.")
    filter: Filter
    k: int = Field(50, ge=1, le=200, description="Values to return, the most frequent first.")


class SheetArguments(Arguments):
    """Images for one contact sheet."""

    image_ids: list[Name] = Field(
        min_length=1, max_length=MAX_SHEET, description="Names of the images, in the order in which they are shown."
    )


class DuplicateArguments(Arguments):
    """What counts as a duplicate."""

    level: Level = Field(
        "near",
        description="exact: the same pixels; near: copies that were cropped, resized or changed; same-scene: also "
        "pictures that share about half of what they show.",
    )
    k: int = Field(20, ge=1, le=200, description="Groups on a page, the largest first.")
    cursor: Cursor


@dataclass(frozen=True, kw_only=True)
class ToolAnswer:
    """What a tool answers.

    Attributes:
        values: Plain JSON values.
        jpeg: A picture; None: there is none.
    """

    values: dict[str, Any]
    jpeg: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool as the assistant sees it.

    Attributes:
        name: Its name.
        title: A few words for people.
        description: What it does and when to use it.
        arguments: Model of its arguments.
        run: Answers a call; its argument is an ``arguments``.
    """

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Any], Awaitable[ToolAnswer]]


class Tools:
    """The tools of one service.

    Args:
        service: Index, encoder, bounds and workers.
        folders: Folders below which a search may read a picture by its path; none: no path is read.

    Raises:
        ConfigError: One of ``folders`` is no folder.
    """

    def __init__(self, service: Service, folders: Sequence[Path] = ()) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--pictures {folder} is no folder; name one whose pictures may be searched with.")
        self._service = service
        self._folders = tuple(folder.resolve() for folder in folders)
        self._duplicates = _KeptDuplicates(service)

    def list(self) -> list[Tool]:
        """List the tools."""
        return [
            Tool(
                name="search",
                title="Search pictures",
                description="Find the images of the collection that are most like a text, an image of it, or a "
                "picture; the best first. Look at them with contact_sheet or get_image.",
                arguments=SearchArguments,
                run=self.search,
            ),
            Tool(
                name="get_image",
                title="Look at one picture",
                description="Return one image of the collection as a picture, with its metadata.",
                arguments=ImageArguments,
                run=self.get_image,
            ),
            Tool(
                name="contact_sheet",
                title="Look at many pictures at once",
                description=f"Return up to {MAX_SHEET} images as one picture, each with its number and its name. It "
                "takes far fewer tokens than one picture after another.",
                arguments=SheetArguments,
                run=self.draw_contact_sheet,
            ),
            Tool(
                name="facets",
                title="Count the values of the metadata",
                description="List the metadata columns of the collection with their kinds, or count the values of one.",
                arguments=FacetArguments,
                run=self.count_facets,
            ),
            Tool(
                name="duplicates",
                title="Find duplicates",
                description="Find groups of images that are in the collection more than once; keep is the best of "
                "each. It may take a while: then it says so, and the same call later returns the groups.",
                arguments=DuplicateArguments,
                run=self.find_duplicates,
            ),
        ]

    async def search(self, arguments: SearchArguments) -> ToolAnswer:
        """Find images; raises as ``Service.search`` and ``_build``."""
        limits = self._service.limits
        offset = read_cursor(arguments.cursor)
        given = [arguments.text, arguments.image_id, arguments.image, arguments.path]
        num_examples = sum(part is not None for part in given)
        if not num_examples:
            raise HTTPException(422, "say what to search for: text, image_id, image or path.")
        check_search(limits, k=arguments.k, offset=offset, num_examples=num_examples, num_filters=len(arguments.filter))

        def work() -> dict[str, Any]:
            request = SearchRequest(
                plus=self._build_examples(arguments),
                k=arguments.k,
                offset=offset,
                filter=arguments.filter,
                group_by=arguments.group_by or None,
            )
            answer = self._service.searcher.answer(request)
            next_offset = offset + arguments.k
            body = to_answer_body(answer, has_more=has_next_page(answer, limits, next_offset))
            values = body.model_dump(exclude={"has_more", "timings_seconds"})
            return {**values, "next_cursor": str(next_offset) if body.has_more else None}

        return ToolAnswer(values=await self._service.compute(work))

    def _build_examples(self, arguments: SearchArguments) -> tuple[Example, ...]:
        examples = []
        if arguments.text is not None:
            check_text(arguments.text)
            examples.append(Example(text=arguments.text))
        if arguments.image_id is not None:
            self._service.pictures.find(arguments.image_id)
            examples.append(Example(image_id=arguments.image_id))
        if arguments.image is not None:
            examples.append(Example(picture=arguments.image))
        if arguments.path is not None:
            examples.append(Example(picture=self._read(arguments.path)))
        return tuple(examples)

    def _read(self, text: str) -> bytes:
        """Read a picture below one of the folders that are allowed.

        Raises:
            HTTPException: 403 elsewhere, and 404 where nothing can be read, after every link has been followed.
        """
        if not self._folders:
            raise HTTPException(403, "this server reads no picture by its path; it is started with --pictures FOLDER.")
        try:
            path = Path(text).expanduser().resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a character that no path has
            raise HTTPException(403, "this is no path.") from None
        if not any(path.is_relative_to(folder) for folder in self._folders):
            allowed = ", ".join(map(str, self._folders))
            raise HTTPException(403, f"this server reads pictures by their path only in {allowed}.")
        try:
            return read_image_bytes(path)
        except DecodeError:
            raise HTTPException(404, "no picture can be read at this path.") from None

    async def get_image(self, arguments: ImageArguments) -> ToolAnswer:
        """Return one image; errors as ``Pictures.build_thumbnail``."""

        def work() -> ToolAnswer:
            record = self._service.pictures.find(arguments.image_id)
            jpeg = self._service.pictures.build_thumbnail(record.image_id, arguments.side_px)
            size = self._service.pictures.measure(record)
            width_px, height_px = size or (None, None)
            return ToolAnswer(
                values={
                    "image_id": record.image_id,
                    "metadata": dict(record.metadata),
                    "width_px": width_px,
                    "height_px": height_px,
                },
                jpeg=jpeg,
            )

        return await self._service.draw(work)

    async def draw_contact_sheet(self, arguments: SheetArguments) -> ToolAnswer:
        """Draw several images as one picture; an unknown name is refused, and a file that is gone is a gray cell."""
        side_px = next(side for side in SIDES_PX if side >= CELL_PX)

        def shrink(record: ImageRecord) -> bytes | None:
            try:
                return self._service.pictures.build_thumbnail(record.image_id, side_px)
            except HTTPException:
                return None

        def work() -> ToolAnswer:
            records = [self._service.pictures.find(image_id) for image_id in arguments.image_ids]
            jpegs = [shrink(record) for record in records]
            shown = [
                {"number": number, "image_id": record.image_id, "is_readable": jpeg is not None}
                for number, (record, jpeg) in enumerate(zip(records, jpegs, strict=True), start=1)
            ]
            names = [record.image_id for record in records]
            return ToolAnswer(values={"images": shown}, jpeg=draw_sheet(list(zip(names, jpegs, strict=True))))

        return await self._service.draw(work)

    async def count_facets(self, arguments: FacetArguments) -> ToolAnswer:
        """List the columns, or count the values of one; errors as ``count_values``."""
        if len(arguments.filter) > self._service.limits.filters:
            raise HTTPException(422, f"this server allows at most {self._service.limits.filters} filters.")

        def work() -> dict[str, Any]:
            store = self._service.searcher.store
            if arguments.column is None:
                kinds = store.kinds(store.columns())
                columns = {column: name_kind(kinds[column]) for column in sorted(kinds)}
                return {"num_images": store.count(arguments.filter), "columns": columns}
            found = count_values(store, arguments.column, filter=arguments.filter, num_values=arguments.k)
            return {
                "num_images": found.num_images,
                "num_without": found.num_without,
                "num_values": found.num_values,
                "values": [{"value": value, "num_images": count} for value, count in found.values],
            }

        return ToolAnswer(values=await self._service.compute(work))

    async def find_duplicates(self, arguments: DuplicateArguments) -> ToolAnswer:
        """Return a page of the groups of duplicates.

        Raises:
            HTTPException: 422 too many images; 503 they are still being looked for.
        """
        offset = read_cursor(arguments.cursor)
        report = await self._duplicates.find(arguments.level)
        page = report.groups[offset : offset + arguments.k]
        end = offset + arguments.k
        return ToolAnswer(
            values={
                "num_images": report.num_images,
                "num_groups": len(report.groups),
                "groups": [
                    {
                        "keep": group.keep,
                        "image_ids": list(group.image_ids[:MAX_GROUP]),
                        "num_images": len(group.image_ids),
                        "level": group.level,
                    }
                    for group in page
                ],
                "num_unreadable": len(report.failures),
                "next_cursor": str(end) if end < len(report.groups) else None,
            }
        )

    async def call(self, tool: Tool, arguments: Mapping[str, Any] | None) -> ToolAnswer:
        """Check the arguments of a call and answer it; raises as the tool, and 422 for arguments that do not fit.

        An empty text is no argument: some assistants send an empty text for what they leave out.
        """
        given = {name: value for name, value in (arguments or {}).items() if value != ""}
        return await tool.run(validate(tool.arguments, given))


class _KeptDuplicates:
    """The duplicates that were looked for last, and those that are being looked for: one search at a time.

    Nobody can stop a worker, so whoever asks waits for a while, and is then told to come again.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: tuple[Hashable, DuplicateReport] | None = None
        self._working: tuple[Hashable, asyncio.Task[DuplicateReport]] | None = None
        self._begun = 0.0

    async def find(self, level: Level) -> DuplicateReport:
        """Find the duplicates of the index as it is now; errors as ``Tools.find_duplicates``."""
        key = await self._service.look_up(lambda: self._read_key(level))
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        if self._working is None or self._working[1].done():
            self._begun = time.monotonic()
            task = asyncio.create_task(self._look(key, level))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait any more
            self._working = (key, task)
        elif self._working[0] != key:
            raise self._is_working()
        try:
            return await asyncio.wait_for(asyncio.shield(self._working[1]), DUPLICATES_SECONDS)
        except TimeoutError:
            raise self._is_working() from None

    def _read_key(self, level: Level) -> Hashable:
        """Return what the groups depend on: the index, its state, and the level."""
        store = self._service.searcher.store
        if (num_images := store.count()) > MAX_DUPLICATE_IMAGES:
            raise HTTPException(
                422,
                f"the collection has {num_images:,} images; this tool compares at most {MAX_DUPLICATE_IMAGES:,}. The "
                "command vitrieve duplicates compares any number.",
            )
        return (id(store), store.read_stamp(), level)

    async def _look(self, key: Hashable, level: Level) -> DuplicateReport:
        def work() -> DuplicateReport:
            searcher = self._service.searcher
            material = hold_store(searcher.store, searcher.encoder, has_vectors=level != "exact")
            return find_exact(material) if level == "exact" else find_near(material, level)

        report = await asyncio.to_thread(work)
        self._kept = (key, report)
        return report

    def _is_working(self) -> HTTPException:
        seconds = time.monotonic() - self._begun
        return HTTPException(
            503, f"duplicates have been looked for since {seconds:.0f} s; the same call in a minute returns them."
        )


def read_cursor(cursor: str | None) -> int:
    """Read the place at which an answer goes on.

    Raises:
        HTTPException: 422 when it is no cursor of an answer.
    """
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit()):
        raise HTTPException(422, "the cursor is not one of an answer; take next_cursor, or leave it out.")
    return int(cursor)
