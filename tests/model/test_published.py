"""Encoders of the hub, against a server on this machine: what is read, what is refused, and downloads that go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.model.hub_server import (
    COMMIT,
    OTHER_COMMIT,
    Handler,
    Hub,
    Repository,
    cut,
    exchange,
    flood,
    ignore_range,
    stall,
)
from vitrieve import Searcher, build_index, embed_collection, load_encoder, pull_encoder, read_collection
from vitrieve.cli.main import main
from vitrieve.config import ModelConfig
from vitrieve.data.preprocess import Preprocessing
from vitrieve.errors import ArtifactError, ConfigError, DiskFullError, FingerprintError, WeightsError
from vitrieve.model.encoder import build_encoder, fingerprint_encoder
from vitrieve.model.hub import parse_hub_name
from vitrieve.model.preprocessor import read_preprocessor

NAME = "hf:owner/name"
GRAPH = "onnx/model.onnx"
WIDTH, PATCH, SIZE = 16, 8, 16
DINOV2 = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 18},
}
WEIGHTS = {
    "kernel": np.random.default_rng(0).standard_normal((WIDTH, 3, PATCH, PATCH)).astype(np.float32),
    "mix": np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32),
}


def build_graph(
    *,
    outputs: tuple[str, ...] = ("last_hidden_state", "pooler_output"),
    inputs: tuple[str, ...] = ("pixel_values",),
    batch: int | str = "batch_size",
    side: int | str = "height",
    opset: int = 14,
) -> onnx.ModelProto:
    """Build an export as the hub has them: a token of the whole picture before one of each patch, and a pooled one."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["patches"], strides=[PATCH] * 2),
        helper.make_node("Reshape", ["patches", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["rows"], ["whole"], axes=[1], keepdims=1),
        helper.make_node("MatMul", ["whole", "mix"], ["token"]),
        helper.make_node("Concat", ["token", "rows"], ["last_hidden_state"], axis=1),
        helper.make_node("ReduceMean", ["rows"], ["pooler_output"], axes=[1], keepdims=0),
        helper.make_node("Identity", ["pooler_output"], ["image_embeds"]),
    ]
    shapes = {"last_hidden_state": [batch, None, WIDTH]}
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [batch, 3, side, side if side != "height" else "width"]
            )
            for name in inputs
        ],
        [helper.make_tensor_value_info(one, TensorProto.FLOAT, shapes.get(one, [batch, WIDTH])) for one in outputs],
        [
            *(numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()),
            numpy_helper.from_array(np.array([0, WIDTH, -1]), "flat"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def build_export(
    model: onnx.ModelProto | None = None,
    *,
    config: dict[str, Any] | None = None,
    preprocessor: dict[str, Any] | None = None,
    graph_name: str = GRAPH,
) -> Repository:
    files = {
        "config.json": json.dumps(config or {"model_type": "dinov2", "patch_size": PATCH}).encode(),
        "preprocessor_config.json": json.dumps(preprocessor or DINOV2).encode(),
        graph_name: (model or build_graph()).SerializeToString(),
        "README.md": b"# A model",
    }
    return Repository(files)


def compute_tokens(picture: Image.Image) -> np.ndarray:
    """Compute the tokens of a picture again: its preparation and the graph in plain NumPy; ``(1 + N, D)``."""
    scale = 18 / min(picture.size)
    resized = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
    pixels = np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)), np.float64) / 255
    pixels = (pixels - DINOV2["image_mean"]) / DINOV2["image_std"]
    grid = range(0, SIZE, PATCH)
    patches = [pixels[y : y + PATCH, x : x + PATCH] for y in grid for x in grid]
    rows = np.stack([np.einsum("yxc,dcyx->d", patch, WEIGHTS["kernel"].astype(np.float64)) for patch in patches])
    return np.vstack([rows.max(axis=0) @ WEIGHTS["mix"], rows])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.fixture
