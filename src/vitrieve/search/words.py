"""Words as words: BM25 over the names, files and metadata of the images, which forgives typos and unfinished words.

It needs no encoder and works for every store: the texts of an index are read into memory once, and again when the index
has changed. What is compared are words as ``list_words`` finds them; ``WordIndex.score`` says how.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitrieve.index.filter import ColumnTest
from vitrieve.index.store import TextBlock, VectorStore

MAX_IMAGES = 2_000_000
"""Images whose words are held in memory at most."""
K1, B = 1.2, 0.75
"""The saturation and the length normalization of BM25, at their usual values."""
PREFIX_WEIGHT = 0.5
"""What a word counts that begins with the one asked for."""
TYPO_WEIGHT = 0.5
"""What a word counts that differs from the one asked for by typos."""
MIN_PREFIX_LENGTH = 3
"""Shorter words must stand there as they are: too many words begin with them."""
TYPO_LENGTHS = (4, 8)
"""From this many letters on one typo is forgiven, and two."""
MAX_TYPO_WORDS = 16
"""Unknown words of one text for which similar ones are looked for."""
MAX_TYPO_CANDIDATES = 256
"""Words that are compared letter by letter for one of them, those with the most letters in common first."""
_SEPARATORS = r"[^\pL\pN\pM\p{So}]+"
"""What stands between words, for RE2; ``_is_part`` says the same."""
_NUM_LETTER_BITS = 26
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts that are written without blanks between words."""
_MARKS = re.compile(
    "["
    "\u0300-\u036f"  # accents
    "\u0591-\u05c7"  # points and accents of Hebrew
    "\u0640"  # the stroke that makes an Arabic word longer
    "\u064b-\u0652\u0670"  # short vowels of Arabic, and doubling
    "\ufe00-\ufe0f"  # selectors of the form in which a pictogram is shown
    "\U000e0100-\U000e01ef"  # and of that of a Chinese character
    "]+"
)
"""What makes no other word. The vowel signs of Indic scripts do, and so do the marks above an alef."""


def list_words(text: str) -> list[str]:
    """Split a text into words, in order.

    A word is a run of letters, digits and pictograms, in lower case, without accents and other marks that make no other
    word. Of scripts that are written without blanks each pair of neighboring characters is a word, and so is each
    single one.

    >>> list_words("Arla_Milk-1L, Crème Brûlée.JPG")
    ['arla', 'milk', '1l', 'creme', 'brulee', 'jpg']
    >>> list_words("红苹果")
    ['红', '苹', '果', '红苹', '苹果']
    """
    return [word for run in _split(text) for word in _list_words_of_run(run)]


def list_query_words(text: str) -> list[str]:
    """Split a text that is searched for into different words: where there are pairs of characters, only those count.

    >>> list_query_words("苹果 milk, Milk")
    ['苹果', 'milk']
    """
    runs = [piece for run in _split(text) for piece in _fold(run)]
    words = [word for run in runs for word in (_pair(run) if len(run) > 1 and _is_unspaced(run) else [run])]
    return list(dict.fromkeys(words))


def _split(text: str) -> list[str]:
    if text.isascii():
        return "".join(letter if letter.isalnum() else " " for letter in text).split()
    return "".join(letter if _is_part(letter) else " " for letter in text).split()


def _is_part(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] in "LNM" or category == "So"


def _fold(run: str) -> list[str]:
    """Write a run in lower case and without marks; compatible forms (ﬁ, ½) become several letters, or runs."""
    if run.isascii():
        return [run.lower()]
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", run).casefold())
    plain = _MARKS.sub("", folded)
    # Letters of scripts without blanks are runs of their own.
    pieces: list[str] = []
    for part in _split(unicodedata.normalize("NFC", plain)):
        start = 0
        for end in range(1, len(part) + 1):
            if end == len(part) or _is_unspaced(part[end]) != _is_unspaced(part[start]):
                pieces.append(part[start:end])
                start = end
    return pieces


def _is_unspaced(run: str) -> bool:
    return not run.isascii() and any(first <= ord(run[0]) <= last for first, last in _UNSPACED)


def _pair(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(len(run) - 1)]


