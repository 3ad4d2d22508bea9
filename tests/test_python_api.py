"""The package from Python, from a folder of photographs to a search: what the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitrieve
from vitrieve import Searcher, build_index, embed_images, evaluate, read_collection, train


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


@pytest.mark.parametrize("name", ["train", "evaluate", "sync"])
def test_a_public_function_stays_one_when_everything_is_imported(name: str) -> None:
    script = (
        "import sys, vitrieve.training.loop, vitrieve.evaluation.metrics, vitrieve.syncing.watch; "
        f"from vitrieve import {name}; sys.exit(not callable(vitrieve.{name}) or not callable({name}))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_public_name_is_that_of_a_file_or_folder() -> None:
    folder = Path(str(vitrieve.__file__)).parent
    names = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py") and not path.name.startswith("_")}
    assert names & set(vitrieve.__all__) == {"recipes"}  # it is itself a public name


def test_every_error_is_public() -> None:
    from vitrieve import errors

    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert "VitrieveError" in classes
    assert set(classes) <= set(vitrieve.__all__)