def hub(empty_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with one repository, of whose files the client writes a thousand bytes at a time."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    empty_hub.repositories["owner/name"] = build_export()
    return empty_hub


def list_cache(tmp_path: Path) -> list[str]:
    """List what the cache holds, beside the lock and compiled graphs."""
    cache = tmp_path / "cache"
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.name != "writer.lock" and path.suffix != ".blob"
    )


def draw_picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8))


# What is read


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_export_encodes_as_its_configuration_says(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    picture = draw_picture()
    tokens = compute_tokens(picture)
    with load_encoder(NAME, engine=engine, precision="fp32", num_threads=1) as encoder:
        vector = encoder.encode(picture)
        patches = encoder.patch_tokens(np.zeros((2, 3, SIZE, SIZE), np.float32))
    assert encoder.source == f"{NAME}@{COMMIT}"
    assert encoder.name == "owner/name"
    assert encoder.embedding_dim == WIDTH
    np.testing.assert_allclose(vector, unit(tokens[0]), atol=1e-4)
    assert patches.shape == (2, 4, WIDTH)
    said = capsys.readouterr().err
    assert f"{NAME}@{COMMIT}: 0." in said or f"{NAME}@{COMMIT}: 0.0 MB" in said
    assert "license: apache-2.0" in said


def test_patch_tokens_are_those_after_the_class_and_register_tokens(hub: Hub) -> None:
    config = {"model_type": "dinov2_with_registers", "num_register_tokens": 2}
    hub.repositories["owner/name"] = build_export(config=config)
    encoder = load_encoder(NAME, engine="onnx")
    assert encoder.patch_tokens(np.zeros((1, 3, SIZE, SIZE), np.float32)).shape == (1, 4 - 2, WIDTH)


@pytest.mark.usefixtures("hub")
def test_what_is_here_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_encoder(NAME, engine="onnx")
    num_requests = len(hub.requests)
    hub.is_down = True
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_encoder(NAME, engine="onnx").fingerprint == first.fingerprint
    assert load_encoder(first.source, engine="onnx").fingerprint == first.fingerprint
    assert len(hub.requests) == num_requests


def test_another_state_is_another_encoder_and_must_be_asked_for(hub: Hub, tmp_path: Path) -> None:
    first = pull_encoder(NAME)
    changed = build_graph()
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * WEIGHTS["kernel"], "kernel"))
    hub.repositories["owner/name"] = build_export(changed)
    hub.repositories["owner/name"].commit = OTHER_COMMIT
    assert pull_encoder(NAME).name == first.name == f"{NAME}@{COMMIT}"

    second = pull_encoder(NAME, is_asked_anew=True)
    assert second.name == f"{NAME}@{OTHER_COMMIT}"
    assert second.fingerprint != first.fingerprint
    assert pull_encoder(NAME).fingerprint == second.fingerprint
    assert pull_encoder(first.name).fingerprint == first.fingerprint
    draw_picture().save(tmp_path / "a.png")
    embed_collection(load_encoder(first.name, engine="onnx"), read_collection(str(tmp_path)), tmp_path / "vectors")
    build_index(tmp_path / "vectors", tmp_path / "index", store="exact").close()
    other = load_encoder(second.name, engine="onnx")
    with pytest.raises(FingerprintError):
        Searcher.open(tmp_path / "index", other)


def test_a_state_that_changed_only_its_card_is_the_same_encoder(hub: Hub) -> None:
    first = pull_encoder(NAME)
    hub.repositories["owner/name"].files["README.md"] = b"# Another card"
    hub.repositories["owner/name"].commit = OTHER_COMMIT
    second = pull_encoder(NAME, is_asked_anew=True)
    assert (second.name, second.fingerprint) == (f"{NAME}@{OTHER_COMMIT}", first.fingerprint)


def test_a_branch_is_noted_beside_the_main_one(hub: Hub) -> None:
    assert pull_encoder(f"{NAME}@main").name == f"{NAME}@{COMMIT}"
    hub.repositories["owner/name"].commit = OTHER_COMMIT
    assert pull_encoder(f"{NAME}@main").name == f"{NAME}@{COMMIT}"
    assert pull_encoder(NAME).name == f"{NAME}@{OTHER_COMMIT}"


