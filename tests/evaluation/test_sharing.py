"""Encoders that are sent to the hub and fetched again, against a server on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.model.conftest import empty_hub as empty_hub
from tests.model.hub_server import Hub, Repository
from tests.text_encoders import LICENSE
from vitrieve import load_encoder, push_encoder, train
from vitrieve.cli.main import main
from vitrieve.errors import ArtifactError, ConfigError, VitrieveError, WeightsError
from vitrieve.evaluation.sharing import OWN_NAMES, draw_results
from vitrieve.model.encoder import read_encoder, save_encoder
from vitrieve.model.tensors import hash_file

NAME = "owner/photos"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""The hub's client sends large files in a way that its HTTP library calls old."""


@pytest.fixture
def hub(empty_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that takes files from whoever has its token, without the client's other protocol."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setenv("HF_TOKEN", empty_hub.token)
    return empty_hub


@pytest.fixture(scope="module")
def run(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    pytest.importorskip("torch", reason="training needs vitrieve[train]")
    folder = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    for number in range(10):
        (folder / "photographs" / f"class{number}").mkdir(parents=True)
        for copy in range(3):
            pixels = (generator.integers(0, 200, 3) + generator.integers(0, 56, (40, 40, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photographs" / f"class{number}" / f"{copy}.png")
    model = {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32}
    out = folder / "run"
    train(folder / "photographs", "small", out, num_steps=2, batch_size=6, holdout=False, num_threads=1, model=model)
    return out


def read_card(hub: Hub) -> ModelCard:
    return ModelCard(hub.repositories[NAME].files["README.md"].decode())


def test_what_is_pushed_is_pulled_again(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    with load_encoder(run, engine="onnx") as encoder:
        expected = encoder.encode_squares(picture)
    assert main(["push", str(run), NAME, "--license", "mit", "--json"]) == 0
    sent = capsys.readouterr()
    pushed = json.loads(sent.out)
    assert pushed["name"] == f"hf:{NAME}@{hub.repositories[NAME].commit}"
    assert hub.token not in sent.out + sent.err
    assert set(pushed["files"]) == set(hub.repositories[NAME].files)
    assert set(pushed["files"]) <= set(OWN_NAMES)
    assert not hub.repositories[NAME].is_private
    with load_encoder(f"hf:{NAME}", engine="onnx") as encoder:
        assert encoder.fingerprint == pushed["fingerprint"]
        np.testing.assert_array_equal(encoder.encode_squares(picture), expected)
    assert main(["pull", NAME, "--out", str(tmp_path / "mine")]) == 0
    assert f"copied to {tmp_path / 'mine'}" in capsys.readouterr().out
    assert load_encoder(tmp_path / "mine", engine="onnx").fingerprint == pushed["fingerprint"]
    assert not (tmp_path / "mine" / ".partial").exists()
    num_requests = len(hub.requests)
    assert main(["pull", NAME, "--out", str(tmp_path / "mine")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(hub.requests) == num_requests, "refused before anything is asked for"


def test_the_card_passes_the_checks_and_has_the_figures_of_the_report(hub: Hub, run: Path) -> None:
    push_encoder(run, NAME, license="mit")
    assert ("POST", "/api/validate-yaml", "") in hub.requests  # by create_commit, before anything is sent
    card = read_card(hub)
    card.validate()
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("vitrieve", "mit", "image-feature-extraction")
    tuned = json.loads((run / "report" / "results.json").read_text())["results"][-1]
    figures = {one.metric_type: one for one in data.eval_results}
    assert set(figures) == set(tuned["intervals"])
    for metric, one in figures.items():
        assert one.metric_value == pytest.approx(100 * tuned[metric], abs=0.005)
        assert one.metric_args["interval_95"] == pytest.approx(
            [100 * end for end in tuned["intervals"][metric]], abs=0.005
        )
        assert (one.dataset_name, one.dataset_config) == (tuned["dataset"], tuned["protocol"])
        assert one.dataset_args["num_queries"] == tuned["num_queries"]
    assert f'load_encoder("hf:{NAME}")' in card.text
    assert f"vitrieve pull {NAME}" in card.text
    assert 'pip install ".[hub,serve]"' in card.text  # a pull needs the one, and up the other
    assert "](results.png)" in card.text
    assert "FOLDER" not in card.text
    assert data.base_model is None, "weights of a file are not known to be a repository's"


def test_nothing_that_is_sent_tells_where_files_lie_here(hub: Hub, run: Path) -> None:
    push_encoder(run, NAME)
    for name, content in hub.repositories[NAME].files.items():
        assert str(run.parent.parent).encode() not in content, name


def test_a_dry_run_writes_everything_and_sends_nothing(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run), NAME, "--license", "mit", "--dry-run", str(tmp_path / "dry")]) == 0
    shown = capsys.readouterr().out
    assert hub.requests == []
    assert "model-index:" in shown
    assert "nothing was sent" in shown
    assert load_encoder(tmp_path / "dry").fingerprint == load_encoder(run).fingerprint
    assert {path.name for path in (tmp_path / "dry").iterdir()} <= set(OWN_NAMES)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    push_encoder(run, NAME, license="mit")
    assert hub.repositories[NAME].files == {path.name: path.read_bytes() for path in (tmp_path / "dry").iterdir()}


def test_a_repository_with_files_is_kept_unless_told_otherwise(hub: Hub, run: Path) -> None:
    hub.repositories[NAME] = Repository(files={"notes.txt": b"mine", "int8.xml": b"of an earlier push"})
    with pytest.raises(WeightsError, match=r"holds files; pass --overwrite"):
        push_encoder(run, NAME)
    assert set(hub.repositories[NAME].files) == {"notes.txt", "int8.xml"}
    with pytest.raises(WeightsError, match="already and public"):
        push_encoder(run, NAME, overwrite=True, private=True)
    push_encoder(run, NAME, overwrite=True)
    assert hub.repositories[NAME].files["notes.txt"] == b"mine"
    assert "int8.xml" not in hub.repositories[NAME].files


def test_a_push_that_broke_off_goes_on(hub: Hub, run: Path) -> None:
    hub.refusals = {"/commit/main": 400}
    with pytest.raises(WeightsError, match=f"{NAME} was not sent"):
        push_encoder(run, NAME, private=True)
    assert hub.repositories[NAME].files == {}
    hub.refusals = {}
    push_encoder(run, NAME, private=True)
    assert hub.repositories[NAME].is_private
    sent = [path for method, path, _ in hub.requests if method == "PUT"]
    assert len(sent) == len(set(sent)), "what the hub has is not sent again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": None}, "there is no token of the hub: set HF_TOKEN"),
        ({"token": "hf_wrong"}, "the hub does not know the token"),
        ({"refusals": {"/api/repos/create": 403}}, "the token may not write there"),
        ({"is_down": True}, f"{NAME} was not sent: .*Check the network"),
        ({"offline": True}, "HF_HUB_OFFLINE says not to ask it"),
        ({"license": "proprietary"}, None),
    ],
)
def test_what_goes_wrong_is_said_in_one_message(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str | None
) -> None:
    if "token" in change:
        monkeypatch.setenv("HF_TOKEN", change["token"] or "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", change.get("offline", False))
    hub.refusals, hub.is_down = change.get("refusals", {}), change.get("is_down", False)
    if message is None:  # a license that the hub does not know has a name
        push_encoder(run, NAME, license=change["license"])
        assert (read_card(hub).data.license, read_card(hub).data.license_name) == ("other", "proprietary")
        return
    with pytest.raises(WeightsError, match=message) as caught:
        push_encoder(run, NAME)
    assert "hf_" not in str(caught.value)
    assert NAME not in hub.repositories


def test_wrong_names_and_unfinished_runs_are_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no name of a repository"):
        push_encoder(run, "photos")
    with pytest.raises(ConfigError, match="names a revision"):
        push_encoder(run, f"{NAME}@v1")
    with pytest.raises(ConfigError, match="is no license of the hub"):
        push_encoder(run, NAME, license="mit\nlicense: other")
    with pytest.raises(ArtifactError, match="neither a finished run"):
        push_encoder(tmp_path, NAME)
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "manifest.json").unlink()
    (half / ".partial").touch()
    with pytest.raises(ArtifactError, match="not finished"):
        push_encoder(half, NAME)
    assert hub.requests == []


def test_the_card_of_an_encoder_without_a_graph_asks_for_torch(
    hub: Hub, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    weights_alone = tmp_path / "weights_alone"
    save_encoder(read_encoder(tiny_encoder_folder), weights_alone)
    assert 'pip install ".[hub,serve,train]"' in push_encoder(weights_alone, NAME).card


def test_an_encoder_without_a_run_has_a_card_without_figures(hub: Hub, tiny_encoder_folder: Path) -> None:
    push_encoder(tiny_encoder_folder, NAME)
    assert read_card(hub).data.eval_results is None
    assert "results.png" not in hub.repositories[NAME].files


def test_the_text_part_is_sent_and_fetched(hub: Hub, aligned_folder: Path, tmp_path: Path) -> None:
    pushed = push_encoder(aligned_folder, NAME, license="mit")
    sent = hub.repositories[NAME].files
    assert {name for name in pushed.files if name.startswith("text/")} == {
        f"text/{path.name}" for path in (aligned_folder / "text").iterdir()
    }
    assert set(pushed.files) == set(sent)
    assert 'pip install ".[hub,serve,words]"' in pushed.card
    card = read_card(hub)
    assert card.data.license == "mit", "that of the image weights"
    name = json.loads((aligned_folder / "text" / "text.json").read_text())["name"]
    assert f"The folder `text` holds the text encoder {name}. Its license is {LICENSE}." in card.text
    assert not any(str(tmp_path.parent).encode() in content for content in sent.values())
    with load_encoder(aligned_folder, engine="onnx") as ours, load_encoder(f"hf:{NAME}", engine="onnx") as theirs:
        np.testing.assert_array_equal(theirs.encode_text("dark blue"), ours.encode_text("dark blue"))
    assert main(["pull", NAME, "--out", str(tmp_path / "mine")]) == 0
    with load_encoder(aligned_folder) as ours, load_encoder(tmp_path / "mine") as theirs:
        np.testing.assert_array_equal(theirs.encode_text("red"), ours.encode_text("red"))
    alone = tmp_path / "alone"
    shutil.copytree(aligned_folder, alone, ignore=shutil.ignore_patterns("text"))
    push_encoder(alone, NAME, license="mit", overwrite=True)
    assert not [name for name in hub.repositories[NAME].files if name.startswith("text/")], "what is stale is removed"


@pytest.mark.parametrize(
    ("license", "said", "is_told"),
    [
        (None, "", True),
        (None, "Its license is unknown.", True),
        (None, "Its license is mit.", False),
        (None, "Text encoder: MIT Licence.", False),
        (None, "\n## License\n\nThe images: mit.", True),
        (None, "Its license is mit.\n\n## Use\n\nAs you like.", False),
        (LICENSE, "", False),
    ],
)
def test_a_text_encoder_whose_license_nobody_knows_is_told(
    license: str | None,
    said: str,
    is_told: bool,
    aligned_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(aligned_folder, folder)
    spec = json.loads((folder / "text" / "text.json").read_text())
    del spec["license"]  # as before licenses were kept
    (folder / "text" / "text.json").write_text(json.dumps(spec if license is None else {**spec, "license": license}))
    manifest = json.loads((folder / "text" / "manifest.json").read_text())
    manifest["sha256"]["text.json"] = hash_file(folder / "text" / "text.json")
    (folder / "text" / "manifest.json").write_text(json.dumps(manifest))
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace(f"Its license is {LICENSE}.", said))
    push_encoder(folder, NAME, license="mit", dry_run=tmp_path / "written")
    told = f"the license of the text encoder {spec['name']} is not known: name it in {folder / 'README.md'}"
    assert (told in capsys.readouterr().err) is is_told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text/text.onnx": b"another"}, "is missing, or is not the file"),
        ({"text/map.safetensors": None}, "is missing, or is not the file"),
        ({"text/text.json": b" " * ((1 << 20) + 1)}, "at most 1,048,576 are read"),
    ],
)
def test_a_text_part_that_was_changed_is_refused(
    hub: Hub, aligned_folder: Path, change: dict[str, bytes | None], message: str
) -> None:
    push_encoder(aligned_folder, NAME, license="mit")
    files = hub.repositories[NAME].files
    for name, content in change.items():
        if content is None:
            del files[name]
        else:
            files[name] = content
    with pytest.raises(VitrieveError, match=message):
        load_encoder(f"hf:{NAME}", engine="onnx")
    assert not list((hub_cache() / "hub").rglob("encoder.json")), "nothing half made is kept"


def hub_cache() -> Path:
    from vitrieve.machine import cache_folder

    return cache_folder()


def test_the_picture_has_dots_where_the_figures_are(run: Path) -> None:
    results = json.loads((run / "report" / "results.json").read_text())["results"]
    moved = [{**one, **{name: 0.5 for name in one["intervals"]}} for one in results[1:]]
    picture = draw_results(results[:1], moved)
    pixels = np.asarray(picture)
    green = np.argwhere((pixels == (0, 121, 107)).all(axis=2))
    assert picture.width == 960
    assert len(green)
    middle = 180 + 0.5 * (960 - 180 - 110)
    assert (np.abs(green[:, 1] - middle) <= 5).any()
