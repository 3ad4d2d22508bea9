"""The loop as a system: resume, kill, selection, finite checks, micro-batches."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.forked import ForkedVitrieve
from vitrieve.config import Config, LoaderConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from vitrieve.data.loader import TrainingLoader
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, DecodeError, NonFiniteLossError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.objective.koleo import KoleoConfig
from vitrieve.objective.own import OwnTerm, read_own_terms
from vitrieve.objective.proxy_anchor import ProxyAnchorConfig
from vitrieve.settings import override_config
from vitrieve.training.loop import (
    Evaluate,
    TrainingResult,
    build_state,
    fit_encoder,
    train_step,
)
from vitrieve.training.relations import TrainingImages
from vitrieve.training.state import STATE_NAME, TrainingState

NUM_CLASSES, NUM_COPIES = 5, 4
"""Of the fixture class_folder."""


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
        ImageRecord(image_id=path.name, path=path, label=number // NUM_COPIES, split="train")
        for number, path in enumerate(paths)
    ]


@pytest.fixture
def config(tiny_weights: Path) -> Config:
    return Config(
        loader=LoaderConfig(sampling="m_per_class", images_per_class=2),
        model=ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32, drop_path_rate=0.2),
        objective=ObjectiveConfig(
            contrastive=ContrastiveConfig(weight=1.0),
            proxy_anchor=ProxyAnchorConfig(weight=0.1),
            koleo=KoleoConfig(weight=0.5),
            memory_fraction=0.8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, num_warmup_steps=2, schedule="cosine", gradient_clip_norm=5.0),
        train=TrainConfig(
            num_steps=6, batch_size=6, microbatch_size=4, ema_decay=0.9, checkpoint_every=2, precision="fp32"
        ),
    )


def run_training(
    config: Config,
    records: list[ImageRecord],
    run: Path,
    evaluate: Evaluate | None = None,
    own_terms: Sequence[OwnTerm] = (),
) -> TrainingResult:
    return fit_encoder(config, build_encoder(config.model), TrainingImages(records), run, evaluate, own_terms=own_terms)


def final_state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / STATE_NAME).iterdir()))


def assert_same_bits(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def train_until_ctrl_c(
    config: Config, records: list[ImageRecord], run: Path, step: int, own_terms: Sequence[OwnTerm] = ()
) -> None:
    """Train, measuring after each step, and press Ctrl-C while the measurement after ``step`` runs."""
    run.mkdir(exist_ok=True)
    num_calls = 0

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        nonlocal num_calls
        if num_calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        num_calls += 1
        return {"map_at_r": num_calls / 100}

    with pytest.raises(KeyboardInterrupt):
        run_training(config, records, run, evaluate, own_terms)


def grow(start: float = 0.5, by: float = 0.01) -> Callable[[ImageEncoder], dict[str, float]]:
    values = iter(start + by * number for number in range(100))
    return lambda encoder: {"map_at_r": next(values)}


def measured_each_step(config: Config) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=1))


@pytest.mark.parametrize("step", [1, 3, 6])
def test_trap_resume_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path, step: int
) -> None:
    config = measured_each_step(config)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    expected = run_training(config, records, whole, grow(0.01))
    train_until_ctrl_c(config, records, stopped, step)
    resumed = run_training(config, records, stopped, grow(0.01 * (step + 2)))
    assert_same_bits(final_state(whole), final_state(stopped))
    assert_same_bits(expected.encoder.state_dict(), resumed.encoder.state_dict())
    assert (expected.kept_step, expected.num_steps) == (resumed.kept_step, resumed.num_steps)


def with_momentum(config: Config, momentum: float | None = 0.5, **changes: float) -> Config:
    return override_config(config, {"memory_momentum": momentum, **changes})


def test_trap_resume_of_a_momentum_encoder_and_a_slot_memory_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    config = measured_each_step(
        with_momentum(config, scalable_nca_weight=0.1, normalized_softmax_weight=0.1, proxy_nca_weight=0.1)
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    run_training(config, records, whole, grow(0.01))
    train_until_ctrl_c(config, records, stopped, 3)
    assert {name.split("/")[0] for name in final_state(stopped)} >= {"momentum", "encoder", "objective"}
    run_training(config, records, stopped, grow(0.01 * 5))
    assert_same_bits(final_state(whole), final_state(stopped))


class CentersTerm(torch.nn.Module):
    """A term of a user's own, with a parameter and a buffer that changes in every step."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.centers = torch.nn.Parameter(torch.full((NUM_CLASSES, 64), 0.1))
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, *, step: int) -> torch.Tensor:
        self.mean.lerp_(embeddings.detach().mean(dim=0), 0.5)
        pull = (embeddings - self.centers[labels]).square().sum(dim=1).mean()
        return pull + self.share * (embeddings - self.mean).abs().sum() / (1 + step)


