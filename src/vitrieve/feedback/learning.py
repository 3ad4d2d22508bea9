"""What a training learns from corrections: labels, groups of images that belong together, and negative pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vitrieve.data.folder import describe_shared_classes
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.errors import DataError
from vitrieve.feedback.events import Correction, find_last_words
from vitrieve.quoting import count_nouns, quote_name

Pair = tuple[str, str]


def apply_pairs(dataset: Dataset, corrections: Sequence[Correction]) -> Dataset:
    """Give a data set what corrections say of its training images; images of its test split stay as they are.

    - The last label that a person gave an image is its class, a new one where the data set has none of that name. Where
      that makes further test classes be trained on, a note says so.
    - Images that ``same_group``, or ``right`` by an image as the query, connect are a group. In it, images that are the
      only one of their class join a class of the group: the one that most others of it have, else one of their own. All
      get the group as a further label, so that they are positives although their classes differ.
    - ``wrong`` by an image as the query makes a negative pair, which is never a positive, whatever the labels say.

    A pair that is called both is left out. Pairs of queries in words, and tags, say nothing about two images.

    Args:
        dataset: Data set of one source.
        corrections: Those of ``read_pairs``.

    Returns:
        The data set with its notes.

    Raises:
        DataError: None of the images is in the data set, every pair contradicts another, or nothing is left to learn.
    """
    counted = [  # tags and a label are about the image, whatever was asked
        replace(one, query_id="") if one.kind == "tagged" else one for one in find_last_words(corrections)
    ]
    known = {record.image_id: record.split for record in dataset.records}
    names = [name for one in counted for name in (one.image_id, one.query_id) if name]
    unknown = sorted({name for name in names if name not in known})
    if names and len(unknown) == len(set(names)):
        raise DataError(
            f"none of the {len(unknown)} images of the pairs is in {dataset.name}, such as {quote_name(unknown[0])}; "
            "give the source that the index was made of, spelled as then, to --data."
        )
    usable = [one for one in counted if _is_trained(one.image_id, known) and _is_trained(one.query_id, known)]
    positives, negatives, contradictions = _sort_pairs(usable)
    labels = {one.image_id: one.label for one in usable if one.label}
    if not (positives or negatives or labels):
        if contradictions:
            number = count_nouns(len(contradictions), "pair is", "pairs are")
            raise DataError(
                f"the pairs contradict each other: {number} called both right and wrong, such as "
                f"{quote_name(contradictions[0][0])} and {quote_name(contradictions[0][1])}."
            )
        raise DataError(
            f"nothing in the {len(counted)} corrections says anything about two training images of {dataset.name}, or "
            "of their labels; pairs need an image as the query, and images for testing do not train."
        )
    relabeled, label_names = _relabel(dataset, labels)
    groups = find_groups(positives)
    joined = _join_classes(relabeled, groups)
    more = {name: (len(label_names) + number,) for number, group in enumerate(groups) for name in group}
    records = tuple(replace(record, label=joined[record.image_id]) for record in dataset.records)
    return replace(
        dataset,
        records=records,
        label_names=label_names,
        more_labels={
            name: tuple(sorted({*dataset.more_labels.get(name, ()), *more.get(name, ())}))
            for name in {**dataset.more_labels, **more}
        },
        negative_pairs=(*dataset.negative_pairs, *negatives),
        notes=(
            *dataset.notes,
            f"pairs: {len(positives):,} positive in {count_nouns(len(groups), 'group', 'groups')}, "
            f"{len(negatives):,} negative, {count_nouns(len(labels), 'label', 'labels')}.",
            *_note_rest(counted, usable, unknown, contradictions),
            *_note_shared(dataset.records, records),
        ),
    )


def _is_trained(name: str, known: Mapping[str, str]) -> bool:
    return not name or known.get(name) in ("train", "validation")


def _note_rest(
    counted: Sequence[Correction], usable: Sequence[Correction], unknown: Sequence[str], contradictions: Sequence[Pair]
) -> list[str]:
    notes = []
    if unknown:
        number = count_nouns(len(unknown), "of their images is", "of their images are")
        notes.append(f"pairs: {number} not here, such as {quote_name(unknown[0])}; left out.")
    if len(counted) - len(usable):
        name = count_nouns(len(counted) - len(usable), "correction names", "corrections name")
        notes.append(f"pairs: {name} images that do not train; left out.")
    if contradictions:
        first = " and ".join(map(quote_name, contradictions[0]))
        number = count_nouns(len(contradictions), "pair is", "pairs are")
        notes.append(f"pairs: {number} called both right and wrong, such as {first}; left out.")
    return notes


def _note_shared(before: Iterable[ImageRecord], after: Iterable[ImageRecord]) -> tuple[str, ...]:
    """Tell how many test classes are trained on, where corrected labels have made them more."""
    (shared_before, _), (shared, tested) = map(_find_shared, (before, after))
    return describe_shared_classes(len(shared), len(tested)) if shared - shared_before else ()


def _find_shared(records: Iterable[ImageRecord]) -> tuple[set[int], set[int]]:
    """Return the test classes that are trained on or held out of training, and all test classes."""
    trained: set[int] = set()
    tested: set[int] = set()
    for record in records:
        (tested if record.split == "test" else trained).add(record.label)
    return trained & tested, tested


def _sort_pairs(corrections: Iterable[Correction]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Return positive pairs, negative pairs, and those that are called both, each in both orders of names as one."""
    said: dict[Pair, set[bool]] = {}
    for one in corrections:
        if one.query_id and one.query_id != one.image_id and one.kind in ("right", "wrong", "same_group"):
            first, second = sorted((one.query_id, one.image_id))
            said.setdefault((first, second), set()).add(one.kind != "wrong")
    positives = [pair for pair, words in said.items() if words == {True}]
    negatives = [pair for pair, words in said.items() if words == {False}]
    return positives, negatives, [pair for pair, words in said.items() if len(words) == 2]


