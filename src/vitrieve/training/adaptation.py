"""A linear head learned on stored embeddings, and put into the encoder that made them.

No picture is read: the vectors that ``vitrieve embed`` wrote are multiplied by a matrix, which is trained to tell the
training classes of a source apart. Classes that are held out decide how long, how many dimensions remain, and whether
the result is better than the encoder as it was. The command ``vitrieve adapt`` calls ``adapt``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.artifacts import check_replacing, read_manifest, replacing_folder, require_outside
from vitrieve.data.holdout import MAX_CHOOSING, NUM_CLASSES_MIN, NUM_JUDGES_MIN, limit_images, split_for_training
from vitrieve.data.records import Dataset, ImageRecord, find_absolute, require_trainable
from vitrieve.data.sources import find_source_path, read_source
from vitrieve.embed.embeddings import (
    Embeddings,
    find_other_region,
    load_embeddings,
    tell_changed_files,
    tell_other_files,
    write_mapped_embeddings,
)
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.evaluation.analysis import difference_interval
from vitrieve.evaluation.measure import EvaluationResult, Measurement, measure
from vitrieve.evaluation.protocols import select_records
from vitrieve.model.artifact import ModelCard, require_apart, require_made_by, require_present
from vitrieve.model.encoder import (
    ImageEncoder,
    add_linear_head,
    build_frozen_encoder,
    fingerprint_encoder,
    read_encoder,
    save_encoder,
)
from vitrieve.model.export import export_folder
from vitrieve.model.reduction import fix_signs
from vitrieve.model.seen import describe_seen
from vitrieve.model.text import carry_text_part
from vitrieve.objective.normalized_softmax import normalized_softmax_loss
from vitrieve.progress import print_message
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.runtime.encoder import find_source_folder
from vitrieve.settings import check_seed
from vitrieve.similarity import normalize
from vitrieve.training.selection import SELECTION_METRIC

SCALE = 16.0
"""The cosines are multiplied by this."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-6
BATCH_SIZE = 128
NUM_OUTPUTS = 512
"""These settings are those of ILIAS's adaptation, ``train_head`` names it. Longer embeddings have as many outputs as
dimensions."""
SMALLER_DIMS = (128, 256, 512)
"""Dimensions to try, where they are fewer than the embeddings have, beside all that the head has."""
SECONDS_BETWEEN_LINES = 10.0
"""A line about the epoch is printed no more often."""
MAX_CLASSES = 5_000
"""Most classes that a head learns to tell apart: each step takes time in proportion to them."""
NUM_EPOCHS_MAX = 100
"""Largest number of epochs. ILIAS takes 2 to 5 of millions of images; small sets gain from more (held-out classes stop
them)."""
NUM_PATIENCE = 10
"""Training ends after this many epochs in a row without a better figure on the held-out classes."""
BEFORE, AFTER = "before", "adapted"
"""Names of the two rows of figures."""