def test_an_encoder_of_vitrieve_is_read_from_the_hub(hub: Hub, tiny_encoder_folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_encoder_folder.iterdir() if path.is_file()}
    hub.repositories["owner/name"] = Repository({**files, "training.log": b"not fetched"})
    encoder = load_encoder(NAME, engine="onnx")
    expected = load_encoder(tiny_encoder_folder, engine="onnx")
    assert encoder.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(encoder.encode(draw_picture()), expected.encode(draw_picture()))
    assert hub.list_ranges("training.log") == []
    assert load_encoder(NAME, engine="torch").fingerprint == expected.fingerprint
    started = build_encoder(ModelConfig(backbone="test_vit", image_size=32, weights=NAME))
    assert fingerprint_encoder(started) == expected.fingerprint


def test_weights_beside_the_graph_are_fetched(hub: Hub, tmp_path: Path) -> None:
    onnx.save_model(
        build_graph(), tmp_path / "m.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=64
    )
    repository = build_export(onnx.load_model(tmp_path / "m.onnx", load_external_data=False))
    repository.files["onnx/model.onnx_data"] = (tmp_path / "model.onnx_data").read_bytes()
    hub.repositories["owner/name"] = repository
    np.testing.assert_allclose(
        load_encoder(NAME, engine="onnx").encode(draw_picture()), unit(compute_tokens(draw_picture())[0]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("config", "outputs", "graph_name"),
    [
        (
            {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}},
            ("pooler_output",),
            "onnx/vision_model.onnx",
        ),
        ({"model_type": "clip"}, ("pooler_output", "image_embeds"), "onnx/vision_model.onnx"),
        ({"model_type": "convnextv2"}, ("last_hidden_state", "pooler_output"), "model.onnx"),
    ],
)
def test_graphs_that_pool_themselves_are_believed(
    hub: Hub, config: dict[str, Any], outputs: tuple[str, ...], graph_name: str
) -> None:
    repository = build_export(build_graph(outputs=outputs), config=config, graph_name=graph_name)
    if "vision" in graph_name:
        repository.files[GRAPH] = b"the graph that wants texts too"
    hub.repositories["owner/name"] = repository
    encoder = load_encoder(NAME, engine="onnx", num_threads=1)
    expected = unit(compute_tokens(draw_picture())[1:].mean(axis=0))
    np.testing.assert_allclose(encoder.encode(draw_picture()), expected, atol=1e-4)
    assert pull_encoder(NAME).spec.pooling == "native"


SIGLIP = {"size": {"height": 384, "width": 384}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
VIT = {"size": 224, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {**VIT, "do_center_crop": True, "crop_size": 224, "resample": 3}
CONVNEXT = {**VIT, "size": {"shortest_edge": 224}, "crop_pct": 0.875}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (SIGLIP, (384, 384, "bicubic", "square")),
        (VIT, (224, 224, "bilinear", "square")),
        (CLIP, (224, 224, "bicubic", "crop")),
        (CONVNEXT, (224, 256, "bilinear", "crop")),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, (384, 384, "bilinear", "square")),
    ],
)
def test_preprocessors_are_read(found: dict[str, Any], expected: tuple[int, int, Any, Any]) -> None:
    read = read_preprocessor(found)
    assert (read.image_size, read.resize_size, read.interpolation, read.framing) == expected
    assert read.mean == (0.5,) * 3


