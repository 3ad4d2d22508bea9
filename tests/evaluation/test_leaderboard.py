"""mteb's figures of an encoder on a small task are those of a plain double loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pretend_cuda import pretend_cuda
from vitrieve import ConfigError, MtebEncoder, load_encoder

SCRIPT = Path(__file__).with_name("mteb_task.py")
needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="needs mteb[image]; it is no extra of vitrieve")


def run_mteb(encoder: Path, pictures: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "MTEB_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(encoder), str(pictures), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def write_pictures(folder: Path) -> list[Path]:
    """Write five classes of four pictures that are hard to tell apart."""
    generator = np.random.default_rng(0)
    for label in range(5):
        (folder / f"class{label}").mkdir(parents=True)
        shape = generator.normal(128, 20, (4, 4, 3))
        for copy in range(4):
            blocks = (shape + generator.normal(0, 30, (4, 4, 3))).clip(0, 255).astype(np.uint8)
            picture = Image.fromarray(blocks).resize((40, 40), Image.Resampling.NEAREST)
            picture.save(folder / f"class{label}" / f"{copy}.png")
    return sorted(folder.rglob("*.png"))


@needs_mteb
@pytest.mark.parametrize("skips", [True, False])
def test_mteb_measures_what_a_double_loop_measures(tiny_encoder_folder: Path, tmp_path: Path, skips: bool) -> None:
    """As CUB-200 and SOP are measured, where each picture asks for the others, and as Oxford and Paris."""
    paths = write_pictures(tmp_path / "pictures")
    found = run_mteb(tiny_encoder_folder, tmp_path / "pictures", tmp_path, "skip" if skips else "keep")
    with load_encoder(tiny_encoder_folder, engine="torch", precision="fp32", device="cpu") as encoder:
        vectors = encoder.encode(paths).astype(np.float64)
    hits, precisions = 0, []
    for row, path in enumerate(paths):
        order = np.argsort(-(vectors @ vectors[row]), kind="stable")
        ranked = [other for other in order if not (skips and other == row)]
        are_relevant = [paths[other].parent == path.parent for other in ranked[:5]]
        hits += are_relevant[0]
        num_found, total = 0, 0.0
        for rank, is_relevant in enumerate(are_relevant, start=1):
            num_found += is_relevant
            total += is_relevant * num_found / rank
        precisions.append(total / 4)  # of the four pictures of a class; mteb counts the query in both cases
    assert skips == (0.2 < hits / len(paths) < 0.95), "neither all nor none, but for the query itself"
    assert found["scores"]["hit_rate_at_1"] == pytest.approx(hits / len(paths), abs=1e-5)
    assert found["scores"]["map_at_5"] == pytest.approx(np.mean(precisions), abs=1e-5)
    assert found["name"] == f"vitrieve/{tiny_encoder_folder.name}"


@needs_mteb
def test_mteb_asks_in_words_where_the_encoder_reads_them(aligned_folder: Path, tmp_path: Path) -> None:
    """Folders are named as the queries, because mteb leaves out queries that nothing answers."""
    colors = {"red": (200, 30, 30), "dark blue": (20, 20, 120), "green": (30, 160, 40)}
    for name, color in colors.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for copy in range(2):
            pixels = np.random.default_rng(copy).integers(0, 40, (40, 40, 3)) + color
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{copy}.png")
    found = run_mteb(aligned_folder, tmp_path / "pictures", tmp_path, "keep", *colors)
    paths = sorted((tmp_path / "pictures").rglob("*.png"))
    with load_encoder(aligned_folder, engine="torch", precision="fp32", device="cpu") as encoder:
        vectors = encoder.encode(paths)
        asked = {name: encoder.encode_text(name).ravel() for name in colors}
    hits = [paths[int(np.argmax(vectors @ asked[name]))].parent.name == name for name in colors]
    assert any(hits), "chance is not what is compared"
    assert found["scores"]["hit_rate_at_1"] == pytest.approx(np.mean(hits), abs=1e-5)


def test_batches_are_encoded_in_order(tiny_encoder_folder: Path, class_folder: Path) -> None:
    paths = sorted(class_folder.rglob("*.png"))[:5]
    model = MtebEncoder(str(tiny_encoder_folder), device="cpu:0", engine="onnx", num_threads=1)
    found = model.encode([{"image": paths[:3]}, {"image": paths[3:]}], show_progress_bar=False)
    np.testing.assert_allclose(found, model.encoder.encode(paths), atol=1e-6)
    assert model.encode([]).shape == (0, model.encoder.embedding_dim)
    np.testing.assert_allclose(np.diag(model.similarity(found, found)), 1, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(found, found[::-1]), (found * found[::-1]).sum(1), atol=1e-6)
    assert MtebEncoder(model.encoder).encoder is model.encoder
    with pytest.raises(ConfigError, match="of a picture with a text"):
        model.encode([{"image": paths, "text": ["a"] * 5}])
    with pytest.raises(ConfigError, match="this task has audio"):
        model.encode([{"audio": [b""]}])
    with pytest.raises(ConfigError, match="has no text part"):
        model.encode([{"text": ["a"]}])


def test_settings_beside_a_loaded_encoder_are_refused(tiny_encoder_folder: Path) -> None:
    with load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1) as encoder:
        for settings, names in (
            ({"device": "cuda"}, "device"),
            ({"device": "cpu"}, "device"),
            ({"revision": "main"}, "revision"),
            ({"device": "cpu", "engine": "torch", "num_threads": None}, "device, engine, num_threads"),
        ):
            with pytest.raises(ConfigError, match=f"^{names}: nothing can be chosen for an encoder that is loaded"):
                MtebEncoder(encoder, **settings)


def test_what_cannot_be_is_refused(tiny_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no revisions"):
        MtebEncoder(str(tiny_encoder_folder), "main")
    for device in ("tpu", "cuda:", "cuda:one", "cpu:1", "auto:1"):
        with pytest.raises(ConfigError, match=f"device '{device}' is none"):
            MtebEncoder(str(tiny_encoder_folder), device=device)


class PretendedGpu:
    """What ``torch.cuda.device`` is: in the block, ``cuda`` means the GPU of that number."""

    current = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        self.before, PretendedGpu.current = PretendedGpu.current, self.number

    def __exit__(self, *_: object) -> None:
        PretendedGpu.current = self.before


def test_the_number_of_a_gpu_is_kept(tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reads ``cuda`` without a number as the GPU that is the current one."""
    moved: list[int] = []
    move = torch.nn.Module.to

    def note(module: torch.nn.Module, device: str) -> torch.nn.Module:
        moved.append(torch.device(device).index if ":" in device else PretendedGpu.current)
        return move(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", note)
    monkeypatch.setattr(torch.cuda, "device", PretendedGpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pretend_cuda():
        for device in ("cuda:2", "cuda", "cuda:1", "cuda:0"):
            assert MtebEncoder(str(tiny_encoder_folder), device=device).encoder.device == "cuda"
        with pytest.raises(ConfigError, match="device is cuda:3, but torch sees cuda:0 to cuda:2 here"):
            MtebEncoder(str(tiny_encoder_folder), device="cuda:3")
    assert moved == [2, 0, 1, 0]
    assert PretendedGpu.current == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_the_number_of_a_gpu_is_refused_where_there_is_none(tiny_encoder_folder: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        MtebEncoder(str(tiny_encoder_folder), device="cuda:1")
