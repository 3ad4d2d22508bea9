from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vitrieve.artifacts import write_manifest
from vitrieve.cli.main import main
from vitrieve.config import DEFAULT_WEIGHTS, ModelConfig
from vitrieve.data.records import read_ids
from vitrieve.data.sources import read_source
from vitrieve.errors import ArtifactError
from vitrieve.evaluation.run import evaluate
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.model.seen import hash_names
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import normalize

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


def test_trap_reduce_of_a_head_is_refused_before_the_pictures_are_read(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has fewer dimensions than the backbone."""
    from vitrieve.model.encoder import build_encoder, save_encoder

    config = ModelConfig(backbone="test_vit", image_size=32, head_dim=3)
    save_encoder(build_encoder(config, is_pretrained=False, seed=0).eval(), tmp_path / "head")
    monkeypatch.setattr("vitrieve.training.reduction.find_readable", None)
    assert reduce(tmp_path / "head", source, tmp_path / "out") == 2
    assert "embedding_dim is 4; expected 1 to 3, for an encoder of 3 dimensions" in capsys.readouterr().err


def test_reduce_refuses_before_it_touches_out(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["reduce", "--encoder", str(tiny_encoder_folder), "--embedding-dim", "4", "--out", str(out)]
    assert main([*words, "--kind", "pca_whitening"]) == 2
    assert "pca_whitening is fitted on training images: name them with --data" in capsys.readouterr().err
    assert main([*words, "--kind", "prefix", "--embedding-dim", "64"]) == 2
    assert "expected 1 to 63 of the 64 that there are" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, out, "--embedding-dim", "12") == 2
    assert "expected 1 to 11" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, tiny_encoder_folder, "--overwrite") == 2
    assert "holds the encoder itself" in capsys.readouterr().err
    assert not out.exists()
    assert reduce(tiny_encoder_folder, source, out) == 0
    assert reduce(out, source, tmp_path / "twice") == 2
    assert "has a reduction already, fitted on training images of" in capsys.readouterr().err
    assert reduce(tiny_encoder_folder, source, out) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_occupied_folder_is_refused_before_the_pictures_are_read(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    import vitrieve

    (tmp_path / "occupied").mkdir()
    write_manifest(tmp_path / "occupied", "encoder", {})
    with pytest.raises(ArtifactError, match="holds a finished result"):
        vitrieve.reduce(tiny_encoder_folder, f"folder:{tmp_path / 'missing'}", 4, tmp_path / "occupied")


def test_reduce_tells_that_the_text_part_stays_behind(
    aligned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reduce", "--encoder", str(aligned_folder), "--kind", "prefix", "--embedding-dim", "8"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "the text part is left out" in capsys.readouterr().err
    assert load_encoder(tmp_path / "out").text_part is None


def test_reduce_says_nothing_of_the_training_where_a_pca_has_ordered_the_dimensions(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reduce(tiny_encoder_folder, source, tmp_path / "pca") == 0
    for given, out in (("pca", "cut"), ("cut", "shorter")):
        capsys.readouterr()
        words = ["reduce", "--encoder", str(tmp_path / given), "--kind", "prefix", "--out", str(tmp_path / out)]
        assert main([*words, "--embedding-dim", "2" if out == "cut" else "1"]) == 0
        told = capsys.readouterr().err
        assert "kind pca" not in told
        assert "prefixes" not in told


def test_reduce_cuts_to_a_prefix_without_pictures_and_exports_it(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prefix"
    words = ["reduce", "--encoder", str(tiny_encoder_folder), "--kind", "prefix", "--out", str(out)]
    assert main([*words, "--embedding-dim", "8"]) == 0
    printed = capsys.readouterr()
    assert "the first 8 dimensions" in printed.out
    assert "was not trained for prefixes, so the first 8 dimensions may be no better than any others" in printed.err
    picture = next(Path(source.partition(":")[2]).parent.glob("*.png"))
    whole = load_encoder(tiny_encoder_folder, engine="torch", precision="fp32").encode([picture])
    for engine in ("torch", "onnx"):
        found = load_encoder(out, engine=engine, precision="fp32").encode([picture])
        np.testing.assert_allclose(found, normalize(whole[:, :8]), atol=1e-5)
    card = (out / "README.md").read_text()
    assert "cls, the first 8 dimensions |" in card
    assert "Of its 64 dimensions the first 8 are kept." in card


def test_reduce_tells_what_a_prefix_costs_on_the_test_classes(
    tiny_encoder_folder: Path,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "prefix"
    known = read_source(source)
    save_file({"mine": np.unique(hash_names(read_ids(known.records)))}, tmp_path / "pictures.safetensors")
    pictures = tmp_path / "pictures.safetensors"
    entry = replace(WEIGHTS[DEFAULT_WEIGHTS], architecture="test_vit", trained_on=("mine",), pictures=pictures)
    with monkeypatch.context() as patch:
        patch.setitem(WEIGHTS, "test_vit", entry)
        assert reduce(tiny_encoder_folder, source, out, "--kind", "prefix") == 0
    printed = capsys.readouterr()
    assert f"its start, test_vit, has seen the test classes of {known.name} (its pictures are" in printed.err
    whole, cut = json.loads(printed.out)["results"]
    for folder, told in ((tiny_encoder_folder, whole), (out, cut)):
        measured = evaluate(load_encoder(folder, engine="torch", precision="fp32"), source).results[0]
        assert measured.metrics["map_at_r"] == pytest.approx(told["map_at_r"])
    assert (whole["embedding_dim"], cut["embedding_dim"]) == (64, 4)
    assert "| the first 4 |" in (out / "README.md").read_text()
    assert main(["reduce", "--encoder", str(out), "--kind", "prefix", "--embedding-dim", "2", "--out", f"{out}2"]) == 0


def test_reduce_cuts_a_pca_to_the_pca_of_fewer_dimensions(
    tiny_encoder_folder: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four, two, cut = tmp_path / "four", tmp_path / "two", tmp_path / "cut"
    assert reduce(tiny_encoder_folder, source, four) == 0
    assert reduce(tiny_encoder_folder, source, two, "--embedding-dim", "2") == 0
    words = ["reduce", "--encoder", str(four), "--kind", "prefix", "--embedding-dim", "2", "--out", str(cut)]
    assert main(words) == 0
    assert json.loads((cut / "encoder.json").read_text())["reduction_kind"] == "pca"
    picture = next(Path(source.partition(":")[2]).parent.glob("*.png"))
    found, expected = (
        load_encoder(folder, engine="torch", precision="fp32").encode([picture]) for folder in (cut, two)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