def test_a_preprocessor_that_does_not_normalize_is_read() -> None:
    expected = Preprocessing(image_size=8, resize_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, framing="square")
    assert read_preprocessor({"size": 8, "resample": 3, "do_normalize": False}) == expected


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({**VIT, "resample": 0}, "does not tell, or tells wrongly: 0"),
        ({**VIT, "do_resize": False}, "does not resize"),
        ({**VIT, "rescale_factor": 1}, "rescales by 1; expected 1/255"),
        ({**SIGLIP, "size": {"height": 10, "width": 20}}, "10 by 20 px"),
        ({**VIT, "size": {"shortest_edge": 224}}, "the input is no square"),
        ({**SIGLIP, "do_center_crop": True, "crop_size": 224}, "squeezes pictures and then cuts"),
        ({**VIT, "image_std": [1.0]}, "three channels"),
        ({**VIT, "image_mean": [float("nan")] * 3}, "three channels"),
        ({**VIT, "size": "large"}, "is not as expected"),
        ({**VIT, "size": 0}, "both must be positive"),
        ({**VIT, "size": 100_000}, "wants pictures of 100000 px; at most 2048 are taken"),
        ({**CONVNEXT, "crop_pct": 1e-9}, "at most 2048 are taken"),
        ({"resample": 2}, "does not tell, or tells wrongly: size"),
        ({**VIT, "size": float("inf")}, "is not as expected: cannot convert float infinity"),
        ({**CONVNEXT, "crop_pct": 1e-320}, "is not as expected: cannot convert float infinity"),
        ({**VIT, "image_mean": [10**400] * 3}, "is not as expected: int too large"),
        ({**VIT, "image_std": [0.5, 0, 0.5]}, r"divides by \[0.5, 0, 0.5\]; expected three positive"),
        ({**VIT, "do_rescale": False}, "leaves pixels between 0 and 255"),
        ({**VIT, "do_flip_channel_order": True, "do_pad": True}, "asks for do_flip_channel_order, do_pad; of what"),
    ],
)
def test_preprocessors_that_vitrieve_cannot_follow_are_refused(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_preprocessor(found)


@pytest.mark.parametrize(
    ("repository", "reason"),
    [
        (build_export(build_graph(outputs=("logits",))), "of its outputs logits and the model type dinov2"),
        (
            build_export(config={"model_type": "beit"}, model=build_graph(outputs=("last_hidden_state",))),
            "cannot be told",
        ),
        (build_export(build_graph(inputs=("pixel_values", "input_ids"))), "wants the inputs pixel_values, input_ids"),
        (build_export(build_graph(batch=1)), r"has the shape \[1, 3, 0, 0\]"),
        (build_export(build_graph(side=32)), r"has the shape \[0, 3, 32, 32\].*16 px"),
        (build_export(build_graph(opset=9)), "version 9 of ONNX's operators"),
        (build_export(config={"model_type": "dinov3_vit", "num_register_tokens": 4}), "no embedding can be taken"),
        (Repository({**build_export().files, GRAPH: b"\xff\xff no graph"}), "is no ONNX graph"),
        (Repository({**build_export().files, "config.json": b"{"}), "config.json is no JSON"),
        (Repository({**build_export().files, "config.json": b"[]"}), "config.json holds no table"),
        (
            Repository({"model.safetensors": b"", "config.json": b"{}"}),
            "holds no encoder that can be read without torch",
        ),
        (Repository({GRAPH: b""}), "holds no encoder that can be read without torch"),
    ],
)
def test_what_cannot_be_told_is_one_message(
    hub: Hub, repository: Repository, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["owner/name"] = repository
    with pytest.raises(WeightsError, match=reason):
        load_encoder(NAME)
    assert not [path for path in list_cache(tmp_path) if "encoder.json" in path]
    assert capsys.readouterr().err.count("license") == 0


@pytest.mark.usefixtures("hub")
def test_a_published_graph_is_no_start_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match=r"is the graph of hf:owner/name@0{39}a as it was published"):
        load_encoder(NAME, engine="torch")
    with pytest.raises(ArtifactError, match="at its own size"):
        load_encoder(NAME, image_size=32)
    with pytest.raises(ArtifactError, match="as it was published"):
        build_encoder(ModelConfig(backbone="test_vit", weights=NAME))
    assert main(["export", "--encoder", NAME]) == 2
    assert "as it was published" in capsys.readouterr().err
    assert load_encoder(NAME).embedding_dim == WIDTH  # nothing of it was lost


# The command line


def test_pull_embed_index_and_search_name_the_commit(
    hub: Hub, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "pull", NAME, "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert (pulled["name"], pulled["license"], pulled["was_present"]) == (f"{NAME}@{COMMIT}", "apache-2.0", False)
    assert main(["weights", "pull", NAME]) == 0
    assert "already here, checksums right; 16 numbers for an image of 16 px" in capsys.readouterr().out
    embeddings, index = str(tmp_path / "embeddings"), str(tmp_path / "index")
    assert main(["embed", "--encoder", NAME, "--data", str(picture_folder), "--out", embeddings]) == 0
    assert f"{NAME}@{COMMIT}" in (tmp_path / "embeddings" / "manifest.json").read_text()
    assert main(["index", "--embeddings", embeddings, "--out", index]) == 0
    hub.repositories.clear()
    capsys.readouterr()
    assert main(["search", "--index", index, str(picture_folder / "03.png"), "-k", "1"]) == 0
    assert "03.png" in capsys.readouterr().out


@pytest.mark.usefixtures("hub")
def test_sync_makes_an_index_that_finds_its_encoder_again(picture_folder: Path, tmp_path: Path) -> None:
    words = ["sync", "--data", str(picture_folder), "--index", str(tmp_path / "index")]
    assert main([*words, "--encoder", NAME]) == 0
    Image.new("RGB", (20, 20), "red").save(picture_folder / "red.png")
    assert main(words) == 0


def test_without_the_client_the_message_names_the_extra(without_torch: str, tmp_path: Path) -> None:
    script = (
        f"{without_torch}from vitrieve.cli.main import main\nraise SystemExit(main(['weights', 'pull', '{NAME}']))\n"
    )
    environment = {**os.environ, "VITRIEVE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "its client is not installed; install vitrieve[hub]" in done.stderr


# Downloads that go wrong


@pytest.mark.parametrize(
    "faults",
    [[cut(3_000)], [cut(3_000), ignore_range], [stall(2_000)]],
    ids=["broken", "broken and sent whole", "paused"],
)
def test_a_broken_download_goes_on_where_it_was(
    hub: Hub, faults: list[Callable[[Handler, bytes], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)  # a pause is a broken connection
    hub.faults[GRAPH] = list(faults)
    encoder = load_encoder(NAME, engine="onnx")
    np.testing.assert_allclose(encoder.encode(draw_picture()), unit(compute_tokens(draw_picture())[0]), atol=1e-4)
    first, second, *_ = hub.list_ranges(GRAPH)  # more on a machine so busy that it pauses too
    assert first == ""
    assert second.startswith("bytes=")
    assert second != "bytes=0-"


def test_a_stopped_download_is_gone_on_with_by_the_next_call(hub: Hub, tmp_path: Path) -> None:
    def break_and_go_down(handler: Handler, content: bytes) -> None:
        cut(5_000)(handler, content)
        hub.is_down = True

    hub.faults[GRAPH] = [break_and_go_down]
    with pytest.raises(WeightsError, match=r"the hub cannot give hf:owner/name@.*goes on where it stopped"):
        load_encoder(NAME)
    (partial,) = (tmp_path / "cache").rglob("model.onnx.part")
    num_bytes = partial.stat().st_size
    assert num_bytes > 0
    hub.is_down = False
    hub.requests.clear()
    assert load_encoder(NAME).embedding_dim == WIDTH
    assert hub.list_ranges(GRAPH) == [f"bytes={num_bytes}-"]
    assert hub.list_ranges("config.json") == []  # it was whole
    assert list_cache(tmp_path) == sorted(
        [f"hub/owner--name/{COMMIT}/{name}" for name in ("README.md", "encoder.json", "encoder.onnx")]
        + [f"hub/owner--name/{COMMIT}/{name}" for name in ("manifest.json", "model.safetensors")]
        + ["hub/owner--name/revisions.json"]
    )


def test_a_killed_download_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    content = hub.repositories["owner/name"].files[GRAPH]
    num_sent = len(content) - 1_000
    hub.faults[GRAPH] = [stall(num_sent)]
    script = (
        "import huggingface_hub.constants as constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 100\n"
        f"from vitrieve.cli.main import main\nmain(['weights', 'pull', '{NAME}'])\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert hub.stalled.wait(120)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").rglob("model.onnx.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = (tmp_path / "cache").rglob("model.onnx.part")
    num_kept = partial.stat().st_size
    assert num_kept <= num_sent
    hub.requests.clear()
    assert load_encoder(NAME).embedding_dim == WIDTH
    assert hub.list_ranges(GRAPH) == [f"bytes={num_kept}-" if num_kept else ""]


@pytest.mark.parametrize("name", [GRAPH, "config.json"])
def test_a_wrong_checksum_keeps_nothing_of_the_file(hub: Hub, name: str, tmp_path: Path) -> None:
    content = hub.repositories["owner/name"].files[name]
    hub.faults[name] = [exchange(bytes(len(content)))]
    with pytest.raises(
        WeightsError, match=rf"{name} of hf:owner/name@.* has checksum [0-9a-f]+; the hub states [0-9a-f]+"
    ):
        load_encoder(NAME)
    assert not [path for path in list_cache(tmp_path) if name.rpartition("/")[2] in path.rpartition("/")[2]]
    assert load_encoder(NAME).embedding_dim == WIDTH  # the next attempt


def test_more_bytes_than_stated_stop_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.faults[GRAPH] = [flood]
    num_bytes = len(hub.repositories["owner/name"].files[GRAPH])
    with pytest.raises(WeightsError, match=rf"more than the {num_bytes:,} bytes were sent"):
        load_encoder(NAME)
    assert not list((tmp_path / "cache").rglob("model.onnx*"))


@pytest.mark.parametrize("num_kept", [0, 100_000], ids=["new", "gone on with"])
def test_another_file_in_its_place_does_not_spoil_the_next_download(hub: Hub, num_kept: int, tmp_path: Path) -> None:
    large = build_graph()
    large.graph.initializer.append(numpy_helper.from_array(np.arange(50_000, dtype=np.float32), "ballast"))
    hub.repositories["owner/name"] = build_export(large)
    if num_kept:

        def break_and_go_down(handler: Handler, content: bytes) -> None:
            cut(num_kept)(handler, content)
            hub.is_down = True

        hub.faults[GRAPH] = [break_and_go_down]
        with pytest.raises(WeightsError, match="goes on where it stopped"):
            load_encoder(NAME)
        hub.is_down = False
    page = b"<html>Please log in</html>"
    hub.faults[GRAPH] = [exchange(page)]
    with pytest.raises(WeightsError, match=rf"{GRAPH} ended after {len(page)} bytes, where the hub states 2\d\d,"):
        load_encoder(NAME)
    assert not list((tmp_path / "cache").rglob("model.onnx*"))
    assert load_encoder(NAME).embedding_dim == WIDTH


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_within_a_download_keeps_what_was_fetched(hub: Hub, status: int, tmp_path: Path) -> None:
    def break_and_go_down(handler: Handler, content: bytes) -> None:
        cut(5_000)(handler, content)
        hub.is_down = True

    def refuse(handler: Handler, _: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    hub.faults[GRAPH] = [break_and_go_down, refuse]
    with pytest.raises(WeightsError, match="goes on where it stopped"):
        load_encoder(NAME)
    hub.is_down = False
    (partial,) = (tmp_path / "cache").rglob("model.onnx.part")
    num_bytes = partial.stat().st_size
    with pytest.raises(WeightsError, match=r"private or gated" if status == 403 else str(status)):
        load_encoder(NAME)
    assert partial.stat().st_size == num_bytes > 0
    assert load_encoder(NAME).embedding_dim == WIDTH


@pytest.mark.parametrize("damage", ["model.safetensors", "encoder.json", "manifest.json", "no fingerprint"])
def test_a_damaged_encoder_of_the_cache_is_fetched_again(
    hub: Hub, damage: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pulled = pull_encoder(NAME)
    path = pulled.folder / ("manifest.json" if damage == "no fingerprint" else damage)
    whole = path.read_bytes()
    if damage == "no fingerprint":
        path.write_text(json.dumps({**json.loads(whole), "fingerprint": None}))
    else:
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]))
    num_requests = len(hub.requests)
    assert main(["weights", "use", NAME]) == 2
    assert f"vitrieve weights pull {NAME}" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "default_encoder.json").exists()
    assert len(hub.requests) == num_requests
    hub.is_down = True
    assert main(["weights", "pull", NAME]) == 2
    assert path.is_file()  # without the hub nothing is taken away
    hub.is_down = False
    assert main(["weights", "pull", NAME]) == 0
    assert "is fetched again, because it is damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert main(["weights", "use", NAME]) == 0


@pytest.mark.parametrize(
    ("name", "num_bytes", "error", "reason"),
    [
        ("config.json", 2 << 20, WeightsError, "config.json of .* has 2,097,152 bytes; at most 1,048,576 are read"),
        (GRAPH, 1 << 31, WeightsError, "has 2,147,483,648 bytes; at most 2,147,483,647 are read"),
        ("model.safetensors", 1 << 60, DiskFullError, "the disk is full; 1,152,921,504,606,846,976 bytes are needed"),
    ],
)
def test_what_is_too_large_is_not_asked_for(
    hub: Hub, tiny_encoder_folder: Path, name: str, num_bytes: int, error: type[Exception], reason: str
) -> None:
    repository = hub.repositories["owner/name"]
    if name == "model.safetensors":
        files = {path.name: path.read_bytes() for path in tiny_encoder_folder.iterdir() if path.is_file()}
        repository = hub.repositories["owner/name"] = Repository(files)
    repository.stated[name] = {
        "size": num_bytes,
        **({} if name == "config.json" else {"lfs": {"sha256": "0" * 64, "size": num_bytes, "pointerSize": 1}}),
    }
    with pytest.raises(error, match=reason):
        load_encoder(NAME)
    assert hub.list_ranges(name) == []


def test_a_full_disk_keeps_what_was_fetched(
    hub: Hub, mount_small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount_small_disk(1 << 20)
    monkeypatch.setenv("VITRIEVE_CACHE", str(disk / "cache"))
    large = build_graph()
    large.graph.initializer.append(numpy_helper.from_array(np.zeros(200_000, np.float32), "ballast"))
    hub.repositories["owner/name"] = build_export(large)
    with pytest.raises(DiskFullError, match="the disk is full"):
        load_encoder(NAME)  # there is room for the graph once, and not for the encoder beside it
    assert not list(disk.rglob("encoder.json"))
    subprocess.run(["mount", "-o", f"remount,size={1 << 23}", str(disk)], check=True)
    hub.requests.clear()
    assert load_encoder(NAME).embedding_dim == WIDTH
    assert hub.list_ranges("config.json") == hub.list_ranges(GRAPH) == []  # they were whole


def test_no_network_is_said_with_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(WeightsError, match=r"the hub cannot give hf:owner/name: .*refused.*Check the network"):
        load_encoder(NAME)
    assert hub.requests == []


def test_offline_settings_are_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE says not to ask it"):
        load_encoder(NAME)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("hf:owner/missing", 200, "no such repository, or it is private or gated"),
        (NAME, 401, "no such repository, or it is private or gated; with access to it, set HF_TOKEN"),
        (f"{NAME}@v9", 200, "no such branch, tag or commit"),
        (NAME, 503, "503"),
    ],
)
def test_what_the_hub_does_not_give_is_one_message(
    hub: Hub, name: str, status: int, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hub.repositories["owner/name"].status = status
    assert main(["weights", "pull", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("error: ") == 1
    assert reason in printed.err
    assert "Traceback" not in printed.err
    assert list_cache(tmp_path) == []


# Names that are meant to do harm


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:name",
        "hf:../name",
        "hf:owner/..",
        "hf:owner/name/more",
        "hf:owner/na me",
        "hf:/owner/name",
        "hf:owner/name@",
        "hf:owner/name@../x",
        "hf:owner/name@a/../b",
        "hf:owner/name@/a",
        "hf:own\ner/name",
        "hf:-x/name",
        "hf:a..b/name",
    ],
)
def test_names_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="is no name of a repository; expected hf:OWNER/NAME"):
        parse_hub_name(name)


@pytest.mark.parametrize("commit", ["../../evil", "", "main", "0" * 39, "A" * 40])
def test_a_commit_that_is_none_becomes_no_folder(hub: Hub, commit: str, tmp_path: Path) -> None:
    hub.repositories["owner/name"].commit = commit
    with pytest.raises(WeightsError, match="names no commit"):
        load_encoder(NAME)
    assert list_cache(tmp_path) == []


def test_file_names_of_the_hub_become_no_paths(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["owner/name"]
    repository.files.update({"../../evil": b"x", "/tmp/evil": b"x", "onnx/../evil\x1b[31m": b"x"})
    load_encoder(NAME)
    assert not [path for _, path, _ in hub.requests if "evil" in path]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "sub/data", "..", "a\\b", "missing"])
def test_weights_outside_of_the_repository_are_refused(hub: Hub, location: str, tmp_path: Path) -> None:
    model = build_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    hub.repositories["owner/name"] = build_export(model)
    hub.repositories["owner/name"].files["onnx/sub/data"] = b"x"
    with pytest.raises(
        WeightsError, match=r"its weights are said to be in .*, which is no file beside onnx/model\.onnx"
    ):
        load_encoder(NAME)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../../secret"}, "points outside the directory"),
        ({"location": "/etc/passwd"}, "should be a relative path"),
        ({"location": "config.json", "offset": "9" * 20}, "exceeds file size"),
        ({"location": "config.json", "offset": "ab"}, "invalid literal"),
    ],
)
def test_weights_inside_of_a_node_are_read_from_the_repository_alone(
    hub: Hub, entries: dict[str, str], reason: str
) -> None:
    model = build_graph()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "inside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    hub.repositories["owner/name"] = build_export(model)
    with pytest.raises(WeightsError, match=rf"weights that onnx/model\.onnx names cannot be read: .*{reason}"):
        load_encoder(NAME)