def test_trap_resume_of_a_run_with_a_term_of_its_own_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    config = measured_each_step(config)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    term = CentersTerm(0.01)
    own_terms = read_own_terms([(term, 0.5)])
    run_training(config, records, whole, grow(0.01), own_terms)
    train_until_ctrl_c(config, records, stopped, 3, own_terms)
    run_training(config, records, stopped, grow(0.01 * 5), read_own_terms([(CentersTerm(0.01), 0.5)]))
    found = final_state(whole)
    assert_same_bits(found, final_state(stopped))
    assert torch.equal(term.centers, torch.full((NUM_CLASSES, 64), 0.1))  # what the user holds is left as it was
    assert not torch.equal(found["objective/own_CentersTerm.centers"], term.centers)
    assert found["objective/own_CentersTerm.mean"].abs().sum() > 0
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(line["CentersTerm"] > 0 for line in logged if "loss" in line)


def test_train_without_momentum_saves_no_momentum_encoder(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    run_training(config, records, tmp_path)
    assert not any(name.startswith("momentum/") for name in final_state(tmp_path))


def train_some_steps(config: Config, records: list[ImageRecord], num_steps: int) -> TrainingState:
    encoder = build_encoder(config.model)
    loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
    torch.manual_seed(0)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=len(records))
    for batch in loader.batches(0, num_steps):
        train_step(state, batch, config)
    return state


def test_momentum_encoder_follows_the_recursion(config: Config, records: list[ImageRecord]) -> None:
    """One step: start, then half the way to the trained weights; it starts at the frozen ones."""
    config = with_momentum(config, 0.5)
    state = train_some_steps(config, records, 1)
    assert state.momentum is not None
    frozen = dict(build_encoder(config.model).named_parameters())
    trained = dict(state.encoder.named_parameters())
    for name, parameter in state.momentum.module.named_parameters():
        torch.testing.assert_close(parameter, 0.5 * frozen[name] + 0.5 * trained[name])
        assert not parameter.requires_grad