@dataclass(frozen=True, kw_only=True)
class AdaptedEncoder:
    """What an adaptation ends with.

    Attributes:
        folder: Folder of the encoder.
        fingerprint: Fingerprint of the encoder.
        embedding_dim: Length of an embedding.
        is_adapted: Whether the encoder has the head. If not, the head was not better beyond chance on the held-out
            classes, and the encoder is as it was.
        num_epochs: Epochs behind the best head.
        num_images: Images that the head learns from.
        num_classes: Classes that it learns to tell apart.
        gain: 95 % interval of what the head adds to MAP@R on the held-out classes, paired, in [-1, 1].
        held_out: Figures on the held-out classes: as it was, and with the best head.
        test: Figures on the test classes: as it was, and with the head where it is kept; empty where the embeddings
            have none.
        embeddings: Folder of the adapted embeddings; None: they were not asked for.
        seconds: Time that learning and measuring took.
    """

    folder: Path
    fingerprint: str
    embedding_dim: int
    is_adapted: bool
    num_epochs: int
    num_images: int
    num_classes: int
    gain: tuple[float, float]
    held_out: tuple[EvaluationResult, ...]
    test: tuple[EvaluationResult, ...]
    embeddings: Path | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How a head is learned.

    Attributes:
        embedding_dim: Dimensions of the result, at most those of the embeddings; None: the held-out classes choose.
        seed: Seed of the first weights, of the order of the images, and of the classes that learn where there are more
            than ``MAX_CLASSES``.
    """

    embedding_dim: int | None = None
    seed: int = 0


class FittedHead(NamedTuple):
    """The best head, as the held-out classes find.

    Attributes:
        components: ``(E, D)`` float32, rows by falling length.
        num_epochs: Epochs behind it.
    """

    components: np.ndarray
    num_epochs: int


def adapt(
    embeddings: str | Path,
    data: Dataset | str | Path,
    out: str | Path,
    *,
    encoder: str | Path | None = None,
    embeddings_out: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> AdaptedEncoder:
    """Learn a linear head on stored embeddings, and put it into the encoder that made them.

    ``adapt("embeddings", "folder:photos", "adapted", embeddings_out="adapted_embeddings")`` learns from the training
    classes of the source, whose images are found among the embeddings by their ``image_id``. Every fifth class is held
    out and decides. Where no head is better on those classes beyond chance, the encoder is written as it was. Whatever
    may be refused comes before ``out`` is touched.

    Args:
        embeddings: Folder that ``vitrieve embed`` wrote.
        data: A data set, or a source as ``read_source`` takes it; all its training images must have been embedded.
        out: Folder of the new encoder, with its ONNX graph.
        encoder: Folder or weights name of the encoder that made the embeddings; None: where they say that it is.
        embeddings_out: Folder for the embeddings of the new encoder, made from the stored ones; None: none are written.
        overwrite: Replace what ``out`` and ``embeddings_out`` hold.
        settings: Fields of ``HeadSettings``: ``embedding_dim``, ``seed``.

    Returns:
        The figures before and after, and the fingerprint of the new encoder.

    Raises:
        ArtifactError: The embeddings or their encoder cannot be found or read, or an output folder is not free.
        FingerprintError: The encoder is another one than the embeddings were made by.
        DataError: The embeddings lack training images, or there are too few classes to hold some out.
        ConfigError: The settings do not fit the embeddings.
    """
    head_settings = HeadSettings(**settings)
    check_seed(head_settings.seed)
    stored, source = load_embeddings(embeddings), Path(embeddings)
    out, embeddings_out = Path(out), None if embeddings_out is None else Path(embeddings_out)
    dataset = data if isinstance(data, Dataset) else read_source(str(data))
    require_outside(out, [source, find_source_path(dataset.source) if dataset.source else None])
    _check_folders(source, out, embeddings_out, is_overwrite=overwrite)
    _check_embedding_dim(head_settings.embedding_dim, stored.vectors.shape[1])
    require_trainable(dataset)
    if dataset.is_unlabeled:
        raise DataError(f"{quote_name(dataset.name)} was read without its classes, from which a head is learned.")
    dataset = _select_embedded(dataset, stored, source)
    original, config = _load_encoder(stored, encoder, out)
    print_message(*describe_seen(str(encoder or stored.encoder_source), original.spec.backbone, [dataset]))

    learnt = _learn(stored, dataset, head_settings)
    changed, card = _put_into(original, dataset, learnt, head_settings.seed)

    with replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False) as folder:
        made_of = find_source_folder(encoder or stored.encoder_source)
        carry_text_part(made_of, folder, fingerprint=fingerprint_encoder(changed))
        fingerprint = save_encoder(changed, folder, card=card, config=config)
        print_message("exporting to ONNX")
        export_folder(folder)
    adapted = AdaptedEncoder(
        folder=out,
        fingerprint=fingerprint,
        embedding_dim=changed.spec.embedding_dim,
        is_adapted=learnt.kept is not None,
        num_epochs=learnt.head.num_epochs,
        num_images=learnt.num_images,
        num_classes=learnt.num_classes,
        gain=learnt.gain,
        held_out=learnt.held_out,
        test=learnt.test,
        embeddings=embeddings_out,
        seconds=learnt.seconds,
    )
    if embeddings_out is not None:
        _write_embeddings(source, adapted, learnt.kept, is_overwrite=overwrite)
    return adapted


class _Learnt(NamedTuple):
    """What came of learning.

    Attributes:
        head: The best head.
        kept: Its components; None where it is not better than none beyond chance.
        gain: As ``AdaptedEncoder.gain``; ``held_out``, ``test`` and ``seconds`` too.
        num_images: Images that it learns from.
        num_classes: Classes that it learns to tell apart.
    """

    head: FittedHead
    kept: np.ndarray | None
    gain: tuple[float, float]
    held_out: tuple[EvaluationResult, ...]
    test: tuple[EvaluationResult, ...]
    num_images: int
    num_classes: int
    seconds: float


def _learn(stored: Embeddings, dataset: Dataset, settings: HeadSettings) -> _Learnt:
    """Fit a head on the training classes, and let the held-out ones decide.

    Raises:
        DataError: There are too few classes to hold some out.
    """
    start = time.monotonic()
    split = split_for_training(dataset, is_holdout=True)
    print_message(*dataset.notes, split.note)
    if split.held_out is None:
        raise DataError(
            f"{dataset.name} has too few classes to hold some out, and an adaptation that is not measured could be "
            f"worse than the encoder as it is. Give a source of {NUM_CLASSES_MIN} training classes or more, with "
            "several images each."
        )
    held_out = _take(stored, split.held_out)
    dims = _choose_dims(stored.vectors.shape[1], settings.embedding_dim)
    fit = _limit_classes(split.fit, settings.seed)
    choosing = _limit_choosing(split.held_out)
    head = fit_head(*_read_training(stored, fit), choosing, _take(stored, choosing), dims, seed=settings.seed)
    before, after = (_measure(split.held_out, held_out, components) for components in (None, head.components))
    gain = difference_interval(before.scores, after.scores, split.held_out.ks)[SELECTION_METRIC]
    num_judges = len(np.unique(after.scores.groups[after.scores.is_scored]))
    kept = head.components if gain[0] > 0 and num_judges >= NUM_JUDGES_MIN else None
    tested = _measure_test(dataset, stored, kept)
    print_message(_describe(head, gain, num_judges))
    return _Learnt(
        head=head,
        kept=kept,
        gain=gain,
        held_out=(before.result, after.result),
        test=tested,
        num_images=len(fit),
        num_classes=len({record.label for record in fit}),
        seconds=time.monotonic() - start,
    )


def _limit_classes(records: Sequence[ImageRecord], seed: int) -> Sequence[ImageRecord]:
    """Keep the images of ``MAX_CLASSES`` classes, and say so where that leaves any out."""
    labels = np.unique([record.label for record in records])
    if len(labels) <= MAX_CLASSES:
        return records
    kept = set(np.random.default_rng(seed).choice(labels, MAX_CLASSES, replace=False).tolist())
    print_message(f"learning from {MAX_CLASSES:,} of the {len(labels):,} classes, which the seed draws")
    return [record for record in records if record.label in kept]


def _limit_choosing(held_out: Dataset) -> Dataset:
    """Keep ``MAX_CHOOSING`` of the held-out images, those that ask before those that can only be found.

    Where that leaves any out, it is said, because fewer images to find raise the figures.
    """
    records = held_out.records
    asking = limit_images([record for record in records if record.is_query], MAX_CHOOSING)
    others = limit_images([record for record in records if not record.is_query], MAX_CHOOSING - len(asking))
    if len(asking) + len(others) == len(records):
        return held_out
    print_message(
        f"choosing epochs and dimensions with {len(asking) + len(others):,} of the {len(records):,} held-out images; "
        "the last figures are of all of them"
    )
    return replace(held_out, records=(*asking, *others))


def _put_into(original: ImageEncoder, dataset: Dataset, learnt: _Learnt, seed: int) -> tuple[ImageEncoder, ModelCard]:
    """Put the head into the encoder where it is kept; return the encoder with its model card."""
    if learnt.kept is None:
        return original, _describe_refusal(dataset)
    fitted_on = f"training images of {dataset.name} ({dataset.protocol})"
    changed = add_linear_head(original, learnt.kept, fitted_on=fitted_on)
    return changed, _build_card(original, dataset, learnt.head, learnt.test or learnt.held_out, seed)


def _write_embeddings(source: Path, adapted: AdaptedEncoder, kept: np.ndarray | None, *, is_overwrite: bool) -> None:
    """Write the stored embeddings as the adapted encoder makes them."""
    assert adapted.embeddings is not None
    write_mapped_embeddings(
        source,
        adapted.embeddings,
        lambda vectors: map_vectors(vectors, kept),
        manifest={
            "fingerprint": adapted.fingerprint,
            "encoder_source": find_absolute(adapted.folder),
            "embedding_dim": adapted.embedding_dim,
        },
        is_overwrite=is_overwrite,
    )


# What is given


def _check_folders(source: Path, out: Path, embeddings_out: Path | None, *, is_overwrite: bool) -> None:
    check_replacing(out, kind="encoder", is_overwrite=is_overwrite)
    if embeddings_out is None:
        return
    if any(other.resolve().is_relative_to(embeddings_out.resolve()) for other in (out, source)):
        raise ArtifactError(
            f"{embeddings_out} is or holds the folder of the encoder or of the embeddings that are read; give the "
            "adapted embeddings a folder of their own with --embeddings-out."
        )
    check_replacing(embeddings_out, kind="embeddings", is_overwrite=is_overwrite)


def _check_embedding_dim(embedding_dim: int | None, width: int) -> None:
    if embedding_dim is not None and not 1 <= embedding_dim <= width:
        raise ConfigError(
            f"embedding_dim is {embedding_dim}; a linear map of {width} dimensions has at most {width}: choose 1 to "
            f"{width}."
        )


def _select_embedded(dataset: Dataset, embeddings: Embeddings, folder: Path) -> Dataset:
    """Leave out the images that could not be embedded; refuse embeddings of other images.

    Test images that were not embedded are left out, too: the embeddings may be of the training images alone.
    """
    rows = {record.image_id: row for row, record in enumerate(embeddings.records)}
    unreadable = {image_id for image_id, _ in embeddings.failures}
    wanted = [record for record in dataset.split("train", "validation") if record.image_id not in unreadable]
    missing = [record.image_id for record in wanted if record.image_id not in rows]
    advice = "Give the source that was embedded, or embed this one (vitrieve embed)."
    if missing:
        raise DataError(
            f"{folder} has no vector of {len(missing)} of the {len(wanted)} training images of {dataset.name}, the "
            f"first of them {quote_name(missing[0])}: the embeddings and the data do not belong together. {advice}"
        )
    known = tuple(record for record in dataset.records if record.image_id in rows)
    other = find_other_region(embeddings, [rows[record.image_id] for record in known], known)
    if other is not None:
        raise DataError(
            f"{folder} and {dataset.name} look at different regions of {quote_name(other)}: the embeddings and the "
            f"data do not belong together. {advice}"
        )
    tell_other_files(embeddings, [rows[record.image_id] for record in known], known)
    tell_changed_files(folder, known)
    selected = replace(dataset, records=known)
    num_left_out = len(dataset.split("test")) - len(selected.split("test"))
    if num_left_out:
        print_message(
            count_nouns(num_left_out, "test image has no vector, and is", "test images have no vector, and are")
            + " not measured."
        )
    require_trainable(selected)
    return selected


def _load_encoder(
    embeddings: Embeddings, given: str | Path | None, out: Path
) -> tuple[ImageEncoder, Mapping[str, Any]]:
    """Load the encoder that made the embeddings, with the configuration behind it."""
    source = embeddings.encoder_source if given is None else given
    if given is None:
        require_present("the embeddings were made by", source)
    folder = find_source_folder(source)
    if folder is None:
        encoder, config = build_frozen_encoder(str(source), image_size=embeddings.image_size), {}
    else:
        require_apart(folder, out)
        encoder = read_encoder(folder, image_size=embeddings.image_size)
        config = read_manifest(folder, "encoder")["config"]
    require_made_by(
        "the embeddings were",
        embeddings.fingerprint,
        f"{source} at {embeddings.image_size} px is now",
        fingerprint_encoder(encoder),
        advice="Name the one that made them with --encoder, or embed again with this one. If they were made at several "
        "scales (embed --scales), embed them at one, because a head cannot follow several.",
    )
    return encoder, config


def _read_training(embeddings: Embeddings, records: Sequence[ImageRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors ``(N, D)`` of the records, and their classes ``(N,)`` numbered from 0."""
    rows = {record.image_id: row for row, record in enumerate(embeddings.records)}
    vectors = np.asarray(embeddings.vectors[[rows[record.image_id] for record in records]])
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise DataError(
            f"the vector of {quote_name(records[int(np.argmin(is_finite))].image_id)} holds NaN or infinity; embed the "
            "pictures again (vitrieve embed), or leave this one out (--exclude)."
        )
    classes = np.unique([record.label for record in records], return_inverse=True)[1]
    return vectors, classes.astype(np.int64)


