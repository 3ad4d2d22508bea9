"""The way of ``benchmarks/whole_way.py`` on a small copy: real servers (S3, PostgreSQL) and two actors of Ray."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import ForkedVitrieve
from tests.shard_servers import BUCKET, S3

pytest.importorskip("s3fs", reason="needs vitrieve[remote]")
pytest.importorskip("psycopg", reason="needs vitrieve[pgvector]")

TRAIN = (
    "small --model.backbone test_vit --image-size 32 --num-steps 2 --batch-size 6 --num-threads 1 "
    "--train.evaluate-every 2 --no-holdout --model.weights"
)


HAS_RAY = find_spec("ray") is not None
"""Without it the way goes over the parts of a job array."""


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder with a short name for Ray's own files: the paths of its sockets must not be long."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def uri() -> Iterator[str]:
    from tests.index.postgres import Server

    server = Server()
    yield server.uri
    server.remove()


@pytest.mark.parametrize(
    "has_ray",
    [
        pytest.param(True, marks=pytest.mark.skipif(not HAS_RAY, reason="needs vitrieve[ray]: goes over --no-ray")),
        pytest.param(False, marks=pytest.mark.skipif(HAS_RAY, reason="goes over Ray, which is there")),
    ],
    ids=["ray", "no-ray"],
)
def test_a_photograph_finds_its_product(
    photographs: Path,
    forked_vitrieve: ForkedVitrieve,
    tiny_weights: Path,
    uri: str,
    ray_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_ray: bool,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    whole_way = import_module("whole_way")
    with Image.open(photographs / "class4" / "0.png") as picture:
        noise = np.random.default_rng(9).integers(-9, 9, (40, 40, 3))
        pixels = (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")

    with S3() as s3:
        own = {"VITRIEVE_CACHE": str(tmp_path / "cache"), "RAY_TMPDIR": ray_folder}
        printed: list[str] = []

        def run(words: Sequence[str]) -> None:
            ended = forked_vitrieve(words, prelude=s3.prelude + f"os.environ.update({own!r})")
            assert ended.status == 0, ended.printed
            printed.append(ended.printed)

        words = [str(tmp_path), "--data", f"folder:{photographs}", "--place", f"s3://{BUCKET}/way", "--uri", uri]
        words += ["--photograph", str(tmp_path / "photograph.png"), "--product", "class4/0"]
        words += ["--train", f"{TRAIN} {tiny_weights}", "--pack", "--num-processes 1"]
        words += ["--results", str(tmp_path / "way.json"), *([] if has_ray else ["--no-ray"])]
        status = whole_way.main(words, run)
    told = capsys.readouterr().out
    assert status == 0, told
    assert "the photograph finds class4/0" in told
    assert told.count("$ vitrieve embed") == (1 if has_ray else 3)
    assert ("on up to 2 actors of Ray" in "".join(printed)) == has_ray
    assert "--num-processes 2" in told
    content = json.loads((tmp_path / "way.json").read_text())
    assert "class4/0" in content["found"][0]["image_id"]
    assert all(step["seconds"] > 0 for step in content["steps"])
    assert len(content["steps"]) == told.count("$ ")