def _list_words_of_run(run: str) -> list[str]:
    return [word for piece in _fold(run) for word in ([*piece, *_pair(piece)] if _is_unspaced(piece) else [piece])]


class WordIndex:
    """The words of all images at one moment; never changes, so any number of threads may search it.

    It holds about as many bytes as the texts have, and six for each word of an image.

    Args:
        blocks: The texts of the images, each image once. The words of an image are those of its name, of its metadata,
            and of its file's name where the image's name does not end with it.

    Attributes:
        num_images: Number of images.
        lengths: ``(N,)`` int64, words of each image, in the order of the images' names.
    """

    def __init__(self, blocks: Iterable[TextBlock]) -> None:
        runs: dict[str, int] = {}  # as they are written -> number
        places: list[np.ndarray] = [np.empty(0, np.int32)]
        numbers: list[np.ndarray] = [np.empty(0, np.int32)]
        names: list[pa.Array] = []
        columns: dict[str, list[pa.Array]] = {}
        first = 0
        for block in blocks:
            for texts in (block.image_ids, _name_files(block), *block.columns.values()):
                rows, codes = _find_runs(texts, runs)
                places.append(rows + np.int32(first))
                numbers.append(codes)
            for column in {*columns, *block.columns}:
                pieces = columns.setdefault(column, [pa.nulls(first, pa.large_string())] if first else [])
                values = block.columns.get(column)
                pieces.append(pa.nulls(len(block.image_ids), pa.large_string()) if values is None else _widen(values))
            names.append(_widen(block.image_ids))
            first += len(block.image_ids)
        self.num_images = first
        joined = _join(names)
        order = pc.sort_indices(joined)
        self._names = joined.take(order)
        self._columns = {name: _join(pieces).take(order).dictionary_encode() for name, pieces in columns.items()}
        new_places = np.empty(first, np.int32)
        new_places[order.to_numpy()] = np.arange(first, dtype=np.int32)
        self._build(runs, new_places[np.concatenate(places)], np.concatenate(numbers))

    def _build(self, runs: Mapping[str, int], places: np.ndarray, numbers: np.ndarray) -> None:
        """Build the lists of the images of each word from the runs of all images."""
        words_of = [_list_words_of_run(run) for run in runs]
        self._words = sorted({word for words in words_of for word in words})
        row_of = {word: row for row, word in enumerate(self._words)}
        counts = np.array([len(words) for words in words_of], np.int64)
        flat = np.array([row_of[word] for words in words_of for word in words], np.int64)
        times = counts[numbers] if len(numbers) else np.empty(0, np.int64)
        starts = np.cumsum(counts) - counts
        total = int(times.sum())
        offsets = np.arange(total) - np.repeat(np.cumsum(times) - times, times)
        words = flat[np.repeat(starts[numbers], times) + offsets] if total else np.empty(0, np.int64)
        images = np.repeat(places, times).astype(np.int64)
        self.lengths = np.bincount(images, minlength=self.num_images)
        keys, frequencies = np.unique(words * max(1, self.num_images) + images, return_counts=True)
        self._images = (keys % max(1, self.num_images)).astype(np.int32)
        self._frequencies = np.minimum(frequencies, np.iinfo(np.uint16).max).astype(np.uint16)
        self._starts = np.searchsorted(keys, np.arange(len(self._words) + 1) * max(1, self.num_images))
        self._letters = np.array([_letter_bits(word) for word in self._words], np.uint64)
        self._word_lengths = np.array([len(word) for word in self._words], np.int32)

    def score(self, words: Sequence[str]) -> np.ndarray:
        """Compare every image with the words of a text.

        For each word asked for, the images that have it, or one that begins with it, are found; where no image has
        either, those that have a word with a typo's difference. All of them count as one word, whose frequency in an
        image is the sum of theirs, those that are not the word itself with ``PREFIX_WEIGHT`` or ``TYPO_WEIGHT``. The
        score is BM25 divided by the most that it could be.

        Args:
            words: Different words, as ``list_query_words`` returns them.

        Returns:
            ``(N,)`` float64 in [0, 1), in the order of the images' names; 0 where an image has none of the words.

        Source:
            Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of
            Lucene, which is never negative.
        """
        scores = np.zeros(self.num_images)
        if not self.num_images:
            return scores
        saturation = K1 * (1 - B + B * self.lengths / max(1.0, float(self.lengths.mean())))
        most = 0.0
        num_typo_words = 0
        for word in words:
            found = self._find_exact_and_longer(word)
            if not found and num_typo_words < MAX_TYPO_WORDS:
                num_typo_words += 1
                found = self._find_similar(word)
            frequencies = self._add_up(found)
            num_having = int(np.count_nonzero(frequencies))
            idf = math.log(1 + (self.num_images - num_having + 0.5) / (num_having + 0.5))
            most += idf
            if num_having:
                scores += idf * frequencies / (frequencies + saturation)
        return scores / most if most else scores

    def holds(self, words: Sequence[str]) -> np.ndarray:
        """Say which images have every one of some words as it is: ``(N,)`` bool, all False for no word."""
        is_held = np.full(self.num_images, bool(words))
        for word in words:
            has_word = np.zeros(self.num_images, bool)
            row = bisect_left(self._words, word)
            if row < len(self._words) and self._words[row] == word:
                has_word[self._images[self._starts[row] : self._starts[row + 1]]] = True
            is_held &= has_word
        return is_held

    def passes(self, places: np.ndarray, tests: Iterable[ColumnTest]) -> np.ndarray:
        """Say which of some images pass a filter.

        Args:
            places: ``(n,)`` places in the order of the images' names.
            tests: What ``resolve_filter`` returns.

        Returns:
            ``(n,)`` bool.
        """
        verdicts = np.ones(len(places), bool)
        for test in tests:
            column = self._columns.get(test.column)
            if column is None:
                verdicts &= test.holds(None)
                continue
            codes = column.indices.take(pa.array(places)).fill_null(-1).to_numpy(zero_copy_only=False)
            values, rows = np.unique(codes, return_inverse=True)
            texts = column.dictionary.take(pa.array(values, pa.int64(), mask=values < 0)).to_pylist()
            holds = [test.holds(text) for text in texts]
            verdicts &= np.array(holds, bool)[rows]
        return verdicts

    def find(self, image_ids: Sequence[str]) -> np.ndarray:
        """Find the places of images by name: ``(n,)`` int64, -1 where one is not there."""
        found = np.full(len(image_ids), -1, np.int64)
        for row, image_id in enumerate(image_ids):
            place = bisect_left(range(self.num_images), image_id, key=self._name)
            if place < self.num_images and self._name(place) == image_id:
                found[row] = place
        return found

    def names(self, places: np.ndarray) -> list[str]:
        """Return the names of images."""
        return list(self._names.take(pa.array(places)).to_pylist())

    def _name(self, place: int) -> str:
        return str(self._names[place].as_py())

    def _find_exact_and_longer(self, word: str) -> list[tuple[int, int, float]]:
        """Find the rows of words ``(first, end, weight)``: the word itself, and those that begin with it."""
        row = bisect_left(self._words, word)
        is_there = row < len(self._words) and self._words[row] == word
        found = [(row, row + 1, 1.0)] if is_there else []
        if len(word) >= MIN_PREFIX_LENGTH:
            first = row + is_there
            end = (
                bisect_left(self._words, word[:-1] + chr(ord(word[-1]) + 1), lo=first) if word[-1] < "\ud7ff" else first
            )
            if end > first:
                found.append((first, end, PREFIX_WEIGHT))
        return found

    def _find_similar(self, word: str) -> list[tuple[int, int, float]]:
        """Find words that differ from one by as many typos as its length allows; numbers have none."""
        num_typos = sum(len(word) >= length for length in TYPO_LENGTHS)
        if not num_typos or any(letter.isdigit() for letter in word) or not len(self._words):
            return []
        # A typo changes at most two of the bits.
        distances = np.bitwise_count(self._letters ^ np.uint64(_letter_bits(word)))
        is_near = (distances <= 2 * num_typos) & (np.abs(self._word_lengths - len(word)) <= num_typos)
        rows = np.flatnonzero(is_near)
        rows = rows[np.argsort(distances[rows], kind="stable")][:MAX_TYPO_CANDIDATES]
        return [
            (int(row), int(row) + 1, TYPO_WEIGHT)
            for row in rows
            if count_typos(word, self._words[row], num_typos) <= num_typos
        ]

    def _add_up(self, found: Sequence[tuple[int, int, float]]) -> np.ndarray:
        """Add the weighted frequencies of some rows of words: ``(N,)`` float64."""
        spans = [(slice(self._starts[first], self._starts[end]), weight) for first, end, weight in found]
        if not spans:
            return np.zeros(self.num_images)
        images = np.concatenate([self._images[span] for span, _ in spans])
        weights = np.concatenate([self._frequencies[span] * weight for span, weight in spans])
        return np.bincount(images, weights, minlength=self.num_images)


