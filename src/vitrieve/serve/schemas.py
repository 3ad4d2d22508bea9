"""What goes in and out over HTTP, as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, StrictBool

from vitrieve.index.filter import ColumnKind, Condition, Operator
from vitrieve.search.request import Reranking, SearchAnswer, SearchResult
from vitrieve.serve.limits import MAX_LIST, MAX_TEXT, MAX_VECTOR

Text = Annotated[str, Field(max_length=MAX_TEXT)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[FiniteNumber], Field(min_length=1, max_length=MAX_VECTOR, fail_fast=True)]
Conditions = Annotated[list[Text], Field(max_length=MAX_LIST, fail_fast=True)]
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
    reranking: Reranking = Field("none", description="How the first results are ordered again.")


class ExampleBody(BaseModel):
    """One example: exactly one of ``id``, ``vector`` and ``image``."""

    model_config = ConfigDict(extra="forbid")

    id: Text | None = Field(None, description="An image of the index.")
    vector: Vector | None = Field(None, description="An embedding of the index's encoder.")
    image: Base64Bytes | None = Field(None, description="The bytes of an image file, in base64.")
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
    score: float = Field(description="Cosine similarity to the query, in [-1, 1]; higher is nearer.")
    metadata: dict[str, str]
    others: list[ResultBody] = Field(
        description="Images of its group that are further away, nearest first; at most 99."
    )


class AnswerBody(BaseModel):
    """What was found."""

    results: list[ResultBody] = Field(description="Nearest first.")
    is_match: bool | None = Field(description="Whether the nearest is likely the wanted thing; null: not known.")
    threshold: float | None = Field(description="The score that decides it.")
    has_more: bool = Field(description="Whether a further page would hold results.")
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


def to_answer_body(answer: SearchAnswer) -> AnswerBody:
    """Spell an answer for the wire; the server's paths stay where they are."""
    return AnswerBody(
        results=[_to_result_body(result) for result in answer.results],
        is_match=answer.is_match,
        threshold=answer.threshold,
        has_more=answer.has_more,
        timings_seconds=dict(answer.timings_seconds),
    )


def _to_result_body(result: SearchResult) -> ResultBody:
    return ResultBody(
        image_id=result.image_id,
        score=result.score,
        metadata=dict(result.metadata),
        others=[_to_result_body(other) for other in result.others],
    )