def test_momentum_encoder_of_momentum_zero_is_the_encoder_to_the_bit(
    config: Config, records: list[ImageRecord]
) -> None:
    """Without drop-path, an encoder that does not lag embeds a batch as the trained one did before its step."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, drop_path_rate=0.0))
    plain, momentum = (train_some_steps(with_momentum(config, value), records, 4) for value in (None, 0.0))
    assert_same_bits(plain.objective.state_dict(), momentum.objective.state_dict())
    assert_same_bits(plain.encoder.state_dict(), momentum.encoder.state_dict())


def test_momentum_encoder_fills_the_memory_with_embeddings_of_its_own(
    config: Config, records: list[ImageRecord]
) -> None:
    config = with_momentum(config, 0.999)
    state = train_some_steps(config, records, 2)
    encoder = build_encoder(config.model)
    loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
    *_, last = loader.batches(0, 2)
    assert state.objective.memory is not None
    kept = state.objective.memory.contents()
    with torch.no_grad():
        start = encoder.eval()(last.pixels)
        trained = state.encoder.eval()(last.pixels)
    assert kept.rows[6:].tolist() == last.rows.tolist()
    # After one step at a momentum of 0.999 it is still where it started, while the trained encoder has moved.
    torch.testing.assert_close(kept.embeddings[6:], start, atol=1e-3, rtol=0)
    assert (trained - start).abs().max() > 0.01


def test_trap_momentum_encoder_left_in_train_mode_or_buffers_not_copied(
    config: Config, records: list[ImageRecord]
) -> None:
    config = with_momentum(config, 0.9)
    encoder = build_encoder(config.model)
    encoder.backbone.register_buffer("counter", torch.zeros(()))
    loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=len(records))
    assert state.momentum is not None
    for batch in loader.batches(0, 3):
        encoder.backbone.get_buffer("counter").add_(1)
        train_step(state, batch, config)
        assert state.encoder.training
        assert not any(part.training for part in state.momentum.module.modules())
    assert state.momentum.module.backbone.get_buffer("counter").item() == 3


def test_momentum_without_a_memory_builds_nothing(config: Config, records: list[ImageRecord]) -> None:
    config = with_momentum(config, 0.9, memory_fraction=0.0)
    assert build_state(config, build_encoder(config.model), num_classes=5, num_images=20).momentum is None


def list_train_words(*words: object) -> list[object]:
    return [
        *("train", "irt_r_small", "--model.backbone", "test_vit", "--image-size", 32, "--num-steps", 4),
        *("--batch-size", 6, "--num-threads", 1, "--no-report", "--objective.memory-start-step", 1),
        *("--train.ema-decay", 0.9, "--train.evaluate-every", 1, "--train.checkpoint-every", 2, *words),
    ]


@pytest.fixture(scope="module")
def train_words(tiny_weights: Path, class_folder: Path) -> list[object]:
    return list_train_words("--data", f"folder:{class_folder}", "--model.weights", tiny_weights, "--out")


@pytest.fixture(scope="module")
def whole_run(
    forked_vitrieve: ForkedVitrieve, train_words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert forked_vitrieve([*train_words, out]).status == 0
    return out


NUM_SYNCS = 22
"""Of a whole run: settings, two states, encoder and manifest."""


def read_weights(run: Path) -> bytes:
    return (run / "encoder" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_trap_killed_at_any_moment_a_run_resumes_bit_for_bit(
    forked_vitrieve: ForkedVitrieve, train_words: list[object], whole_run: Path, tmp_path: Path
) -> None:
    """Killed again and again: inside the writing of the settings, of both states, and of the encoder."""
    out, resume = tmp_path / "killed", []
    # The number of the sync is that of the process. One that resumes writes the settings and, where there is one, the
    # log again, with two syncs each.
    for num_syncs, states in ((1, []), (2, []), (5, [2]), (4, [2]), (5, [2, 4]), (5, [2, 4])):
        assert forked_vitrieve([*train_words, out, *resume], num_syncs=num_syncs).status == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
        assert [int(path.stem[5:]) for path in sorted(out.glob("state/*.safetensors"))] == states
        resume = ["--resume"]
    assert (out / "encoder").exists()
    assert forked_vitrieve([*train_words, out, *resume]).status == 0
    assert_same_bits(final_state(whole_run), final_state(out))
    assert read_weights(whole_run) == read_weights(out)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_an_overwrite_that_is_killed_leaves_the_old_run_or_the_new_one_and_resumes(
    forked_vitrieve: ForkedVitrieve, train_words: list[object], whole_run: Path, tmp_path: Path
) -> None:
    expected, out, beside = tmp_path / "expected", tmp_path / "run", tmp_path / ".run.new"
    shutil.copytree(whole_run, out)
    old = read_tree(out)
    other = [*train_words, out, "--seed", 1]
    whole = forked_vitrieve([*train_words, expected, "--seed", 1])
    assert (whole.status, whole.num_syncs) == (0, NUM_SYNCS)
    # Twice begun, stopped with each of the states on the disk, and resumed until the manifest is written: that run
    # writes settings and log, and no state.
    last = NUM_SYNCS - 3
    for num_syncs, flag in ((0, "--overwrite"), (3, "--overwrite"), (5, "--resume"), (last, "--resume")):
        assert forked_vitrieve([*other, flag], num_syncs=num_syncs).status == -signal.SIGKILL
        assert read_tree(out) == old
    assert (beside / "manifest.json").exists()  # complete, and killed before the exchange
    refused = forked_vitrieve([*train_words, out, "--seed", 2, "--resume"])
    assert (refused.status, "train.seed was 1 and is 2" in refused.printed) == (2, True)
    assert read_tree(out) == old
    resumed = forked_vitrieve([*other, "--resume"])
    assert resumed.status == 0
    assert_same_bits(final_state(expected), final_state(out))
    assert read_weights(expected) == read_weights(out) != read_weights(whole_run)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert not any(b".run.new" in content for content in read_tree(out).values())
    assert not beside.exists()
    assert "run with --overwrite" not in resumed.printed
    assert forked_vitrieve([*other, "--resume"]).status == 2  # a finished run


@pytest.mark.slow
def test_an_overwrite_that_is_killed_after_the_exchange_has_happened(
    forked_vitrieve: ForkedVitrieve, train_words: list[object], whole_run: Path, tmp_path: Path
) -> None:
    out, beside = tmp_path / "run", tmp_path / ".run.new"
    shutil.copytree(whole_run, out)
    shutil.rmtree(out / "state")  # so that the old run is told from the new one
    # The sync after those of the run itself is that of the exchange.
    killed = forked_vitrieve([*train_words, out, "--overwrite"], num_syncs=NUM_SYNCS)
    assert killed.status == -signal.SIGKILL
    assert (out / "state").is_dir()
    assert not (beside / "state").exists()
    refused = forked_vitrieve([*train_words, out, "--resume"])
    assert refused.status == 2
    assert "holds a finished result" in refused.printed
    assert (out / "state").is_dir()


def test_train_drops_the_half_written_state_of_a_killed_run(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    (tmp_path / STATE_NAME).mkdir()
    (tmp_path / STATE_NAME / "step_0000004.tmp").write_bytes(b"half")
    run_training(config, records, tmp_path)
    assert list_states(tmp_path) == [4, 6]


def list_states(run: Path) -> list[int]:
    """List the steps of the states in a run's folder; any other file fails the test."""
    names = sorted(path.name for path in (run / STATE_NAME).iterdir())
    return [int(name.removeprefix("step_").removesuffix(".safetensors")) for name in names]


