"""The package from Python, from a folder of photographs to a search: what the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitrieve
from vitrieve import (
    Searcher,
    build_index,
    calibrate,
    check_dataset,
    embed_collection,
    embed_images,
    evaluate,
    export,
    load_encoder,
    quantize,
    read_collection,
    read_source,
    reduce,
    save_threshold,
    train,
)
from vitrieve.cli.main import COMMANDS

FUNCTIONS = {
    "doctor": "diagnose",
    "data check": "check_dataset",
    "data audit": "audit",
    "data pack": "pack_dataset",
    "weights pull": "pull_weights",
    "weights use": "use_weights",
    "train": "train",
    "runs": "list_runs",
    "evaluate": "evaluate",
    "compare": "compare",
    "reduce": "reduce",
    "adapt": "adapt",
    "align": "align",
    "export": "export",
    "quantize": "quantize",
    "push": "push_encoder",
    "pull": "pull_encoder",
    "embed": "embed_collection",
    "index": "build_index",
    "sync": "sync",
    "calibrate": "calibrate",
    "duplicates": "duplicates",
    "map": "map_collection",
    "search": "Searcher",
    "explain": "explain_result",
    "serve": "create_app",
    "feedback": "open_feedback",
    "mcp": "create_mcp_app",
}
"""Command -> what does the same from Python."""
ONLY_COMMANDS = {
    *("data describe", "weights list", "weights describe", "up", "reproduce"),
    *("completion", "config show", "config set", "config unset", "config path"),
}
"""Commands that print tables, join other commands, or belong to the command line."""


def test_train_evaluate_encode_index_and_search(photographs: Path, tiny_weights: Path, tmp_path: Path) -> None:
    tiny = {"model": {"backbone": "test_vit", "weights": tiny_weights, "image_size": 32}, "num_threads": 1}

    run = train(photographs, "small", tmp_path / "run", num_steps=2, batch_size=6, holdout=False, **tiny)
    evaluation = evaluate(run.encoder, photographs)
    vector = run.encoder.encode(photographs / "class0" / "1.png")
    embeddings = embed_images(run.encoder, read_collection(str(photographs)).records)
    build_index(embeddings, tmp_path / "index").close()
    with Searcher.open(tmp_path / "index", run.encoder) as searcher:
        results = searcher.search(photographs / "class0" / "1.png", k=3)

    assert evaluation.results[0].metrics == run.results[1].metrics
    assert vector.shape == (64,)
    assert results[0].image_id == "class0/1.png"
    assert results[0].score == pytest.approx(float(run.encoder.similarity(vector, embeddings.vectors[1])), abs=1e-3)


def test_every_command_has_its_function() -> None:
    assert {*FUNCTIONS, *ONLY_COMMANDS} == set(COMMANDS)
    assert set(FUNCTIONS.values()) < set(vitrieve.__all__)


def test_reduce_export_and_calibrate(tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path) -> None:
    source = f"folder:{class_folder}"

    assert check_dataset(read_source(source)).is_fine
    reduced = reduce(tiny_encoder_folder, source, 4, tmp_path / "reduced", kind="pca_whitening", device="cpu")
    exported = export(tmp_path / "reduced")
    encoder = load_encoder(tmp_path / "reduced", engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(source), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact").close()
    threshold = calibrate(tmp_path / "index")
    save_threshold(threshold, tmp_path / "index")

    assert (reduced.spec.embedding_dim, reduced.spec.reduction_kind) == (4, "pca_whitening")
    assert encoder.fingerprint == exported.fingerprint == reduced.fingerprint == threshold.fingerprint
    with Searcher.open(tmp_path / "index", encoder) as searcher:
        assert searcher.threshold == threshold


def test_quantize_refuses_what_is_not_exported(tmp_path: Path, class_folder: Path) -> None:
    with pytest.raises(vitrieve.ConfigError, match="num_images is 0"):
        quantize(tmp_path, class_folder, num_images=0)


def test_a_public_function_stays_one_when_everything_is_imported() -> None:
    names = ["adapt", "compare", "evaluate", "export", "reduce", "sync", "train"]
    script = (
        "import vitrieve, vitrieve.training.loop, vitrieve.evaluation.metrics, vitrieve.syncing.watch\n"
        f"from vitrieve import {', '.join(names)}\n"
        f"print([name for name in {names} if not callable(vitrieve.__dict__.get(name, getattr(vitrieve, name)))])\n"
        f"print([name for name in {names} if not callable(globals()[name])])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stderr


def test_no_public_name_is_that_of_a_file_or_folder() -> None:
    folder = Path(str(vitrieve.__file__)).parent
    names = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py") and not path.name.startswith("_")}
    assert names & set(vitrieve.__all__) == {"recipes"}  # it is itself a public name


def test_every_error_is_public() -> None:
    from vitrieve import errors

    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert "VitrieveError" in classes
    assert set(classes) <= set(vitrieve.__all__)
