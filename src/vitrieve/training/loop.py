"""The optimizer's steps of a training run, in order.

Each line of ``fit_encoder`` is a short function of this folder or of a stage before it; ``run.py``
adds the data, the measurement and the report.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitrieve.config import Config, ObjectiveConfig, PromptConfig
from vitrieve.data.loader import Batch, TrainingLoader
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, NonFiniteLossError, VitrieveError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.model.lora import merge_lora
from vitrieve.model.prompts import PROMPTS
from vitrieve.objective.objective import Objective, similarity_statistics
from vitrieve.objective.own import OwnTerm
from vitrieve.objective.tuple_contrastive import tuple_statistics
from vitrieve.training.compute import (
    MemoryPlan,
    allow_low_resolution,
    count_batch_images,
    divide_batch,
    encode_batch,
    encode_pieces,
    has_batch_norm,
    image_size_at,
    leaving_no_trace,
    make_blank,
    move_batch,
    plan_memory,
    prepare_encoder,
    trains_batch_norm,
)
from vitrieve.training.distillation import read_teacher
from vitrieve.training.draws import StepDraws
from vitrieve.training.metrics_log import METRICS_NAME, MetricsLog, NoLog
from vitrieve.training.optimizer import WeightAverage, build_optimizer, set_learning_rate
from vitrieve.training.ranks import Ranks, current_ranks, tell_ranks, wrap_encoder
from vitrieve.training.relations import TrainingImages
from vitrieve.training.selection import SELECTION_METRIC, Selection
from vitrieve.training.state import STATE_NAME, TrainingState
from vitrieve.training.tuples import TupleMiner, build_miner
from vitrieve.training.watching import RunWatch

Evaluate = Callable[[ImageEncoder], Mapping[str, float]]
NUM_STEPS_WITHOUT_PAIRS = 10
"""So many batches without two images of one class are no accident."""


class TrainingResult(NamedTuple):
    """The end of a run.

    Attributes:
        encoder: The encoder that is kept, in eval mode.
        selection: The measurements on held-out classes; empty without hold-out.
        num_steps: Steps that were done (fewer than asked for when training stopped early).
        failure: Why the state after the last step could not be measured on the held-out classes; None where it was.
    """

    encoder: ImageEncoder
    selection: Selection
    num_steps: int
    failure: Exception | None = None

    @property
    def kept_step(self) -> int:
        """Number of steps behind the kept encoder; 0 is the frozen start."""
        return self.selection.best_step if self.selection.values else self.num_steps


def fit_encoder(
    config: Config,
    encoder: ImageEncoder,
    images: TrainingImages,
    run: Path,
    evaluate: Evaluate | None = None,
    own_terms: Sequence[OwnTerm] = (),
    watch: RunWatch | None = None,
) -> TrainingResult:
    """Fine-tune an encoder; a run with a state goes on from the last one.

    Args:
        config: The complete settings.
        encoder: Fresh result of ``build_encoder(config.model)``; changed.
        images: What it learns from.
        run: Existing folder, which gets ``metrics.jsonl`` and ``state/``.
        evaluate: Function that measures an encoder on held-out classes; its ``map_at_r`` decides which state is kept.
            None: the last state is kept.
        own_terms: Terms of the objective that are not of this package.
        watch: Who watches the run, on the first process; None: nobody.

    Raises:
        ConfigError: Tuples are asked for, and there are no pairs; or the teacher cannot be loaded.
        DataError: An image can no longer be read.
        NonFiniteLossError: A term of the loss became NaN or infinite.
        KeyboardInterrupt: After Ctrl-C, once the state is saved.

    Whatever ends the run, the steps so far are saved first; a note on the exception says up to which. Several processes
    (``ranks.py``) call it alike; the first alone writes into ``run``.
    """
    ranks = current_ranks()
    # Data
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    torch.manual_seed(config.train.seed)
    device = prepare_encoder(encoder, config)
    allow_low_resolution(encoder, config)
    loader = _build_loader(config, encoder, images.records)
    miner = build_miner(config, images.records, images.positive_pairs, loader)
    teacher = ranks.share_first(lambda: read_teacher(config, images.records, run))

    # State
    num_classes = loader.num_classes
    state = build_state(
        config,
        encoder,
        num_classes=num_classes,
        num_images=len(images.records),
        own_terms=own_terms,
        teacher=teacher,
    )
    state.objective.use_relations(images.relations)
    note = _load(state, run) if ranks.is_first else None
    num_steps, watch = config.train.num_steps, watch or RunWatch()
    _join_state(state, config, ranks)

    # Loop
    with (
        MetricsLog(run, start_step=state.step, num_steps=num_steps) if ranks.is_first else NoLog() as log,
        _interrupt_flag() as is_interrupted,
        _saving_before_failure(state, run, is_interrupted),
    ):
        if note:
            log.say(note)
        log.watch = watch
        watch.begin(state.step, num_steps, log.say)
        _measure_when_due(state, config, evaluate, log)
        end_step = state.step if _is_hopeless(state, config) else num_steps
        _mine_when_due(state, miner, end_step, log)
        if config.train.memory_limit_gib is not None:
            log.say(state.plan.describe())
        # A run that goes on for a few steps tells nothing of pairs.
        has_pairs, pairs_step = False, state.step + min(NUM_STEPS_WITHOUT_PAIRS, num_steps)
        start = time.monotonic()
        for batch in _draw_batches(state, loader, end_step):
            values = train_step(state, move_batch(batch, device), config)
            # The wait for the batch counts; measuring, saving and mining do not.
            values |= _describe_speed(time.monotonic() - start, len(batch.labels), num_steps - state.step)
            log.write(state.step, values)
            log.show(state.step, values)
            has_pairs |= len(set(batch.labels.tolist())) < len(batch.labels)
            if state.step == pairs_step and not has_pairs:
                _warn_of_no_pairs(state.objective, log)
            watch.step(state.step, values)
            _measure_when_due(state, config, evaluate, log)
            is_stopped, is_hopeless = ranks.any(is_interrupted()), _is_hopeless(state, config)
            is_last = state.step == num_steps
            if is_stopped or is_hopeless or is_last or _is_due(state.step, config.train.checkpoint_every):
                state.save(run)
            if is_stopped:
                raise KeyboardInterrupt
            if is_hopeless and state.step < num_steps:
                log.say(f"stopped at step {state.step}: the held-out classes are only getting worse")
                break
            _mine_when_due(state, miner, end_step, log)
            start = time.monotonic()
        failure = _measure_last(state, config, evaluate, log, run) if state.step == num_steps else None
        if ranks.any(is_interrupted()):  # during the last measurement, which is saved
            raise KeyboardInterrupt

    # Result
    return TrainingResult(_keep(state, config), state.selection, state.step, failure)


def _warn_of_no_pairs(objective: Objective, log: MetricsLog) -> None:
    """Say which terms learn nothing of batches without two images of one class; a memory has the pairs of a term."""
    has_memory = objective.memory is not None
    terms = objective.config.terms.items()
    names = [name for name, term in terms if term.needs_pairs and not (term.reads_memory and has_memory)]
    if names and not objective.has_relations:
        log.say(
            f"none of the last batches held two images of one class, so {', '.join(names)} had no pair to pull "
            "together; give a larger --train.batch-size, or --loader.sampling m_per_class and "
            "--loader.images-per-class 2 or more"
        )


def _build_loader(config: Config, encoder: ImageEncoder, records: Sequence[ImageRecord]) -> TrainingLoader:
    return TrainingLoader(
        records,
        config.loader,
        encoder.spec.preprocessing,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        image_size_at=partial(image_size_at, config),
        is_pinned=next(encoder.parameters()).device.type == "cuda",
    )


def _mine_when_due(state: TrainingState, miner: TupleMiner | None, end_step: int, log: MetricsLog) -> None:
    """Make the tuples of the next step's epoch, unless the state holds them (after a resume) or none are asked for."""
    if miner is None or state.step >= end_step or miner.is_current(state.tuples, state.step):
        return
    if state.tuples is None:
        log.say(miner.describe())
    state.tuples = miner.mine(state.encoder, state.step, log.track)