def flip_byte(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_states_are_in_the_order_of_their_steps_whatever_their_digits(config: Config, tmp_path: Path) -> None:
    """The letters of step_10000000 come before those of step_9999999."""

    def build() -> TrainingState:
        return build_state(config, build_encoder(config.model), num_classes=10, num_images=60)

    state = build()
    for state.step in (9_999_998, 9_999_999, 10_000_000, 10_000_001):
        state.save(tmp_path)
    assert list_states(tmp_path) == [10_000_000, 10_000_001]
    state.step = 9_999_999
    state.save(tmp_path)  # a run that went back: what is newer was damaged
    state.step = 10_000_000
    state.save(tmp_path)
    resumed = build()
    told = resumed.load(tmp_path)
    assert told == "going on from the state after step 10000000, step_10000000.safetensors"
    assert resumed.step == 10_000_000
    assert sorted(list_states(tmp_path)) == [9_999_999, 10_000_000]


@pytest.mark.parametrize("damage", ["cut", "weights", "header", "empty"])
def test_a_damaged_state_costs_the_steps_since_the_one_before_only(
    config: Config, records: list[ImageRecord], tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for run in (whole, damaged):
        run.mkdir()
        run_training(config, records, run)
    newest = max((damaged / STATE_NAME).iterdir())
    if damage in ("cut", "empty"):
        newest.write_bytes(newest.read_bytes()[:-9] if damage == "cut" else b"")
    else:
        flip_byte(newest, 0.9 if damage == "weights" else 0.001)
    capsys.readouterr()
    resumed = run_training(config, records, damaged)
    told = capsys.readouterr().err
    assert f"{newest.name} is damaged (" in told
    assert "; going on from the state after step 4, step_0000004.safetensors\n" in told
    assert resumed.num_steps == 6
    assert_same_bits(final_state(whole), final_state(damaged))
    assert list_states(damaged) == [4, 6]


def test_two_damaged_states_are_one_message_about_both(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    run_training(config, records, tmp_path)
    for path in (tmp_path / STATE_NAME).iterdir():
        flip_byte(path, 0.5)
    with pytest.raises(ArtifactError) as told:
        run_training(config, records, tmp_path)
    assert str(told.value).count("is damaged or of another run (its checksum does not fit)") == 2
    assert list_states(tmp_path) == [4, 6]


def test_a_state_of_a_version_without_checksums_is_gone_on_from(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    run_training(config, records, tmp_path)
    newest = max((tmp_path / STATE_NAME).iterdir())
    with safe_open(newest, framework="pt") as file:
        description = file.metadata()["state"]
    save_file(load_file(newest), newest, metadata={"state": description})
    assert run_training(config, records, tmp_path).num_steps == 6


def test_a_state_that_reads_back_differently_does_not_replace_the_one_before(
    config: Config, records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk damages what is written from step 4 on."""

    def write_wrongly(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        if '"step": 2' not in metadata["state"]:
            flip_byte(Path(path), 0.9)

    monkeypatch.setattr("vitrieve.training.state.save_file", write_wrongly)
    with pytest.raises(ArtifactError, match=r"step_0000004\.safetensors was written, but reads back differently"):
        run_training(config, records, tmp_path)
    assert list_states(tmp_path) == [2]


def test_the_older_state_makes_room_on_a_full_disk(
    config: Config, records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds two states."""

    def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        if len(list_states(tmp_path)) >= 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("vitrieve.training.state.save_file", write)
    assert run_training(config, records, tmp_path).num_steps == 6
    assert list_states(tmp_path) == [4, 6]


class _FailsOnce:
    """A measurement like ``grow``, but the call of this number fails; a run that goes on makes it again."""

    def __init__(self, number: int, error: BaseException) -> None:
        self.number, self.error, self.num_calls = number, error, 0

    def __call__(self, encoder: ImageEncoder) -> dict[str, float]:
        if self.num_calls == self.number:
            self.number = -1
            raise self.error
        self.num_calls += 1
        return {"map_at_r": self.num_calls / 100}


# Ctrl-C is turned into a flag, so that this KeyboardInterrupt is what SIGTERM raises.
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "SIGTERM"])
def test_a_measurement_that_fails_in_the_middle_costs_no_step_and_is_made_again(
    config: Config, records: list[ImageRecord], tmp_path: Path, error: BaseException
) -> None:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=1, checkpoint_every=99))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    expected = run_training(config, records, whole, grow(0.01))
    evaluate = _FailsOnce(3, error)
    with pytest.raises(type(error)) as told:
        run_training(config, records, stopped, evaluate)
    assert told.value.__notes__ == [
        f"The state after step 3 is saved in {stopped / STATE_NAME}; the same command with --resume goes on from there."
    ]
    assert list_states(stopped) == [3]
    resumed = run_training(config, records, stopped, evaluate)
    assert resumed.selection.values.keys() == expected.selection.values.keys() == set(range(7))
    assert_same_bits(final_state(whole), final_state(stopped))
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, stopped)]
    steps = [[(json.loads(line)["step"], "loss" in json.loads(line)) for line in log] for log in logs]
    assert steps[0] == steps[1]


