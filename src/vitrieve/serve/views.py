"""What the templates are given: the search as an address that can be shared, results, examples and links.

One page is also a file by itself, with its pictures inside: ``vitrieve search --html`` writes it, and needs no package
of the service for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vitrieve import __version__
from vitrieve.data.decode import encode_jpeg, list_formats, list_image_suffixes, read_image_bytes, shrink, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DecodeError, UnreachableError
from vitrieve.index.filter import (
    Condition,
    Exact,
    Kinds,
    build_condition,
    find_test,
    format_condition,
    parse_filter,
    spell_number,
)
from vitrieve.index.store import StoreInfo, VectorStore, find_name
from vitrieve.quoting import make_breakable
from vitrieve.search.query import read_example
from vitrieve.search.request import (
    MAX_TEXT_LENGTH,
    Box,
    Example,
    SearchAnswer,
    SearchRequest,
    SearchResult,
    check_text,
    parse_box,
)
from vitrieve.serve.settings import COMMAS, MAX_TEXT, Limits, ProxySettings
from vitrieve.writing import write_bytes_durably

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

    from vitrieve.search.facets import Facet

NUM_RESULTS = (12, 24, 48, 96)
DEFAULT_NUM_RESULTS = 24


@dataclass(frozen=True, kw_only=True)
class Address:
    """A search as the page's address spells it.

    Attributes:
        uploads: Ids of pictures that visitors sent, all wanted.
        plus: Images of the index that are wanted.
        minus: Images of the index that are not wanted.
        texts: Words for what is wanted.
        minus_texts: Words for what is not wanted.
        box: Region of the one picture that is wanted.
        filter: Conditions as people write them.
        group_by: Metadata column; empty: no groups.
        is_near_duplicate_grouped: Nearly equal images stand behind one result.
        k: Results on a page.
        page: Number of the page, from 1.
    """

    uploads: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    minus_texts: tuple[str, ...] = ()
    box: Box | None = None
    filter: tuple[str, ...] = ()
    group_by: str = ""
    is_near_duplicate_grouped: bool = False
    k: int = DEFAULT_NUM_RESULTS
    page: int = 1

    @property
    def num_examples(self) -> int:
        """Count the examples, wanted and not."""
        return sum(map(len, (self.uploads, self.plus, self.minus, self.texts, self.minus_texts)))

    def fields(self) -> list[tuple[str, str]]:
        """List names and values as they stand in the address; what is as usual is left out."""
        box = "" if self.box is None else ",".join(f"{side:g}" for side in self.box)
        fields = [
            *(("upload", upload) for upload in self.uploads),
            *(("plus", image_id) for image_id in self.plus),
            *(("minus", image_id) for image_id in self.minus),
            *(("text", text) for text in self.texts),
            *(("minus_text", text) for text in self.minus_texts),
            ("box", box),
            *(("filter", condition) for condition in self.filter),
            ("group_by", self.group_by),
            ("near_duplicates", "together" if self.is_near_duplicate_grouped else ""),
            ("k", str(self.k) if self.k != DEFAULT_NUM_RESULTS else ""),
            ("page", str(self.page) if self.page != 1 else ""),
        ]
        return [(name, value) for name, value in fields if value]

    def fields_without(self, *names: str) -> list[tuple[str, str]]:
        """List what a form must carry along beside its own fields; the page begins anew."""
        return [(name, value) for name, value in self.fields() if name not in ("page", *names)]

    def spell(self, path: str = "/", **extra: str) -> str:
        """Spell the address.

        >>> Address(plus=("a b.jpg",), page=2).spell()
        '/?plus=a+b.jpg&page=2'
        """
        query = urlencode([*self.fields(), *extra.items()])
        return f"{path}?{query}" if query else path

    def on_page(self, page: int) -> Address:
        """Turn to another page of the same search."""
        return replace(self, page=page)

    def narrowing(self) -> list[tuple[str, str]]:
        """List what says how results are chosen, whatever is looked for: it stays when something else is."""
        return self.fields_without("upload", "plus", "minus", "text", "minus_text", "box")

    def like(self, image_id: str) -> Address:
        """Search for what is like one image instead; how results are chosen stays."""
        return replace(self, uploads=(), plus=(image_id,), minus=(), texts=(), minus_texts=(), box=None, page=1)

    def adding(self, *, plus: str = "", minus: str = "") -> Address:
        """Add an example, taking it from the other side if it stands there; a box only fits a single example."""
        return replace(
            self,
            plus=_unite(_without(self.plus, minus), plus),
            minus=_unite(_without(self.minus, plus), minus),
            box=None,
            page=1,
        )

    def removing(self, **values: str) -> Address:
        """Take an example or a condition away, by the name that it has in ``fields`` (a filter's is ``condition``)."""
        fields = {"upload": "uploads", "text": "texts", "minus_text": "minus_texts", "condition": "filter"}
        left = {fields.get(name, name): value for name, value in values.items()}
        kept: dict[str, Any] = {field: _without(getattr(self, field), value) for field, value in left.items()}
        return replace(
            self,
            **kept,
            box=self.box if list(left) == ["filter"] else None,
            page=1,
        )

    def without_box(self) -> Address:
        """Search for the whole picture again."""
        return replace(self, box=None, page=1)

    def without_filters(self) -> Address:
        """Drop all conditions."""
        return replace(self, filter=(), page=1)


def parse_address(query: QueryParams, limits: Limits) -> Address:
    """Read an address, or a form that leads to one.

    A page repeats its address in every link, so what it may hold is bounded here: a thousand examples would make a
    thousand links of a thousand examples.

    A form may give a condition in three fields (``column``, ``operator``, ``value``), or a span of numbers or dates
    (``range``, ``least``, ``most``), which takes the place of the column's earlier one, a box in four (``x_1`` to
    ``y_2``), and words with their sign in two (``words``, ``sign``); ``Address.spell`` then gives the address that says
    the same shortly.

    Raises:
        ConfigError: A number or a box that is none, a text to search for that is too long, or more or longer values
            than ``limits`` and ``MAX_TEXT`` allow.
    """
    conditions = [condition for condition in query.getlist("filter") if condition]
    if query.get("column") and query.get("value"):
        condition = build_condition(query["column"], query.get("operator", "="), query["value"])
        conditions.append(format_condition(condition))
    if column := query.get("range"):
        conditions = [condition for condition in conditions if _read_end(condition, column) is None]
        for operator, name in _ENDS.items():
            if value := query.get(name, "").strip():
                conditions.append(format_condition(build_condition(column, operator, value)))
    sides = [query.get(name, "").strip() for name in ("x_1", "y_1", "x_2", "y_2")]
    box = ",".join(sides) if any(sides) else query.get("box")
    words = {sign: [*query.getlist(name)] for sign, name in (("plus", "text"), ("minus", "minus_text"))}
    words["minus" if query.get("sign") == "minus" else "plus"].append(query.get("words", ""))
    for text in chain(*words.values()):
        if len(text) > MAX_TEXT_LENGTH:  # each link of the page would repeat it
            check_text(text)
    address = Address(
        uploads=_unique(query.getlist("upload")),
        plus=_unique(query.getlist("plus")),
        minus=_unique(query.getlist("minus")),
        texts=_unique(words["plus"]),
        minus_texts=_unique(words["minus"]),
        box=None if query.get("words") else parse_box(box),
        filter=_unique(conditions),
        group_by=query.get("group_by", ""),
        is_near_duplicate_grouped=query.get("near_duplicates") == "together",
        k=_parse_count(query, "k", DEFAULT_NUM_RESULTS),
        page=_parse_count(query, "page", 1),
    )
    for name, count, most in (
        ("examples", address.num_examples, limits.examples),
        ("conditions", len(address.filter), limits.filters),
        ("characters in one value", max((len(value) for _, value in address.fields()), default=0), MAX_TEXT),
    ):
        if count > most:
            raise ConfigError(f"the address has {count:,} {name}; this server allows at most {most:,}.")
    return address


_ENDS = {">=": "least", "<=": "most"}
"""The ends of a span, by the operator of their condition; the fields that give them are called so."""


def _read_end(text: str, column: str) -> tuple[str, str] | None:
    """Read a condition as an end of a column's span: which of ``_ENDS`` it is, and its value; None where it is none.

    One that the form of the span cannot spell, such as a number in quotes, is a condition beside the span.
    """
    try:
        (condition,) = parse_filter(text)
    except ConfigError:  # it is refused when it is searched with
        return None
    if condition.column != column or condition.operator not in _ENDS:
        return None
    value = condition.values[0]
    spelled = spell_number(value) if isinstance(value, float) else str(value)
    is_of_form = spelled != "" and build_condition(column, condition.operator, spelled.strip()) == condition
    return (_ENDS[condition.operator], spelled) if is_of_form else None


def _parse_count(query: QueryParams, name: str, usual: int) -> int:
    text = query.get(name) or str(usual)
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 6 and int(text) >= 1):
        raise ConfigError(f"{name} is {text[:40]!r} in the address; it must be a number from 1 on.")
    return int(text)


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _unite(values: tuple[str, ...], value: str) -> tuple[str, ...]:
    return _unique((*values, value))


