"""The feedback of a running service: checked against the index that is served, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from vitrieve.errors import ArtifactError, ConfigError, DataError, DiskFullError
from vitrieve.feedback.events import Correction, find_last_words
from vitrieve.feedback.store import FeedbackStore, count_new
from vitrieve.index.feedback import open_feedback
from vitrieve.index.store import VectorStore
from vitrieve.serve.middleware import log_failure
from vitrieve.serve.pictures import Pictures
from vitrieve.serve.schemas import FeedbackBody, TagsBody
from vitrieve.serve.settings import COMMAS


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was said, for the page of a query.

    Attributes:
        num_new: Corrections since the last training.
        about: By image, who said what of it as a result of this query, and who tagged it how, as JSON values.
    """

    num_new: int
    about: Mapping[str, list[dict[str, Any]]]


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
        fingerprint = self._check_fingerprint(body.fingerprint)
        query_id = self._pictures.find(body.query_id).image_id if body.query_id else ""
        correction = Correction(
            kind=body.kind,
            image_id=self._pictures.find(body.image_id).image_id,
            query_id=query_id,
            query=body.query,
            tags=_read_tags(body.tags),
            label=body.label.strip(),
            who=body.who.strip(),
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            fingerprint=fingerprint,
        )
        return self._keep(lambda feedback: feedback.add(correction))

    def add_tags(self, body: TagsBody) -> tuple[int, list[str]]:
        """Add tags to what a person said of some images before; in a worker.

        Returns:
            How many corrections there are since the last training, and those of the images that are gone.

        Raises:
            HTTPException: As ``add``, 404 where all images are gone; nothing is kept then.
        """
        fingerprint = self._check_fingerprint(body.fingerprint)
        who, at = body.who.strip(), datetime.now(UTC).isoformat(timespec="milliseconds")
        new = _read_tags(body.tags)
        found, gone = self._find_all(list(dict.fromkeys(body.image_ids)))
        if not found:
            self._pictures.find(gone[0])  # which raises
        image_ids = list(dict.fromkeys(found))

        def join(history: list[Correction]) -> list[Correction]:
            said = {one.image_id: one for one in find_last_words(history) if one.kind == "tagged" and one.who == who}
            corrections = []
            for image_id in image_ids:
                old = said.get(image_id)
                tags = (*(old.tags if old else ()), *new)
                corrections.append(
                    Correction(
                        kind="tagged",
                        image_id=image_id,
                        tags=tuple(dict.fromkeys(tags)),
                        label=old.label if old else "",
                        who=who,
                        at=at,
                        fingerprint=fingerprint,
                    )
                )
            return corrections

        return self._keep(lambda feedback: feedback.add_to(join)), gone

    def _find_all(self, image_ids: list[str]) -> tuple[list[str], list[str]]:
        """Return the names that the index has for some images, and those that are gone, as they were asked for."""
        if len(image_ids) == 1:
            try:
                return [self._pictures.find(image_ids[0]).image_id], []
            except HTTPException:
                return [], image_ids
        try:
            return [record.image_id for record in self._store.get(image_ids)[1]], []
        except DataError:  # one is in another Unicode form, or gone: it is looked for in ever smaller halves
            middle = len(image_ids) // 2
        (found, gone), (more, more_gone) = (self._find_all(half) for half in (image_ids[:middle], image_ids[middle:]))
        return [*found, *more], [*gone, *more_gone]

    def _check_fingerprint(self, given: str) -> str:
        """Return the encoder's fingerprint, which must be the one that is given."""
        fingerprint = self._store.info.fingerprint
        if given not in ("", fingerprint):
            raise HTTPException(
                409,
                f"the feedback is on results of another encoder ({given[:12]}…) than the index has now "
                f"({fingerprint[:12]}…); search again, and say it of the new results.",
            )
        return fingerprint

    def _keep(self, keep: Callable[[FeedbackStore], None]) -> int:
        if self._folder is None or self.find_obstacle():
            # Without the path, which is the server's own business.
            raise HTTPException(409, "feedback is off: the folder of the index is read-only.")
        feedback = open_feedback(self._folder)
        try:
            keep(feedback)
        except DiskFullError:
            raise HTTPException(507, "the disk is full, so nothing is kept.") from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        except ConfigError as error:
            raise HTTPException(409, str(error)) from None
        except ArtifactError:
            raise _refuse_for_now() from None
        return self.read()[1]

    def read(self) -> tuple[list[Correction], int]:
        """Return the corrections that count, and how many are since the last training; in a worker.

        Raises:
            HTTPException: 503 what keeps them cannot be read.
        """
        try:
            return self._read()
        except ArtifactError:
            raise _refuse_for_now() from None

    def _read(self) -> tuple[list[Correction], int]:
        history = open_feedback(self._folder).read() if self._folder is not None else []
        return find_last_words(history), count_new(history, self._store.info.fingerprint)

    def find_said(self, query_id: str, query: str) -> Said | None:
        """Return what was said of the results of a query; None where feedback is off or cannot be read; in a worker."""
        try:
            if self.find_obstacle():
                return None
            corrections, num_new = self._read()
        except (ArtifactError, ConfigError, DiskFullError):
            return None
        about: dict[str, list[dict[str, Any]]] = {}
        for one in corrections:
            if one.kind == "tagged":
                said = {"who": one.who, "kind": one.kind, "tags": list(one.tags), "label": one.label}
            elif (one.query_id, one.query) == (query_id, query):
                said = {"who": one.who, "kind": one.kind}
            else:
                continue
            about.setdefault(one.image_id, []).append(said)
        return Said(num_new=num_new, about=about)


def _read_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags without the spaces around them, each once.

    Raises:
        HTTPException: 422 one has a comma.
    """
    read = tuple(dict.fromkeys(tag.strip() for tag in tags))
    for tag in read:
        if any(comma in tag for comma in COMMAS):
            raise HTTPException(
                422, f"the tag {tag!r} has a comma; give what stands between commas as tags of their own."
            )
    return read


def _refuse_for_now() -> HTTPException:
    """Log what was raised, whose message names paths of this machine, and return the refusal."""
    log_failure("the feedback cannot be used")
    return HTTPException(
        503,
        "the feedback cannot be used now: another process is writing it, or its database is damaged; try again, and "
        "where that does not help, see the server's log.",
    )
