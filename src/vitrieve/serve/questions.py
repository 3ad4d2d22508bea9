"""From what a client sends to a ``SearchRequest``, checked against the limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ValidationError

from vitrieve.errors import ConfigError
from vitrieve.search.request import Box, Example, SearchRequest
from vitrieve.serve.body import Form
from vitrieve.serve.limits import Limits
from vitrieve.serve.pictures import Pictures
from vitrieve.serve.schemas import SearchBody, SearchParameters

MAX_NAME_SHOWN = 60
"""Characters of a field's name in a message: an unknown one may be as long as the body."""
M = TypeVar("M", bound=BaseModel)
_LISTS = ("filter",)
"""Form fields that may occur several times; of the others the last counts."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A search as it came in, however it was sent.

    Attributes:
        plus: Bytes of the pictures that are wanted.
        minus: Bytes of the pictures that are not.
        body: The JSON, or what a form said in its fields; None for a bare picture.
        parameters: What stood in the address.
    """

    parameters: SearchParameters
    plus: tuple[bytes, ...] = ()
    minus: tuple[bytes, ...] = ()
    body: SearchBody | None = None


@dataclass(frozen=True, kw_only=True)
class GivenExample:
    """One example, from whichever of the three ways in; exactly one of ``id``, ``vector`` and ``image`` is asked for.

    Attributes:
        id: An image of the index.
        vector: An embedding.
        image: The bytes of an image file.
        box: Region of the picture.
        sign: Whether it is wanted.
    """

    id: str | None = None
    vector: Sequence[float] | None = None
    image: bytes | None = None
    box: Box | None = None
    sign: Literal["plus", "minus"] = "plus"


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
    if len(data) > limits.json_bytes:
        largest = limits.json_bytes / 2**20
        raise HTTPException(413, f"the JSON is larger than {largest:g} MiB; send pictures as files in a form.")
    for sign, most in ((b",", limits.json_values), (b":", limits.json_fields)):
        if (count := data.count(sign)) > most:
            raise HTTPException(422, f"the JSON has {count:,} {sign.decode()!r}; at most {most:,} are read.")
    try:
        return SearchBody.model_validate_json(data)
    except ValidationError as error:
        raise HTTPException(422, describe_validation(error)) from None


def read_form(form: Form, parameters: SearchParameters) -> Question:
    """Read a search from a form: files ``image`` and ``minus_image``, ids ``id`` and ``minus_id``, and parameters.

    Raises:
        HTTPException: 422 when a field is unknown or does not fit.
    """
    accepted_texts = {"id", "minus_id", *SearchParameters.model_fields}
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
    examples = list_examples(form.texts.get("id", []), form.texts.get("minus_id", []))
    body = validate(SearchBody, {"examples": examples})
    plus, minus = form.files.get("image", []), form.files.get("minus_image", [])
    return Question(parameters=merged, plus=tuple(plus), minus=tuple(minus), body=body)


def list_examples(plus: Iterable[str], minus: Iterable[str]) -> list[dict[str, str]]:
    """List images of the index as the examples of a ``SearchBody``; empty names are left out."""
    signed = [*((image_id, "plus") for image_id in plus), *((image_id, "minus") for image_id in minus)]
    return [{"id": image_id, "sign": sign} for image_id, sign in signed if image_id]


def build_request(question: Question, pictures: Pictures, limits: Limits) -> SearchRequest:
    """Turn a question into a request; reads headers and stored pictures, so it belongs into a worker.

    Raises:
        HTTPException: 404 unknown ``id``, 413 too many pixels, 422 anything else that cannot be searched.
        InputError: As ``SearchRequest`` and ``parse_filter`` say.
    """
    body = question.body or SearchBody()
    parameters = _merge(question.parameters, body)
    examples = list(_list_examples(question, body))
    conditions = parameters.filter if body.filter is None else body.filter
    _check_counts(parameters, len(examples), len(conditions), limits)
    box = body.box if body.box is not None else parse_box(parameters.box)
    if box is not None:
        if len(examples) != 1:
            raise HTTPException(422, "a box belongs to one picture; with several examples give each its own box.")
        examples = [replace(examples[0], box=_to_box(box))]
    made = [(example.sign, build_example(example, pictures, limits)) for example in examples]
    return SearchRequest(
        plus=tuple(example for sign, example in made if sign == "plus"),
        minus=tuple(example for sign, example in made if sign == "minus"),
        k=parameters.k,
        offset=parameters.offset,
        filter=[one if isinstance(one, str) else one.to_condition() for one in conditions],
        group_by=parameters.group_by or None,
        is_near_duplicate_grouped=parameters.is_near_duplicate_grouped,
        reranking=parameters.reranking,
    )


