"""What goes in and out over HTTP, as the OpenAPI document describes it, and how it becomes a ``SearchRequest``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal, TypeVar

import numpy as np
from fastapi import HTTPException
from pydantic import Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from vitrieve.feedback.events import MAX_TAGS, MAX_WORD, Kind
from vitrieve.index.filter import ColumnKind, Condition, Operator
from vitrieve.rerank.names import Reranking
from vitrieve.search.request import MAX_TEXT_LENGTH, Box, Example, SearchAnswer, SearchRequest, parse_box, to_box
from vitrieve.serve.body import Form, is_form, parse_form, recognize
from vitrieve.serve.pictures import Pictures
from vitrieve.serve.settings import MAX_LIST, MAX_TEXT, MAX_VECTOR, Limits

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Words = Annotated[str, Field(json_schema_extra={"maxLength": MAX_TEXT_LENGTH})]
"""A text to search for. ``Example`` refuses one that is too long, in the words that every way of asking has."""
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[FiniteNumber], Field(min_length=1, max_length=MAX_VECTOR, fail_fast=True)]
Conditions = Annotated[list[Text], Field(max_length=MAX_LIST, fail_fast=True)]


def find_base64(value: object) -> object:
    """Return the base64 in a ``data:`` address, and base64url as base64; anything else as it is.

    A browser gives a file as such an address. The decoder skips every character that base64 does not have, so that
    both would become other bytes without a word. Base64url is mostly written without the ``=`` at its end.

    >>> find_base64("data:image/png;base64,iVBO"), find_base64("a-_bcg")
    ('iVBO', 'a+/bcg==')

    Raises:
        ValueError: A ``data:`` address without base64.
    """
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        head, _, value = value.partition(",")
        if not head.lower().endswith(";base64"):
            raise ValueError("a data: address must be in base64: data:image/png;base64,…")
    value = "".join(value.split()).replace("-", "+").replace("_", "/")
    return value + "=" * (-len(value) % 4)


FileBytes = Annotated[Base64Bytes, BeforeValidator(find_base64)]
FILE_BYTES = "The bytes of an image file (JPEG, PNG, …) in base64, base64url or as a data: address."
"""What ``FileBytes`` takes, for whoever reads the schema."""
BoxNumbers = Annotated[
    list[FiniteNumber],
    Field(
        min_length=4, max_length=4, fail_fast=True, description="x_1, y_1, x_2, y_2 in pixels, after EXIF orientation."
    ),
]


class ConditionBody(BaseModel):
    """One condition on one metadata column.

    A number compares numbers; a text compares texts, and in a column of dates or truth values it is one of them.
    """

    model_config = ConfigDict(extra="forbid")

    column: Text
    operator: Operator
    values: list[StrictBool | FiniteNumber | Text] = Field(
        min_length=1, max_length=MAX_LIST, fail_fast=True, description="For = and != any number, otherwise one."
    )

    def to_condition(self) -> Condition:
        """Build the condition that the stores take.

        Raises:
            ConfigError: Several values for an operator that takes one.
        """
        return Condition(column=self.column, operator=self.operator, values=tuple(self.values))


class SearchParameters(BaseModel):
    """What can stand in the address of a search, whatever its body is."""

    k: int = Field(10, ge=1, description="Results to return; a larger number than the server allows is refused.")
    offset: int = Field(0, ge=0, description="Results to leave out at the front: the next page.")
    box: Text | None = Field(
        None, description="Region of the picture to search for: x_1,y_1,x_2,y_2 in pixels.", examples=["10,10,200,150"]
    )
    filter: Conditions = Field(
        [],
        description="Conditions that must all hold: column=value, column!=value, column=one|another, column<5; in "
        'double quotes what has blanks around it or one of < > = ! |: "a=b"="one|two".',
    )
    group_by: Text | None = Field(None, description="Metadata column; one result for each of its values.")
    is_near_duplicate_grouped: bool = Field(False, description="Put images nearly equal to a nearer one behind it.")
    reranking: Reranking = Field(
        "auto", description="How the first results are ordered again; auto: as the index remembers, else not at all."
    )


class ExampleBody(BaseModel):
    """One example: exactly one of ``id``, ``vector``, ``text`` and ``image``."""

    model_config = ConfigDict(extra="forbid")

    id: Text | None = Field(None, description="An image of the index.")
    vector: Vector | None = Field(None, description="An embedding of the index's encoder.")
    text: Words | None = Field(None, description="Words for it.")
    image: FileBytes | None = Field(None, description=FILE_BYTES)
    box: BoxNumbers | None = Field(None, description="Region of the picture; with id or image.")
    sign: Literal["plus", "minus"] = Field("plus", description="Whether it is wanted.")


class SearchBody(BaseModel):
    """A search as JSON. What is given here wins over the address."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"id": "fruit/apple.jpg", "k": 5, "filter": ["label=apple|pear"]}]},
    )

    id: Text | None = Field(None, description="Search for what is like this image of the index.")
    vector: Vector | None = Field(None, description="Search for what is near this embedding.")
    text: Words | None = Field(
        None,
        description=f"Search in words, at most {MAX_TEXT_LENGTH:,} characters: in names, files and metadata, and by "
        "meaning where the encoder has a text part.",
    )
    examples: list[ExampleBody] = Field(
        [], max_length=MAX_LIST, fail_fast=True, description="Search by several examples, wanted and not wanted."
    )
    box: BoxNumbers | None = Field(None, description="Region of the picture that id names.")
    k: int | None = Field(None, ge=1)
    offset: int | None = Field(None, ge=0)
    filter: list[Text | ConditionBody] | None = Field(
        None, max_length=MAX_LIST, fail_fast=True, description="Conditions that must all hold, in either form."
    )
    group_by: Text | None = None
    is_near_duplicate_grouped: bool | None = None
    reranking: Reranking | None = None


