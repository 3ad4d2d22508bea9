"""A benchmark that is stopped keeps what it measured, and goes on; stubs stand in place of what is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class StoppedError(Exception):
    """Somebody stopped the script."""


class Meter:
    """Stands in for something long: notes every call, and is stopped at some of them."""

    def __init__(self, name: Callable[..., Any], result: Callable[..., Any]) -> None:
        self.name, self.result = name, result
        self.stops: set[Any] = set()
        self.done: list[Any] = []

    def __call__(self, *given: Any, **named: Any) -> Any:
        name = self.name(*given, **named)
        if name in self.stops:
            raise StoppedError(name)
        self.done.append(name)
        return self.result(*given, **named)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        script = import_module(name)
        monkeypatch.setattr(script, "write_result", lambda path, result: path.write_text(json.dumps(result)))
        return script

    return load


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
    script.main()


def test_the_demo_keeps_the_runs_that_are_done(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, out = load("demo"), tmp_path / "demo.json"
    meter = Meter(lambda checkout, venv: (checkout.name, len(meter.done)), lambda *_: {"all": 1.0})
    commits = {"new": "1", "old": "2"}
    monkeypatch.setattr(script, "run_demo", meter)
    monkeypatch.setattr(script, "find_commit", lambda checkout: commits[checkout.name])
    words = (tmp_path / "new", tmp_path / "old", "--out", out)
    meter.stops = {("new", 2)}
    with pytest.raises(StoppedError):
        run(script, monkeypatch, *words)
    assert [one["checkout"] for one in json.loads(out.read_text())["runs"]] == ["new", "old"]
    meter.stops = set()
    run(script, monkeypatch, *words)
    assert [name for name, _ in meter.done] == ["new", "old", "new", "old"]
    runs = [(one["checkout"], one["run"]) for one in json.loads(out.read_text())["runs"]]
    assert runs == [("new", 0), ("old", 0), ("new", 1), ("old", 1)]
    commits["new"] = "3"
    with pytest.raises(SystemExit, match=r"are of the commits .*: give another file"):
        run(script, monkeypatch, *words)


def test_text_to_image_keeps_the_parts_that_are_done(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script, out = load("text_to_image"), tmp_path / "words.json"
    measured = {name: {"name": 0.5} for name in ("vector alone", "words alone", "60, 1", "20, 2")}
    bridge = Meter(lambda collection, *_: collection.name, lambda *_: {"chance": [0.1]})
    fusion = Meter(lambda collection, _, seed: (collection.name, seed), lambda *_: dict.fromkeys(PARTS, measured))
    monkeypatch.setattr(script, "measure_bridge", bridge)
    monkeypatch.setattr(script, "run_fusion", fusion)
    monkeypatch.setattr(script, "find_collections", lambda: {"emoji": "emoji", "grocery": "grocery"})
    monkeypatch.setattr(script, "read", lambda name, _: [SimpleNamespace(name=name)])
    for name in ("TextEncoder", "export_text_encoder", "find_text_encoder"):
        monkeypatch.setattr(script, name, lambda *_, **__: None)
    words = ("--collections", "emoji", "grocery", "--seeds", "0", "1", "--json", out)
    for stop in (("emoji", 1), ("grocery", 0), None):
        fusion.stops = {stop}
        try:
            run(script, monkeypatch, *words)
        except StoppedError:
            assert stop is not None
        found = json.loads(out.read_text())
        assert list(found["bridge"]) == list(dict.fromkeys(bridge.done))
        assert list(found["fusion_runs"]) == [f"{name} {seed}" for name, seed in fusion.done]
    assert bridge.done == ["emoji", "grocery"]
    assert fusion.done == [(name, seed) for name in ("emoji", "grocery") for seed in (0, 1)]
    assert found["fusion"]["chosen"] == "60, 1"
    run(script, monkeypatch, *words[:-3], "2", "--json", out)
    assert bridge.done == ["emoji", "grocery"] * 2, "of other seeds it is measured anew"
    assert fusion.done[4:] == [("emoji", 2), ("grocery", 2)]
    monkeypatch.setattr(script, "IMAGE_SIZE", 1)
    with pytest.raises(SystemExit, match="give another file"):
        run(script, monkeypatch, *words)


PARTS = ("held_out", "test")


def test_clip_art_has_a_class_for_each_name_of_a_folder(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    script = load("text_to_image")
    for folder, count in (("food/fruit", 5), ("plants/fruit", 3), ("animals/big_cats", 9), ("few", 7)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"{number}.png").touch()
    dataset = script.read_clip_art(tmp_path)
    assert dataset.label_names == ("big cats", "fruit")
    splits = [(record.split, record.label) for record in dataset.records]
    assert splits == [("train", 0)] * 9 + [("test", 1)] * 8
    assert dataset.records[9].image_id == "food/fruit/0.png"
    with pytest.raises(SystemExit, match="openclipart-png"):
        script.read_clip_art(tmp_path / "few")


def test_reranking_learns_once_and_keeps_the_parts_that_are_done(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vitrieve.rerank.head import Head

    script = load("reranking")
    runner = SimpleNamespace(source="e", name="e", fingerprint="a" * 64, engine="onnx", precision="fp32")
    runner.preprocessing = SimpleNamespace(image_size=32)
    result = SimpleNamespace(to_json=lambda: {"intervals": {}})
    learn = Meter(lambda *_: "head", lambda *_: script.Reranker(name="elvis", summary="", score=None, head=head))
    head = Head(arrays={"weight": np.arange(3, dtype=np.float32)})
    report = Meter(lambda *_, learnt: "test", lambda *_, learnt: [Report("test", learnt)])
    choose = Meter(lambda *_, learnt, **__: "choose", lambda *_, learnt, **__: Report("choose", learnt))
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(script, "load_encoder", lambda *_, **__: runner)
    monkeypatch.setattr(script, "find_collections", lambda: {"emoji": "emoji"})
    monkeypatch.setattr(script, "read_source", lambda *_, **__: None)
    monkeypatch.setattr(script, "measure_protocols", lambda *_, **__: [SimpleNamespace(result=result)])
    monkeypatch.setattr(script, "learn_for_choice", learn)
    monkeypatch.setattr(script, "report_rerankings", report)
    monkeypatch.setattr(script, "choose_reranking", choose)
    for stopped in (report, choose, None):
        report.stops, choose.stops = ({"test"} if stopped is report else set()), set()
        choose.stops = {"choose"} if stopped is choose else set()
        try:
            run(script, monkeypatch, tmp_path / "out")
        except StoppedError:
            assert stopped is not None
    (file,) = (tmp_path / "results").glob("reranking_*.json")
    (figures,) = json.loads(file.read_text())["figures"]
    assert (figures["test"], figures["held_out"]) == ([0, 1, 2], [0, 1, 2])
    assert figures["text"] == "test\n\nchoose"
    assert (learn.done, report.done, choose.done) == (["head"], ["test"], ["choose"])
    runner.fingerprint = "b" * 64
    run(script, monkeypatch, tmp_path / "out")
    assert (len(learn.done), len(report.done), len(choose.done)) == (2, 2, 2), "of another encoder all is made anew"


class Report:
    """Stands in for a table of re-rankings; says which head it was made with."""

    def __init__(self, name: str, learnt: Any) -> None:
        self.name, self.learnt = name, learnt

    def to_json(self) -> list[int]:
        found: list[int] = self.learnt.head.arrays["weight"].astype(int).tolist()
        return found

    def __str__(self) -> str:
        return self.name
