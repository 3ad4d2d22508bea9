"""Mining against a slow reference, small pools, and tuple training as a system."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.forked import ForkedVitrieve
from tests.training.test_loop import (
    assert_same_bits,
    final_state,
    grow,
    list_train_words,
    measured_each_step,
    run_training,
    train_until_ctrl_c,
)
from vitrieve.config import (
    Config,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TupleConfig,
)
from vitrieve.data.loader import EpochTuples, TrainingLoader
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.objective.tuple_contrastive import TupleContrastiveConfig
from vitrieve.training.loop import fit_encoder
from vitrieve.training.relations import TrainingImages
from vitrieve.training.tuples import TupleMiner, build_miner, draw_class_pairs, find_hard_negatives, find_pair_rows


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def records(class_folder: Path) -> list[ImageRecord]:
    paths = sorted(class_folder.rglob("*.png"))
    return [
        ImageRecord(image_id=f"{path.parent.name}/{path.name}", path=path, label=number // 4, split="train")
        for number, path in enumerate(paths)
    ]


@pytest.fixture
def config(tiny_weights: Path) -> Config:
    """Twenty images: an epoch of four tuples in two steps, negatives from ten candidates."""
    return Config(
        loader=LoaderConfig(sampling="tuples", augmentation="square"),
        tuples=TupleConfig(num_pairs=4, num_candidates=10, num_negatives=3, tuples_per_batch=2),
        model=ModelConfig(
            backbone="test_vit", weights=str(tiny_weights), image_size=32, drop_path_rate=0.2, framing="square"
        ),
        objective=ObjectiveConfig(tuple_contrastive=TupleContrastiveConfig(weight=1.0), koleo=KoleoConfig(weight=4.0)),
        optimizer=OptimizerConfig(
            algorithm="adam", learning_rate=1e-2, schedule="exponential", decay_factor=0.9, decay_every=2
        ),
        train=TrainConfig(num_steps=6, checkpoint_every=3, precision="fp32"),
    )


def make_miner(config: Config, records: list[ImageRecord], pairs: tuple[tuple[str, str], ...] = ()) -> TupleMiner:
    preprocessing = build_encoder(config.model).spec.preprocessing
    loader = TrainingLoader(records, config.loader, preprocessing, batch_size=8, seed=0)
    miner = build_miner(config, records, pairs, loader)
    assert miner is not None
    return miner


def mine(miner: TupleMiner, encoder: ImageEncoder, step: int = 0) -> EpochTuples:
    return miner.mine(encoder, step, lambda items, description, total: items)


def find_hard_negatives_slowly(
    anchors: np.ndarray, anchor_labels: np.ndarray, candidates: np.ndarray, labels: np.ndarray, num_negatives: int
) -> list[list[int]]:
    """Walk down each anchor's ranking and skip labels that were met, the anchor's own first."""
    found = []
    for anchor, own in zip(anchors.astype(np.float64), anchor_labels.tolist(), strict=True):
        similarity = [float(sum(a * b for a, b in zip(anchor, other, strict=True))) for other in candidates]
        met, negatives = {own}, []
        for row in sorted(range(len(candidates)), key=lambda row: -similarity[row]):
            if len(negatives) < num_negatives and labels[row] not in met:
                negatives.append(row)
                met.add(labels[row])
        found.append(negatives + [-1] * (num_negatives - len(negatives)))
    return found


def unit_rows(num_rows: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, 5)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("num_negatives", [1, 3, 5, 9])
@pytest.mark.parametrize("num_labels", [1, 2, 6, 40])
def test_find_hard_negatives_equals_a_walk_down_the_ranking(num_negatives: int, num_labels: int) -> None:
    generator = np.random.default_rng(num_labels)
    anchor_labels, labels = generator.integers(0, num_labels, 12), generator.integers(0, num_labels, 50)
    anchors, candidates = unit_rows(12, 1), unit_rows(50, 2)
    found = find_hard_negatives(anchors, anchor_labels, candidates, labels, num_negatives)
    expected = find_hard_negatives_slowly(anchors, anchor_labels, candidates, labels, num_negatives)
    assert found.tolist() == expected


def test_find_hard_negatives_hand_case_takes_one_of_each_label_and_none_of_the_anchors() -> None:
    candidates = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [-1, 0]], dtype=np.float32)
    labels = np.array([5, 7, 7, 2, 9])
    anchors = np.array([[1, 0]], dtype=np.float32)
    assert find_hard_negatives(anchors, np.array([5]), candidates, labels, 4).tolist() == [[1, 3, 4, -1]]


def test_find_hard_negatives_orders_ties_by_label_then_row() -> None:
    same, labels = np.ones((5, 2), dtype=np.float32), np.array([8, 3, 8, 3, 1])
    assert find_hard_negatives(same[:1], np.array([1]), same, labels, 3).tolist() == [[1, 0, -1]]


def test_draw_class_pairs_pairs_different_images_of_a_class() -> None:
    labels = np.array([3, 1, 3, 9, 1, 3, 3])
    seen = Counter()
    for seed in range(200):
        pairs = draw_class_pairs(labels, 100, np.random.default_rng(seed))
        assert sorted(pairs[:, 0].tolist()) == [0, 1, 2, 4, 5, 6]  # 9 has one image only
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
        seen.update(map(tuple, pairs.tolist()))
    assert len(seen) == 4 * 3 + 2 * 1
    assert min(seen[0, other] for other in (2, 5, 6)) > 40


def test_draw_class_pairs_draws_no_more_than_asked_for() -> None:
    assert draw_class_pairs(np.zeros(9, dtype=np.int64), 4, np.random.default_rng(0)).shape == (4, 2)


def test_find_pair_rows_leaves_out_pairs_that_do_not_train(records: list[ImageRecord]) -> None:
    a, b = records[1].image_id, records[3].image_id
    rows = find_pair_rows(records, [(b, a), ("gone", a), (a, "gone"), (a, a), (b, a), (a, b)])
    assert rows.tolist() == [[3, 1], [1, 3]]
    assert find_pair_rows(records, [("gone", a)]).shape == (0, 2)


def test_build_miner_refuses_pairs_of_two_labels_and_no_pairs(config: Config, records: list[ImageRecord]) -> None:
    with pytest.raises(ConfigError, match="has the labels 0 and 1; images of a pair need the same label"):
        make_miner(config, records, ((records[0].image_id, records[4].image_id),))
    with pytest.raises(ConfigError, match="none of the source's 1 pairs joins two training images"):
        make_miner(config, records, (("gone", "away"),))
    with pytest.raises(ConfigError, match="no class has two training images"):
        make_miner(config, records[::4])


def test_mine_makes_tuples_of_the_roles_they_promise(config: Config, records: list[ImageRecord]) -> None:
    miner = make_miner(config, records)
    tuples = mine(miner, build_encoder(config.model), step=3)
    assert (tuples.epoch, tuples.start_step, tuples.end_step) == (1, 2, 4)
    assert tuples.rows.shape == (4, 5)
    for anchor, positive, *negatives in tuples.rows.tolist():
        assert anchor != positive
        labels = [records[row].label for row in negatives]
        assert records[anchor].label == records[positive].label
        assert records[anchor].label not in labels
        assert len(set(labels)) == len(labels) == 3


def test_mine_finds_what_a_slow_search_finds(config: Config, records: list[ImageRecord]) -> None:
    tuples_config = dataclasses.replace(config.tuples, num_candidates=20)
    config = dataclasses.replace(config, tuples=tuples_config)
    miner, encoder = make_miner(config, records), build_encoder(config.model).eval()
    with torch.no_grad():
        pixels = torch.cat(list(miner.loader.plain_batches(range(20), 7)))
        embeddings = encoder(pixels).numpy()
    labels = np.array([record.label for record in records])
    rows = mine(miner, encoder).rows
    expected = find_hard_negatives_slowly(embeddings[rows[:, 0]], labels[rows[:, 0]], embeddings, labels, 3)
    assert rows[:, 2:].tolist() == expected


def test_mine_is_a_function_of_seed_epoch_and_weights(config: Config, records: list[ImageRecord]) -> None:
    encoder = build_encoder(config.model)
    first = mine(make_miner(config, records), encoder)
    assert np.array_equal(first.rows, mine(make_miner(config, records), encoder, step=1).rows)
    assert not np.array_equal(first.rows[:, :2], mine(make_miner(config, records), encoder, step=2).rows[:, :2])
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert not np.array_equal(first.rows[:, :2], mine(make_miner(other, records), encoder).rows[:, :2])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    changed = mine(make_miner(config, records), encoder)
    assert np.array_equal(first.rows[:, :2], changed.rows[:, :2])
    assert not np.array_equal(first.rows[:, 2:], changed.rows[:, 2:])


def test_trap_mining_runs_in_eval_mode_and_goes_back(config: Config, records: list[ImageRecord]) -> None:
    miner, encoder = make_miner(config, records), build_encoder(config.model)
    seen = set()
    encoder.backbone.register_forward_hook(lambda module, inputs, output: seen.add(module.training))
    list_of_blocks = encoder.backbone.get_submodule("blocks")
    list_of_blocks.register_forward_hook(lambda module, inputs, output: seen.add(module.training))
    encoder.train()
    list_of_blocks.eval()  # a part that was frozen on purpose stays so
    mine(miner, encoder)
    assert seen == {False}
    assert encoder.training
    assert not list_of_blocks.training
    assert not any(parameter.is_inference() for parameter in encoder.parameters())


def test_small_pool_gives_what_there_is_and_says_so(config: Config, records: list[ImageRecord]) -> None:
    config = dataclasses.replace(config, tuples=TupleConfig(num_negatives=7))
    miner = make_miner(config, records)
    tuples = mine(miner, build_encoder(config.model))
    assert tuples.rows.shape == (20, 9)
    assert (tuples.rows[:, 6:] == -1).all()
    assert (tuples.rows[:, :6] >= 0).all()
    for part in (
        "20 pairs in 4 steps",
        "1.5 epochs in all",
        "2000 pairs were asked for",
        "all 20 images are",
        "give 4",
    ):
        assert part in miner.describe()


def test_a_pool_of_one_other_class_and_one_pair_still_ends(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    pairs = ((records[0].image_id, records[1].image_id),)
    result = fit_encoder(config, build_encoder(config.model), TrainingImages(records[:5], pairs), tmp_path)
    assert result.num_steps == 6


def test_trap_resume_in_the_middle_of_an_epoch_keeps_its_tuples_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    """An epoch is four steps here: after one, three and four steps the run is killed."""
    config = measured_each_step(dataclasses.replace(config, tuples=dataclasses.replace(config.tuples, num_pairs=8)))
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = run_training(config, records, whole, grow(0.01))
    for step in (1, 3, 4):
        stopped = tmp_path / f"stopped{step}"
        train_until_ctrl_c(config, records, stopped, step)
        resumed = run_training(config, records, stopped, grow(0.01 * (step + 2)))
        assert_same_bits(final_state(whole), final_state(stopped))
        assert_same_bits(expected.encoder.state_dict(), resumed.encoder.state_dict())


@pytest.mark.slow
def test_trap_killed_in_the_middle_of_an_epoch_of_tuples_a_run_resumes_bit_for_bit(
    forked_vitrieve: ForkedVitrieve, tiny_weights: Path, class_folder: Path, tmp_path: Path
) -> None:
    """An epoch is three steps: killed with the state after two on the disk."""
    words = list_train_words("--data", f"folder:{class_folder}", "--model.weights", tiny_weights)
    words += ["--loader.sampling", "tuples", "--tuples.num-pairs", 9, "--tuples.tuples-per-batch", 3]
    words += ["--objective.tuple-contrastive.weight", 1, "--out"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert forked_vitrieve([*words, whole]).status == 0
    assert "tuples/rows" in final_state(whole)
    assert forked_vitrieve([*words, out], num_syncs=4).status == -signal.SIGKILL
    assert (out / "state" / "step_0000002.safetensors").is_file()
    assert forked_vitrieve([*words, out, "--resume"]).status == 0
    assert_same_bits(final_state(whole), final_state(out))


def test_mining_again_in_the_middle_of_an_epoch_would_differ(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    config = dataclasses.replace(config, tuples=dataclasses.replace(config.tuples, num_pairs=8))
    train_config = dataclasses.replace(config.train, num_steps=3, checkpoint_every=3)
    run_training(dataclasses.replace(config, train=train_config), records, tmp_path)
    state = final_state(tmp_path)
    encoder = build_encoder(config.model)
    encoder.load_state_dict({n.removeprefix("encoder/"): t for n, t in state.items() if n.startswith("encoder/")})
    again = mine(make_miner(config, records), encoder, step=3)
    assert again.epoch == int(state["tuples/epoch"]) == 0
    assert not np.array_equal(again.rows, state["tuples/rows"].numpy())


def test_training_on_tuples_logs_its_pairs_and_mines_each_epoch(
    config: Config, records: list[ImageRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(config, records, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for name in (
        *("loss", "tuple_contrastive", "koleo", "mean_positive_distance", "mean_negative_distance"),
        *("active_negatives_fraction", "hardest_negative_similarity"),
    ):
        assert all(np.isfinite(line[name]) for line in lines)
    assert [round(line["learning_rate_factor"], 3) for line in lines] == [1, 1, 0.9, 0.9, 0.81, 0.81]
    assert capsys.readouterr().err.count("mine negatives: ") == 3