def _take(embeddings: Embeddings, dataset: Dataset) -> Embeddings:
    """Take the vectors of a data set's images, all of which have one, into memory."""
    vectors, _ = _read_training(embeddings, dataset.records)
    return replace(embeddings, vectors=vectors, records=tuple(dataset.records), failures=())


# The head


def _choose_dims(width: int, embedding_dim: int | None) -> tuple[int, ...]:
    """Choose the numbers of dimensions to try, the smallest first: it wins ties."""
    if embedding_dim is not None:
        return (embedding_dim,)
    return (*(smaller for smaller in SMALLER_DIMS if smaller < width), width)


def fit_head(
    vectors: np.ndarray,
    labels: np.ndarray,
    held_out: Dataset,
    held_out_embeddings: Embeddings,
    dims: Sequence[int],
    *,
    seed: int = 0,
) -> FittedHead:
    """Train a head, and keep what is best on the held-out classes: of the epochs, and then of the dimensions.

    Args:
        vectors: ``(N, D)`` float32, L2-normalized.
        labels: ``(N,)`` int64 in ``[0, C)``.
        held_out: Data set whose test split has classes that are not among ``labels``, measured after each epoch.
        held_out_embeddings: The vectors of its images.
        dims: Numbers of dimensions to try, at least one, each at most D; of equal ones the first wins.
        seed: Seed of the weights, and of the order of the images.

    Returns:
        The best head, whether or not it is better than none.
    """

    def score(components: np.ndarray) -> float:
        measured = _measure(held_out, held_out_embeddings, components, has_intervals=False)
        return measured.result.metrics[SELECTION_METRIC]

    best, best_epoch, best_value = np.empty(0), 0, -1.0
    told = time.monotonic()
    num_outputs = max(NUM_OUTPUTS, vectors.shape[1])  # with fewer, fewer dimensions could remain than asked for
    for epoch, weight in enumerate(train_head(vectors, labels, seed=seed, num_outputs=num_outputs), start=1):
        value = score(weight)
        if value > best_value:
            best, best_epoch, best_value = weight, epoch, value
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            print_message(
                f"epoch {epoch}: MAP@R on the held-out classes {100 * value:.1f}, best {100 * best_value:.1f}"
            )
            told = time.monotonic()
        if epoch == NUM_EPOCHS_MAX or epoch - best_epoch >= NUM_PATIENCE:
            break
    ordered = order_head(best)
    candidates = {dim: score(ordered[:dim]) for dim in dims}
    for dim, value in candidates.items():
        print_message(f"{dim} dimensions: MAP@R on the held-out classes {100 * value:.1f}")
    chosen = max(dims, key=lambda dim: candidates[dim])
    return FittedHead(ordered[:chosen], best_epoch)


