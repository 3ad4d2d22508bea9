"""Search an index: by picture, image, vector, region or several examples.

The photographs of an index may lie under another path now, in a container or on another machine: then the paths of its
images are replaced as they are read, and the index is not changed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, cast

import numpy as np

from vitrieve.choices import Device
from vitrieve.data.decode import Picture
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, ConfigError, DecodeError, FingerprintError, first_line
from vitrieve.index.filter import FilterLike, require_column
from vitrieve.index.open import load_index_encoder, open_index, require_encoder
from vitrieve.index.store import Hit, VectorStore, find_name, read_info
from vitrieve.progress import print_message
from vitrieve.quoting import count_nouns
from vitrieve.rerank.names import AUTO, NO_RERANKING
from vitrieve.rerank.parts import ByteArray, PartKind, encode_parts, prepare_parts
from vitrieve.rerank.remember import KeptReranking
from vitrieve.rerank.reranker import Reranker, Shortlist, find_reranker
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import EngineChoice, PrecisionChoice
from vitrieve.search.fusion import FUSED_DEPTH, WordMatches, find_words, fuse, rank_by_words
from vitrieve.search.part_store import PartStore
from vitrieve.search.query import Query, build_query, prepare_example
from vitrieve.search.ranking import MAX_DEPTH, Ranking, group_hits, rank_images, read_vectors
from vitrieve.search.remembered import Remembered, RememberedFiles
from vitrieve.search.request import Example, SearchAnswer, SearchRequest, SearchResult
from vitrieve.search.threshold import Threshold
from vitrieve.search.words import KeptWords

WRONG_ENCODER_ADVICE = "Search with the index's own encoder, or embed and index the collection again with this one."
TURN_SECONDS = 0.0005


class Searcher:
    """An index and the encoder that made it.

    ``Searcher.open("index").search("query.jpg", k=5)`` returns the five nearest pictures, nearest first. A searcher
    holds no state of a search: threads may share it. ``with Searcher.open("index") as searcher:`` closes the index at
    the end of the block.

    What a command lets the index remember, such as a threshold, counts from the next answer on. Of a searcher that was
    opened, ``threshold`` and ``kept`` are therefore what the last answer used; a file that is damaged meanwhile changes
    neither.
    """

    def __init__(
        self,
        store: VectorStore,
        encoder: Encoder,
        *,
        threshold: Threshold | None = None,
        kept: KeptReranking | None = None,
        folder: Path | None = None,
    ) -> None:
        """Join an index with an encoder.

        Args:
            store: Index to search.
            encoder: Encoder that makes the queries' vectors.
            threshold: Score from which on a result is a match; None: answers do not say.
            kept: Re-ranking that the index remembers, for requests that leave the choice to it; None: none.
            folder: Folder of the index, which keeps the parts of pictures that a re-ranking compares; None: they are
                computed again for each search.

        Raises:
            FingerprintError: The index, the threshold or the re-ranking was made by another encoder.
        """
        require_encoder(store.info, encoder, advice=WRONG_ENCODER_ADVICE)
        if threshold is not None and threshold.fingerprint != encoder.fingerprint:
            raise FingerprintError(
                "the threshold was calibrated with another encoder than the index's; run vitrieve calibrate again."
            )
        if kept is not None and kept.fingerprint != encoder.fingerprint:
            raise FingerprintError(
                "the re-ranking was measured with another encoder than the index's; run vitrieve evaluate --rerank "
                "auto --index again, or delete reranker.json in the index."
            )
        self.store = store
        self.encoder = encoder
        self.threshold = threshold
        self.kept = kept
        self.folder = folder
        self.parts = PartStore(folder, encoder)
        self.words = KeptWords(store)
        self._remembered: RememberedFiles | None = None
        self._open_again: Callable[[Encoder | str | Path | None], Searcher] | None = None
        self._is_closed = False
        self._told: set[str] = set()

    @classmethod
    def open(
        cls,
        index_folder: Path | str,
        encoder: Encoder | str | Path | None = None,
        *,
        engine: EngineChoice = "auto",
        precision: PrecisionChoice = "auto",
        num_threads: int | None = None,
        device: Device = "auto",
        maps: Sequence[PathMap] = (),
    ) -> Searcher:
        """Open an index, and load the encoder that made it.

        Args:
            index_folder: Made by ``build_index``, of any kind of store.
            encoder: An encoder, its folder or its weights name; None: where the index says that its encoder is.
            engine: What computes, for an encoder that is loaded here.
            precision: Numeric precision of its matrix products.
            num_threads: CPU threads of an encoder that is loaded here; None: all cores.
            device: Device of an encoder that is loaded here; ``auto``: on a GPU where torch sees one.
            maps: Folders of the photographs that lie elsewhere than when the index was made.

        Raises:
            ArtifactError: The index cannot be read, or its encoder is no longer where it was.
            FingerprintError: ``encoder`` is not the one that made the index.
        """
        load = partial(load_index_encoder, engine=engine, precision=precision, num_threads=num_threads, device=device)

        def open_with(known: Encoder | str | Path | None) -> Searcher:
            searcher = cls._open(index_folder, known, load)
            searcher.store = map_paths(searcher.store, maps)
            searcher.words = KeptWords(searcher.store)
            searcher._open_again = open_with
            return searcher

        return open_with(encoder)

    def close(self) -> None:
        """Close the index; what is searched for afterwards fails. The encoder may be another searcher's too: it stays.

        A second call does nothing.
        """
        if not self._is_closed:
            self._is_closed = True
            self.store.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reopen(self) -> Searcher:
        """Open the index as its folder holds it now: with the same encoder, or else where the index says it is.

        Raises:
            ArtifactError: As ``open``, or this searcher was made of parts.
        """
        if self._open_again is None:
            raise ArtifactError("a searcher made of a store and an encoder cannot be opened again; make a new one.")
        try:
            return self._open_again(self.encoder)
        except FingerprintError:
            return self._open_again(None)

    @classmethod
    def _open(
        cls,
        index_folder: Path | str,
        encoder: Encoder | str | Path | None,
        load: Callable[..., Encoder],
    ) -> Searcher:
        if isinstance(encoder, Encoder):
            return cls._join(open_index(index_folder), encoder, index_folder)
        # Importing the client of a store keeps the interpreter busy, compiling an encoder does not.
        with ThreadPoolExecutor(max_workers=1) as thread, _QUICK_TURNS:
            opening = thread.submit(open_index, index_folder)
            try:
                info, _ = read_info(Path(index_folder))
                loaded = load(info, encoder)
            except Exception:
                opening.result().close()  # or it raises: a fault of the index is told before one of the encoder
                raise
            return cls._join(opening.result(), loaded, index_folder)

    @classmethod
    def _join(cls, store: VectorStore, encoder: Encoder, index_folder: Path | str) -> Searcher:
        """Join what belongs together; what does not is closed."""
        folder = Path(index_folder)
        try:
            remembered = RememberedFiles(folder)
            threshold, kept = remembered.read()
            searcher = cls(store, encoder, threshold=threshold, kept=kept, folder=folder)
            searcher._remembered = remembered
            return searcher
        except Exception:
            store.close()
            raise

    def search(self, image: Picture, k: int = 10, *, filter: FilterLike = ()) -> list[SearchResult]:
        """Find the pictures most like ``image``.

        Args:
            image: A path, the bytes of an image file, or a Pillow picture.
            k: Pictures to find, at least 1; a smaller collection gives all it has.
            filter: Conditions on the metadata: ``"year>=2020"``, or several.

        Returns:
            Results, nearest first; equal scores in the order of their ``image_id``.

        Raises:
            DecodeError: The query cannot be decoded; the message names it where it has a name.
            InputError: ``k`` is out of range, or a condition that is none, or does not fit its column.
        """
        return list(self.answer(SearchRequest(plus=(Example(picture=image),), k=k, filter=filter)).results)

    def answer(self, request: SearchRequest) -> SearchAnswer:
        """Answer a request.

        Texts are compared in two ways: as words with the names, files and metadata of the images
        (``words.WordIndex``), and by the encoder's text part, where it has one that reads them; with both, or with
        pictures beside a text, the rankings are fused (``fusion.fuse``). ``ways`` says which were used.

        Several examples become one vector (``query.combine_examples``). Images of the index that are examples are
        not results, other images with the same content are. Pages (the same request with another offset) show every
        image, or group, once and in one order, as long as the index does not change. ``is_match`` looks at the
        nearest image of the whole answer, on every page; it is None also for several examples and for texts, whose
        scores are not those of single pictures, which a threshold is calibrated on. The re-ranking that the index keeps
        is left out where it needs pictures whose files cannot be read.

        Raises:
            DecodeError: A picture cannot be decoded, or its box holds none of it.
            DataError: An ``image_id`` is not in the index.
            InputError: A vector that does not fit, an unknown column, a page too far back, or a text without a word
                that can be looked for.
        """
        self._check(request)
        request = self._find_names(request)
        self.threshold, self.kept = remembered = self._find_remembered()
        reranker = choose_reranker(request, remembered.reranking)
        begun = time.perf_counter()
        words = self.words.find() if request.has_text else None
        matches = None if words is None else find_words(request, words, self.store)
        words_seconds = time.perf_counter() - begun
        compared = choose_compared(request, self.encoder, matches)
        query = None if compared is None else build_query(compared, self.store, self.encoder)
        started = time.perf_counter() - words_seconds
        try:
            ranking = self._rank(request, query, matches, reranker)
        except DecodeError as error:  # the pictures are gone, without which the vectors still answer
            if reranker is None or request.reranking != AUTO:
                raise
            self._tell_once("lost query", f"searching without the re-ranking {reranker.name}: {first_line(error)}")
            reranker = None
            ranking = self._rank(request, query, matches, None)
        groups = group_hits(self.store, ranking.levels, request)
        page = groups[request.offset : request.offset + request.k]
        is_judged = len(request.plus) == 1 and not request.minus and not request.has_text
        threshold = remembered.threshold.score if remembered.threshold is not None and is_judged else None
        return SearchAnswer(
            results=tuple(_to_result(hits) for hits in page),
            is_match=None if threshold is None else is_match(ranking.nearest_score, threshold),
            threshold=threshold,
            has_more=len(groups) > request.offset + request.k,
            timings_seconds={
                **(query.timings_seconds if query is not None else {"decode": 0.0, "encode": 0.0}),
                "search": time.perf_counter() - started,
            },
            reranking=NO_RERANKING if reranker is None else reranker.name,
            ways=list_ways(compared, matches),
        )

    def _find_remembered(self) -> Remembered:
        """Return threshold and re-ranking: of an index that was opened those of now, else those that were given."""
        if self._remembered is None:
            return Remembered(self.threshold, self.kept)
        return self._remembered.find(self.encoder.fingerprint)

    def _rank(
        self, request: SearchRequest, query: Query | None, matches: WordMatches | None, reranker: Reranker | None
    ) -> Ranking:
        """Order the images by what there is: a vector, words, or both."""
        if query is None:
            assert matches is not None
            if reranker is not None:
                raise ConfigError(
                    f"the re-ranking {reranker.name} compares vectors, and words alone have none: leave it out."
                )
            return rank_by_words(self.store, matches, request)
        num_first = reranker.depth if reranker is not None else 0
        if matches is not None:
            num_first = max(num_first, FUSED_DEPTH)
        reorder = None
        if reranker is not None:
            reorder = partial(self._reorder, reranker=reranker, query=query, request=request)
        ranking = rank_images(self.store, query, request, reorder=reorder, num_first=num_first)
        return ranking if matches is None else fuse(self.store, query, matches, ranking)

    def _reorder(self, hits: Sequence[Hit], *, reranker: Reranker, query: Query, request: SearchRequest) -> list[Hit]:
        """Order the first hits of a request again."""
        hits, vectors = read_vectors(self.store, hits)
        if not hits:
            return []

        def find_parts(kind: PartKind) -> tuple[ByteArray, ByteArray]:
            """Return the parts of the query and of the hits."""
            asked = self._find_query_parts(kind, request.plus[0])  # without it there is no re-ranking
            images = self.parts.find(kind, [hit.record for hit in hits], vectors)
            num_lost = int((~images.any(axis=(1, 2))).sum())
            if num_lost:
                lost = count_nouns(
                    num_lost, "picture cannot be read and keeps its", "pictures cannot be read and keep their"
                )
                self._tell_once("lost", f"re-ranking by {reranker.name}: {lost} place among the first {len(hits)}.")
            return asked, images

        shortlist = Shortlist(query=query.vector, vectors=vectors, find_parts=find_parts)
        return [hits[row] for row in reranker.order(shortlist)]

    def _tell_once(self, subject: str, text: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            print_message(text)

    def _find_query_parts(self, kind: PartKind, example: Example) -> ByteArray:
        if example.image_id is not None:
            vectors, records = self.store.get([example.image_id])
            (parts,) = self.parts.find(kind, records, vectors)
        else:
            squares = prepare_example(example, partial(prepare_parts, encoder=self.encoder, kind=kind))
            (parts,) = encode_parts(squares[None], self.encoder, kind)
        return np.asarray(parts)

    def _find_names(self, request: SearchRequest) -> SearchRequest:
        """Name the examples as the index does, in whichever Unicode form they were asked for."""

        def name(example: Example) -> Example:
            if example.image_id is None or example.image_id.isascii():
                return example
            return replace(example, image_id=find_name(self.store, example.image_id))

        return replace(request, plus=tuple(map(name, request.plus)), minus=tuple(map(name, request.minus)))

    def _check(self, request: SearchRequest) -> None:
        if request.offset + request.k > MAX_DEPTH:
            raise ConfigError(
                f"offset {request.offset} and k {request.k} ask for more than the {MAX_DEPTH:,} nearest images; "
                "narrow the search with a filter."
            )
        if request.group_by is not None:
            require_column(request.group_by, self.store.columns())


def choose_reranker(request: SearchRequest, kept: KeptReranking | None) -> Reranker | None:
    """Choose what orders the first images of a request again.

    Args:
        request: The search. What compares parts of pictures needs one picture or image of the index to ask with.
        kept: What the index remembers.

    Returns:
        The re-ranking; None for none, also where the index's own cannot order what was asked for.

    Raises:
        ConfigError: A re-ranking by parts was named for a search by a vector or by several examples.
    """
    if request.reranking == AUTO:
        reranker = None if kept is None or request.has_text else kept.reranker  # it was measured with pictures
    elif kept is not None and kept.name == request.reranking:
        reranker = kept.reranker  # it may be one that was learned
    else:
        reranker = None if request.reranking == NO_RERANKING else find_reranker(request.reranking)
    if reranker is None or reranker.parts is None:
        return reranker
    has_parts = len(request.plus) == 1 and not request.minus and request.plus[0].vector is None and not request.has_text
    if has_parts:
        return reranker
    if request.reranking == AUTO:
        return None
    raise ConfigError(
        f"the re-ranking {reranker.name} compares parts of two pictures, so it takes one picture or one image of the "
        "index to ask with; a vector and a text have no parts, and several examples have several. Leave it out, or "
        "choose one of vectors: k_reciprocal, superglobal."
    )


def choose_compared(request: SearchRequest, encoder: Encoder, matches: WordMatches | None) -> SearchRequest | None:
    """Choose the examples of a request that become its vector: all that the encoder reads.

    Args:
        request: The search.
        encoder: The encoder of the index.
        matches: What its words find; None: it has no text, or the index has too many images to look for words.

    Returns:
        The request without texts that the encoder does not read; None where nothing wanted is left, so that words
        alone answer.

    Raises:
        ConfigError: Words alone would answer, and there are none, or there are pictures that are not wanted, which
            words cannot be compared with.
    """
    if matches is None:
        return request

    def is_compared(example: Example) -> bool:
        if example.text is None or encoder.text_part is None:
            return example.text is None
        # Where no words answer, the encoder says why it does not read the text.
        return not len(matches.places) or encoder.knows_text(example.text)

    plus, minus = (tuple(filter(is_compared, examples)) for examples in (request.plus, request.minus))
    if plus:
        return replace(request, plus=plus, minus=minus)
    if not matches.num_words:
        raise ConfigError("the text to search for holds no letters and no digits, so no word to look for.")
    if minus:
        raise ConfigError(
            f"the encoder {encoder.name} has no text part, so the text is looked for in names and metadata alone, and "
            "a picture cannot be taken from that: leave out the minus picture, add a picture that is wanted, or make "
            "a text part with vitrieve align."
        )
    return None


def list_ways(compared: SearchRequest | None, matches: WordMatches | None) -> tuple[str, ...]:
    """List the ways in which the examples of a request are compared with the images.

    Args:
        compared: What became a vector.
        matches: What was looked for as words.
    """
    examples = () if compared is None else (*compared.plus, *compared.minus)
    is_used = {
        "pictures": any(example.text is None for example in examples),
        "text_encoder": any(example.text is not None for example in examples),
        "words": matches is not None and (matches.num_words > 0 or bool(matches.excluded)),
    }
    return tuple(way for way, is_there in is_used.items() if is_there)


def is_match(nearest_score: float | None, threshold: float) -> bool:
    """Say whether the nearest image is near enough; nothing found is no match."""
    return nearest_score is not None and nearest_score >= threshold


def _to_result(hits: list[Hit]) -> SearchResult:
    """Make the first image of a group a result, with the others behind it."""
    record = hits[0].record
    return SearchResult(
        image_id=record.image_id,
        score=hits[0].score,
        path=record.path,
        metadata=record.metadata,
        box=record.box,
        others=tuple(_to_result([hit]) for hit in hits[1:]),
    )


class _QuickTurns:
    """Lets threads take turns after half a millisecond for a while.

    Checking an encoder's files is hundreds of calls that release Python's lock, and beside a thread that imports each
    would wait for up to Python's 5 ms to get it back. The interval is the whole process's: the first that opens a
    searcher shortens it, and the last that is done restores what the first found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._usual = sys.getswitchinterval()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, TURN_SECONDS))
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                sys.setswitchinterval(self._usual)


