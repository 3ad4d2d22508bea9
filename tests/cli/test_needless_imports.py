"""A command imports what it needs: what it does not need would be waited for in every new process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.open import build_index
from vitrieve.index.store import StoreKind
from vitrieve.runtime.encoder import load_encoder

SCRIPT = """
import json, sys
from vitrieve.cli.main import main
status = main(json.loads(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
sys.exit(status)
"""
NEVER = {
    *("torch", "timm", "onnx", "faiss", "fastapi", "uvicorn", "jinja2", "huggingface_hub", "matplotlib", "tokenizers"),
    *("pathspec", "fsspec", "requests", "pymilvus", "psycopg"),
    *(f"vitrieve.{name}" for name in ("config", "objective", "recipes", "evaluation", "training", "comparison")),
    *(f"vitrieve.{name}" for name in ("syncing", "curation", "mapping", "serve", "reproduce", "feedback")),
    *(f"vitrieve.data.{name}" for name in ("sources", "folder", "blocks", "remote", "cells", "shards", "loader")),
    *("vitrieve.model.published", "vitrieve.model.conversion", "vitrieve.model.towers", "vitrieve.runtime.text"),
}
"""What no search by a photograph in a file needs."""
NOT_WITH_LANCE = {"onnxruntime"}
NOT_WITH_EXACT = {"lancedb", "pandas", "pyarrow.dataset", "pydantic", *NOT_WITH_LANCE}


def list_modules(words: list[str]) -> set[str]:
    """Run a command in a new process and return what it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("store", "needless"), [("exact", NOT_WITH_EXACT), ("lance", NOT_WITH_LANCE)])
def test_search_imports_nothing_that_it_does_not_need(
    store: StoreKind, needless: set[str], tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="needs vitrieve[fast]")
    encoder = load_encoder(tiny_encoder_folder, num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store=store).close()
    modules = list_modules(["search", "--index", str(tmp_path / "index"), str(picture_folder / "02.png"), "--ids"])
    assert {"vitrieve.search.searcher", f"vitrieve.index.{store}", "openvino"} < modules
    assert sorted(modules & (NEVER | needless)) == []


def test_help_of_search_imports_no_library_of_arrays() -> None:
    modules = list_modules(["search", "--help"])
    assert "tyro" in modules
    assert sorted(modules & (NEVER | NOT_WITH_EXACT | {"numpy", "PIL", "pyarrow", "openvino"})) == []


def test_help_imports_neither_tyro_nor_the_command() -> None:
    modules = list_modules(["--help"])
    assert sorted(modules & {"tyro", "numpy", "vitrieve.cli.search", "vitrieve.runtime"}) == []