@pytest.mark.parametrize("name", ["onnx/..", "onnx/a\0b", "onnx//x", "."])
def test_files_of_names_that_no_file_has_are_not_there(hub: Hub, name: str) -> None:
    model = build_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name.removeprefix("onnx/"))
    hub.repositories["owner/name"] = build_export(model)
    hub.repositories["owner/name"].files[name] = b"x"
    with pytest.raises(WeightsError, match="which is no file beside"):
        load_encoder(NAME)


def test_what_a_killed_process_left_is_removed(hub: Hub, tmp_path: Path) -> None:
    left = parse_hub_name(NAME).folder / f".{COMMIT}-abcdef"
    (left / "complete").mkdir(parents=True)
    (left / "complete" / "encoder.onnx").write_bytes(b"half")
    load_encoder(NAME)
    assert not left.exists()
    assert not [path for path in list_cache(tmp_path) if "abcdef" in path]


def test_a_large_file_of_git_is_checked_in_bounded_memory(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = hub.repositories["owner/name"].files[GRAPH]
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    hub.repositories["owner/name"].stated[GRAPH] = {"lfs": None, "blobId": git}

    def refuse(path: Path) -> bytes:
        raise AssertionError(f"{path} is read whole")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert pull_encoder(NAME).spec.graph_sha256 == git


def test_a_fingerprint_is_that_of_the_published_file(hub: Hub) -> None:
    spec = pull_encoder(NAME).spec
    assert spec.graph_sha256 == hashlib.sha256(hub.repositories["owner/name"].files[GRAPH]).hexdigest()
    assert spec.weights_source == f"hub owner/name, commit {COMMIT}"