def count_typos(one: str, other: str, most: int) -> int:
    """Count the letters that were changed, left out, added, or exchanged with their neighbor.

    Args:
        one: A word.
        other: Another.
        most: From more than this on it does not matter how many they are.

    Returns:
        The distance of optimal string alignment, or any number above ``most`` where it is above.

    >>> count_typos("mlik", "milk", 1), count_typos("bananna", "banana", 1), count_typos("pear", "plum", 1)
    (1, 1, 2)
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        line = [row]
        for place, another in enumerate(other, start=1):
            cost = min(last[place] + 1, line[-1] + 1, last[place - 1] + (letter != another))
            if row > 1 and place > 1 and letter == other[place - 2] and one[row - 2] == another:
                cost = min(cost, before[place - 2] + 1)
            line.append(cost)
        if min(line) > most:
            return most + 1
        before, last = last, line
    return last[-1]


def _letter_bits(word: str) -> int:
    """Mark which letters a word has; rare ones share bits. Words with digits are marked as like no other."""
    bits = 0
    for letter in word:
        if letter.isdigit():
            return 2**64 - 1
        code = ord(letter)
        bits |= 1 << (code - 97 if 97 <= code < 97 + _NUM_LETTER_BITS else _NUM_LETTER_BITS + code % 37)
    return bits


def _find_runs(texts: pa.Array, runs: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the runs of letters of some texts, and number them: ``(rows, numbers)``, both int32."""
    pieces = pc.split_pattern_regex(_widen(texts), _SEPARATORS)
    coded = pieces.flatten().dictionary_encode()
    written = coded.dictionary.to_pylist()
    numbers = np.array([runs.setdefault(run, len(runs)) if run else -1 for run in written] or [-1], np.int32)
    codes = numbers[coded.indices.to_numpy(zero_copy_only=False)]
    rows = pc.list_parent_indices(pieces).to_numpy(zero_copy_only=False).astype(np.int32)
    return rows[codes >= 0], codes[codes >= 0]


