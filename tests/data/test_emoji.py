from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vitrieve.data import emoji
from vitrieve.data.emoji import CACHE_NAME, SETS, Drawing, drop_duplicates, find_candidates, read_emoji, stem
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError

SET_NAMES = ("noto", "noto-v1", "twemoji", "openmoji", "fxemoji")


def build_packages(names: Mapping[str, str], sets: tuple[str, ...] = SET_NAMES[:4]) -> dict[str, dict[str, Any]]:
    """Let every set draw every name; the drawing's body tells name and set."""
    return {
        one: {"width": 32, "height": 32, "icons": {name: {"body": f"<{body} {one}>"} for name, body in names.items()}}
        for one in sets
    }


def list_names(drawings: list[Drawing]) -> list[str]:
    return sorted({drawing.name for drawing in drawings})


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is already filled, without the pictures, which reading does not open."""
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    names = ("apple", "cook", "man-cook", "woman-cook", "zebra")
    listing = [{"name": name, "set": one} for name in names for one in SET_NAMES[:4]]
    (tmp_path / CACHE_NAME).mkdir()
    (tmp_path / CACHE_NAME / "drawings.json").write_text(json.dumps(listing))
    return tmp_path / CACHE_NAME


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cook", "cook"),
        ("woman-cook", "cook"),
        ("person-with-veil", "with-veil"),
        ("man-woman-boy-girl", "girl"),
        ("woman", "woman"),
        ("mango", "mango"),
    ],
)
def test_stem_drops_who(name: str, expected: str) -> None:
    assert stem(name) == expected


def test_read_emoji_keeps_a_stem_on_one_side(cached: Path) -> None:
    dataset = read_emoji()
    splits = {dataset.label_names[record.label]: record.split for record in dataset.records}
    # The stems in order are apple, cook, zebra; the second is for testing.
    assert splits == {"apple": "train", "cook": "test", "man-cook": "test", "woman-cook": "test", "zebra": "train"}
    assert dataset.label_names == tuple(sorted(dataset.label_names))
    record = dataset.records[0]
    assert (record.image_id, record.path) == ("noto/apple.png", cached / "noto/apple.png")
    assert record.metadata == {"name": "apple", "set": "noto", "house": "google"}
    assert len({record.image_id for record in dataset.records}) == len(dataset.records)


def test_read_emoji_across_houses_names_the_junk(cached: Path) -> None:
    assert read_emoji().junk_key is None
    dataset = read_emoji("across_houses")
    assert (dataset.junk_key, dataset.protocol) == ("house", "across_houses")
    houses = {record.metadata["set"]: record.metadata["house"] for record in dataset.records}
    assert houses == {"noto": "google", "noto-v1": "google", "twemoji": "twitter", "openmoji": "openmoji"}
    with pytest.raises(DataError, match="across_houses"):
        read_source("emoji", protocol="across")


def test_read_emoji_attributes_every_set(cached: Path) -> None:
    text = read_emoji().license
    for one in SETS:
        assert one.name in text
        assert one.license in text


def test_find_candidates_needs_enough_sets() -> None:
    packages = build_packages({"apple": "a", "brie": "b"})
    del packages["openmoji"]["icons"]["brie"]
    drawings = find_candidates(packages)
    assert [(drawing.name, drawing.set_name) for drawing in drawings] == [("apple", one) for one in SET_NAMES[:4]]


def test_find_candidates_leaves_out_hidden_ones_and_skin_tones() -> None:
    packages = build_packages({"apple": "a", "brie": "b", "hand-dark-skin-tone": "c", "hand-tone5": "d"})
    packages["noto"]["icons"]["brie"]["hidden"] = True
    assert list_names(find_candidates(packages)) == ["apple"]


def test_find_candidates_follows_aliases_and_draws_their_mirroring() -> None:
    packages = build_packages({"left": "l"})
    for package in packages.values():
        package["aliases"] = {"right": {"parent": "left", "hFlip": True}, "starboard": {"parent": "right"}}
    drawings = {(drawing.name, drawing.set_name): drawing.svg for drawing in find_candidates(packages)}
    assert "scale(-1 1)" in drawings["right", "noto"]
    # An alias of an alias draws the same picture: drop_duplicates leaves one of the two.
    assert drawings["starboard", "noto"] == drawings["right", "noto"]


def test_drop_duplicates_keeps_the_name_that_most_sets_draw() -> None:
    packages = build_packages({"apple": "same", "red-apple": "same"}, SET_NAMES)
    del packages["fxemoji"]["icons"]["apple"]  # red-apple is drawn by more sets
    candidates = find_candidates(packages)
    drawings = drop_duplicates(candidates, [drawing.svg for drawing in candidates])
    assert list_names(drawings) == ["red-apple"]
    assert len({drawing.svg for drawing in drawings}) == len(drawings) == len(SET_NAMES)


def test_drop_duplicates_leaves_out_a_name_with_too_few_drawings_left() -> None:
    candidates = find_candidates(build_packages({"apple": "a", "brie": "b"}))
    digests = [drawing.svg for drawing in candidates]
    digests[-1] = digests[0]  # brie's last drawing is apple's first: brie has three of its own
    assert list_names(drop_duplicates(candidates, digests)) == ["apple"]


def test_read_emoji_without_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="no npm command"):
        read_emoji(show_progress=False)


REFUSED = """npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to http://127.0.0.1:9/@iconify-json%2fnoto failed, reason: connect ECONNREFUSED
npm error     at ClientRequest.emit (node:events:524:28)
npm error A complete log of this run can be found in: /root/.npm/_logs/debug-0.log
"""
"""What npm 11 prints where nothing listens at the registry's address."""


