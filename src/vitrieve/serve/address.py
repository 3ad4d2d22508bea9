"""What the page shows, as an address that can be shared and gone back to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from vitrieve.errors import ConfigError
from vitrieve.index.filter import build_condition, format_condition
from vitrieve.search.request import Box
from vitrieve.serve.limits import MAX_TEXT, Limits
from vitrieve.serve.questions import parse_box

NUM_RESULTS = (12, 24, 48, 96)
DEFAULT_NUM_RESULTS = 24


@dataclass(frozen=True, kw_only=True)
class Address:
    """A search as the page's address spells it.

    Attributes:
        uploads: Ids of pictures that were sent in, all wanted.
        plus: Images of the index that are wanted.
        minus: Images of the index that are not.
        box: Region of the one picture that is wanted.
        filter: Conditions as people write them.
        group_by: Metadata column; empty: no groups.
        is_near_duplicate_grouped: Nearly equal images stand behind one result.
        k: Results on a page.
        page: From 1.
    """

    uploads: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    box: Box | None = None
    filter: tuple[str, ...] = ()
    group_by: str = ""
    is_near_duplicate_grouped: bool = False
    k: int = DEFAULT_NUM_RESULTS
    page: int = 1

    @property
    def has_query(self) -> bool:
        """Say whether anything is wanted."""
        return bool(self.uploads or self.plus)

    @property
    def num_examples(self) -> int:
        """Count the examples, wanted and not."""
        return len(self.uploads) + len(self.plus) + len(self.minus)

    def fields(self) -> list[tuple[str, str]]:
        """List names and values as they stand in the address; what is as usual is left out."""
        box = "" if self.box is None else ",".join(f"{side:g}" for side in self.box)
        fields = [
            *(("upload", upload) for upload in self.uploads),
            *(("plus", image_id) for image_id in self.plus),
            *(("minus", image_id) for image_id in self.minus),
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

    def like(self, image_id: str) -> Address:
        """Search for what is like one image instead; how results are chosen stays."""
        return replace(self, uploads=(), plus=(image_id,), minus=(), box=None, page=1)

    def adding(self, *, plus: str = "", minus: str = "") -> Address:
        """Add an example, taking it from the other side if it stands there; a box only fits a single example."""
        return replace(
            self,
            plus=_unite(_without(self.plus, minus), plus),
            minus=_unite(_without(self.minus, plus), minus),
            box=None,
            page=1,
        )

    def removing(self, *, upload: str = "", plus: str = "", minus: str = "", condition: str = "") -> Address:
        """Take an example or a condition away."""
        is_box_kept = not (upload or plus or minus)
        return replace(
            self,
            uploads=_without(self.uploads, upload),
            plus=_without(self.plus, plus),
            minus=_without(self.minus, minus),
            filter=_without(self.filter, condition),
            box=self.box if is_box_kept else None,
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

    A form may give a condition in three fields (``column``, ``operator``, ``value``), and a box in four (``x_1`` to
    ``y_2``); ``Address.spell`` then gives the address that says the same shortly.

    Raises:
        ConfigError: A number or a box that is none, or more or longer values than ``limits`` and ``MAX_TEXT`` allow.
    """
    conditions = [condition for condition in query.getlist("filter") if condition]
    if query.get("column") and query.get("value"):
        condition = build_condition(query["column"], query.get("operator", "="), query["value"])
        conditions.append(format_condition(condition))
    sides = [query.get(name, "").strip() for name in ("x_1", "y_1", "x_2", "y_2")]
    box = ",".join(sides) if any(sides) else query.get("box")
    address = Address(
        uploads=_unique(query.getlist("upload")),
        plus=_unique(query.getlist("plus")),
        minus=_unique(query.getlist("minus")),
        box=parse_box(box),
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
