from __future__ import annotations

import pytest

from vitrieve import progress


def test_track_yields_everything_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(iter("abc"), "spell", total=3)) == ["a", "b", "c"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("spell: 3/3, ")


def test_track_is_silent_when_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(2), "count", is_shown=False)) == [0, 1]
    assert capsys.readouterr().err == ""


def test_track_never_reports_more_than_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress.track(range(2), "embed", total=40, weight=32))
    assert "embed: 40/40" in capsys.readouterr().err


def test_track_reports_lines_while_it_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    list(progress.track(range(3), "embed", total=3))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "s left" in lines[0]


def test_track_without_total(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress.track(range(3), "embed"))
    assert capsys.readouterr().err.startswith("embed: 3, ")


def test_track_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track([], "embed", total=0)) == []
    assert capsys.readouterr().err.startswith("embed: 0/0")


def test_showing_counts_parts_of_units_up_to_the_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with progress.showing("compare", total=3) as advance:
        for units in (0.5, 0.5, 9):
            advance(units)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"compare: {done}/3" for done in (0, 1, 3, 3)]


def test_showing_nothing_or_what_fails_does_not_report_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.showing("compare", total=3, is_shown=False) as advance:
        advance(3)
    with pytest.raises(ValueError, match="no"), progress.showing("compare", total=3) as advance:
        raise ValueError("no")
    assert capsys.readouterr().err == ""


def test_track_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(3), "embed", total=3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""
