"""Whole runs of a tiny encoder on folders that real users have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve import Callback, train
from vitrieve.cli.main import main
from vitrieve.data.sources import read_source
from vitrieve.model.artifact import ENCODER_SUBFOLDER
from vitrieve.recipes import find_recipe

Run = Callable[..., tuple[int, str, str]]


def write_pictures(folder: Path, sizes: dict[str, int]) -> Path:
    """Write classes of noisy pictures; the first of a class is ``0.png``."""
    generator = np.random.default_rng(0)
    for name, count in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
                folder / name / f"{number}.png"
            )
    return folder


@pytest.fixture(autouse=True)
def _exports_are_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the export out, which takes as long as all else of a tiny run, where a test is not about it."""
    if "exported" not in request.fixturenames:
        monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)


@pytest.fixture
def exported() -> None:
    """What a test takes that is about the export."""


@pytest.fixture
def run_train(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(source: str, *words: str, out: Path | None = None) -> tuple[int, str, str]:
        given = ["train", "small", "--data", source, "--out", str(out or tmp_path / "run")]
        given += ["--model.backbone", "test_vit", "--model.weights", str(tiny_weights), "--image-size", "32"]
        given += ["--num-steps", "2", "--batch-size", "8", "--num-threads", "1", *words]
        status = main(given)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


SMALL = {f"class{number}": 4 for number in range(6)}
LARGER = {f"class{number:02}": 4 for number in range(12)}


@pytest.mark.parametrize("held_out_last", [1, 2])
def test_classes_too_small_to_be_measured_are_not_held_out(run_train: Run, tmp_path: Path, held_out_last: int) -> None:
    # The fifth training class, which would be held out, has one picture, or two of which one is unreadable.
    folder = write_pictures(tmp_path / "photographs", {**LARGER, "class05": held_out_last})
    if held_out_last == 2:
        (folder / "class05" / "1.png").write_bytes(b"no picture")
    status, _, err = run_train(f"folder:{folder}", "--no-report")
    assert status == 0
    assert "held out to choose: 8 images of 2 classes" in err
    assert "held-out classes after step 2" in err


def test_one_class_is_called_one_class(run_train: Run, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photographs", SMALL)
    assert "held out to choose: 4 images of 1 class\n" in run_train(f"folder:{folder}", "--no-report")[2]


def test_too_few_classes_to_hold_out_are_said_with_their_counts(exported: None, run_train: Run, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photographs", {**dict.fromkeys("abcde", 1), "f": 4})
    status, _, err = run_train(f"folder:{folder}")
    assert status == 0
    assert "too few to hold classes out" in err
    assert "of 6 here 1 have" in err
    assert "no report: " in err
    assert (tmp_path / "run" / ENCODER_SUBFOLDER / "encoder.onnx").is_file()


@pytest.mark.parametrize(
    "place", ["class05/0.png", "class04/0.png", "class00/0.png"], ids=["held out", "test", "train"]
)
def test_an_unreadable_picture_is_left_out_of_whatever_part_it_is_in(
    run_train: Run, tmp_path: Path, place: str
) -> None:
    folder = write_pictures(tmp_path / "photographs", LARGER)
    (folder / place).write_bytes((folder / place).read_bytes()[:60])
    status, out, err = run_train(f"folder:{folder}", "--json")
    assert status == 0
    assert err.count(f"left out: {place}: ") == 1
    assert "1 of 48 images is unreadable and left out." in err
    assert all(result["num_unreadable"] == 0 for result in json.loads(out)["results"])


def test_too_many_unreadable_pictures_stop_a_run_before_it_begins(run_train: Run, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photographs", LARGER)
    for number in range(3):
        (folder / "class04" / f"{number}.png").write_bytes(b"no picture")
    status, _, err = run_train(f"folder:{folder}")
    assert status == 2
    assert "3 of 48 images are unreadable, more than the 5% that --train.max-bad-fraction allows" in err
    assert not (tmp_path / "run").exists()
    assert run_train(f"folder:{folder}", "--train.max-bad-fraction", "0.1", "--no-report")[0] == 0


def raise_fault(*values: Any, **named: Any) -> Any:
    raise OSError(28, "No space left on device", "somewhere")


STAGES = {
    "the report": "vitrieve.training.finishing.run_comparison",
    "the export": "vitrieve.training.finishing.export_folder",
    "the reduction": "vitrieve.training.finishing.reduce_encoder",
}


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_after_the_last_step_costs_a_finished_training(
    exported: None, run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    words = ["--model.embedding-dim", "8"]
    with monkeypatch.context() as broken:
        broken.setattr(STAGES[stage], raise_fault)
        status, _, err = run_train(source, *words)
    assert status == 1
    assert (
        f"the training is done, and its encoder is saved in {tmp_path / 'run' / ENCODER_SUBFOLDER}, but {stage}" in err
    )
    assert "--resume finishes the rest" in err
    assert (tmp_path / "run" / ENCODER_SUBFOLDER / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "manifest.json").exists()
    status, _, err = run_train(source, *words, "--resume")
    assert status == 0
    assert "step 1/2" not in err  # no step is done again
    assert (tmp_path / "run" / "manifest.json").is_file()
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    spec = json.loads((tmp_path / "run" / ENCODER_SUBFOLDER / "encoder.json").read_text())
    assert spec["reduction_kind"] == "pca"
    assert (tmp_path / "run" / ENCODER_SUBFOLDER / "encoder.onnx").is_file()


def test_the_last_measurement_costs_no_training_and_is_made_by_a_resumed_run(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrieve.training import holding_out as module

    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    whole = tmp_path / "whole"
    assert run_train(source, "--no-report", out=whole)[0] == 0
    measure, calls = module.measure_protocols, iter(range(10))

    def fail_the_second_time(*values: Any, **named: Any) -> Any:
        return raise_fault() if next(calls) == 1 else measure(*values, **named)

    with monkeypatch.context() as broken:
        broken.setattr(module, "measure_protocols", fail_the_second_time)
        status, _, err = run_train(source, "--no-report")
    assert (status, "the last measurement failed: " in err) == (1, True)
    assert run_train(source, "--no-report", "--resume")[0] == 0
    found, expected = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "run", whole))
    for name in ("holdout_map_at_r", "kept_step", "encoder_fingerprint"):
        assert found[name] == expected[name]


def test_a_measurement_that_fails_in_the_middle_of_a_run_says_how_to_go_on(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrieve.training import holding_out as module

    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    words = ("--no-report", "--train.evaluate-every", "1", "--train.freeze-batch-norm")
    measure, calls = module.measure_protocols, iter(range(10))

    def fail_the_second_time(*values: Any, **named: Any) -> Any:
        return raise_fault() if next(calls) == 1 else measure(*values, **named)

    run = tmp_path / "run"
    with monkeypatch.context() as broken:
        broken.setattr(module, "measure_protocols", fail_the_second_time)
        status, _, err = run_train(source, *words, "--resume")
    assert status == 2
    assert f"{run} does not exist yet: there is nothing to resume, a new run begins" in err
    assert "train.freeze_batch_norm has no effect without batch norm" in err
    assert f"The state after step 1 is saved in {run / 'state'}; the same command with --resume goes on" in err
    assert [path.name for path in (run / "state").iterdir()] == ["step_0000001.safetensors"]
    status, _, err = run_train(source, *words, "--resume")
    assert status == 0
    assert "going on from the state after step 1, step_0000001.safetensors" in err
    assert "held-out classes after step 1: " in err


@pytest.fixture
def stopped_run(run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A run that was stopped after its last step: its source and its folder."""
    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    with monkeypatch.context() as broken:
        broken.setattr("vitrieve.training.finishing.export_folder", raise_fault)
        assert run_train(source, "--no-report")[0] == 1
    return source, tmp_path / "run"


def test_a_run_goes_on_with_less_memory_and_moved_data(
    run_train: Run, stopped_run: tuple[str, Path], tmp_path: Path
) -> None:
    shutil.move(tmp_path / "photographs", tmp_path / "moved")
    rows = [f"{path},{path.parent.name}" for path in sorted((tmp_path / "moved").rglob("*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    words = ("--no-report", "--resume", "--train.memory-limit-gib", "8", "--loader.cache-bytes", "100000")
    status, _, err = run_train(f"table:{tmp_path / 'table.csv'}", *words)
    assert status == 0
    assert "the images have other names than when the run was begun, but the same content" in err
    assert "loader.cache_bytes was 2147483648 and is 100000; train.memory_limit_gib was none and is 8.0" in err


def test_the_advice_after_a_reduction_that_failed_works(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    with monkeypatch.context() as broken:
        broken.setattr("vitrieve.training.finishing.reduce_encoder", raise_fault)
        status, _, err = run_train(source, "--no-report", "--model.embedding-dim", "16")
    assert (status, "with another --model.embedding-dim" in err) == (1, True)
    assert run_train(source, "--no-report", "--resume", "--model.embedding-dim", "8")[0] == 0
    spec = json.loads((tmp_path / "run" / ENCODER_SUBFOLDER / "encoder.json").read_text())
    assert spec["reduction_kind"] == "pca"


def test_a_run_goes_on_with_moved_weights_and_refuses_others(
    run_train: Run, stopped_run: tuple[str, Path], tiny_weights: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copy(tiny_weights, tmp_path / "moved.safetensors")
    others = {name: tensor + 0.01 for name, tensor in load_file(tiny_weights).items()}
    save_file(others, tmp_path / "others.safetensors")
    words = ("--no-report", "--resume", "--model.weights")
    status, _, err = run_train(stopped_run[0], *words, str(tmp_path / "others.safetensors"))
    assert status == 2
    assert "start.weights was" in err
    status, _, err = run_train(stopped_run[0], *words, str(tmp_path / "moved.safetensors"))
    assert status == 0
    assert "the file of the first weights has another name" in err


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", None], ids=["empty", "no header", "cut"]
)
def test_a_damaged_state_is_one_message_with_what_is_lost(
    run_train: Run, stopped_run: tuple[str, Path], content: bytes | None
) -> None:
    source, run = stopped_run
    (state,) = (run / "state").iterdir()
    state.write_bytes(state.read_bytes()[:5000] if content is None else content)
    status, _, err = run_train(source, "--no-report", "--resume")
    assert status == 2
    assert "Traceback" not in err
    assert f"cannot resume from {state}: it is damaged" in err
    assert "start again with --overwrite" in err


@pytest.mark.parametrize("end", [b'{"step": 2, "lo', b"\x00\x00\x00\n", b"null\n", b'{"loss": 1}\n'])
def test_a_damaged_end_of_the_log_is_dropped(run_train: Run, stopped_run: tuple[str, Path], end: bytes) -> None:
    source, run = stopped_run
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + end)
    assert run_train(source, "--no-report", "--resume")[0] == 0
    assert (run / "metrics.jsonl").read_bytes() == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_names_the_state_and_leaves_the_one_before_whole(
    run_train: Run, tmp_path: Path, small_disk: Path
) -> None:
    source = f"folder:{write_pictures(tmp_path / 'photographs', SMALL)}"
    run = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_900_000))
    status, _, err = run_train(source, "--no-report", "--no-holdout", out=run)
    assert status == 2
    assert "Traceback" not in err
    assert "cannot be written: the disk is full" in err
    assert "bytes are needed" in err
    assert not list((run / "state").glob("*.tmp"))
    ballast.unlink()
    wide = tmp_path / "wide"
    shutil.copytree(run, wide)
    assert run_train(source, "--no-report", "--no-holdout", "--resume", out=wide)[0] == 0


TOLERANCE = 0.002
"""What rounding in another engine may change of a figure in [0, 1]."""


def test_the_report_measures_the_graph_and_finds_what_torch_finds(
    exported: None, run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.evaluation.measured import evaluate_encoder
    from vitrieve.runtime.encoder import load_encoder
    from vitrieve.training import finishing

    seen = []
    compare = finishing.run_comparison

    def note(encoders: Any, *given: Any, **named: Any) -> Any:
        seen.extend(encoders)
        return compare(encoders, *given, **named)

    monkeypatch.setattr(finishing, "run_comparison", note)
    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    status, out, _ = run_train(source, "--json", "--no-holdout", "--train.precision", "fp32")
    assert status == 0
    assert [encoder.engine for encoder in seen] == ["torch", "openvino"]  # the weights of the start are a local file
    folder = tmp_path / "run" / ENCODER_SUBFOLDER
    with_torch = load_encoder(folder, engine="torch", precision="fp32")
    expected = evaluate_encoder(with_torch, read_source(source)).metrics
    reported = json.loads(out)["results"][1]
    assert {name: reported[name] for name in expected} == pytest.approx(expected, abs=TOLERANCE)
    card = (folder / "README.md").read_text()
    assert "## Figures" in card
    assert (folder / "encoder.onnx").is_file()


def test_the_report_leaves_its_embeddings_for_those_of_the_whole_collection(run_train: Run, tmp_path: Path) -> None:
    from vitrieve.embed.embeddings import load_embeddings

    source = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}"
    tested = [record.image_id for record in read_source(source).split("test")]
    kept = tmp_path / "run" / "report" / "test_embeddings"
    for words in ([], ["--overwrite"]):  # an overwriting run is written beside the old one
        assert run_train(source, *words)[0] == 0
        embeddings = load_embeddings(kept)
        assert [record.image_id for record in embeddings.records] == tested
        assert embeddings.encoder_source == str(tmp_path / "run" / ENCODER_SUBFOLDER)
    words = ["embed", "--encoder", str(tmp_path / "run"), "--data", source, "--engine", "torch", "--precision", "fp32"]
    assert main([*words, "--out", str(tmp_path / "whole"), "--reuse", str(kept)]) == 0
    whole = load_embeddings(tmp_path / "whole")
    rows = [row for row, record in enumerate(whole.records) if record.image_id in tested]
    assert len(whole.records) == 48 > len(rows) == len(tested)
    np.testing.assert_array_equal(whole.vectors[rows], embeddings.vectors)


def test_a_run_on_several_sources_keeps_no_embeddings_whose_images_have_other_names(
    run_train: Run, tmp_path: Path
) -> None:
    sources = [f"folder:{write_pictures(tmp_path / name, LARGER)}" for name in ("one", "two")]
    assert run_train(sources[0], "--data", sources[1])[0] == 0
    assert sorted(path.name for path in (tmp_path / "run" / "report").iterdir()) == ["report.html", "results.json"]


@pytest.mark.data
def test_the_frozen_start_is_measured_by_the_graph_of_its_name(
    dinov2_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrieve.model.named_graph import make_named_folder
    from vitrieve.model.pretrained import find_weights
    from vitrieve.runtime.encoder import load_encoder
    from vitrieve.settings import override_config
    from vitrieve.training.finishing import _load_frozen

    def find_folder(name: str, size: int) -> Path:
        return tmp_path / f"{name}-{size}"

    monkeypatch.setattr("vitrieve.model.named_graph.get_export_folder", find_folder)
    changes = {"model.backbone": "dinov2-vits14", "image_size": 28, "precision": "fp32", "num_threads": 1}
    config = override_config(find_recipe("small")(), changes)
    folder = make_named_folder(find_weights("dinov2-vits14"), 28)
    tuned = load_encoder(folder, precision="fp32", num_threads=1, device="cpu")
    frozen = _load_frozen(config, tuned)
    assert frozen.engine == tuned.engine != "torch"
    averaged = _load_frozen(override_config(config, {"pooling": "average"}), tuned)
    assert averaged.engine == "torch"
    by_torch = load_encoder("dinov2-vits14", image_size=28, engine="torch", precision="fp32")
    assert frozen.fingerprint == by_torch.fingerprint != averaged.fingerprint
    squares = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    np.testing.assert_allclose(frozen.encode_squares(squares), by_torch.encode_squares(squares), atol=1e-3)


def test_a_second_process_is_kept_out_of_a_folder_that_a_run_is_written_to(
    run_train: Run, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = f"folder:{write_pictures(tmp_path / 'photographs', LARGER)}", tmp_path / "run"
    ended: list[tuple[int, str, bool]] = []

    class Second(Callback):
        """Begins the same run again in the middle of a step; a lock keeps out another open file, of any process."""

        def on_step(self, step: int, values: Mapping[str, float]) -> None:
            for flag in ("--resume", "--overwrite", ""):
                before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
                capsys.readouterr()
                status, _, err = run_train(source, *filter(None, [flag]), out=tmp_path / "photographs" / ".." / "run")
                is_same = before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
                ended.append((status, "\n".join(line for line in err.splitlines() if "error" in line), is_same))

    settings = {"model.backbone": "test_vit", "model.weights": str(tiny_weights), "train.num_threads": 1}
    train(
        source, "small", out, report=False, callbacks=[Second()], image_size=32, num_steps=2, batch_size=8, **settings
    )
    assert len(ended) == 6
    for status, told, is_same in ended:
        assert (status, is_same) == (2, True)
        assert re.fullmatch(rf"error: \S*run is being written by another process \(process {os.getpid()} on .*", told)
    assert not list(tmp_path.glob(".run*"))
    assert run_train(source, "--no-report", "--overwrite")[0] == 0
