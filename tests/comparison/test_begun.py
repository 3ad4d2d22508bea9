"""A folder has its results whatever its spelling, and nothing that is left out of a page is left out without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.comparison.begun import ResultKey, choose_spellings, describe_unnamed


def test_spellings_of_one_source_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    spellings = ["photos/", "photos", "folder:photos", "./photos", f"{tmp_path}/photos", "folder:link", "x/../photos"]
    assert choose_spellings(spellings, []) == ("photos/",)
    others = ["emoji", "hf:photos", "photos", "shards:https://example.org/a/", "shards:https://example.org/a", "emoji"]
    assert choose_spellings(others, []) == (*others[:4],)


def test_the_spelling_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = [ResultKey("folder:photos", "frozen", 0), ResultKey("folder:photos", "small", 0)]
    for given in ("photos/", "./photos", "folder:photos"):
        assert choose_spellings([given, "others", "emoji"], results) == ("folder:photos", "others", "emoji")
    # Where a contest has results of both, because an older vitrieve made them, each call has what it names.
    results.append(ResultKey("photos", "small", 0))
    assert choose_spellings(["photos"], results) == ("photos",)
    assert choose_spellings(["folder:photos"], results) == ("folder:photos",)


def test_results_that_are_not_named_are_told() -> None:
    results = [ResultKey(data, method, seed) for data in "ab" for method in ("frozen", "x", "y") for seed in range(2)]
    assert describe_unnamed(results, results) == describe_unnamed([], results) == ""
    named = [key for key in results if key.data == "a" and key.method != "y" and key.seed == 0]
    told = "the page leaves out 10 results that this call does not name (data b, method y, seed 1); name them again"
    assert describe_unnamed(results, named).startswith(told)