def _draw_batches(state: TrainingState, loader: TrainingLoader, end_step: int) -> Iterator[Batch]:
    """Yield the batches up to ``end_step``; tuples come one epoch at a time, because the next are not mined yet."""
    while state.step < end_step:
        epoch_end = end_step if state.tuples is None else min(state.tuples.end_step, end_step)
        yield from loader.batches(state.step, epoch_end, state.tuples, partial(_find_own_places, state))


def _find_own_places(state: TrainingState, num_images: int) -> np.ndarray:
    ranks = current_ranks()
    return divide_batch(num_images, ranks, state.piece_size)[ranks.rank]


def _join_state(state: TrainingState, config: Config, ranks: Ranks) -> None:
    """Let several processes begin with the state of the first, and add up their gradients from then on."""
    if ranks.size == 1:
        return
    state.share(ranks)
    tell_ranks(ranks, count_batch_images(config), next(state.encoder.parameters()).device.type)
    with leaving_no_trace(state.encoder, config):
        blank = make_blank(state.encoder, config, 2)
        size = len(blank)
        state.wrapped = wrap_encoder(state.encoder, lambda: encode_pieces(state.encoder, blank, config, size))
        # After its first backward pass it changes the order of its sums, which must be that of a resumed run.
        for _ in range(2):
            torch.autograd.backward(encode_pieces(state.wrapped, blank, config, size).sum())
    state.encoder.zero_grad()