def test_a_picture_that_vanishes_in_the_middle_costs_no_step(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    """Nothing is kept in the cache, so that every step reads; all pictures are moved away for a while."""
    config = measured_each_step(dataclasses.replace(config, loader=dataclasses.replace(config.loader, cache_bytes=0)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=99))
    pictures, away = tmp_path / "pictures", tmp_path / "away"
    shutil.copytree(records[0].path.parents[1], pictures)
    records = [
        dataclasses.replace(record, path=pictures / record.path.parent.name / record.path.name) for record in records
    ]
    evaluate = grow(0.01)

    def vanish(encoder: ImageEncoder) -> Mapping[str, float]:
        values = evaluate(encoder)
        if values["map_at_r"] > 0.035 and pictures.exists():  # after step 3; the batch of step 4 may be prepared
            pictures.rename(away)
        return values

    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(DecodeError, match=r"\.png, which could be read when the run began, no longer can: ") as told:
        run_training(config, records, run, vanish)
    assert "the same command with --resume goes on from there" in told.value.__notes__[0]
    (step,) = list_states(run)
    assert step in (3, 4)
    away.rename(pictures)
    assert run_training(config, records, run, grow(0.05)).num_steps == 6


def test_a_loss_that_is_not_finite_says_where_the_steps_before_are(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    num_calls = 0

    def spoil(encoder: ImageEncoder) -> dict[str, float]:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:  # after step 3
            next(encoder.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return {"map_at_r": num_calls / 100}

    config = measured_each_step(dataclasses.replace(config, train=dataclasses.replace(config.train, ema_decay=None)))
    with pytest.raises(NonFiniteLossError, match="at step 3, which has changed no weight") as told:
        run_training(config, records, tmp_path, spoil)
    assert "start again with --overwrite" in str(told.value)
    assert told.value.__notes__ == [f"The state after step 3 is saved in {tmp_path / STATE_NAME}."]
    assert list_states(tmp_path) == [2, 3]
    assert all(tensor.isfinite().all() for tensor in final_state(tmp_path).values())


def test_a_failure_before_the_first_step_saves_nothing(
    config: Config, records: list[ImageRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = _FailsOnce(0, OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output") as told:
        run_training(config, records, tmp_path, evaluate)
    assert told.value.__notes__ == ["No state is saved yet: --resume begins again."]
    assert not (tmp_path / STATE_NAME).exists()
    capsys.readouterr()
    assert run_training(config, records, tmp_path, evaluate).num_steps == 6
    assert "holds no training state; beginning at step 0" in capsys.readouterr().err


def test_a_failure_within_the_change_of_the_weights_saves_nothing_half_done(
    config: Config, records: list[ImageRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, encoder: ImageEncoder, step: int) -> None:
        if step == 4:
            raise MemoryError

    monkeypatch.setattr("vitrieve.training.optimizer.WeightAverage.update", fail)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, checkpoint_every=3))
    with pytest.raises(MemoryError) as told:
        run_training(config, records, tmp_path)
    assert list_states(tmp_path) == [3]
    assert "The state after step 3 is saved" in told.value.__notes__[0]


def test_train_refuses_a_state_of_another_model(config: Config, records: list[ImageRecord], tmp_path: Path) -> None:
    run_training(config, records, tmp_path)
    other = dataclasses.replace(config, objective=dataclasses.replace(config.objective, memory_fraction=0.5))
    with pytest.raises(ArtifactError, match="--overwrite"):
        run_training(other, records, tmp_path)


def test_train_keeps_the_best_measured_state(config: Config, records: list[ImageRecord], tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    values = iter([0.5, 0.6, 0.9, 0.7])

    def evaluate(encoder: ImageEncoder) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in encoder.state_dict().items()})
        return {"map_at_r": next(values)}

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=2))
    result = run_training(config, records, tmp_path, evaluate)
    assert result.kept_step == 4
    assert_same_bits(result.encoder.state_dict(), seen[2])
    assert not result.encoder.training


def test_train_keeps_the_frozen_start_when_nothing_is_better_and_stops_early(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, evaluate_every=1, num_patience=2))
    result = run_training(config, records, tmp_path, grow(by=-0.01))
    assert (result.kept_step, result.num_steps) == (0, 2)
    assert_same_bits(result.encoder.state_dict(), build_encoder(config.model).state_dict())
    again = run_training(config, records, tmp_path, grow(by=-0.01))
    assert again.num_steps == 2


def test_train_keeps_the_head_it_started_with_when_the_start_was_best(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    train_config = dataclasses.replace(config.train, evaluate_every=1, num_patience=2)
    model_config = dataclasses.replace(config.model, head_norm=True, head_dim=4)
    config = dataclasses.replace(config, model=model_config, train=train_config)
    encoder = build_encoder(config.model)
    start = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = fit_encoder(config, encoder, TrainingImages(records), tmp_path, grow(by=-0.01))
    assert result.kept_step == 0
    assert not torch.equal(encoder.state_dict()["head.linear.weight"], start["head.linear.weight"])
    assert_same_bits(result.encoder.state_dict(), start)


def test_train_keeps_the_best_state_across_a_resume(config: Config, records: list[ImageRecord], tmp_path: Path) -> None:
    train_until_ctrl_c(measured_each_step(config), records, tmp_path, 3)
    result = run_training(measured_each_step(config), records, tmp_path, lambda encoder: {"map_at_r": 0.02})
    assert result.kept_step == 3


def test_train_blends_the_frozen_weights_into_what_it_measures_and_keeps(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    train_config = dataclasses.replace(config.train, ema_decay=None)
    plain, blended = tmp_path / "plain", tmp_path / "blended"
    plain.mkdir()
    blended.mkdir()
    whole = run_training(dataclasses.replace(config, train=train_config), records, plain)
    train_config = dataclasses.replace(train_config, frozen_share=0.25)
    part = run_training(dataclasses.replace(config, train=train_config), records, blended)
    frozen = build_encoder(config.model).state_dict()
    for name, parameter in part.encoder.named_parameters():
        expected = whole.encoder.state_dict()[name].lerp(frozen[name], 0.25)
        assert torch.equal(parameter, expected)
    assert_same_bits(final_state(plain), final_state(blended))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"loader.images_per_class": 1, "memory_fraction": 0}, "so contrastive had no pair to pull together"),
        ({"loader.images_per_class": 1}, None),  # the memory has earlier images of the class
        ({"loader.images_per_class": 1, "memory_fraction": 0, "num_steps": 2}, "so contrastive had no pair"),
        ({"loader.images_per_class": 2, "memory_fraction": 0}, None),
        ({"loader.sampling": "tuples", "memory_fraction": 0, "tuples.num_negatives": 1}, None),
        ({"loader.images_per_class": 1, "memory_fraction": 0, "contrastive.weight": 0}, None),  # proxies are learned
    ],
)
def test_batches_without_two_images_of_a_class_are_told(
    config: Config,
    records: list[ImageRecord],
    changes: dict[str, Any],
    names: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = override_config(config, {"num_steps": 11, "batch_size": NUM_CLASSES, **changes})
    run_training(config, records, tmp_path)
    err = capsys.readouterr().err
    assert err.count("none of the last batches held two images of one class") == (names is not None)
    assert names is None or names in err


def test_train_step_names_the_term_that_is_not_finite(config: Config, records: list[ImageRecord]) -> None:
    encoder = build_encoder(config.model)
    loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=len(records))
    state.objective.get_parameter("proxy_anchor.proxies").data[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="'proxy_anchor' is nan at step 0"):
        train_step(state, next(loader.batches(0, 1)), config)
    assert_same_bits(before, encoder.state_dict())


def test_train_step_stops_before_a_gradient_that_is_not_finite_reaches_the_weights(
    config: Config, records: list[ImageRecord]
) -> None:
    encoder = build_encoder(config.model)
    loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=len(records))
    next(encoder.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="the norm of the gradient is nan at step 0"):
        train_step(state, next(loader.batches(0, 1)), config)
    assert_same_bits(before, encoder.state_dict())


def test_trap_the_loop_puts_a_batch_into_the_memory_after_its_loss(config: Config, records: list[ImageRecord]) -> None:
    logged = []
    for fraction in (0.0, 0.8):
        changed = override_config(config, {"memory_fraction": fraction, "contrastive.margin": -0.5})
        encoder = build_encoder(config.model)
        loader = TrainingLoader(records, config.loader, encoder.spec.preprocessing, batch_size=6, seed=0)
        state = build_state(changed, encoder, num_classes=NUM_CLASSES, num_images=len(records))
        logged.append([train_step(state, batch, changed)["contrastive"] for batch in loader.batches(0, 2)])
    without, with_memory = logged
    assert with_memory[0] == without[0]
    assert with_memory[1] > without[1]
