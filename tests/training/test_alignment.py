"""Text parts: the text encoder's graph, the map against other libraries and by hand, and words that find pictures."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.text_encoders import CONFIG, LICENSE, draw_weights, write_colors, write_text_encoder
from vitrieve import align, load_encoder
from vitrieve.cli.main import main
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError
from vitrieve.model.text import TextMap
from vitrieve.model.text_export import TextTransformer, export_text_encoder, find_text_encoder
from vitrieve.runtime.text import TextEncoder
from vitrieve.similarity import normalize
from vitrieve.training import alignment
from vitrieve.training.alignment import (
    KS,
    Pairs,
    alignment_loss,
    choose_units,
    compute_chance,
    fit_ridge,
    measure_texts,
    refine_map,
)


def build_reference() -> tuple[
    torch.nn.Embedding, torch.nn.Embedding, torch.Tensor, torch.nn.LayerNorm, torch.nn.Module
]:
    """Build the same text encoder of torch's own layers."""
    weights = {name: torch.from_numpy(array) for name, array in draw_weights().items()}
    words = torch.nn.Embedding.from_pretrained(weights["embeddings.word_embeddings.weight"])
    places = torch.nn.Embedding.from_pretrained(weights["embeddings.position_embeddings.weight"])
    norm = torch.nn.LayerNorm(32, 1e-12)
    norm.load_state_dict({part: weights[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")})
    layers = []
    for number in range(2):
        layer = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", 1e-12, batch_first=True)
        own = {
            name.split(f"layer.{number}.")[1]: value for name, value in weights.items() if f"layer.{number}." in name
        }
        states = {}
        for part in ("weight", "bias"):
            states[f"self_attn.in_proj_{part}"] = torch.cat(
                [own[f"attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            )
            states[f"self_attn.out_proj.{part}"] = own[f"attention.output.dense.{part}"]
            states[f"linear1.{part}"], states[f"linear2.{part}"] = (
                own[f"intermediate.dense.{part}"],
                own[f"output.dense.{part}"],
            )
            states[f"norm1.{part}"], states[f"norm2.{part}"] = (
                own[f"attention.output.LayerNorm.{part}"],
                own[f"output.LayerNorm.{part}"],
            )
        layer.load_state_dict(states)
        layers.append(layer)
    return (
        words,
        places,
        weights["embeddings.token_type_embeddings.weight"][0],
        norm,
        torch.nn.ModuleList(layers).eval(),
    )


@torch.inference_mode()
def test_the_text_encoder_is_that_of_torchs_own_layers(text_encoder_folder: Path, tmp_path: Path) -> None:
    files = export_text_encoder(text_encoder_folder, tmp_path)
    found = TextEncoder(files).encode(["dark red", "green", "a bright bright blue"])  # "a" is unknown to it
    words, places, of_type, norm, layers = build_reference()
    vocabulary = json.loads((text_encoder_folder / "tokenizer.json").read_text())["model"]["vocab"]
    for vector, text in zip(found, ["dark red", "green", "a bright bright blue"], strict=True):
        tokens = ["[CLS]", *text.split(), "[SEP]"]
        ids = torch.tensor([[vocabulary.get(token, vocabulary["[UNK]"]) for token in tokens]])
        states = norm(words(ids) + places(torch.arange(len(tokens))) + of_type)
        for layer in layers:  # type: ignore[attr-defined]
            states = layer(states)
        expected = torch.nn.functional.normalize(states.mean(dim=1))[0]
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)


def test_roberta_counts_positions_from_two() -> None:
    model = TextTransformer(CONFIG, offset=2)
    before = model(torch.tensor([[4, 5]]), torch.ones(1, 2, dtype=torch.int64))
    with torch.no_grad():
        model.positions.weight[:2] += 9
        assert torch.equal(model(torch.tensor([[4, 5]]), torch.ones(1, 2, dtype=torch.int64)), before)
        model.positions.weight[2:4] += torch.randn(2, 32)
        assert not torch.equal(model(torch.tensor([[4, 5]]), torch.ones(1, 2, dtype=torch.int64)), before)


def test_a_published_graph_is_taken_instead_of_the_weights(text_encoder_folder: Path, tmp_path: Path) -> None:
    written = export_text_encoder(text_encoder_folder, tmp_path)
    folder = tmp_path / "published"
    shutil.copytree(text_encoder_folder, folder)
    (folder / "onnx").mkdir()
    shutil.copy(written.graph, folder / "onnx" / "model.onnx")
    (folder / "model.safetensors").unlink()
    files = export_text_encoder(folder, tmp_path)
    assert files.graph == folder / "onnx" / "model.onnx"
    assert np.array_equal(TextEncoder(files).encode(["dark red"]), TextEncoder(written).encode(["dark red"]))


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("config.json", {**CONFIG, "model_type": "t5"}, "is a t5"),
        ("config.json", {**CONFIG, "hidden_size": 16}, "are not those of its config"),
        ("modules.json", [{"path": "", "type": "x.Dense"}], "Dense"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
    ],
)
def test_export_text_encoder_refuses_what_it_does_not_compute(
    name: str, contents: object, message: str, tmp_path: Path
) -> None:
    folder = write_text_encoder(tmp_path / "text")
    (folder / name).write_text(json.dumps(contents))
    with pytest.raises(ArtifactError, match=message):
        export_text_encoder(folder, tmp_path)


@pytest.mark.parametrize(
    ("readme", "license"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- a\n---\n# Words\n", "apache-2.0"),
        ("---\nlicense: 'cc-by-4.0' \n---\n", "cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: words-1.0\n---\n", "words-1.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown"),
        ("# Words\n\n---\nlicense: mit\n---\n", "unknown"),
        ("---\nlicense: [a](javascript:b)\n---\n", "unknown"),
        (None, "unknown"),
        ("\ufeff---\nlicense: mit # as asked\n---\n", "mit"),
        ("---\nlicense: [mit, 'apache-2.0']\n---\n", "mit, apache-2.0"),
        ('---\nlicense:\n- mit # of the code\n- "cc-by-4.0"\ntags:\n- a\n---\n', "mit, cc-by-4.0"),
        ("---\nlicense: other # a\nlicense_name: Wörter (v1)\n---\n", "Wörter (v1)"),
        ("---\nlicense: other\nlicense_name: <b>\n---\n", "other"),
        ("---\nlicense: other\nlicense_name: https://evil.example/x\n---\n", "other"),
        ("---\nlicense: other\nlicense_name: see WWW.evil.example\n---\n", "other"),
        ("---\nlicense: [mit, //evil.example]\n---\n", "unknown"),
        ("---\nlicense: other\nlicense_name: MIT/Apache (a: b)\n---\n", "MIT/Apache (a: b)"),
        ("---\nlicense:\ntags:\n- a\n---\n", "unknown"),
        ("---\nlicense:\n- mit\n- <b>\n---\n", "unknown"),
    ],
    ids=[
        *("named", "quoted", "other, named", "other", "none", "not at the start", "no name", "no file", "a remark"),
        *("a list", "a list in lines", "any name", "a tag", "a link", "a bare link", "a link in a list"),
        *("no link", "empty", "a list with a tag"),
    ],
)
def test_the_license_is_what_the_metadata_of_the_readme_name(
    readme: str | None, license: str, text_encoder_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(text_encoder_folder, folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()  # taken as it is, so that nothing is exported
    (folder / "README.md").unlink()
    if readme is not None:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    assert export_text_encoder(folder, tmp_path).spec.license == license


def test_find_text_encoder_wants_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        find_text_encoder(tmp_path)


def make_pairs(num_texts: int = 30, num_copies: int = 2) -> Pairs:
    generator = np.random.default_rng(1)
    texts = normalize(generator.normal(size=(num_texts, 6)))
    images = np.repeat(texts @ generator.normal(size=(6, 9)), num_copies, axis=0)
    owners = np.repeat(np.arange(num_texts), num_copies)
    return Pairs(normalize(images + 0.05 * generator.normal(size=images.shape)), texts, (owners,))


def test_fit_ridge_is_scikit_learns() -> None:
    pairs = make_pairs()
    found = fit_ridge(pairs, penalty=0.3, mean_share=1.0)
    targets = normalize(pairs.vectors.reshape(30, 2, 9).sum(axis=1))
    centered = pairs.texts.astype(np.float64) - pairs.texts.mean(axis=0, dtype=np.float64)
    expected = Ridge(alpha=0.3 * (centered**2).sum() / 6).fit(pairs.texts.astype(np.float64), targets)
    np.testing.assert_allclose(found.weight, expected.coef_, atol=1e-5)
    np.testing.assert_allclose(found.bias, expected.intercept_, atol=1e-5)
    without = fit_ridge(pairs, penalty=0.3, mean_share=0.0)
    np.testing.assert_allclose(found.bias - without.bias, targets.mean(axis=0), atol=1e-6)


def test_alignment_loss_is_that_of_a_plain_double_loop() -> None:
    generator = np.random.default_rng(2)
    texts, images = generator.normal(size=(5, 4)), normalize(generator.normal(size=(5, 4))).astype(np.float64)
    expected = 0.0
    for row in range(5):
        of_text = [3.0 * texts[row] @ images[other] / np.linalg.norm(texts[row]) for other in range(5)]
        of_image = [3.0 * texts[other] @ images[row] / np.linalg.norm(texts[other]) for other in range(5)]
        for logits in (of_text, of_image):
            expected += (np.log(np.exp(logits).sum()) - logits[row]) / 10
    log_scale = torch.tensor(np.log(3.0))
    found = alignment_loss(torch.tensor(texts), torch.tensor(images), log_scale)
    assert float(found) == pytest.approx(expected, abs=1e-9)
    mapped = torch.tensor(texts, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: alignment_loss(given, torch.tensor(images), log_scale), (mapped,))


def test_refine_map_lowers_the_loss_and_follows_its_seed() -> None:
    pairs = make_pairs()
    start = fit_ridge(pairs, penalty=30.0, mean_share=1.0)
    first, last = refine_map(start, pairs, (0, 60), seed=3)
    again = list(refine_map(start, pairs, (0, 60), seed=3))[1]
    assert np.array_equal(first.weight, start.weight)
    assert np.array_equal(last.weight, again.weight)

    def loss(one: TextMap) -> float:
        mapped = torch.from_numpy(pairs.texts @ one.weight.T + one.bias)
        return float(alignment_loss(mapped, torch.from_numpy(pairs.vectors[::2]), torch.tensor(2.66)))

    assert loss(last) < loss(first)


def test_measure_texts_of_a_hand_worked_case() -> None:
    identity = TextMap(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    texts = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    known = Pairs(texts[:1], texts, (np.array([0]),))
    # The text 1 finds its picture second, the text 2 first; the text 0 is known, and does not ask.
    unseen = Pairs(
        np.array([[1, 0], [0.28, 0.96], [0, -1], [-0.6, 0.8]], np.float32), texts, (np.array([0, 2, -1, 1]),)
    )
    figures = measure_texts(identity, known, unseen)
    assert figures is not None
    assert (figures.num_texts, figures.num_images) == (2, 4)
    assert figures.recall == {1: 0.5, 5: 1.0, 10: 1.0}
    assert figures.chance == {1: 0.25, 5: 1.0, 10: 1.0}
    assert measure_texts(identity, known, known) is None


def draw_unseen(num_texts: int, num_images: int) -> Pairs:
    """Pictures with texts in two columns, some without; all similarities are halves, and most are equal to others."""
    generator = np.random.default_rng(4)
    texts = generator.choice([-0.5, 0.5], (num_texts, 4)).astype(np.float32)  # of length 1
    vectors = generator.integers(-1, 2, (num_images, 4)).astype(np.float32)
    owners = tuple(generator.integers(-1, num_texts, num_images) for _ in range(2))
    return Pairs(vectors, texts, owners)


@pytest.mark.parametrize("num_cells", [1, 700, 1 << 24])
def test_measure_texts_is_the_definition_in_blocks_of_any_size(num_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BLOCK_CELLS", num_cells)
    unseen = draw_unseen(60, 90)
    known = Pairs(unseen.vectors[:8], unseen.texts, (np.arange(8),))
    figures = measure_texts(TextMap(np.eye(4, dtype=np.float32), np.zeros(4, np.float32)), known, unseen)
    places, chances = [], []
    for text in range(8, 60):
        own = {image for column in unseen.owners for image in range(90) if column[image] == text}
        if own:
            similar = [float(sum(unseen.texts[text] * vector)) for vector in unseen.vectors]
            order = sorted(range(90), key=lambda image: (-similar[image], image))
            places.append(next(place for place, image in enumerate(order) if image in own))
            chances.append([compute_chance(len(own), 90, k) for k in KS])
    assert figures is not None
    assert (figures.num_texts, figures.num_images) == (len(places), 90)
    assert list(figures.recall.values()) == [np.mean(np.array(places) < k) for k in KS]
    assert 0 < figures.recall[1] < figures.recall[10] < 1
    np.testing.assert_allclose(list(figures.chance.values()), np.mean(chances, axis=0), rtol=1e-12)


def test_measure_texts_holds_a_block_of_the_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "BLOCK_CELLS", 1 << 12)
    unseen = draw_unseen(700, 1000)
    nothing = Pairs(unseen.vectors[:0], unseen.texts, (np.empty(0, np.int64),))
    tracemalloc.start()
    try:
        assert measure_texts(TextMap(np.eye(4, dtype=np.float32), np.zeros(4, np.float32)), nothing, unseen) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 700 * 1000  # bytes: a quarter of all similarities


def test_compute_chance_is_that_of_counting() -> None:
    from itertools import combinations

    drawn = [0 in some or 1 in some for some in combinations(range(6), 3)]
    assert compute_chance(2, 6, 3) == pytest.approx(sum(drawn) / len(drawn))


def test_choose_units_takes_texts_where_classes_are_few() -> None:
    owners = np.arange(60)
    assert np.array_equal(choose_units(np.arange(60) // 30, (owners,)), owners)
    assert np.array_equal(choose_units(np.arange(60) // 2, (owners,)), np.arange(60) // 2)


def test_align_finds_colors_whose_names_it_never_saw(
    tiny_encoder_folder: Path, text_encoder_folder: Path, tmp_path: Path, make_read_only: Callable[[Path], None]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_encoder_folder, store)
    make_read_only(store)
    colors = write_colors(tmp_path / "colors")
    is_test = [record.label % 4 == 1 for record in colors.records]
    records = [replace(one, split="test") if test else one for one, test in zip(colors.records, is_test, strict=True)]
    aligned = align(
        store,
        replace(colors, records=tuple(records)),
        tmp_path / "out",
        text_columns="name",
        text_encoder=text_encoder_folder,
    )
    assert aligned.test is not None
    assert (aligned.test.num_texts, aligned.num_texts) == (9, 27)
    assert aligned.test.recall[5] > aligned.test.chance[5] + 0.2
    before, after = load_encoder(tiny_encoder_folder), load_encoder(tmp_path / "out")
    assert after.fingerprint == before.fingerprint == aligned.fingerprint
    path = colors.records[0].path
    assert np.array_equal(after.encode(path), before.encode(path))
    assert after.encode_text(["dark red", "dark red"]).shape == (2, after.embedding_dim)
    assert after.encode_text([]).shape == (0, after.embedding_dim)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "On held-out classes" in card
    named = f"The folder `text` holds the text encoder {aligned.text_encoder}. Its license is {LICENSE}."
    assert card.count(named) == 1
    assert (tmp_path / "out").stat().st_mode == colors.records[0].path.parent.stat().st_mode, "it can be written"


def test_align_refuses_what_it_cannot_learn_from(
    tiny_encoder_folder: Path, text_encoder_folder: Path, tmp_path: Path
) -> None:
    colors = write_colors(tmp_path / "colors")
    given = {"text_encoder": text_encoder_folder}
    with pytest.raises(ConfigError, match=r"unknown text column 'nmae'.*name"):
        align(tiny_encoder_folder, colors, tmp_path / "out", text_columns=["nmae"], **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no text column is named"):
        align(tiny_encoder_folder, colors, tmp_path / "out", text_columns=[], **given)  # type: ignore[arg-type]
    few = replace(colors, records=colors.records[:15])
    with pytest.raises(DataError, match="too few to hold some out"):
        align(tiny_encoder_folder, few, tmp_path / "out", text_columns=["name"], **given)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="holds the encoder itself"):
        align(tiny_encoder_folder, colors, tiny_encoder_folder, text_columns=["name"], overwrite=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_records", "name", "message"),
    [
        (15, None, "has 5 classes or texts to learn from, too few to hold some out"),
        (108, "red", "no texts that are theirs alone"),
        (108, "nothing_known", "none of the images has a text to learn from"),
    ],
)
def test_what_the_texts_refuse_is_refused_before_a_picture_is_read(
    num_records: int,
    name: str | None,
    message: str,
    tiny_encoder_folder: Path,
    text_encoder_folder: Path,
    tmp_path: Path,
) -> None:
    colors = write_colors(tmp_path / "colors")
    records = tuple(
        replace(one, path=tmp_path / "gone.png", metadata={"name": name or one.metadata["name"]})
        for one in colors.records[:num_records]
    )
    with pytest.raises(DataError, match=message):
        align(
            tiny_encoder_folder,
            replace(colors, records=records),
            tmp_path / "out",
            text_columns=["name"],
            text_encoder=text_encoder_folder,
        )


def test_a_text_part_of_another_encoder_or_with_a_changed_file_is_refused(aligned_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(aligned_folder, folder)
    (folder / "text" / "tokenizer.json").write_text("{}")
    with pytest.raises(FingerprintError, match=r"tokenizer\.json is missing, or is not the file"):
        load_encoder(folder).encode_text("dark red")
    manifest = json.loads((aligned_folder / "text" / "manifest.json").read_text())
    (folder / "text" / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 64}))
    with pytest.raises(FingerprintError, match="made for another image encoder"):
        load_encoder(folder).encode_text("dark red")


def test_the_command_aligns_a_table(
    tiny_encoder_folder: Path,
    text_encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    colors = write_colors(tmp_path / "colors")
    lines = [
        "path,label,name",
        *(f"colors/{one.image_id},{one.label},{one.metadata['name']}" for one in colors.records),
    ]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    words = ["align", "--encoder", str(tiny_encoder_folder), "--data", f"table:{tmp_path / 'table.csv'}"]
    words += ["--text-column", "name,label", "--text-encoder", str(text_encoder_folder), "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_texts"] == 29  # of 36 classes, those that train; their numbers are no words that it knows
    assert found["folder"] == str(tmp_path / "out")
    assert found["held_out"]["recall"]["10"] >= found["held_out"]["recall"]["1"]
    assert load_encoder(tmp_path / "out").text_part is not None
