"""What corrections become: labels, groups and negative pairs of a data set; and whole trainings with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitrieve.cli.main import main
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.several import forget_labels, set_apart
from vitrieve.data.sources import read_source
from vitrieve.errors import DataError
from vitrieve.feedback.events import Correction
from vitrieve.feedback.learning import apply_pairs
from vitrieve.feedback.pairs import write_pairs
from vitrieve.training.relations import build_relations


def make_dataset(labels: dict[str, int], *, tested: str = "") -> Dataset:
    records = tuple(
        ImageRecord(image_id=name, path=Path(name), label=label, split="test" if name in tested else "train")
        for name, label in labels.items()
    )
    return Dataset(name="own", protocol="p", records=records, label_names=tuple("ABCDE"))


def say(kind: str, query_id: str, image_id: str, who: str = "", label: str = "") -> Correction:
    return Correction(kind=kind, query_id=query_id, image_id=image_id, who=who, label=label)  # type: ignore[arg-type]


def list_labels(dataset: Dataset) -> dict[str, int]:
    return {record.image_id: record.label for record in dataset.records}


def test_label_is_the_class_and_a_new_name_is_a_new_class() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1})
    learnt = apply_pairs(given, [say("tagged", "", "a", label="B"), say("tagged", "", "c", label="new")])
    assert list_labels(learnt) == {"a": 1, "b": 0, "c": 5}
    assert learnt.label_names[5] == "new"


def test_groups_across_classes_join_no_classes() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1, "d": 1})
    learnt = apply_pairs(given, [say("same_group", "a", "c")])
    assert list_labels(learnt) == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert learnt.more_labels == {"a": (5,), "c": (5,)}
    relations = build_relations(learnt.records, learnt.more_labels, learnt.negative_pairs)
    assert relations is not None
    assert relations.more_labels.tolist() == [[2], [-1], [2], [-1]]


def test_lone_images_join_a_class_of_their_group() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1, "d": 2, "e": 3})
    learnt = apply_pairs(given, [say("right", "a", "c"), say("right", "d", "c"), say("wrong", "e", "a")])
    assert list_labels(learnt) == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 3}
    assert learnt.negative_pairs == (("a", "e"),)
    assert "2 positive in 1 group, 1 negative, 0 labels" in learnt.notes[0]


def test_wrong_pair_of_one_class_is_a_negative() -> None:
    learnt = apply_pairs(make_dataset({"a": 0, "b": 0, "c": 0}), [say("wrong", "a", "b")])
    relations = build_relations(learnt.records, learnt.more_labels, learnt.negative_pairs)
    assert relations is not None
    positive, negative = relations.mark_pairs(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert positive.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    assert negative.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_contradictions_are_left_out_and_told() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1})
    both = [say("right", "a", "b", "Eva"), say("wrong", "b", "a", "Max")]
    learnt = apply_pairs(given, [*both, say("same_group", "a", "c")])
    assert learnt.negative_pairs == ()
    assert any("1 pair is called both right and wrong, such as a and b; left out" in note for note in learnt.notes)
    with pytest.raises(DataError, match="contradict each other: 1 pair is called both right and wrong"):
        apply_pairs(given, both)


def test_images_that_are_gone_or_for_testing_are_told() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1, "t": 2}, tested="t")
    with pytest.raises(DataError, match=r"none of the 2 images of the pairs is in own, such as x"):
        apply_pairs(given, [say("right", "x", "y")])
    learnt = apply_pairs(given, [say("right", "a", "c"), say("right", "a", "x"), say("right", "a", "t")])
    assert set(learnt.more_labels) == {"a", "c"}
    assert any("1 of their images is not here, such as x" in note for note in learnt.notes)
    with pytest.raises(DataError, match="images for testing do not train"):
        apply_pairs(given, [say("right", "a", "t")])


def test_a_label_counts_whatever_was_asked() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1, "t": 2}, tested="t")
    for query_id in ("t", "gone"):
        learnt = apply_pairs(given, [say("tagged", query_id, "a", label="B")])
        assert list_labels(learnt)["a"] == 1
        assert not any("left out" in note for note in learnt.notes)
    with pytest.raises(DataError, match="images for testing do not train"):
        apply_pairs(given, [say("tagged", "a", "t", label="B")])


def test_labels_that_train_on_test_classes_are_told() -> None:
    given = make_dataset({"a": 0, "b": 0, "c": 1, "t": 2, "u": 3}, tested="tu")
    told = "1 of 2 test classes are also trained on: figures are not about unseen classes."
    assert told in apply_pairs(given, [say("tagged", "", "a", label="C")]).notes
    for other in (say("tagged", "", "a", label="B"), say("tagged", "", "a", label="new"), say("right", "a", "c")):
        assert not any("also trained on" in note for note in apply_pairs(given, [other]).notes)
    # A source that trains on them anyway has said so itself.
    shared = make_dataset({"a": 2, "b": 0, "t": 2}, tested="t")
    assert not any("also trained on" in note for note in apply_pairs(shared, [say("right", "a", "b")]).notes)
    without = forget_labels(given)
    assert told in apply_pairs(without, [say("tagged", "", "a", label="C")]).notes


def test_feedback_makes_classes_where_there_are_none() -> None:
    given = forget_labels(make_dataset({"a": 0, "b": 0, "c": 0, "d": 0}))
    assert len(set(list_labels(given).values())) == 4
    learnt = apply_pairs(given, [say("right", "a", "b"), say("right", "b", "c")])
    labels = list_labels(learnt)
    assert labels["a"] == labels["b"] == labels["c"] != labels["d"]


@pytest.fixture
def train(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        tiny = ("--model.backbone", "test_vit", "--model.weights", str(tiny_weights), "--image-size", "32")
        short = ("--num-steps", "4", "--batch-size", "8", "--num-threads", "1", "--train.evaluate-every", "2")
        status = main(["train", "small", "--out", str(tmp_path / "run"), *tiny, *short, "--json", *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def flat_folder(class_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "flat"
    folder.mkdir()
    for path in class_folder.rglob("*.png"):
        for copy in range(2):
            shutil.copyfile(path, folder / f"{path.parent.name}-{path.stem}-{copy}.png")
    return folder


def test_training_without_labels_is_measured_on_parts_of_held_out_pictures(
    train: Callable[..., tuple[int, str, str]], flat_folder: Path, tmp_path: Path
) -> None:
    status, out, err = train("--data", f"folder:{flat_folder}", "--classes", "none")
    assert status == 0, err
    assert "training on 32 images; held out to choose: 8, of which a part finds the whole" in err
    assert "two views of an image are its class" in err
    assert json.loads(out)["results"] == []
    assert (tmp_path / "run" / "encoder" / "encoder.json").exists()
    measured = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/map_at_r" in line or "map_at_r" in str(line) for line in measured)


def test_training_uses_pairs(train: Callable[..., tuple[int, str, str]], class_folder: Path, tmp_path: Path) -> None:
    names = [record.image_id for record in read_source(f"folder:{class_folder}").split("train")]
    write_pairs([say("wrong", names[0], names[1]), say("same_group", names[0], names[5])], tmp_path / "f.parquet")
    words = ("--data", f"folder:{class_folder}", "--pairs", str(tmp_path / "f.parquet"))
    status, out, err = train(*words)
    assert status == 0, err
    assert "pairs: 1 positive in 1 group, 1 negative, 0 labels" in err
    assert json.loads(out)["recipe"] == "small"
    proxies = ("--objective.proxy-anchor.weight", "1")
    status, _, err = train(*words, "--overwrite", "--objective.multi-similarity.weight", "0", *proxies)
    assert status == 2
    assert "objective.proxy_anchor needs one class of each image" in err


HARMFUL = ("--train.frozen-share", "0", "--optimizer.learning-rate", "1", "--optimizer.num-warmup-steps", "0")


@pytest.fixture
def noisy_folder(tmp_path: Path) -> Path:
    """Thirty classes of four pictures, one pattern with much noise: the start finds most; large steps destroy it."""
    generator = np.random.default_rng(0)
    for label in range(30):
        pattern = generator.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
        for number in range(4):
            path = tmp_path / "noisy" / f"{label:02}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = generator.normal(0, 60, (32, 32, 3))
            Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "noisy"


def check_start_was_kept(run: Path, err: str, start: Path) -> None:
    """Check that the training was worse than its start, and that the encoder has the weights that it began with."""
    made = json.loads((run / "manifest.json").read_text())
    measured = made["holdout_map_at_r"]
    assert set(measured) == {"0", "2", "4"}
    assert max(measured["2"], measured["4"]) < measured["0"], "or there was nothing to refuse"
    assert made["kept_step"] == 0
    assert "kept the frozen start: no state was better on the held-out" in err
    weights, kept = load_file(start), load_file(run / "encoder" / "model.safetensors")
    shared = [name for name in kept if name.removeprefix("backbone.") in weights]
    assert len(shared) > 10
    assert all(torch.equal(kept[name], weights[name.removeprefix("backbone.")]) for name in shared)


def test_nonsense_leaves_the_encoder_as_it_was(
    train: Callable[..., tuple[int, str, str]], noisy_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """Who calls pictures of one class wrong, and those of different ones a group, is not believed by the hold-out."""
    records = read_source(f"folder:{noisy_folder}").split("train")
    said = [
        say("wrong" if one.label == other.label else "same_group", one.image_id, other.image_id)
        for number, one in enumerate(records)
        for other in records[number + 1 :]
        if one.label == other.label or (one.label + 1 == other.label and number % 2)
    ]
    write_pairs(said, tmp_path / "f.parquet")
    status, _, err = train("--data", f"folder:{noisy_folder}", "--pairs", str(tmp_path / "f.parquet"), *HARMFUL)
    assert status == 0, err
    check_start_was_kept(tmp_path / "run", err, tiny_weights)


def test_several_labels_that_make_it_worse_leave_the_encoder_as_it_was(
    train: Callable[..., tuple[int, str, str]], noisy_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """A further label on a quarter of the images makes them positives of each other, whatever their classes."""
    rows = [f"{path},{path.parent.name},{path.stem}" for path in sorted(noisy_folder.rglob("*.png"))]
    (tmp_path / "own.csv").write_text("\n".join(["path,label,more_labels", *rows]))
    status, _, err = train("--data", f"table:{tmp_path / 'own.csv'}", *HARMFUL)
    assert status == 0, err
    check_start_was_kept(tmp_path / "run", err, tiny_weights)


def test_views_that_make_it_worse_leave_the_encoder_as_it_was(
    train: Callable[..., tuple[int, str, str]], noisy_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """Without labels, parts of held-out pictures judge; a training that takes much too large steps is not kept."""
    status, _, err = train("--data", f"folder:{noisy_folder}", "--classes", "none", *HARMFUL)
    assert status == 0, err
    assert "of which a part finds the whole" in err
    check_start_was_kept(tmp_path / "run", err, tiny_weights)


def test_training_with_several_labels_an_image(
    train: Callable[..., tuple[int, str, str]], class_folder: Path, tmp_path: Path
) -> None:
    rows = ["path,label,more_labels"]
    for path in sorted(class_folder.rglob("*.png")):
        rows.append(f"{path},{path.parent.name},{'even; noisy' if int(path.stem) % 2 == 0 else ''}")
    (tmp_path / "own.csv").write_text("\n".join(rows))
    dataset = read_source(f"table:{tmp_path / 'own.csv'}")
    even, noisy = (dataset.label_names.index(name) for name in ("even", "noisy"))
    assert set(dataset.more_labels.values()) == {(even, noisy)}
    assert len(dataset.more_labels) == 10
    status, _, err = train("--data", f"table:{tmp_path / 'own.csv'}")
    assert status == 0, err
    with pytest.raises(DataError, match="has several labels an image"):
        set_apart([dataset, replace(dataset, name="other", records=dataset.records[:0])])