def build_state(
    config: Config,
    encoder: ImageEncoder,
    *,
    num_classes: int,
    num_images: int,
    own_terms: Sequence[OwnTerm] = (),
    teacher: Tensor | None = None,
) -> TrainingState:
    """Build the state of a run at step zero, on the encoder's device; ``teacher`` is that of ``read_teacher``.

    Raises:
        ConfigError: ``train.memory_limit_gib`` is too little.
    """
    objective = Objective(
        config.objective,
        num_classes=num_classes,
        num_images=num_images,
        embedding_dim=encoder.spec.embedding_dim,
        own_terms=own_terms,
        teacher=teacher,
        division=current_ranks().divide(),
    ).to(next(encoder.parameters()).device)
    decay, momentum = config.train.ema_decay, config.objective.memory_momentum
    if config.objective.memory_fraction == 0:
        momentum = None
    state = TrainingState(
        encoder=encoder,
        plan=MemoryPlan(config.train.microbatch_size),
        objective=objective,
        optimizer=build_optimizer(encoder, objective, config.optimizer),
        average=None if decay is None else WeightAverage(encoder, decay),
        momentum=None if momentum is None else WeightAverage(encoder, momentum, has_ramp=False),
        frozen={
            name: parameter.detach().clone()
            for name, parameter in merge_lora(encoder).named_parameters()
            if config.model.prompts.num_tokens is None or not name.endswith(f".{PROMPTS}")  # those are drawn
        },
        frozen_share=config.train.frozen_share,
    )
    num_unfilled_bytes = sum(buffer.nbytes for buffer in objective.buffers())
    plans = current_ranks().gather(plan_memory(encoder, config, num_unfilled_bytes, num_images, num_classes))
    # Each rank has room for the smallest, and all must exchange alike.
    state.plan = min(plans, key=lambda plan: (not plan.is_encoded_twice, plan.microbatch_size))
    if trains_batch_norm(encoder, config):
        state.piece_size = _find_piece_size(config, state.plan, num_classes)
    return state


def _find_piece_size(config: Config, plan: MemoryPlan, num_classes: int) -> int:
    """Return how many images batch norm trains on at a time, on all ranks together.

    Raises:
        ConfigError: Ranks cannot divide the micro-batches that one process would have.
    """
    size, num_ranks = config.train.microbatch_size, current_ranks().size
    if size % num_ranks and size < count_batch_images(config, num_classes):
        raise ConfigError(
            f"train.microbatch_size is {size}, and batch norm trains on so many images at a time, which {num_ranks} "
            "ranks cannot divide; choose a multiple of their number, or the whole batch."
        )
    return plan.microbatch_size * num_ranks


