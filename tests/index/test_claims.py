from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.artifacts import write_manifest as write_artifact_manifest
from vitrieve.errors import ArtifactError
from vitrieve.folders import find_aside
from vitrieve.index import claims as module
from vitrieve.index import open as opening
from vitrieve.index.claims import Claim, Claims, settle_abandoned, settling
from vitrieve.index.open import create_index
from vitrieve.index.store import IndexSettings, StoreInfo, StoreKind, describe

NAMES = [f"vitrieve_{number:032x}" for number in range(3)]


def make_claim(number: int = 0, folder: str = "") -> Claim:
    return Claim(kind="pgvector", uri="postgresql://host/d", name=NAMES[number], folder=folder)


class Releases(list[str]):
    """Names that were removed from a server."""

    def __call__(self, kind: StoreKind, uri: str, name: str) -> None:
        assert (kind, uri) == ("pgvector", "postgresql://host/d")
        self.append(name)


def write_manifest(index: Path, name: str) -> None:
    index.mkdir(exist_ok=True)
    (index / MANIFEST_NAME).write_text(json.dumps({"kind": "index", "table": name}))


def write_abandoned(index: Path, number: int = 0, folder: str = "") -> Path:
    path = index.parent / f".{index.name}.{NAMES[number]}.claim"
    path.write_text(json.dumps(asdict(make_claim(number, folder))))
    return path


def test_settling_keeps_what_the_manifest_names_and_removes_the_rest(tmp_path: Path) -> None:
    index, releases = tmp_path / "index", Releases()
    write_manifest(index, NAMES[0])
    with settling(index, releases) as claims:
        claims.add(make_claim(0))
        claims.add(make_claim(1))
        assert len(list(tmp_path.glob(".index.*.claim"))) == 2
        write_manifest(index, NAMES[1])
    assert releases == NAMES[:1]
    assert list(tmp_path.iterdir()) == [index]

    def fail() -> None:
        with settling(index, releases) as claims:
            claims.add(make_claim(2))
            raise ArtifactError("it fails")

    with pytest.raises(ArtifactError, match="it fails"):
        fail()
    assert releases == [NAMES[0], NAMES[2]]
    assert list(tmp_path.iterdir()) == [index]


def test_claims_of_a_living_process_are_left_to_it(tmp_path: Path) -> None:
    index, releases = tmp_path / "index", Releases()
    claims = Claims(index, releases)
    claims.add(make_claim())
    settle_abandoned(index, releases)
    assert releases == []
    assert len(list(tmp_path.iterdir())) == 1
    claims.settle()
    assert releases == NAMES[:1]


@pytest.mark.parametrize("name", ["a", "a.b", ".a", "a[b]*"])
def test_claims_of_other_indexes_are_left_to_them(name: str, tmp_path: Path) -> None:
    releases = Releases()
    path = write_abandoned(tmp_path / name)
    for other in ("b", "a.b.c", "a[", "", "a*"):
        settle_abandoned(tmp_path / other, releases)
    assert path.exists()
    settle_abandoned(tmp_path / name, releases)
    assert releases == NAMES[:1]
    assert not path.exists()


def test_nothing_is_removed_while_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    index, releases = tmp_path / "index", Releases()
    path = write_abandoned(index)
    index.mkdir()
    for text in ("{", "[]", "3"):
        (index / MANIFEST_NAME).write_text(text)
        settle_abandoned(index, releases)
        assert path.exists()
    (index / MANIFEST_NAME).rename(tmp_path / "elsewhere")
    aside = tmp_path / ".index.new.old"  # where two folders cannot change places in one step, the old one is here
    write_manifest(aside, NAMES[0])
    settle_abandoned(index, releases)
    assert releases == []
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"kind": "exact", "uri": "", "name": "vitrieve_", "folder": ""}']
)
def test_a_claim_that_was_not_written_whole_is_forgotten(text: str, tmp_path: Path) -> None:
    path = write_abandoned(tmp_path / "index")
    path.write_text(text)
    settle_abandoned(tmp_path / "index", Releases())
    assert not path.exists()


@pytest.mark.parametrize(("folder", "is_removed"), [(".index.new", True), (".index.12", True), ("photos", False)])
def test_only_a_folder_beside_the_index_goes_with_its_claim(folder: str, is_removed: bool, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    write_abandoned(tmp_path / "index", folder=folder)
    settle_abandoned(tmp_path / "index", Releases())
    assert (tmp_path / folder).exists() != is_removed


def test_a_claim_that_was_taken_for_abandoned_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may settle the file between its making and its locking."""
    index, releases = tmp_path / "index", Releases()
    lock, calls = module.wait_for_lock, []

    def slow(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            settle_abandoned(index, releases)
        lock(descriptor)

    monkeypatch.setattr(module, "wait_for_lock", slow)
    claims = Claims(index, releases)
    claims.add(make_claim())
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["name"] == NAMES[0]
    claims.settle()
    assert releases == NAMES[:1]


def test_claims_stand_in_a_folder_that_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, releases = tmp_path / "index", Releases()
    index.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == index)
    claims = Claims(index, releases)
    claims.add(make_claim())
    assert len(list(index.iterdir())) == 1
    for descriptor in claims._open.values():  # as the end of the process does
        os.close(descriptor)
    settle_abandoned(index, releases)
    assert releases == NAMES[:1]
    assert list(index.iterdir()) == []


def test_an_index_put_aside_hands_its_key_and_its_table_to_the_one_that_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process was killed between two renames: nothing is in the index's place, and the old one is aside."""
    info = StoreInfo(kind="pgvector", fingerprint="f", encoder_source="tiny", image_size=32, embedding_dim=8)
    index, releases = tmp_path / "index", Releases()
    aside = find_aside(index)
    aside.mkdir(parents=True)
    write_artifact_manifest(aside, "index", {**describe(info), "uri": "postgresql://host/d", "table": NAMES[0]})

    class Store:
        release = staticmethod(releases)

        @staticmethod
        def create(*arguments: object) -> None:
            claims = arguments[-1]
            assert isinstance(claims, Claims)
            assert claims.feedback_key == NAMES[0].removeprefix("vitrieve_")
            assert len(list(tmp_path.glob(f".index.{NAMES[0]}.claim"))) == 1
            raise ArtifactError("far enough")

    monkeypatch.setattr(opening, "_load_server_store", lambda _: Store)
    with pytest.raises(ArtifactError, match="far enough"):
        create_index(info, index, settings=IndexSettings(uri="postgresql://host/d"), overwrite=True)
    assert releases == []