def _relabel(dataset: Dataset, labels: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the label of each image, and the names with those that are new."""
    names = list(dataset.label_names)
    numbers = {name: number for number, name in enumerate(names)}
    for name in labels.values():
        if name not in numbers:
            numbers[name] = len(names)
            names.append(name)
    found = {record.image_id: record.label for record in dataset.records}
    return found | {image_id: numbers[name] for image_id, name in labels.items()}, tuple(names)


def find_groups(pairs: Iterable[Pair]) -> list[tuple[str, ...]]:
    """Find the connected components of pairs, each sorted, in the order of their first names.

    >>> find_groups([("c", "d"), ("a", "b"), ("b", "e")])
    [('a', 'b', 'e'), ('c', 'd')]
    """
    parents: dict[str, str] = {}

    def find(name: str) -> str:
        root = name
        while parents.setdefault(root, root) != root:
            root = parents[root]
        while parents[name] != root:
            parents[name], name = root, parents[name]
        return root

    for first, second in pairs:
        one, other = sorted((find(first), find(second)))
        parents[other] = one
    groups: dict[str, list[str]] = {}
    for name in sorted(parents):
        groups.setdefault(find(name), []).append(name)
    return sorted(map(tuple, groups.values()))


def _join_classes(labels: Mapping[str, int], groups: Iterable[Sequence[str]]) -> dict[str, int]:
    """Let images that are alone in their class join a class of their group."""
    sizes, joined = Counter(labels.values()), dict(labels)
    for group in groups:
        lone = [name for name in group if sizes[labels[name]] == 1]
        counts = Counter(labels[name] for name in group if sizes[labels[name]] > 1)
        if not lone:
            continue
        common = min(counts, key=lambda label: (-counts[label], label)) if counts else labels[lone[0]]
        joined.update(dict.fromkeys(lone, common))
    return joined
