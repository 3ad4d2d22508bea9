from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image, ImageFile

from vitrieve.data import decode
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.data.records import ImageRecord
from vitrieve.syncing.read import TEXT_COLUMN, read_file
from vitrieve.syncing.state import sign_file


@pytest.fixture
def record(tmp_path: Path) -> ImageRecord:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "a.jpg")
    return ImageRecord(image_id="a.jpg", path=tmp_path / "a.jpg", label=0, split="test")


def test_missing_end_is_noted_and_the_picture_is_used(record: ImageRecord) -> None:
    preprocessing = build_preprocessing(8)
    whole = read_file(record, preprocessing, lambda _: None)
    record.path.write_bytes(record.path.read_bytes()[:-2])
    cut = read_file(record, preprocessing, lambda _: None)
    assert "note" not in whole.state.metadata
    assert cut.state.metadata["note"] == decode.MISSING_END
    assert cut.state.reason is None
    assert whole.square is not None
    assert cut.square is not None
    assert (whole.square == cut.square).all()


def test_state_is_of_the_file_that_was_read_wherever_its_path_leads_before_and_after(
    record: ImageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of one file with the content of another would stay for ever: neither changes any more."""
    Image.new("RGB", (30, 10), (0, 200, 0)).save(tmp_path / "b.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    link = replace(record, path=tmp_path / "link.jpg")
    os_open = os.open

    def open_elsewhere(path: Path, flags: int) -> int:
        link.path.unlink()
        link.path.symlink_to(tmp_path / "b.jpg")
        descriptor = os_open(path, flags)
        link.path.unlink()
        link.path.symlink_to(tmp_path / "a.jpg")
        return descriptor

    monkeypatch.setattr(decode.os, "open", open_elsewhere)
    state = read_file(link, build_preprocessing(8), lambda _: None).state
    assert state.sha256 == hashlib.sha256((tmp_path / "b.jpg").read_bytes()).hexdigest()
    assert state.signature == sign_file((tmp_path / "b.jpg").stat())


def test_file_that_changes_while_it_is_read_is_told(record: ImageRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decode.read_open_file

    def read_and_change(file: BinaryIO) -> bytes:
        data = read(file)
        record.path.write_bytes(data + b"more")
        return data

    monkeypatch.setattr("vitrieve.syncing.read.read_open_file", read_and_change)
    assert read_file(record, build_preprocessing(8), lambda _: None).is_undecided


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_file_is_opened_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / f"a.{suffix}")
    opened: list[bytes] = []
    loaded: list[Image.Image] = []
    open_header, load_prepare = decode._open_header, ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(decode, "_open_header", lambda data: opened.append(data) or open_header(data))
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", lambda one: loaded.append(one) or load_prepare(one))
    record = ImageRecord(image_id="a", path=tmp_path / f"a.{suffix}", label=0, split="test")
    read = read_file(record, build_preprocessing(8), lambda _: None)
    assert read.state.metadata["width_px"] == "20"
    assert len(opened) == len(loaded) == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("bad allocation")])
def test_text_that_could_not_be_read_is_not_known_to_be_none(
    record: ImageRecord, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(picture: Image.Image) -> str:
        raise error

    read = read_file(record, build_preprocessing(8), lambda _: None, fail)
    assert read.square is not None
    assert (read.is_undecided, read.state.reason) == (False, None)
    assert TEXT_COLUMN not in read.state.metadata
    assert "no text was read in a.jpg; the next sync tries again: " in capsys.readouterr().err
    again = read_file(record, build_preprocessing(8), lambda _: read.state, lambda picture: "milk")
    assert again.state.metadata[TEXT_COLUMN] == "milk"


@pytest.mark.parametrize("function", ["vitrieve.data.decode._load", "vitrieve.syncing.read.read_open_file"])
def test_shortage_of_memory_is_not_remembered_as_a_bad_picture(
    record: ImageRecord, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def run_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(function, run_out)
    content = read_file(record, build_preprocessing(8), lambda _: None)
    assert content.is_undecided
    assert content.state.reason == "the memory did not suffice to decode it; the next sync tries again"