_QUICK_TURNS = _QuickTurns()


class PathMap(NamedTuple):
    """A folder that the index names, and where it is now.

    Attributes:
        old: Absolute path, as it was when the index was made, maybe on another system.
        new: Absolute path of the same folder here.
    """

    old: PurePath
    new: Path


def parse_path_map(text: str) -> PathMap:
    """Read ``OLD=NEW``.

    Raises:
        ConfigError: There is no ``=``, or one of the two is no absolute path.

    >>> parse_path_map("/srv/photos=/photos").new
    PosixPath('/photos')
    """
    old, separator, new = text.partition("=")
    kinds: list[type[PurePath]] = [kind for kind in (Path, PurePosixPath, PureWindowsPath) if kind(old).is_absolute()]
    if not separator or not kinds or not Path(new).is_absolute():
        raise ConfigError(
            f"--map-path is {text!r}; expected OLD=NEW with two absolute paths: --map-path /home/me/photos=/photos."
        )
    return PathMap(kinds[0](old), Path(new))


def map_paths(store: VectorStore, maps: Sequence[PathMap]) -> VectorStore:
    """Wrap a store so that the images it returns lie where they are now; without maps it is returned as it is."""
    return cast(VectorStore, _MappedStore(store, maps)) if maps else store


class _MappedStore:
    """A store whose images have other paths; everything else is the store's."""

    def __init__(self, store: VectorStore, maps: Sequence[PathMap]) -> None:
        self._store = store
        # Of two folders, one in the other, the inner one says more.
        self._maps = sorted(maps, key=lambda one: -len(one.old.parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
        """Search the store."""
        return [
            [replace(hit, record=self._move(hit.record)) for hit in hits]
            for hits in self._store.search(queries, k, filter)
        ]

    def get(self, image_ids: Sequence[str]) -> tuple[np.ndarray, list[ImageRecord]]:
        """Read from the store."""
        vectors, records = self._store.get(image_ids)
        return vectors, [self._move(record) for record in records]

    def _move(self, record: ImageRecord) -> ImageRecord:
        for old, new in self._maps:
            path = type(old)(str(record.path))
            if path.is_relative_to(old) and ".." not in path.parts:  # which would lead out of the new folder
                return replace(record, path=new.joinpath(*path.relative_to(old).parts))
        return record
