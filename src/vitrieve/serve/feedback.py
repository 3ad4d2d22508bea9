"""The feedback of a running service: checked against the index that is served, and counted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fastapi import HTTPException

from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.feedback.events import Correction, check_correction, find_last_words
from vitrieve.feedback.store import count_new
from vitrieve.index.feedback import open_feedback
from vitrieve.index.store import VectorStore
from vitrieve.serve.pictures import Pictures
from vitrieve.serve.schemas import FeedbackBody


class ServedFeedback:
    """The corrections of the index that is served.

    Args:
        folder: Folder of the index; None for one that has no folder, where feedback is off.
        store: The index.
        pictures: Its pictures.
    """

    def __init__(self, folder: Path | None, store: VectorStore, pictures: Pictures) -> None:
        self._folder = folder
        self._store = store
        self._pictures = pictures

    def find_obstacle(self) -> str | None:
        """Return why feedback is off, as a clause; None where it is on."""
        if self._folder is None:
            return "the index is in no folder"
        return open_feedback(self._folder).find_obstacle()

    def add(self, body: FeedbackBody) -> int:
        """Keep a correction, and return how many there are since the last training; in a worker.

        Raises:
            HTTPException: 404 an image is gone, 409 the index is of another encoder by now or feedback is off, 422 the
                correction says nothing.
        """
        fingerprint = self._store.info.fingerprint
        if body.fingerprint not in ("", fingerprint):
            raise HTTPException(
                409,
                f"the feedback is on results of another encoder ({body.fingerprint[:12]}…) than the index has now "
                f"({fingerprint[:12]}…); search again, and say it of the new results.",
            )
        query_id = self._pictures.find(body.query_id).image_id if body.query_id else ""
        correction = Correction(
            kind=body.kind,
            image_id=self._pictures.find(body.image_id).image_id,
            query_id=query_id,
            query=body.query,
            tags=tuple(dict.fromkeys(tag.strip() for tag in body.tags)),
            label=body.label.strip(),
            who=body.who.strip(),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            fingerprint=fingerprint,
        )
        try:
            check_correction(correction)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        if self._folder is None or self.find_obstacle():
            # Without the path, which is the server's own business.
            raise HTTPException(409, "feedback is off: the folder of the index is read-only.")
        feedback = open_feedback(self._folder)
        try:
            feedback.add(correction)
        except ConfigError as error:
            raise HTTPException(409, str(error)) from None
        return count_new(feedback.read(), fingerprint)

    def read(self) -> tuple[list[Correction], int]:
        """Return the corrections that count, and how many are since the last training; in a worker."""
        history = open_feedback(self._folder).read() if self._folder is not None else []
        return find_last_words(history), count_new(history, self._store.info.fingerprint)

    def count(self) -> int | None:
        """Return how many there are since the last training; None where feedback is off or cannot be read."""
        try:
            return None if self.find_obstacle() else self.read()[1]
        except (ArtifactError, ConfigError):
            return None