class ResultBody(BaseModel):
    """One image found."""

    image_id: str
    score: float = Field(
        description="Cosine similarity to the query, in [-1, 1]; higher is nearer. Where ways is words alone, the "
        "share of the most that they could score."
    )
    metadata: dict[str, str]
    others: list[ResultBody] = Field(
        description="Images of its group that are further away, nearest first; at most 99."
    )


class AnswerBody(BaseModel):
    """What was found."""

    results: list[ResultBody] = Field(description="Nearest first, or as they were ordered again or fused.")
    is_match: bool | None = Field(description="Whether the nearest is likely the wanted thing; null: not known.")
    threshold: float | None = Field(description="The score that decides it.")
    has_more: bool = Field(description="Whether a further page that this server shows would hold results.")
    reranking: str = Field(description="How the first results were ordered again; none: they were not.")
    ways: list[str] = Field(description="How the examples were compared: pictures, text_encoder, words.")
    timings_seconds: dict[str, float] = Field(description="For decode, encode and search.")


class MatchBody(BaseModel):
    """Two parts of two pictures that are each other's nearest."""

    query_point: tuple[float, float] = Field(description="x, y in pixels of the query's whole picture.")
    result_point: tuple[float, float] = Field(description="x, y in pixels of the result's whole picture.")
    similarity: float


class ExplanationBody(BaseModel):
    """Why a result matches."""

    matches: list[MatchBody] = Field(description="Best first.")
    query_box: tuple[float, float, float, float] = Field(description="The part of the query that was compared.")
    result_box: tuple[float, float, float, float]


class ColumnsBody(BaseModel):
    """The metadata columns, for filters and groups."""

    columns: dict[str, ColumnKind] = Field(
        description="Name and kind, which follows from the values as they are now; of several kinds, it is text."
    )


class ValueBody(BaseModel):
    """A value of a metadata column."""

    value: str
    count: int = Field(description="Images that have it and meet the conditions.")


class FacetBody(BaseModel):
    """A metadata column by which images can be narrowed down."""

    column: str
    kind: ColumnKind
    values: list[ValueBody] = Field(description="The most frequent first; at most 50.")
    num_values: int = Field(description="Different values; 0 in a column of more than 500 numbers or dates.")
    num_without: int = Field(description="Images that meet the conditions and have no value.")
    least: str | None = Field(description="The least number or date; null in other columns.")
    most: str | None = Field(description="The greatest number or date; null in other columns.")


class FacetsBody(BaseModel):
    """The columns by which images can be narrowed down."""

    facets: list[FacetBody]


Word = Annotated[str, Field(max_length=MAX_WORD)]


MAX_TAGGED = 1000
"""The most images that one request tags."""