def train_step(state: TrainingState, batch: Batch, config: Config) -> dict[str, float]:
    """Do one optimizer step; return the figures for the log.

    Raises:
        NonFiniteLossError: Before the weights change.
    """
    # Batch norm counts what it sees in the forward pass already.
    state.is_whole = config.train.freeze_batch_norm or not has_batch_norm(state.encoder)
    # Seeded by the step, so that a resumed run drops the same paths.
    torch.manual_seed(config.train.seed * 1_000_003 + state.step)
    factor = set_learning_rate(state.optimizer, config.optimizer, state.step, config.train.num_steps)
    ranks = current_ranks()
    places = divide_batch(len(batch.labels), ranks, state.piece_size)
    draws = StepDraws(config.train.seed, state.step, len(batch.labels), places[ranks.rank])
    own_embeddings, backward = encode_batch(state.trained, batch.pixels, config, state.plan, draws)
    embeddings = ranks.gather_rows(own_embeddings, places)
    loss = state.objective(embeddings, batch.labels, batch.rows, step=state.step, anchors=batch.anchors)
    terms = {name: term.item() for name, term in loss.terms.items()}
    _require_finite({f"loss term {name!r}": value for name, value in terms.items()}, state.step)
    backward(loss.total)
    gradient_norm = _clip_gradients(state.optimizer, config.optimizer.gradient_clip_norm)
    _require_finite({"norm of the gradient": gradient_norm}, state.step)
    state.is_whole = False
    state.optimizer.step()
    state.optimizer.zero_grad()
    _remember(state, embeddings, batch, places, config)
    state.step += 1
    for average in (state.average, state.momentum):
        if average is not None:
            average.update(state.encoder, state.step)
    state.is_whole = True
    return {
        "loss": loss.total.item(),
        **terms,
        **_describe_pairs(embeddings.detach(), batch, config.objective),
        **({"memory_fill": state.objective.memory_fill} if state.objective.memory is not None else {}),
        "learning_rate_factor": factor,
        "gradient_norm": gradient_norm,
    }


def _describe_pairs(embeddings: Tensor, batch: Batch, config: ObjectiveConfig) -> dict[str, float]:
    if batch.anchors is None:
        return similarity_statistics(embeddings, batch.labels, config.contrastive.margin)
    return tuple_statistics(embeddings, batch.labels, batch.anchors, config.tuple_contrastive.margin)


def _remember(
    state: TrainingState, embeddings: Tensor, batch: Batch, places: Sequence[np.ndarray], config: Config
) -> None:
    """Put the batch into the memories: as the encoder embedded it, or as the momentum encoder does."""
    if state.momentum is not None:
        # Its weights are still those of before the step, like the encoder's when it embedded the batch.
        with torch.no_grad():
            size = state.plan.microbatch_size
            own = encode_pieces(state.momentum.module, batch.pixels, config, size)
            embeddings = current_ranks().gather_rows(own, places)
    state.objective.enqueue(embeddings, batch.labels, batch.rows)


def _require_finite(values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the {name} is {value} at step {step}, which has changed no weight. With --resume the same would "
                "happen again: start again with --overwrite or another --out, and with a lower "
                "--optimizer.learning-rate or a longer --optimizer.num-warmup-steps; at the first step, look at the "
                "settings of the loss and at the weights."
            )


def _clip_gradients(optimizer: torch.optim.Optimizer, norm: float | None) -> float:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return float(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if norm is None else norm))


def _describe_speed(seconds: float, num_images: int, num_steps_left: int) -> dict[str, float]:
    return {"images_per_second": num_images / seconds, "seconds_left": seconds * num_steps_left}


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _is_hopeless(state: TrainingState, config: Config) -> bool:
    """Tell whether the last measurements were all below the frozen start."""
    return state.selection.num_worse >= config.train.num_patience


