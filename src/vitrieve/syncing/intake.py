"""From files to vectors in the store, a durable batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import choose_chunk_size, encode_in_parallel, prepare_ahead
from vitrieve.progress import track
from vitrieve.runtime.encoder import Encoder
from vitrieve.syncing.content import Content, complete_record, read_content
from vitrieve.syncing.ledger import Change, Ledger
from vitrieve.syncing.stamps import Stamp

COMMIT_SIZE = 256
"""Images in one durable change of the store: what a kill can cost, seconds of work on a fast machine."""


class Intake:
    """Reads files, embeds the contents that the index does not have, and puts the images into the store.

    Attributes:
        changing: Reasons by ``image_id`` of files that changed while they were read; nothing is done about them.
        num_embedded: Contents embedded, each once.
        num_reused: Images that took the vector of the same content.
    """

    def __init__(self, ledger: Ledger, encoder: Encoder) -> None:
        """Begin with nothing read."""
        self.changing: dict[str, str] = {}
        self.num_embedded = 0
        self.num_reused = 0
        self._ledger = ledger
        self._encoder = encoder
        self._batch_size: int | None = None
        self._waiting: list[Content] = []
        self._vectors: dict[tuple[str, str], np.ndarray] = {}  # of contents embedded since the last commit
        self._stamps: list[Stamp] = []  # to be written without a change of the store

    def take_all(
        self,
        records: Sequence[ImageRecord],
        *,
        batch_size: int | None = None,
        num_threads: int | None = None,
        show_progress: bool = False,
    ) -> None:
        """Take in images; those that are done when the process dies are kept, but for the last ``COMMIT_SIZE``."""
        if not records:
            return
        read = partial(read_content, preprocessing=self._encoder.preprocessing, find_holder=self._ledger.find_holder)
        self._batch_size = batch_size
        size = choose_chunk_size(self._encoder, batch_size)
        batches = [records[start : start + size] for start in range(0, len(records), size)]
        contents = prepare_ahead(read, batches, num_threads=num_threads)
        for batch in track(contents, "sync", total=len(records), weight=size, is_shown=show_progress):
            self._take(batch)
            if len(self._waiting) >= COMMIT_SIZE:
                self._commit()
        self._commit()

    def _take(self, contents: Sequence[Content]) -> None:
        """Sort contents by what is to be done about them, and embed what is new."""
        wanted = []
        for content in contents:
            stamp = content.stamp
            if content.is_changing:
                self.changing[stamp.image_id] = str(stamp.reason)
            elif stamp.reason is not None or self._is_stored_as_it_is(stamp):
                self._stamps.append(stamp)
            else:
                wanted.append(content)
        self._embed(wanted)
        self._waiting += [replace(content, square=None) for content in wanted]

    def _is_stored_as_it_is(self, stamp: Stamp) -> bool:
        own = self._ledger.stamps.get(stamp.image_id)
        return own is not None and replace(own, signature=stamp.signature) == stamp

    def _embed(self, contents: Sequence[Content]) -> None:
        squares = {
            content.stamp.content_key: content.square
            for content in contents
            if content.square is not None and not self._has_vector(content)
        }
        if squares:
            vectors = encode_in_parallel(self._encoder, np.stack(list(squares.values())), self._batch_size)
            self._vectors.update(zip(squares, vectors, strict=True))
            self.num_embedded += len(squares)

    def _has_vector(self, content: Content) -> bool:
        key = content.stamp.content_key
        return key in self._vectors or self._ledger.find_holder(key) is not None

    def _commit(self) -> None:
        """Put what waits into the store."""
        self._read_lost_again()
        keys = [content.stamp.content_key for content in self._waiting]
        vectors = {**self._find_stored_vectors(set(keys) - set(self._vectors)), **self._vectors}
        changes = [
            Change(
                record=complete_record(content.record, content.stamp.metadata), stamp=content.stamp, vector=vectors[key]
            )
            for content, key in zip(self._waiting, keys, strict=True)
        ]
        self._ledger.put(changes)
        self._ledger.restamp(self._stamps)
        self.num_reused += len(changes) - len(self._vectors)
        self._waiting, self._vectors, self._stamps = [], {}, []

    def _read_lost_again(self) -> None:
        """Read the contents again whose vector was there when they were read and has been replaced since.

        It happens when files exchange their names.
        """
        lost = [content for content in self._waiting if not self._has_vector(content)]
        self._waiting = [content for content in self._waiting if self._has_vector(content)]
        for content in lost:
            self._take([read_content(content.record, self._encoder.preprocessing, lambda key: None)])

    def _find_stored_vectors(self, keys: set[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
        if not keys:
            return {}
        holders = {key: holder.image_id for key in keys if (holder := self._ledger.find_holder(key)) is not None}
        return dict(zip(holders, self._ledger.get_vectors(list(holders.values())), strict=True))