class FeedbackBody(BaseModel):
    """What a person says of one result."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"kind": "wrong", "image_id": "fruit/pear.jpg", "query_id": "fruit/apple.jpg"}]
        },
    )

    kind: Kind = Field(
        description="right or wrong, the result of the query; same_group: the two pictures belong together; tagged: "
        "tags and a label; taken_back: this person's last word about the pair counts no longer; without a query, that "
        "about the image's tags and label."
    )
    image_id: Text = Field(description="The result, an image of the index.")
    query_id: Text = Field("", description="The query, where it is an image of the index.")
    query: Text = Field("", description="Words or another description of a query that is none.")
    tags: list[Word] = Field(
        [], max_length=MAX_TAGS, fail_fast=True, description="Words for the image, none with a comma."
    )
    label: Word = Field("", description="The image's right class.")
    who: Word = Field("", description="Who says it.")
    fingerprint: Word = Field(
        "", description="The encoder_fingerprint that the results came from; empty: as it is now."
    )


class TagsBody(BaseModel):
    """Tags that a person adds to several images at once."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"image_ids": ["fruit/pear.jpg", "fruit/apple.jpg"], "tags": ["ripe"]}]},
    )

    image_ids: list[Text] = Field(
        min_length=1, max_length=MAX_TAGGED, fail_fast=True, description="Images of the index."
    )
    tags: list[Word] = Field(
        min_length=1,
        max_length=MAX_TAGS,
        fail_fast=True,
        description="Words, none with a comma, that are added to those which the person gave each image before.",
    )
    who: Word = Field("", description="Who says it.")
    fingerprint: Word = Field("", description="As in feedback on one result.")


class FeedbackCountBody(BaseModel):
    """How much feedback there is."""

    num_since_training: int = Field(description="Corrections that count, on results of the encoder of this index.")


class TaggedBody(FeedbackCountBody):
    """How much feedback there is after some images were tagged."""

    gone: list[str] = Field(description="Images of the request that the index no longer has; they got no tag.")


class CorrectionBody(BaseModel):
    """One correction, as it was kept."""

    kind: Kind
    image_id: str
    query_id: str
    query: str
    tags: list[str]
    label: str
    who: str
    at: str = Field(description="When, in ISO 8601.")
    fingerprint: str = Field(description="Encoder of the index at that time.")


class FeedbackListBody(BaseModel):
    """The corrections that count."""

    corrections: list[CorrectionBody]
    num_corrections: int = Field(description="All of them, on whichever page.")
    num_since_training: int


class ErrorBody(BaseModel):
    """Why a request was refused, and what to do."""

    detail: str


class HealthBody(BaseModel):
    """That the service runs."""

    status: Literal["ok"]


class ReadyBody(BaseModel):
    """That the service answers searches, and, to whoever may search, over what."""

    status: Literal["ready"]
    num_images: int | None = None
    encoder_fingerprint: str | None = None
    embedding_dim: int | None = None
    columns: list[str] | None = Field(None, description="Metadata columns, for filters and groups.")


def to_answer_body(answer: SearchAnswer, *, has_more: bool) -> AnswerBody:
    """Spell an answer for the wire; the server's paths stay where they are.

    Args:
        answer: The answer.
        has_more: What ``has_next_page`` says of it.
    """
    return AnswerBody.model_validate(replace(answer, has_more=has_more), from_attributes=True)


MAX_NAME_SHOWN = 60
"""Characters of a field's name in a message: an unknown one may be as long as the body."""
M = TypeVar("M", bound=BaseModel)
_FIELD = re.compile(rb'"\s*+:')
"""The end of a field's name, which every field has; a colon inside of a text counts only behind a quote."""
_ID_FIELDS = {"plus": "id", "minus": "minus_id"}
"""Form fields that name images of the index."""
_TEXT_FIELDS = {"plus": "text", "minus": "minus_text"}
"""Form fields that hold words."""
_LISTS = ("filter",)
"""Form fields that may occur several times; of the others the last counts."""


def validate(model: type[M], values: Mapping[str, object]) -> M:
    """Build a model of ``schemas.py`` from what a client sent, in whatever form; no other way leads to one.

    Raises:
        HTTPException: 422, naming every field that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise HTTPException(422, describe_validation(error)) from None


def parse_json(data: bytes, limits: Limits) -> SearchBody:
    """Read a JSON body; in a worker.

    What is too much is refused before it is parsed: a parser makes some 50 bytes of every ``1,``.

    Raises:
        HTTPException: 413 too large, 422 naming every field that does not fit.
    """
    check_json(data, limits)
    return validate_json(SearchBody, data)


def validate_json(model: type[M], data: bytes) -> M:
    """Build a model of what ``check_json`` let pass.

    Raises:
        HTTPException: 422, naming every field that does not fit.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise HTTPException(422, describe_validation(error)) from None