def _without(values: tuple[str, ...], value: str) -> tuple[str, ...]:
    return tuple(one for one in values if one != value)


View = dict[str, Any]

YOUR_PICTURE = "Your picture"


def build_environment(info: StoreInfo | None) -> Environment:
    """Build what fills the templates, with what every page says of the index; every text in them is escaped."""
    environment = Environment(
        loader=PackageLoader("vitrieve.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = make_breakable
    environment.globals.update(
        version=__version__,
        # A folder's name is enough: this machine's paths are not the visitors'.
        encoder="" if info is None else Path(info.encoder_source).name,
        image_size=None if info is None else info.image_size,
        license="" if info is None else info.license,
        is_front=info is None,
        collection="",
    )
    return environment


class Renderer:
    """Fills the templates of a service.

    Args:
        info: What the index says about itself; None: the pages belong to no index, but to a list of several.
        limits: Bounds that the pages name.
        proxy: Where the pages are.
        collection: Name of the collection, where there are several.
    """

    def __init__(self, info: StoreInfo | None, limits: Limits, *, proxy: ProxySettings, collection: str = "") -> None:
        self._environment = build_environment(info)
        # Every address in a template goes through this filter, so that it stays behind the proxy's prefix.
        self._environment.filters["at"] = lambda address: proxy.prefix + address
        self._environment.globals.update(
            collection=collection,
            front=f"{proxy.root_path}/",
            max_body_bytes=limits.body_bytes,
            commas=COMMAS,
            max_text_length=MAX_TEXT_LENGTH,
            formats=list_formats(),
            # What browsers do not count among their images by themselves.
            accepted_files=",".join(["image/*", *sorted(list_image_suffixes())]),
            nums_results=[number for number in NUM_RESULTS if number <= limits.k],
            max_k=limits.k,
            max_offset=limits.offset,
        )

    def render(self, template: str, **values: object) -> str:
        """Fill one template."""
        return self._environment.get_template(template).render(**values)


def thumbnail_url(image_id: str, side_px: int = 320) -> str:
    """Spell the address of a small copy of an image of the index.

    >>> thumbnail_url("a b/c#1.png")
    '/thumbnails/a%20b/c%231.png?side_px=320'
    >>> thumbnail_url("../b.png")
    '/thumbnails?image_id=../b.png&side_px=320'
    """
    separator = "?" if fits_path(image_id) else "&"
    return f"{_spell_name('/thumbnails', image_id)}{separator}side_px={side_px}"


def image_url(image_id: str) -> str:
    """Spell the address of the file of an image of the index."""
    return _spell_name("/images", image_id)


def fits_path(image_id: str) -> bool:
    r"""Say whether a name arrives as it is in the path of an address: browsers and proxies tidy paths up.

    >>> [fits_path(name) for name in ("a b/c#1.png", "../a", "a//b", "/a", "a\nb", "a\\b", "")]
    [True, False, False, False, False, False, False]
    """
    is_tidy = all(part not in ("", ".", "..") for part in image_id.split("/"))
    return is_tidy and image_id.isprintable() and "\\" not in image_id


def _spell_name(path: str, image_id: str) -> str:
    return f"{path}/{quote(image_id)}" if fits_path(image_id) else f"{path}?image_id={quote(image_id)}"


def upload_url(upload_id: str, side_px: int = 320) -> str:
    """Spell the address of a small copy of a picture that was sent in."""
    return f"/uploads/{quote(upload_id, safe='')}?side_px={side_px}"


TITLE_KEYS = ("label", "name")
"""Metadata that says what a picture shows; the first that is there counts."""


def find_title(image_id: str, metadata: Mapping[str, str]) -> str:
    """Say what a picture shows, or else its file's name."""
    titles = [metadata[key] for key in TITLE_KEYS if metadata.get(key)]
    return titles[0] if titles else image_id.rsplit("/", 1)[-1] or image_id


def describe_results(answer: SearchAnswer, address: Address) -> list[View]:
    """Describe the results of one page, with the links that go on from each."""
    first = (address.page - 1) * address.k + 1
    start = choose_bar_start(answer)
    return [describe_result(result, rank, address, start) for rank, result in enumerate(answer.results, start=first)]


def describe_result(result: SearchResult, rank: int, address: Address, bar_start: float = 0.0) -> View:
    """Describe one result with its links; its bar goes from ``bar_start`` to 1."""
    return {
        **describe_facts(result, rank, bar_start),
        "thumbnail": thumbnail_url(result.image_id),
        "large": thumbnail_url(result.image_id, 1280),
        "image": image_url(result.image_id),
        "like": address.like(result.image_id).spell(),
        "plus": address.adding(plus=result.image_id).spell(),
        "minus": address.adding(minus=result.image_id).spell(),
        "compare": address.spell("/compare", image_id=result.image_id),
        "group": spell_group(result, address),
        "others": [describe_result(other, rank, address, bar_start) for other in result.others],
    }


def describe_facts(result: SearchResult, rank: int, bar_start: float) -> View:
    """Describe one result without links."""
    title = find_title(result.image_id, result.metadata)
    return {
        "rank": rank,
        "image_id": result.image_id,
        "title": title,
        "score": f"{result.score:.3f}",
        "percent": fill_bar(result.score, bar_start),
        "bar_start": f"{bar_start:g}",
        "metadata": [(key, value) for key, value in result.metadata.items() if value not in ("", title)],
    }


def choose_bar_start(answer: SearchAnswer) -> float:
    """Choose the score at which the bars of an answer begin; those of words alone begin at 0, as their scores do."""
    if answer.ways == ("words",):
        return 0.0
    return find_bar_start([result.score for result in answer.results])


def find_bar_start(scores: Sequence[float]) -> float:
    """Choose the score at which the bars of a page begin: those of one encoder may all lie between 0.9 and 1.

    >>> [find_bar_start(scores) for scores in ([1.0], [0.97, 0.83], [0.6, 0.05], [-0.2], [])]
    [0.9, 0.8, 0.0, 0.0, 0.0]
    """
    return min(0.9, max(0.0, math.floor(10 * min(scores, default=0.0)) / 10))


def fill_bar(score: float, start: float) -> float:
    """Return how much of a bar from ``start`` to 1 a score fills, in percent.

    >>> [fill_bar(score, 0.8) for score in (0.7, 0.8, 0.85, 1.0, 1.0001)]
    [0.0, 0.0, 25.0, 100.0, 100.0]
    """
    return round(100 * min(max((score - start) / (1 - start), 0.0), 1.0), 1)


def spell_group(result: SearchResult, address: Address) -> str | None:
    """Spell the address of everything in a result's group; None without groups, or where the image has no value."""
    value = result.metadata.get(address.group_by, "")
    if not value:
        return None
    condition = format_condition(Condition(column=address.group_by, operator="=", values=(Exact(value),)))
    return replace(address, group_by="", filter=(*address.filter, condition), page=1).spell()


def describe_examples(address: Address, titles: Mapping[str, str]) -> list[View]:
    """Describe what is asked for: uploads, wanted images, unwanted images.

    Args:
        address: Address of the search.
        titles: Title of every example that is there, by its id; what is missing has no thumbnail.
    """
    examples = [
        {
            "title": YOUR_PICTURE,
            "is_wanted": True,
            "is_text": False,
            "thumbnail": upload_url(upload) if upload in titles else None,
            "remove": address.removing(upload=upload).spell(),
        }
        for upload in address.uploads
    ]
    for image_ids, is_wanted in ((address.plus, True), (address.minus, False)):
        examples += [
            {
                "title": titles.get(image_id, image_id),
                "is_wanted": is_wanted,
                "is_text": False,
                "thumbnail": thumbnail_url(image_id) if image_id in titles else None,
                "remove": address.removing(**{"plus" if is_wanted else "minus": image_id}).spell(),
            }
            for image_id in image_ids
        ]
    for texts, name in ((address.texts, "text"), (address.minus_texts, "minus_text")):
        examples += [
            {
                "title": f"“{text}”",
                "is_wanted": name == "text",
                "is_text": True,
                "thumbnail": None,
                "remove": address.removing(**{name: text}).spell(),
            }
            for text in texts
        ]
    return examples


def describe_conditions(address: Address) -> list[View]:
    """List the filter's conditions, each with the address without it."""
    return [{"text": text, "remove": address.removing(condition=text).spell()} for text in address.filter]


def describe_facets(facets: Sequence[Facet], address: Address) -> list[View]:
    """Describe the facets of the images that meet the address's conditions; a value leads to those that have it, too.

    A column that has one value left is no choice, and is left out.
    """
    return [
        {
            "column": facet.column,
            "least": facet.least,
            "most": facet.most,
            "span": _find_span(address, facet),
            "values": [
                {"value": value, "count": f"{count:,}", "address": _narrow(address, facet.column, value)}
                for value, count in facet.values
            ],
            "num_more": facet.num_values - len(facet.values),
        }
        for facet in facets
        if facet.num_values != 1 or facet.num_without
    ]


def _find_span(address: Address, facet: Facet) -> dict[str, str]:
    """Find the span that an address gives a column of numbers or dates; of other columns there is none.

    An end without a condition is empty. Of several the narrowest is shown: all must hold.
    """
    if facet.least is None:
        return {}
    kinds = Kinds.NUMBER if facet.kind == "number" else Kinds.DATE
    ends = [end for text in address.filter if (end := _read_end(text, facet.column)) is not None]

    def find_bound(operator: str, value: str) -> Any:
        asked = find_test(build_condition(facet.column, operator, value), kinds).spans[0]
        return asked.low if operator == ">=" else asked.high

    span = {}
    for operator, name in _ENDS.items():
        values = [value for end, value in ends if end == name]
        by_bound = sorted(values, key=partial(find_bound, operator), reverse=operator == "<=")
        span[name] = ["", *by_bound][-1]
    return span


def _narrow(address: Address, column: str, value: str) -> str:
    condition = format_condition(Condition(column=column, operator="=", values=(Exact(value),)))
    return replace(address, filter=_unite(address.filter, condition), page=1).spell()


def describe_samples(records: Sequence[ImageRecord], address: Address | None = None) -> list[View]:
    """Describe some images of the collection, to start from; an address says how results are then chosen."""
    address = address or Address()
    return [
        {
            "title": find_title(record.image_id, record.metadata),
            "thumbnail": thumbnail_url(record.image_id),
            "like": address.like(record.image_id).spell(),
        }
        for record in records
    ]


STYLE_FILE = Path(__file__).parent / "static" / "page.css"
THUMBNAIL_PX = 320
"""Longest side in a page that is a file: sharp at the 150 to 200 CSS pixels of a card on a dense screen."""
MAX_OTHERS = 4
"""Pictures shown of those behind a result in a page that is a file; the others are counted."""


def write_search_page(
    path: Path, searches: Iterable[tuple[SearchRequest, SearchAnswer]], *, store: VectorStore
) -> None:
    """Write the page of some searches; its folder is made where needed.

    Args:
        path: HTML file to write.
        searches: Requests, each with its answer.
        store: The index that was searched: its size, encoder and license are named at the foot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_search_page(searches, store=store)
    write_bytes_durably(path, page.encode(errors="backslashreplace"))  # a query's name may be no text at all


def render_search_page(searches: Iterable[tuple[SearchRequest, SearchAnswer]], *, store: VectorStore) -> str:
    """Render the page of some searches, as ``write_search_page``."""
    return (
        build_environment(store.info)
        .get_template("file.html")
        .render(
            searches=[_describe_search(request, answer, store) for request, answer in searches],
            num_vectors=store.count(),
            style=Markup(STYLE_FILE.read_text(encoding="utf-8")),  # it is a file of ours
        )
    )


def _describe_search(request: SearchRequest, answer: SearchAnswer, store: VectorStore) -> View:
    plus = [_describe_file_example(example, "wanted", store) for example in request.plus]
    minus = [_describe_file_example(example, "not wanted", store) for example in request.minus]
    bar_start = choose_bar_start(answer)
    return {
        "name": plus[0]["name"],
        "is_in_words": all(example["is_text"] for example in plus),
        "examples": plus + minus,
        "conditions": [format_condition(condition) for condition in parse_filter(request.filter)],
        "group_by": request.group_by,
        "is_match": answer.is_match,
        "threshold": answer.threshold,
        "first_rank": request.offset + 1,
        "has_more": answer.has_more,
        "results": [
            _describe_file_result(rank, result, bar_start)
            for rank, result in enumerate(answer.results, start=request.offset + 1)
        ],
    }


def _describe_file_example(example: Example, role: str, store: VectorStore) -> View:
    """Name and show an example; only files and images of the index have both."""
    shown: View = {
        "role": role,
        "name": "a vector",
        "picture": None,
        "box": example.box is not None,
        "is_text": example.text is not None,
    }
    if example.text is not None:
        return {**shown, "name": f"“{example.text}”"}
    if example.image_id is not None:
        _, (record,) = store.get([find_name(store, example.image_id)])
        return {**shown, "name": example.image_id, "picture": build_thumbnail(record.path, record.box)}
    if isinstance(example.picture, (str, Path)):
        path = Path(example.picture)
        return {**shown, "name": path.name, "picture": build_thumbnail(path, example.box)}
    if example.picture is not None:
        image = read_example(example)
        return {**shown, "name": "a picture", "picture": encode_thumbnail(image)}
    return shown


def _describe_file_result(rank: int, result: SearchResult, bar_start: float) -> View:
    return {
        **describe_facts(result, rank, bar_start),
        "picture": build_thumbnail(result.path, result.box),
        "others": [build_thumbnail(other.path, other.box) for other in result.others[:MAX_OTHERS]],
        "num_others": len(result.others),
    }


def build_thumbnail(path: Path, box: tuple[float, float, float, float] | None = None) -> str | None:
    """Build a small copy of a picture as a data URI; None when the file is gone or cannot be read.

    Args:
        path: An image file.
        box: The region to show, in pixels; None for all of it.
    """
    try:
        return to_data_uri(shrink(read_image_bytes(path), THUMBNAIL_PX, box))
    except (DecodeError, UnreachableError, MemoryError):
        return None


def encode_thumbnail(image: Image.Image) -> str:
    """Turn a picture, which is made smaller, into a data URI."""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return to_data_uri(encode_jpeg(image))