def train_head(
    vectors: np.ndarray, labels: np.ndarray, *, seed: int, num_outputs: int = NUM_OUTPUTS
) -> Iterator[np.ndarray]:
    """Train a linear map without constant term to tell classes apart, for as long as the caller takes epochs.

    With ``y = W x / |W x|`` and a vector ``c`` of unit length for each class, the loss is the cross-entropy of
    ``16 y·c`` (the normalized softmax loss with a temperature of 1/16). Both are drawn by Glorot's rule.

    Args:
        vectors: ``(N, D)`` float32.
        labels: ``(N,)`` int64 in ``[0, C)``.
        seed: Seed of the weights, and of the order of the images in each epoch.
        num_outputs: Rows of W; more than there are columns are of use while it learns.

    Yields:
        W after each epoch, ``(num_outputs, D)`` float32.

    Source:
        Kordopatis-Zilos et al., ILIAS, arXiv:2502.11748, and the authors' ``lin_adapt.py``: a linear layer, L2
        normalization, a cosine classifier with scale 16 and margin 0, Adam at 1e-3 with weight decay 1e-6, batches of
        128. Differs in the missing bias, which could not become part of an encoder that normalizes only once, and in
        the number of epochs and of the dimensions that remain, which held-out classes choose.
    """
    inputs, targets = torch.from_numpy(np.ascontiguousarray(vectors)), torch.from_numpy(labels)
    weight, class_weights = draw_head(inputs.shape[1], num_outputs, int(targets.max()) + 1, seed=seed)
    optimizer = torch.optim.Adam([weight, class_weights], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(inputs), generator=generator)
        for first in range(0, len(order), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            outputs = functional.normalize(inputs[rows] @ weight.T, dim=1)  # (B, E)
            loss = normalized_softmax_loss(outputs, targets[rows], class_weights, temperature=1 / SCALE)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        yield weight.detach().numpy().copy()


def draw_head(width: int, num_outputs: int, num_classes: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the first weights.

    Args:
        width: Dimensions of a vector, D.
        num_outputs: Rows of W.
        num_classes: Classes, C.
        seed: Seed of the draw.

    Returns:
        W ``(num_outputs, D)`` and the vectors of the classes ``(C, num_outputs)``, both to be trained.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, class_weights = torch.empty(num_outputs, width), torch.empty(num_classes, num_outputs)
    for matrix in (weight, class_weights):
        nn.init.xavier_uniform_(matrix, generator=generator)
    return weight.requires_grad_(), class_weights.requires_grad_()


def order_head(weight: np.ndarray) -> np.ndarray:
    """Turn the outputs of a head so that the first vary most, without changing any similarity.

    With ``W = U S V'``, ``S V'`` gives the same inner products, has no more rows than columns, and orders them by
    falling length.

    Args:
        weight: ``(E, D)``.

    Returns:
        ``(min(E, D), D)`` float32; of each row the largest entry is positive.
    """
    _, lengths, directions = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    ordered: np.ndarray = fix_signs(directions) * lengths[:, None]
    return ordered.astype(np.float32)


def map_vectors(vectors: np.ndarray, components: np.ndarray | None) -> np.ndarray:
    """Multiply vectors by a head and normalize them; without a head they stay as they are.

    Args:
        vectors: ``(N, D)`` float32.
        components: ``(E, D)`` float32, or None.

    Returns:
        ``(N, E)`` float32, rows of unit length (a row of zeros stays zero).

    >>> map_vectors(np.array([[1.0, 0.0]], dtype=np.float32), np.array([[3.0, 0.0], [4.0, 0.0]], dtype=np.float32))
    array([[0.6, 0.8]], dtype=float32)
    """
    return vectors if components is None else normalize(np.asarray(vectors) @ components.T)


# Measuring and telling


def _measure(
    dataset: Dataset, embeddings: Embeddings, components: np.ndarray | None, *, has_intervals: bool = True
) -> Measurement:
    mapped = replace(embeddings, vectors=map_vectors(embeddings.vectors, components))
    return measure(dataset, mapped, BEFORE if components is None else AFTER, has_intervals=has_intervals)


def _measure_test(
    dataset: Dataset, embeddings: Embeddings, components: np.ndarray | None
) -> tuple[EvaluationResult, ...]:
    """Measure the test classes where the embeddings have them; they decide nothing."""
    try:
        tested = replace(dataset, records=select_records(dataset))
    except DataError as error:
        print_message(f"not measured on test classes: {error}")
        return ()
    vectors = _take(embeddings, tested)
    heads = (None,) if components is None else (None, components)
    return tuple(_measure(tested, vectors, head).result for head in heads)


def _count(head: FittedHead) -> str:
    return "after 1 epoch" if head.num_epochs == 1 else f"after {head.num_epochs} epochs"


def _describe(head: FittedHead, gain: tuple[float, float], num_judges: int) -> str:
    points = " to ".join(f"{100 * end:+.1f}" for end in gain)
    if gain[0] > 0 and num_judges < NUM_JUDGES_MIN:
        classes = "the one held-out class" if num_judges == 1 else f"the {num_judges} held-out classes"
        return (
            f"kept the encoder as it was, with the same fingerprint: on {classes} the best head changes MAP@R by "
            f"{points} points, but fewer than {NUM_JUDGES_MIN} classes cannot tell a gain from chance; give a source "
            f"of {NUM_CLASSES_MIN} training classes or more with two images or more each"
        )
    if gain[0] > 0:
        return (
            f"kept the head {_count(head)}, with {len(head.components)} dimensions: {points} points of MAP@R on the "
            "held-out classes (95 % interval)"
        )
    return (
        f"kept the encoder as it was, with the same fingerprint: on the held-out classes the best head changes "
        f"MAP@R by {points} points (95 % interval), which may be chance or a loss"
    )


def _describe_refusal(dataset: Dataset) -> ModelCard:
    note = f"A linear head for {dataset.name} was tried; it was not better on held-out classes, and is not in here."
    return ModelCard(notes=(note,))


def _build_card(
    encoder: ImageEncoder, dataset: Dataset, head: FittedHead, results: Sequence[EvaluationResult], seed: int
) -> ModelCard:
    how = f"{dataset.name} ({dataset.protocol}): a linear head on stored embeddings, {_count(head)}, seed {seed}"
    return ModelCard(
        trained_on="; then ".join(filter(None, (encoder.spec.trained_on, how))),
        figures={one.encoder: dict(one.metrics) for one in results},
        measured_on=f"{results[0].dataset} ({results[0].protocol})",
        data_license=dataset.license,
        notes=(f"Made from the encoder with fingerprint `{fingerprint_encoder(encoder)}`.",),
    )