def build_example(example: GivenExample, pictures: Pictures, limits: Limits) -> Example:
    """Turn one example into what the searcher takes; a box on an image of the index reads that image's file.

    Raises:
        HTTPException: As ``build_request``.
    """
    if sum(part is not None for part in (example.id, example.vector, example.image)) != 1:
        raise HTTPException(422, "an example is exactly one of id, vector and image.")
    box = example.box
    if example.vector is not None:
        if box is not None:
            raise HTTPException(422, "a box belongs to a picture, not to a vector.")
        return Example(vector=np.asarray(example.vector, dtype=np.float64))
    if example.image is not None:
        return Example(picture=example.image, box=box)
    assert example.id is not None
    if box is None:
        return Example(image_id=example.id)
    return Example(picture=pictures.read(pictures.find(example.id)), box=box)


def parse_box(text: str | None) -> Box | None:
    """Read ``x_1,y_1,x_2,y_2``.

    Raises:
        ConfigError: Anything else.

    >>> parse_box("0,0,10.5,20")
    (0.0, 0.0, 10.5, 20.0)
    """
    if not text:
        return None
    try:
        return _to_box([float(part) for part in text.split(",")])
    except ValueError:
        raise ConfigError(
            f"{text[:100]!r} is no box; write x_1,y_1,x_2,y_2 in pixels, with x_1 < x_2 and y_1 < y_2."
        ) from None


def _to_box(numbers: Sequence[float]) -> Box:
    x_1, y_1, x_2, y_2 = numbers  # another count is a ValueError too
    # Beyond what a picture can have, rounding to whole pixels would make numbers of many digits.
    if not all(math.isfinite(number) and abs(number) < 1e9 for number in numbers) or x_1 >= x_2 or y_1 >= y_2:
        raise ConfigError(f"{list(numbers)} is no box; give x_1, y_1, x_2, y_2 with x_1 < x_2 and y_1 < y_2.")
    return (x_1, y_1, x_2, y_2)


def _list_examples(question: Question, body: SearchBody) -> Iterator[GivenExample]:
    yield from (GivenExample(image=data) for data in question.plus)
    yield from (GivenExample(image=data, sign="minus") for data in question.minus)
    if body.id is not None:
        yield GivenExample(id=body.id)
    if body.vector is not None:
        yield GivenExample(vector=body.vector)
    for one in body.examples:
        box = None if one.box is None else _to_box(one.box)
        yield GivenExample(id=one.id, vector=one.vector, image=one.image, box=box, sign=one.sign)


def _merge(parameters: SearchParameters, body: SearchBody) -> SearchParameters:
    """Let what the JSON says win over the address; the box and the filter have other forms in each."""
    given = body.model_dump(include=set(SearchParameters.model_fields) - {"box", "filter"}, exclude_none=True)
    return validate(SearchParameters, {**parameters.model_dump(), **given})


def _check_counts(parameters: SearchParameters, num_examples: int, num_conditions: int, limits: Limits) -> None:
    for name, count, most in (
        ("k", parameters.k, limits.k),
        ("offset", parameters.offset, limits.offset),
        ("the number of examples", num_examples, limits.examples),
        ("the number of filters", num_conditions, limits.filters),
    ):
        if count > most:
            raise HTTPException(422, f"{name} is {count}; this server allows at most {most:,}.")


def describe_validation(error: ValidationError) -> str:
    """Say in one line what does not fit, without repeating what was sent."""
    parts = (
        f"{'.'.join(str(name)[:MAX_NAME_SHOWN] for name in one['loc']) or 'the body'}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    )
    return "; ".join(parts)