def _name_files(block: TextBlock) -> pa.Array:
    """Return the names of files; null where the image's name ends with it."""
    last = r"^(?s:.*)/"
    names = pc.replace_substring_regex(_widen(block.paths), last, "")
    own = pc.replace_substring_regex(_widen(block.image_ids), last, "")
    return pc.if_else(pc.equal(names, own), pa.scalar(None, pa.large_string()), names)


def _widen(texts: pa.Array) -> pa.Array:
    return texts.cast(pa.large_string())  # whose pieces may be joined to more than 2 GB


def _join(pieces: Sequence[pa.Array]) -> pa.Array:
    return pa.concat_arrays(pieces) if pieces else pa.array([], pa.large_string())


class KeptWords:
    """The words of an index as it is now, read when they are first asked for, and again after a change.

    Args:
        store: The index.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, WordIndex] | None = None

    def find(self) -> WordIndex | None:
        """Return the words of the newest state; whoever asks while they are read waits for them.

        Returns:
            The words; None where there are more than ``MAX_IMAGES`` images.

        Raises:
            ArtifactError: The index cannot be read.
        """
        found = self._find_current()
        if found is not None:
            return found
        with self._lock:
            found = self._find_current()
            if found is None and self._store.count() <= MAX_IMAGES:
                stamp = self._store.read_stamp()  # before the texts are: they are of then or later
                self._kept = None  # two take twice the memory
                found = WordIndex(self._store.read_texts())
                self._kept = (stamp, found)
            return found

    def _find_current(self) -> WordIndex | None:
        kept = self._kept
        is_current = kept is not None and kept[0] is not None and kept[0] == self._store.read_stamp()
        return kept[1] if kept is not None and is_current else None