def _measure_when_due(state: TrainingState, config: Config, evaluate: Evaluate | None, log: MetricsLog) -> None:
    """Measure the frozen start and every so many steps; a resumed run, too, what failed or was interrupted."""
    if evaluate is None or state.step in state.selection.values:
        return
    if state.step == 0:
        log.say("measuring the frozen start on the held-out classes")
    elif state.step >= config.train.num_steps or not _is_due(state.step, config.train.evaluate_every):
        return
    _measure(state, config, evaluate, log)


def _measure(state: TrainingState, config: Config, evaluate: Evaluate, log: MetricsLog) -> None:
    has_prompts = config.model.prompts.num_tokens is not None
    result = _build_start(state, config) if state.step == 0 and has_prompts else state.build_result()
    values = evaluate(result)
    is_best = state.selection.add(state.step, values[SELECTION_METRIC])
    if is_best and state.step:
        state.best_weights = {name: tensor.clone() for name, tensor in result.state_dict().items()}
    log.write(state.step, {f"holdout_{name}": value for name, value in values.items()})
    shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in values.items())
    log.say(f"held-out classes after step {state.step}: {shown}{'  (best so far)' if is_best else ''}")
    log.watch.evaluation(state.step, values, is_best=is_best)


def _measure_last(
    state: TrainingState, config: Config, evaluate: Evaluate | None, log: MetricsLog, run: Path
) -> Exception | None:
    """Measure the state after the last step, which is saved; return what went wrong, which must not cost the training.

    A resumed run measures it once more, where that failed or was interrupted.
    """
    if evaluate is None or state.step in state.selection.values:
        return None
    failure: Exception | None = None
    try:
        _measure(state, config, evaluate, log)
    except Exception as error:
        failure = error
    # What only the first writes or tells may fail on it alone, and all save together.
    if not current_ranks().any(failure is not None):
        state.save(run)
    return failure


def _keep(state: TrainingState, config: Config) -> ImageEncoder:
    """Return the encoder to keep: the best measured, or the last."""
    if state.selection.values and state.selection.best_step == 0:
        return _build_start(state, config)
    result = state.build_result()
    if state.selection.values and state.best_weights is not None:
        result.load_state_dict(state.best_weights)
    return result.eval()


def _build_start(state: TrainingState, config: Config) -> ImageEncoder:
    """Build the frozen start: without prompts, which are drawn at random."""
    start = merge_lora(build_encoder(dataclasses.replace(config.model, prompts=PromptConfig())))
    start.load_state_dict(state.frozen, strict=False)  # a head starts at random
    return start.to(next(state.encoder.parameters()).device).eval()


def _load(state: TrainingState, run: Path) -> str | None:
    """Load the newest state, if any; return a sentence for the user about it."""
    note = state.load(run)
    if note is None and (run / METRICS_NAME).is_file():
        return f"{run} holds no training state; beginning at step 0"
    return note


@contextmanager
def _saving_before_failure(state: TrainingState, run: Path, is_interrupted: Callable[[], bool]) -> Iterator[None]:
    """Save the steps so far before an error ends the run, and add to the error how to go on.

    A second Ctrl-C, which stops at once, saves nothing; SIGTERM does not come through ``is_interrupted``.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or not is_interrupted():
            with suppress(OSError, VitrieveError):  # the disk may be the reason; what is saved is said below
                if state.can_save_alone and state.is_whole and state.step not in (0, state.saved_step):
                    state.save(run)
        error.add_note(_describe_saved(state, run, is_repeated=isinstance(error, NonFiniteLossError)))
        raise


def _describe_saved(state: TrainingState, run: Path, *, is_repeated: bool) -> str:
    if state.saved_step is None:
        return "No state is saved yet." if is_repeated else "No state is saved yet: --resume begins again."
    text = f"The state after step {state.saved_step} is saved in {run / STATE_NAME}"
    return f"{text}." if is_repeated else f"{text}; the same command with --resume goes on from there."


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that the step is finished and saved; a second one interrupts at once."""
    is_interrupted = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            raise KeyboardInterrupt
        is_interrupted = True
        with suppress(OSError):  # not print: a signal may arrive in the middle of another print
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")

    previous = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # Not the main thread: Ctrl-C is somebody else's.
        yield lambda: False
        return
    try:
        yield lambda: is_interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
