"""The script that measures the map: what it writes, and which memory it counts."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.mapping.test_collection_map import make_index

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = import_module("collection_map")
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script, "write_result", lambda path, result: path.write_text(json.dumps(result)))
    monkeypatch.setattr(script, "load_embeddings", lambda folder: SimpleNamespace(records=[1, 2]))
    monkeypatch.setattr(script, "compare", lambda embeddings, seed: [{"layout": "a", "seed": seed}])
    monkeypatch.setattr(script, "map_perturbed", lambda *_: {"num_images": 7})
    return script


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["collection_map.py", "--embeddings", "x", *words])
    script.main()
    (file,) = folder.glob("collection_map_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_part_of_the_day_replaces_no_other(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layouts = [{"layout": "a", "seed": 3}]
    assert run(script, monkeypatch, tmp_path, "--seeds", "3") == {"num_images": 2, "layouts": layouts}
    found = run(script, monkeypatch, tmp_path, "--perturbed", "7", "--skip-layouts")
    assert found == {"num_images": 2, "layouts": layouts, "perturbed": {"num_images": 7}}

    def fail(*_: object) -> None:
        raise RuntimeError("no browser")

    monkeypatch.setattr(script, "map_perturbed", fail)
    with pytest.raises(RuntimeError, match="no browser"):
        run(script, monkeypatch, tmp_path, "--perturbed", "7", "--seeds", "4")
    (file,) = tmp_path.glob("collection_map_*.json")
    assert json.loads(file.read_text()) == {**found, "layouts": [{"layout": "a", "seed": 4}]}


@pytest.mark.browser
def test_the_result_names_the_renderer_that_there_is(script: ModuleType, browser: Any) -> None:
    """Also where the page is told of a graphics card."""
    found = []
    for is_told in (False, True):
        with browser.new_context() as context:
            page = context.new_page()
            if is_told:
                page.add_init_script(script.PRETEND_CARD)
            page.goto('data:text/html,<div id="map-stage" data-frames="0"><canvas id="map-canvas"></canvas></div>')
            found.append(page.evaluate(script.ZOOM, 0.01)["webgl"])
            told = page.evaluate("document.createElement('canvas').getContext('webgl').getParameter(0x9246)")
            assert (told == "a card") is is_told
    assert found[0] == found[1] != "none"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_the_memory_of_a_map_is_not_that_of_making_its_vectors(script: ModuleType, tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", 60)
    script.map_measured(index)  # imports what a map needs
    before = script.restart_peak() + 200
    made = np.ones((400, 2**17))  # 400 MiB
    assert script.peak_mib() > before
    del made
    _, figures = script.map_measured(index)
    # Linux counts a process's pages in batches of each thread: the peak may lag behind by a few.
    assert figures["held_mib"] - 1 <= figures["peak_mib"] < before
