"""Pairs of towers, of pictures and of texts: what is read of an export, against plain NumPy, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.model.hub_server import Hub, Repository
from tests.model.towers import (
    EMBEDDING,
    END,
    SIZE,
    START,
    build_clip_tokenizer,
    build_pair,
    build_text_tower,
    draw_weights,
    encode_text_again,
    write_files,
)
from vitrieve import load_encoder
from vitrieve.cli.main import main
from vitrieve.errors import ConfigError, FingerprintError, WeightsError
from vitrieve.model import conversion

TOKENS = {
    "clip": [START, "a</w>", "red</w>", "apple</w>", END],
    "siglip": ["▁a", "▁red", "▁apple", "</s>"],
    "siglip2": ["a", "▁red", "▁apple", "<eos>"],
}
"""The tokens of "A red apple", as they are read from the vocabularies."""
COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "white": (240, 240, 240), "dark": (20, 20, 60)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))


def load(folder: Path) -> Any:
    return load_encoder(folder, engine="onnx", num_threads=1)


@pytest.mark.parametrize("kind", list(TOKENS))
def test_texts_have_the_vectors_of_the_published_tower(kind: str, tmp_path: Path) -> None:
    encoder = load(write_files(tmp_path / "pair", build_pair(kind)))
    expected = encode_text_again(kind, TOKENS[kind])
    np.testing.assert_allclose(encoder.encode_text("A red apple"), expected, atol=1e-5)
    several = encoder.encode_text(["snow", "A red apple", "the milk carton on a shelf"])
    np.testing.assert_allclose(several[1], expected, atol=1e-5)
    np.testing.assert_allclose(several[2], encoder.encode_text("the milk carton on a shelf"), atol=1e-5)


@pytest.mark.parametrize("kind", list(TOKENS))
def test_pictures_have_the_vectors_of_the_published_tower(kind: str, tmp_path: Path) -> None:
    files = build_pair(kind)
    told = json.loads(files["preprocessor_config.json"])
    encoder = load(write_files(tmp_path / "pair", files))
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    weights = draw_weights(1)
    normed = (pixels / 255 - told["image_mean"]) / told["image_std"]
    patches = [normed[y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    mean = np.mean([np.einsum("yxc,dcyx->d", patch, weights["kernel"]) for patch in patches], axis=0)
    vector = mean @ weights["of_pictures"]
    np.testing.assert_allclose(encoder.encode(Image.fromarray(pixels)), vector / np.linalg.norm(vector), atol=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_texts_in_lower_case_unless_its_tokenizer_says_no(kind: str, tmp_path: Path) -> None:
    encoder = load(write_files(tmp_path / "pair", build_pair(kind)))
    np.testing.assert_array_equal(encoder.encode_text("RED apple"), encoder.encode_text("red apple"))
    if kind == "siglip2":
        told = {"pad_token": "<pad>", "do_lower_case": False}
        encoder = load(write_files(tmp_path / "cased", build_pair(kind, tokenizer_config_json=told)))
        assert not np.allclose(encoder.encode_text("RED apple"), encoder.encode_text("red apple"), atol=1e-3)


def test_a_graph_of_one_length_gets_texts_of_that_length(tmp_path: Path) -> None:
    tokenizer = build_clip_tokenizer()
    weights = draw_weights(tokenizer.get_vocab_size())
    fixed = build_text_tower(weights, "text_embeds", end=tokenizer.token_to_id(END), length=20)
    encoder = load(write_files(tmp_path / "pair", build_pair(onnx__text_model_onnx=fixed)))
    filled = [*TOKENS["clip"], *[END] * 15]
    total = sum(
        (5 - place) * weights["table"][tokenizer.token_to_id(token)].astype(np.float64)
        for place, token in enumerate(filled[:5])
    )
    vector = total @ weights["of_texts"]
    np.testing.assert_allclose(encoder.encode_text("A red apple"), vector / np.linalg.norm(vector), atol=1e-5)
    with pytest.raises(ConfigError, match=r"the text encoder pair reads at most 20: say it in fewer words"):
        encoder.encode_text("apple " * 20)


def test_a_folder_is_converted_once_and_again_when_it_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "pair", build_pair())
    first = load(folder)
    assert capsys.readouterr().err.count("making an encoder of") == 1
    assert load(folder).fingerprint == first.fingerprint
    assert "making" not in capsys.readouterr().err
    write_files(folder, build_pair("siglip"))
    assert load(folder).fingerprint != first.fingerprint


def test_the_card_names_the_text_tower_and_its_license(tmp_path: Path) -> None:
    made = conversion.convert_folder(write_files(tmp_path / "pair", build_pair()))
    card = (made / "README.md").read_text(encoding="utf-8")
    assert card.count("holds the text encoder pair. Its license is unknown.") == 1


def test_weights_beside_the_graphs_of_a_folder_are_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pair", build_pair())
    expected = load(folder).encode_text("snow")
    path = folder / "onnx/text_model.onnx"
    model = onnx.load_model(path)
    onnx.save_model(model, path, save_as_external_data=True, location="text_model.onnx_data", size_threshold=64)
    assert (folder / "onnx/text_model.onnx_data").is_file()
    np.testing.assert_array_equal(load(folder).encode_text("snow"), expected)


def test_the_hub_gives_the_encoder_of_the_folder(empty_hub: Hub, tmp_path: Path, capsys: Any) -> None:
    files = build_pair()
    empty_hub.repositories["owner/pair"] = Repository({**files, "onnx/model.onnx": b"both towers, not fetched"})
    encoder, of_folder = load_encoder("hf:owner/pair", engine="onnx"), load(write_files(tmp_path / "pair", files))
    assert encoder.fingerprint == of_folder.fingerprint
    np.testing.assert_array_equal(encoder.encode_text("a red apple"), of_folder.encode_text("a red apple"))
    assert empty_hub.list_ranges("onnx/model.onnx") == []
    empty_hub.is_down = True
    assert load_encoder("hf:owner/pair", engine="onnx").encode_text("snow").shape == (EMBEDDING,)
    empty_hub.is_down = False
    capsys.readouterr()
    assert main(["weights", "pull", encoder.source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reads_text"] is True


def test_a_pair_syncs_indexes_and_searches_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = str(write_files(tmp_path / "pair", build_pair("siglip")))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (40, 30), color).save(photographs / f"{name}.png")
    assert main(["sync", "--data", str(photographs), "--index", str(tmp_path / "synced"), "--encoder", pair]) == 0
    assert main(["embed", "--data", str(photographs), "--encoder", pair, "--out", str(tmp_path / "embedded")]) == 0
    assert main(["index", "--embeddings", str(tmp_path / "embedded"), "--out", str(tmp_path / "indexed")]) == 0
    encoder = load(tmp_path / "pair")
    similarity = encoder.encode([photographs / f"{name}.png" for name in COLORS]) @ encoder.encode_text("milk carton")
    expected = {f"{name}.png": float(one) for name, one in zip(COLORS, similarity, strict=True)}
    for index in ("synced", "indexed"):
        capsys.readouterr()
        assert main(["search", "--text", "milk carton", "--index", str(tmp_path / index), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["queries"]
        assert found["ways"] == ["text_encoder", "words"]
        scores = {result["image_id"]: result["score"] for result in found["results"]}
        assert list(scores) == sorted(expected, key=lambda name: -expected[name])
        assert scores == pytest.approx(expected, abs=1e-3)


# What is refused, or not read


def rename_output(content: bytes, old: str, new: str) -> bytes:
    model = onnx.load_model_from_string(content)
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    for output in model.graph.output:
        output.name = new if output.name == old else output.name
    return bytes(model.SerializeToString())


PAIR = build_pair()
SIGLIP = build_pair("siglip")
FEW = draw_weights(60)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("clip", {"tokenizer_json": None}, "it has no tokenizer.json"),
        ("clip", {"tokenizer_json": b"{"}, "tokenizer.json is no tokenizer"),
        ("clip", {"tokenizer_json": {"model": {"vocab": 3}}}, "tokenizer.json is no tokenizer: it has no vocabulary"),
        ("clip", {"tokenizer_json": {"model": {"vocab": {"a": "b"}}}}, "the vocabulary of tokenizer.json is damaged"),
        ("siglip", {"tokenizer_config_json": None}, "tells the token that texts are filled up with"),
        ("siglip", {"tokenizer_config_json": {"pad_token": "<none>"}}, "<none> is none"),
        ("siglip", {"tokenizer_config_json": b"[]"}, "tokenizer_config.json holds no table"),
        ("clip", {"config_json": {"model_type": "chinese_clip"}}, "chinese_clip are not understood"),
        (
            "clip",
            {"config_json": {"model_type": "clip", "text_config": {"max_position_embeddings": "many"}}},
            "config.json has 'many' as the most tokens of a text",
        ),
        (
            "clip",
            {"onnx__text_model_onnx": rename_output(PAIR["onnx/text_model.onnx"], "text_embeds", "pooler_output")},
            "none is of the same space; expected image_embeds with text_embeds",
        ),
        ("clip", {"onnx__text_model_onnx": b"\x08"}, "onnx/text_model.onnx"),
        ("clip", {"onnx__text_model_onnx": PAIR["onnx/vision_model.onnx"]}, "none is of the same space"),
        (
            "siglip",
            {"onnx__text_model_onnx": build_text_tower(FEW | {"table": FEW["table"][:20]}, "pooler_output", end=0)},
            "cannot run its graph",
        ),
        (
            "siglip",
            {
                "onnx__text_model_onnx": build_text_tower(
                    FEW | {"of_texts": FEW["of_texts"][:, :4]}, "pooler_output", end=0
                )
            },
            "gives numbers of the shape (2, 4) for two texts; expected (2, 8)",
        ),
    ],
)
def test_a_text_tower_that_cannot_be_used_is_told_and_pictures_are_encoded(
    kind: str, changes: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load(write_files(tmp_path / "pair", build_pair(kind, **changes)))
    said = capsys.readouterr().err
    assert "pair encodes pictures alone, because its text tower cannot be used: " in said
    assert reason in said
    assert encoder.encode(Image.new("RGB", (20, 20))).shape == (EMBEDDING,)
    with pytest.raises(ConfigError, match="the encoder pair has no text part"):
        encoder.encode_text("snow")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("apple " * 100, "is 102 tokens long; the text encoder pair reads at most 77: say it in fewer words"),
        (" ", "the text is empty; say in words what to look for"),
    ],
)
def test_texts_that_say_too_much_or_nothing_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    encoder = load(write_files(tmp_path / "pair", build_pair()))
    with pytest.raises(ConfigError, match=reason):
        encoder.encode_text(text)


def test_a_folder_without_the_preparation_of_pictures_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "pair", build_pair(preprocessor_config_json=None))
    with pytest.raises(
        WeightsError, match=r"holds no encoder that can be read without torch.*preprocessor_config\.json"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("package", "told", "asked"),
    [
        ("transformers", ("config.json", "model.safetensors"), "transformers"),
        ("open_clip", ("open_clip_config.json", "open_clip_model.safetensors"), "open_clip_torch"),
    ],
)
def test_weights_alone_need_their_library_once(
    package: str, told: tuple[str, str], asked: str, tmp_path: Path, empty_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = build_pair(onnx__vision_model_onnx=None, onnx__text_model_onnx=None, config_json=None)
    files = {**without, told[0]: b'{"model_type": "clip"}', told[1]: b"weights"}
    monkeypatch.setattr(conversion, "find_spec", lambda name: None if name == package else object())
    empty_hub.repositories["owner/pair"] = Repository(files)
    for source in (write_files(tmp_path / "pair", files), "hf:owner/pair"):
        with pytest.raises(
            WeightsError, match=rf"holds weights for {package} and no ONNX export.*vitrieve.train.' {asked};"
        ):
            load_encoder(source, engine="onnx")
    assert empty_hub.list_ranges(told[1]) == []


def test_a_text_tower_of_another_pair_is_refused(tmp_path: Path) -> None:
    first, second = (load(write_files(tmp_path / kind, build_pair(kind))) for kind in ("clip", "siglip"))
    for path in first.text_part.iterdir():
        path.write_bytes((second.text_part / path.name).read_bytes())
    with pytest.raises(FingerprintError, match="was made for another image encoder"):
        load(tmp_path / "clip").encode_text("snow")
