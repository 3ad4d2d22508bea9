"""Vector store and stamps, changed in an order that survives a kill.

A stamp says "the store holds the vector of this content under this name". It must never say so wrongly, so a change
forgets the stamp first, then changes the store, then stamps. A process killed in between leaves an image without a
stamp, which the next sync embeds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from vitrieve.data.records import ImageRecord
from vitrieve.index.store import VectorStore
from vitrieve.syncing.stamps import Stamp, StampFile


@dataclass(frozen=True, kw_only=True)
class Change:
    """An image to be put into the store.

    Attributes:
        record: The image, with all its metadata.
        stamp: What its file was.
        vector: ``(E,)`` float32, L2-normalized.
    """

    record: ImageRecord
    stamp: Stamp
    vector: np.ndarray


class Ledger:
    """What an index holds, and of which content.

    Attributes:
        stamps: By ``image_id``; one without a reason is in the store.
    """

    def __init__(self, store: VectorStore, stamp_file: StampFile) -> None:
        """Read the stamps, and forget those of images that the store does not hold."""
        self._store = store
        self._file = stamp_file
        self._stored = set(store.image_ids())
        self.stamps = {stamp.image_id: stamp for stamp in stamp_file.read()}
        self._holders = {stamp.content_key: stamp.image_id for stamp in self.stamps.values() if stamp.reason is None}
        self._forget(
            stamp.image_id
            for stamp in self.stamps.values()
            if stamp.reason is None and stamp.image_id not in self._stored
        )

    def find_holder(self, content_key: tuple[str, str]) -> Stamp | None:
        """Find an image in the store whose vector is of this content. Threads may ask while others change."""
        stamp = self.stamps.get(self._holders.get(content_key, ""))
        is_holder = stamp is not None and stamp.reason is None and stamp.content_key == content_key
        return stamp if is_holder else None

    def get_vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the vectors ``(N, E)`` of images in the store."""
        return self._store.get(image_ids)[0]

    def put(self, changes: Sequence[Change]) -> None:
        """Put images into the store, or replace them."""
        if not changes:
            return
        image_ids = [change.record.image_id for change in changes]
        self._forget(image_ids)
        self._store.upsert(np.stack([change.vector for change in changes]), [change.record for change in changes])
        self._stored.update(image_ids)
        self._write([change.stamp for change in changes])

    def restamp(self, stamps: Sequence[Stamp]) -> None:
        """Write other file times for contents that are what they were, or the reasons of images without a vector."""
        if stamps:
            self._write(stamps)

    @property
    def stored(self) -> Set[str]:
        """Names of the images in the store."""
        return self._stored

    def list_surplus(self, wanted: Iterable[str]) -> list[str]:
        """List, sorted, the images of the store that are not wanted, or not stamped as being there."""
        kept = {image_id for image_id in wanted if self._is_claimed(image_id)}
        return sorted(self._stored - kept)

    def remove(self, image_ids: Sequence[str]) -> None:
        """Remove images from the store; the stamp of one that is kept for its reason stays."""
        if not image_ids:
            return
        self._forget(image_id for image_id in image_ids if self._is_claimed(image_id))
        self._store.delete(image_ids)
        self._stored.difference_update(image_ids)

    def forget_others(self, wanted: Iterable[str]) -> None:
        """Forget the stamps of images that are not wanted and not in the store."""
        self._forget(set(self.stamps) - set(wanted) - self._stored)

    def _is_claimed(self, image_id: str) -> bool:
        stamp = self.stamps.get(image_id)
        return stamp is not None and stamp.reason is None

    def _write(self, stamps: Sequence[Stamp]) -> None:
        self._file.write(stamps)
        for stamp in stamps:
            self._release(stamp.image_id)
            self.stamps[stamp.image_id] = stamp
            if stamp.reason is None:
                self._holders[stamp.content_key] = stamp.image_id

    def _forget(self, image_ids: Iterable[str]) -> None:
        known = [image_id for image_id in image_ids if image_id in self.stamps]
        if not known:
            return
        self._file.forget(known)
        for image_id in known:
            self._release(image_id)

    def _release(self, image_id: str) -> None:
        """Let an image's content be looked for elsewhere: its vector is about to change."""
        stamp = self.stamps.pop(image_id, None)
        if stamp is not None and self._holders.get(stamp.content_key) == image_id:
            del self._holders[stamp.content_key]
