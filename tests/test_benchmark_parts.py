"""What each part of `make bench` asks for; nothing is measured here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("benchmark_scripts")


@pytest.mark.parametrize("has_bf16", [False, True])
def test_long_contests_among_ourselves_are_smaller_without_bf16(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = import_module("training")
    monkeypatch.setattr(training, "has_bf16", lambda: has_bf16)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(
        training, "measure_contest", lambda task, *_, image_size, **__: asked.append((task, image_size)) or []
    )
    training.measure_steps(is_quick=False)
    assert all(f" {image_size} px" in task for task, image_size in asked)
    assert [image_size for _, image_size in asked] == [224, 126, 126, *2 * [224 if has_bf16 else 112]]


def test_the_command_takes_turns_with_the_engine_and_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, contest = import_module("embedding"), import_module("contest")
    monkeypatch.setattr(embedding, "NUM_FILES", 1_000)
    monkeypatch.setattr(contest, "PAUSE_SECONDS", 0)
    turns: list[str] = []
    monkeypatch.setattr(embedding, "run_embed", lambda encoder, pictures: turns.append("command"))
    monkeypatch.setattr(embedding, "build_ours", lambda side, encoder, num: lambda: turns.append(f"engine {num}"))
    monkeypatch.setattr(embedding, "build_plain_loop", lambda paths: lambda: turns.append(f"loop {len(paths)}"))
    records = [SimpleNamespace(path=tmp_path / f"{number}.jpg") for number in range(700)]
    monkeypatch.setattr(embedding, "read_photographs", lambda: ("some", records))
    command, bare, loop = embedding.measure_command(tmp_path, False, tmp_path)
    assert turns == 4 * ["command", "engine 128", "loop 128"]
    assert "700 files" in command.task
    assert len(list((tmp_path / "pictures-224").iterdir())) == 700
    assert command.compare(bare).num_rounds == command.compare(loop).num_rounds == (3, 3)
    assert len(embedding.measure_command(tmp_path, True, tmp_path, 126)) == 2


def test_small_collections_are_ranked_beside_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = import_module("ranking")
    asked: dict[str, tuple[str, ...]] = {}
    monkeypatch.setattr(ranking, "compare", lambda task, name, sides, *_, **__: asked.update({name: sides}) or [])
    ranking.measure_small()
    assert asked == dict.fromkeys(
        [f"top 10, {size} x 384 against itself" for size in ("1,000", "3,000", "10,000")], (ranking.OURS, ranking.FAISS)
    )


def test_both_stores_answer_in_turn_and_the_goals_are_those_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = import_module("latency")
    monkeypatch.setattr(latency, "is_torch_imported", lambda words: False)
    folders = {latency.LANCE: tmp_path / "lance", latency.EXACT: tmp_path / "exact"}
    _, search, first = latency.list_tasks(tmp_path / "encoder", folders, tmp_path / "photograph.jpg", 100_000)
    assert {side: words[-1] for side, words in search.sides.items()} == {side: str(folders[side]) for side in folders}
    assert "1.5 s" in search.note
    assert "goal: 1 s" in first.note
    asked: list[tuple[str, float]] = []
    stores = {
        side: SimpleNamespace(search=lambda query, k, side=side: asked.append((side, query[0, 0]))) for side in folders
    }
    seconds = latency.time_queries(stores, [np.full(2, number) for number in range(20)])
    assert asked == [(side, number) for number in range(20) for side in folders]
    assert [len(times) for times in seconds.values()] == [18, 18]