def check_json(data: bytes, limits: Limits) -> None:
    """Refuse JSON of more bytes, values or fields than are read, before it is parsed.

    Raises:
        HTTPException: 413 too large, 422 too many values or fields.
    """
    if len(data) > limits.json_bytes:
        largest = limits.json_bytes / 2**20
        raise HTTPException(413, f"the JSON is larger than {largest:g} MiB; send pictures as files in a form.")
    if (count := data.count(b",")) > limits.json_values:
        raise HTTPException(422, f"the JSON has {count:,} ','; at most {limits.json_values:,} are read.")
    most = limits.json_fields
    # Of fewer colons none needs a look: those in a text, as that of a time, begin no field.
    if data.count(b":") > most and next(islice(_FIELD.finditer(data), most, None), None) is not None:
        raise HTTPException(422, f"the JSON has more than {most:,} fields.")


def read_request(
    content_type: str, data: bytes, parameters: SearchParameters, pictures: Pictures, limits: Limits
) -> SearchRequest:
    """Recognize what a body is, and turn it into a request; in a worker, because a body can be made to take long.

    Args:
        content_type: The header, which only matters for a form.
        data: The whole body.
        parameters: What stood in the address.
        pictures: The pictures of the index.
        limits: The bounds of the service.

    Raises:
        HTTPException: 404 unknown ``id``, 413 too much JSON, 422 nothing that can be searched for.
        InputError: As ``SearchRequest`` says.
    """
    if not data:
        raise HTTPException(422, "the body is empty; send the bytes of an image, a form, or JSON.")
    content = recognize(data)
    if content == "image" or (content == "unknown" and not is_form(content_type)):
        # Decoding says what is wrong with what is unknown.
        return build_request(parameters, SearchBody(), pictures, limits, plus=[data])
    if content == "json":
        return build_request(parameters, parse_json(data, limits), pictures, limits)
    form = parse_form(content_type, data, max_files=limits.examples)
    parameters, body = read_form(form, parameters)
    plus, minus = form.files.get("image", []), form.files.get("minus_image", [])
    return build_request(parameters, body, pictures, limits, plus=plus, minus=minus)


def read_form(form: Form, parameters: SearchParameters) -> tuple[SearchParameters, SearchBody]:
    """Read the fields of a form: files ``image`` and ``minus_image``, ids, texts, and parameters.

    The ids are in ``id`` and ``minus_id``, the texts in ``text`` and ``minus_text``.

    Raises:
        HTTPException: 422 when a field is unknown or does not fit.
    """
    accepted_texts = {*_ID_FIELDS.values(), *_TEXT_FIELDS.values(), *SearchParameters.model_fields}
    unknown = [*(set(form.files) - {"image", "minus_image"}), *(set(form.texts) - accepted_texts - {"image"})]
    if unknown:
        files, fields = "image, minus_image", ", ".join(sorted(accepted_texts))
        raise HTTPException(422, f"unknown form fields {sorted(unknown)}; accepted files: {files}; fields: {fields}.")
    given = {
        name: values if name in _LISTS else values[-1]
        for name, values in form.texts.items()
        if name in SearchParameters.model_fields and any(values)  # a form sends what was left empty too
    }
    merged = validate(SearchParameters, {**parameters.model_dump(exclude_unset=True), **given})
    examples = [
        {key: value, "sign": sign}
        for key, fields in (("id", _ID_FIELDS), ("text", _TEXT_FIELDS))
        for sign, field in fields.items()
        for value in form.texts.get(field, [])
        if value
    ]
    return merged, validate(SearchBody, {"examples": examples})


