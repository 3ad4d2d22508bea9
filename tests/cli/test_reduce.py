from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve.cli.main import main
from vitrieve.runtime.encoder import load_encoder

pytest.importorskip("torch", reason="reducing needs vitrieve[train]")


def write_manifest_file(folder: Path, splits: list[str]) -> Path:
    """Write noisy pictures of classes of two, each class with its split; return the source's file."""
    generator = np.random.default_rng(0)
    lines = ["path,label,split"]
    for label, split in enumerate(splits):
        color = generator.integers(0, 200, 3)
        for copy in range(2):
            pixels = (color + generator.integers(0, 56, (36, 36, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}_{copy}.png")
            lines.append(f"{label}_{copy}.png,class{label},{split}")
    path = folder / "images.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return f"table:{write_manifest_file(folder, ['train'] * 6 + ['test'] * 3)}"


def reduce(encoder: Path, source: str, out: Path, *flags: str) -> int:
    words = ["reduce", "--encoder", str(encoder), "--data", source, "--embedding-dim", "4", "--out", str(out), "--json"]
    return main([*words, *flags])


@pytest.mark.parametrize(
    ("flags", "kind", "num_pairs", "on_card"),
    [
        ((), "pca", 0, "PCA fitted on training images of"),
        (("--whiten",), "pca_whitening", 0, "PCA with whitening fitted on training images of"),
        (("--supervised",), "supervised_whitening", 6, "supervised whitening fitted on training images of"),
    ],
)
def test_reduce_writes_an_encoder_that_names_its_set(
    tiny_encoder_folder: Path,
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    kind: str,
    num_pairs: int,
    on_card: str,
) -> None:
    out = tmp_path / "reduced"
    assert reduce(tiny_encoder_folder, source, out, *flags) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["num_images"], printed["num_pairs"]) == (kind, 12, num_pairs)
    assert on_card in (out / "README.md").read_text()
    spec: dict[str, Any] = json.loads((out / "encoder.json").read_text())
    assert spec["reduction"].startswith("training images of ")
    assert spec["reduction_kind"] == kind
    encoder = load_encoder(out, engine="torch")
    assert encoder.fingerprint == printed["fingerprint"] != load_encoder(tiny_encoder_folder).fingerprint
    assert encoder.encode([Image.new("RGB", (40, 40), "red")]).shape == (1, 4)


def test_trap_reduce_never_sees_the_test_images(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reduce(tiny_encoder_folder, source, tmp_path / "one") == 0
    fingerprint = json.loads(capsys.readouterr().out)["fingerprint"]
    folder = Path(source.partition(":")[2]).parent
    for path in folder.glob("[678]_*.png"):  # other test images
        Image.new("RGB", (36, 36), "blue").save(path)
    assert reduce(tiny_encoder_folder, source, tmp_path / "two") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == fingerprint
    Image.new("RGB", (36, 36), "blue").save(folder / "0_0.png")  # another training image
    assert reduce(tiny_encoder_folder, source, tmp_path / "three") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] != fingerprint


def test_trap_reduce_refuses_a_set_of_test_images_only(
    tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_manifest_file(tmp_path, ["test"] * 4)
    assert reduce(tiny_encoder_folder, f"table:{path}", tmp_path / "out") == 2
    assert "has no training images (it has: test), and a reduction is never fitted on test" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reduce_leaves_out_what_is_excluded(
    tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reduce(tiny_encoder_folder, f"folder:{class_folder}", tmp_path / "out", "--exclude", "0.png") == 0
    printed = capsys.readouterr()
    assert "left out: 5 excluded" in printed.err
    assert json.loads(printed.out)["num_images"] == 12


def test_reduce_refuses_before_it_touches_out(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert reduce(tiny_encoder_folder, source, out, "--whiten", "--supervised") == 2
    assert "two ways to whiten" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, out, "--embedding-dim", "12") == 2
    assert "expected at most 11" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, tiny_encoder_folder, "--overwrite") == 2
    assert "holds the encoder itself" in capsys.readouterr().err
    assert not out.exists()
    assert reduce(tiny_encoder_folder, source, out) == 0
    assert reduce(out, source, tmp_path / "twice") == 2
    assert "has a reduction already, fitted on training images of" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, out) == 2
    assert "--overwrite" in capsys.readouterr().err
