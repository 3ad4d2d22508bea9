"""Everything in one process: users train, report, index and serve from one notebook.

A process of its own uses OpenVINO, ONNX Runtime, FAISS, gRPC (Milvus), LanceDB and the service in an order that a
number decides, trains between them, and uses them again; Python prints the stack where it dies. What once made
trainings die in the process of all tests is in ``tests/runtime/test_signals.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.index.milvus_lite import Server

ROOT = Path(__file__).parents[1]
NUM_ORDERS = 10

PROGRAM = """
import random
import sys
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

import vitrieve
from vitrieve.index.open import IndexSettings

seed, encoder_folder, weights, photographs, work, milvus = sys.argv[1:]
rng = random.Random(int(seed))
work = Path(work)
dataset = vitrieve.read_source(f"folder:{photographs}")
encoders = {name: vitrieve.load_encoder(encoder_folder, engine=name) for name in ("openvino", "onnx", "torch")}
embeddings = vitrieve.embed_images(encoders["openvino"], dataset.records)
model = {"backbone": "test_vit", "weights": weights, "image_size": 32}


def encode(number):
    for encoder in encoders.values():
        assert np.allclose(encoder.encode(dataset.records[0].path), embeddings.vectors[:1], atol=1e-3)


def faiss(number):
    import faiss

    vectors = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
    index = faiss.index_factory(32, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.search(vectors[:64], 5)


def build(store, settings=None):
    def use(number):
        folder = work / f"{store}-{number}"
        vitrieve.build_index(embeddings, folder, store=store, settings=settings).close()
        with vitrieve.Searcher.open(folder) as searcher:
            picture = dataset.records[0].path.read_bytes()
            with TestClient(vitrieve.create_app(searcher), base_url="http://localhost") as client:
                answer = client.post("/search", content=picture)
                assert answer.json()["results"][0]["image_id"] == dataset.records[0].image_id, answer.text
    return use


def train(number):
    settings = {"model": model, "num_steps": 2, "batch_size": 6, "holdout": False}
    run = vitrieve.train(dataset, "small", work / f"run-{number}", **settings)
    assert run.report.is_file()


def evaluate(number):
    vitrieve.evaluate(encoders["openvino"], dataset)


uses = [encode, faiss, evaluate, build("exact"), build("lance"),
        build("milvus", IndexSettings(index_kind="flat", uri=milvus))]
for round in range(2):
    rng.shuffle(uses)
    for use in uses:
        print(round, use, flush=True)
        use(round)
    train(round)
    print("trained", flush=True)
"""


@pytest.mark.skipif(os.environ.get("VITRIEVE_LONG_TESTS") != "1", reason="30 s each: VITRIEVE_LONG_TESTS=1")
@pytest.mark.parametrize("order", range(NUM_ORDERS))
def test_training_works_beside_every_other_library(
    order: int, tiny_encoder_folder: Path, tiny_weights: Path, photographs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    for name in ("openvino", "onnxruntime", "faiss", "lancedb", "pymilvus", "torch"):
        pytest.importorskip(name)
    server = Server(tmp_path / "milvus")
    words = [str(order), str(tiny_encoder_folder), str(tiny_weights), str(photographs), str(tmp_path), server.uri]
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True
        )
    finally:
        server.kill()
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert done.stdout.count("trained") == 2