def build_request(
    parameters: SearchParameters,
    body: SearchBody,
    pictures: Pictures,
    limits: Limits,
    *,
    plus: Sequence[bytes] = (),
    minus: Sequence[bytes] = (),
) -> SearchRequest:
    """Turn a search into a request, checked against the limits; it reads stored pictures, so it belongs into a worker.

    Args:
        parameters: What stood in the address or in a form.
        body: What the JSON says, which wins over the parameters.
        pictures: The pictures of the index.
        limits: The bounds of the service.
        plus: Files of pictures that are wanted.
        minus: Files of pictures that are not.

    Raises:
        HTTPException: 404 unknown ``id``, 422 anything else that cannot be searched.
        InputError: As ``SearchRequest`` says.
    """
    parameters = _merge(parameters, body)
    conditions = parameters.filter if body.filter is None else body.filter
    box = parse_box(parameters.box) if body.box is None else to_box(body.box)
    check_search(
        limits,
        k=parameters.k,
        offset=parameters.offset,
        num_examples=len(plus)
        + len(minus)
        + len(body.examples)
        + sum(one is not None for one in (body.id, body.vector, body.text)),
        num_filters=len(conditions),
        box=box,
    )
    wanted = [Example(picture=data, box=box) for data in plus]
    unwanted = [Example(picture=data, box=box) for data in minus]
    if body.id is not None:
        wanted.append(build_example(pictures, id=body.id, box=box))
    if body.vector is not None:
        wanted.append(build_example(pictures, vector=body.vector, box=box))
    if body.text is not None:
        wanted.append(build_example(pictures, text=body.text, box=box))
    for one in body.examples:
        own_box = box or (None if one.box is None else to_box(one.box))
        example = build_example(pictures, id=one.id, vector=one.vector, text=one.text, image=one.image, box=own_box)
        (wanted if one.sign == "plus" else unwanted).append(example)
    return SearchRequest(
        plus=tuple(wanted),
        minus=tuple(unwanted),
        k=parameters.k,
        offset=parameters.offset,
        filter=[one if isinstance(one, str) else one.to_condition() for one in conditions],
        group_by=parameters.group_by or None,
        is_near_duplicate_grouped=parameters.is_near_duplicate_grouped,
        reranking=parameters.reranking,
    )


def check_search(
    limits: Limits, *, k: int, offset: int, num_examples: int, num_filters: int, box: Box | None = None
) -> None:
    """Refuse a search of more than the service allows, and a box whose picture is not clear.

    Raises:
        HTTPException: 422.
    """
    for name, count, most in (
        ("k", k, limits.k),
        ("offset", offset, limits.offset),
        ("the number of examples", num_examples, limits.examples),
        ("the number of filters", num_filters, limits.filters),
    ):
        if count > most:
            raise HTTPException(422, f"{name} is {count}; this server allows at most {most:,}.")
    if box is not None and num_examples != 1:
        raise HTTPException(422, "a box belongs to one picture; with several examples give each its own box.")


def has_next_page(answer: SearchAnswer, limits: Limits, next_offset: int) -> bool:
    """Say whether a further page holds results, and ``check_search`` lets it be asked for.

    Args:
        answer: The answer.
        limits: Bounds of the service.
        next_offset: Results on this page and before it, where all pages are full.
    """
    return answer.has_more and next_offset <= limits.offset


def build_example(
    pictures: Pictures,
    *,
    id: str | None = None,
    vector: Sequence[float] | None = None,
    text: str | None = None,
    image: bytes | None = None,
    box: Box | None = None,
) -> Example:
    """Make an example of an image of the index, a vector, a text or a file.

    A box on an image of the index reads its file.

    Raises:
        HTTPException: 404 unknown ``id``, 410 its file is gone, 422 not exactly one of the four, or a box on a vector.
        InputError: A text that cannot be searched for, or a box on it.
    """
    if sum(part is not None for part in (id, vector, text, image)) != 1:
        raise HTTPException(422, "an example is exactly one of id, vector, text and image.")
    if text is not None:
        return Example(text=text, box=box)
    if image is not None:
        return Example(picture=image, box=box)
    if vector is not None:
        if box is not None:
            raise HTTPException(422, "a box belongs to a picture, not to a vector.")
        return Example(vector=np.asarray(vector, dtype=np.float64))
    assert id is not None
    return Example(image_id=id) if box is None else Example(picture=pictures.read(pictures.find(id)), box=box)


def _merge(parameters: SearchParameters, body: SearchBody) -> SearchParameters:
    """Let what the JSON says win over the address; the box and the filter have other forms in each."""
    given = body.model_dump(include=set(SearchParameters.model_fields) - {"box", "filter"}, exclude_none=True)
    return validate(SearchParameters, {**parameters.model_dump(), **given})


def describe_validation(error: ValidationError) -> str:
    """Say in one line what does not fit, without repeating what was sent."""
    parts = (
        f"{'.'.join(str(name)[:MAX_NAME_SHOWN] for name in one['loc']) or 'the body'}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    )
    return "; ".join(parts)
