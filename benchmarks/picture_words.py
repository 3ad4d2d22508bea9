"""How many words of photographed packages `vitrieve sync --ocr` reads, on 100 photographs of the Grocery data set.

    python benchmarks/picture_words.py [--json FILE]

The photographs (348 px on their shorter side) were drawn by lot from the 1,745 of packages (`random.Random(0).sample`
of their sorted names). `grocery_words.csv` has the words of brand and product on the foremost package of each. They
were transcribed by eye, by one reader, from contact sheets at a width of 390 px, before any was read by machine.
Words that are covered in part, fine print and packages behind were left out. A word that is printed over two lines
(MOR-GON, OAT-LY!) is one. A photograph that shows none has none.

Two figures: the share of the words that stand in the column `text_in_picture` as they are, but for case and accents;
and the share with which `search --text WORD` finds their photograph, which forgives typos and unfinished words, among
all 100. Beside them: the seconds of a photograph in the sync, of the clock and of the processors, its embedding at 56
px included.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from collections_here import find_grocery
from contest import write_result

from vitrieve.index.open import open_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.words import WordIndex, list_query_words, list_words
from vitrieve.syncing.read import TEXT_COLUMN
from vitrieve.syncing.sync import SyncSettings, sync

WORDS = Path(__file__).with_name("grocery_words.csv")


def read_transcribed() -> dict[str, list[str]]:
    """Read the words of each photograph, folded as a search folds them."""
    with WORDS.open(encoding="utf-8", newline="") as file:
        return {row["image_id"]: list_words(row["words"]) for row in csv.DictReader(file)}


def read_by_machine(root: Path, names: list[str], folder: Path) -> tuple[dict[str, str], WordIndex, dict[str, float]]:
    """Sync the photographs with an index; return their texts, the words of the index, and the seconds of each."""
    links = folder / "links"  # with names that say nothing, because words are looked for in names, too
    links.mkdir()
    for number, name in enumerate(names):
        (links / f"{number:03}.jpg").symlink_to(root / name)
    encoder = load_encoder("dinov2-vits14", image_size=56)
    start, cpu_start = time.monotonic(), time.process_time()
    report = sync(links, folder / "index", encoder, settings=SyncSettings(is_text_read=True))
    seconds = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu_start}
    assert report.num_indexed == len(names), report
    store = open_index(folder / "index")
    _, records = store.get([f"{number:03}.jpg" for number in range(len(names))])
    texts = {name: record.metadata.get(TEXT_COLUMN, "") for name, record in zip(names, records, strict=True)}
    index = WordIndex(store.read_texts())
    store.close()
    return texts, index, {f"{name}_a_photograph": round(value / len(names), 2) for name, value in seconds.items()}


def measure() -> dict[str, object]:
    """Measure both shares, over all words and for each word that occurs three times or more."""
    root = find_grocery()
    if root is None:
        raise SystemExit("the Grocery data set is not here; vitrieve data describe grocery says where to get it.")
    wanted = read_transcribed()
    names = list(wanted)
    with tempfile.TemporaryDirectory() as temporary:
        texts, index, seconds = read_by_machine(root, names, Path(temporary))
    places = index.find([f"{number:03}.jpg" for number in range(len(names))])
    asked, read, found, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for word in sorted({word for words in wanted.values() for word in words}):
        hits = index.score(list_query_words(word))[places] > 0
        owners = [row for row, name in enumerate(names) if word in wanted[name]]
        asked[word] = len(owners)
        read[word] = sum(word in list_words(texts[names[row]]) for row in owners)
        found[word] = sum(bool(hits[row]) for row in owners)
        right[word] = int(hits.sum())
    num_words = asked.total()
    with_words = [name for name in names if wanted[name]]
    return {
        "num_photographs": len(names),
        "num_photographs_with_words": len(with_words),
        "num_words": num_words,
        "share_read": round(read.total() / num_words, 4),
        "share_found": round(found.total() / num_words, 4),
        "photographs_with_a_word_read": sum(
            any(word in list_words(texts[name]) for word in wanted[name]) for name in with_words
        ),
        "photographs_with_all_words_read": sum(
            all(word in list_words(texts[name]) for word in wanted[name]) for name in with_words
        ),
        **seconds,
        "words": {
            word: {"asked": asked[word], "read": read[word], "found": found[word], "hits": right[word]}
            for word, _ in asked.most_common()
        },
        "texts": texts,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = measure()
    print(json.dumps({name: value for name, value in figures.items() if name not in ("texts", "words")}, indent=1))
    for word, counts in figures["words"].items():  # type: ignore[attr-defined]
        print(f"{word:14} {counts}")
    if given.json:
        write_result(given.json, figures)