def test_read_emoji_without_network_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=REFUSED)

    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji.shutil, "which", lambda name: name)
    monkeypatch.setattr(emoji.subprocess, "run", fail)
    with pytest.raises(
        DataError, match=r"could not fetch @iconify-json/noto@\S+ and 9 more packages: FetchError: .*REFUSED\."
    ):
        read_emoji(show_progress=False)
    assert not (tmp_path / CACHE_NAME / "drawings.json").exists()


def test_packages_are_fetched_in_one_call_and_belong_to_their_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pack(command: list[str], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        names = []
        for one in SETS:
            names.append(f"iconify-json-{one.name}-{one.version}.tgz")
            content = json.dumps({"icons": {one.name: {"body": ""}}}).encode()
            with tarfile.open(cwd / names[-1], "w:gz") as archive:
                header = tarfile.TarInfo("package/icons.json")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, stdout="\n".join(names) + "\n", stderr="")

    monkeypatch.setattr(emoji.shutil, "which", lambda name: name)
    monkeypatch.setattr(emoji.subprocess, "run", pack)
    packages = emoji._fetch_packages(tmp_path, show_progress=False)
    assert {name: list(package["icons"]) for name, package in packages.items()} == {
        one.name: [one.name] for one in SETS
    }
    (command,) = calls
    assert command[-len(SETS) :] == [f"@iconify-json/{one.name}@{one.version}" for one in SETS]


def test_rasterise_draws_on_white(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    from vitrieve.data.decode import decode_image

    (tmp_path / "noto").mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path fill="red" d="M0 0h1v2H0z"/></svg>'
    emoji._rasterise(Drawing("half", "noto", svg), tmp_path)
    image = decode_image((tmp_path / "noto" / "half.png").read_bytes())
    assert image.size == (emoji.IMAGE_SIZE, emoji.IMAGE_SIZE)
    assert (image.getpixel((10, 10)), image.getpixel((250, 10))) == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("num_cores", [1, 2])
def test_drawings_are_the_same_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_cores: int
) -> None:
    resvg = pytest.importorskip("resvg_py", reason="needs vitrieve[emoji]")
    monkeypatch.setattr(emoji, "count_cores", lambda: num_cores)
    drawings = [
        Drawing(
            f"n{number}",
            "noto",
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h{number}v9z"/></svg>',
        )
        for number in range(1, 6)
    ]
    digests = emoji._rasterise_all(drawings, tmp_path, False)
    for drawing, digest in zip(drawings, digests, strict=True):
        png = bytes(resvg.svg_to_bytes(svg_string=drawing.svg, width=256, height=256, background="white"))
        assert (tmp_path / "noto" / f"{drawing.name}.png").read_bytes() == png
        assert hashlib.sha256(png).hexdigest() == digest
