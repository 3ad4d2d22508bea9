"""What the page's templates are given: results, examples and links in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from vitrieve import __version__
from vitrieve.data.decode import list_formats, list_image_suffixes
from vitrieve.data.records import ImageRecord
from vitrieve.index.filter import Condition, Exact, format_condition
from vitrieve.index.store import StoreInfo
from vitrieve.search.page import TITLE_KEYS, fill_bar, find_bar_start
from vitrieve.search.request import SearchAnswer, SearchResult
from vitrieve.serve.address import NUM_RESULTS, Address
from vitrieve.serve.limits import Limits

View = dict[str, Any]

YOUR_PICTURE = "Your picture"


class Renderer:
    """Fills the templates; every text in them is escaped."""

    def __init__(self, info: StoreInfo, limits: Limits, *, root_path: str) -> None:
        self._environment = Environment(
            loader=PackageLoader("vitrieve.serve"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Every address in a template goes through this filter, so that it stays behind the proxy's prefix.
        self._environment.filters["at"] = lambda address: root_path + address
        self._environment.globals.update(
            version=__version__,
            # A folder's name is enough: this machine's paths are not the visitors'.
            encoder=Path(info.encoder_source).name,
            image_size=info.image_size,
            license=info.license,
            max_body_bytes=limits.body_bytes,
            formats=list_formats(),
            # What browsers do not count among their images by themselves.
            accepted_files=",".join(["image/*", *sorted(list_image_suffixes())]),
            nums_results=[number for number in NUM_RESULTS if number <= limits.k],
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


def find_title(image_id: str, metadata: Mapping[str, str]) -> str:
    """Say what a picture shows, or else its file's name."""
    titles = [metadata[key] for key in TITLE_KEYS if metadata.get(key)]
    return titles[0] if titles else image_id.rsplit("/", 1)[-1] or image_id


def describe_results(answer: SearchAnswer, address: Address) -> list[View]:
    """Describe the results of one page, with the links that go on from each."""
    first = (address.page - 1) * address.k + 1
    start = find_bar_start([result.score for result in answer.results])
    return [describe_result(result, rank, address, start) for rank, result in enumerate(answer.results, start=first)]


def describe_result(result: SearchResult, rank: int, address: Address, bar_start: float = 0.0) -> View:
    """Describe one result; its bar goes from ``bar_start`` to 1."""
    title = find_title(result.image_id, result.metadata)
    return {
        "rank": rank,
        "image_id": result.image_id,
        "title": title,
        "score": f"{result.score:.3f}",
        "percent": fill_bar(result.score, bar_start),
        "bar_start": f"{bar_start:g}",
        "metadata": [(key, value) for key, value in result.metadata.items() if value not in ("", title)],
        "thumbnail": thumbnail_url(result.image_id),
        "image": image_url(result.image_id),
        "like": address.like(result.image_id).spell(),
        "plus": address.adding(plus=result.image_id).spell(),
        "minus": address.adding(minus=result.image_id).spell(),
        "compare": address.spell("/compare", image_id=result.image_id),
        "group": spell_group(result, address),
        "others": [describe_result(other, rank, address, bar_start) for other in result.others],
    }


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
        address: What is asked for.
        titles: Of every example that is there, by its id; what is missing has no thumbnail.
    """
    examples = [
        {
            "title": YOUR_PICTURE,
            "is_wanted": True,
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
                "thumbnail": thumbnail_url(image_id) if image_id in titles else None,
                "remove": address.removing(**{"plus" if is_wanted else "minus": image_id}).spell(),
            }
            for image_id in image_ids
        ]
    return examples


def describe_conditions(address: Address) -> list[View]:
    """List the filter's conditions, each with the address without it."""
    return [{"text": text, "remove": address.removing(condition=text).spell()} for text in address.filter]


def describe_samples(records: Sequence[ImageRecord]) -> list[View]:
    """Describe some images of the collection, to start from."""
    return [
        {
            "title": find_title(record.image_id, record.metadata),
            "thumbnail": thumbnail_url(record.image_id),
            "like": Address(plus=(record.image_id,)).spell(),
        }
        for record in records
    ]
