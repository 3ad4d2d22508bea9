"""``pull_encoder``: an encoder's folder in the cache, made of a repository of the hub. No torch.

Two kinds of repositories are read: an encoder's folder of vitrieve, as ``artifact.py`` describes it, and what others
export or publish as weights (``conversion.py``). ``hub.py`` fetches and checks the files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrieve.artifacts import MANIFEST_NAME, read_manifest
from vitrieve.errors import ArtifactError, WeightsError
from vitrieve.folders import publish_folder
from vitrieve.model.artifact import (
    CARD_NAME,
    CHECKED_NAMES,
    SPEC_NAME,
    WEIGHTS_NAME,
    EncoderSpec,
    read_contents,
    read_spec,
)
from vitrieve.model.conversion import MAX_GRAPH_BYTES, Export, convert_export
from vitrieve.model.hub import (
    COMMIT,
    MAX_SMALL_BYTES,
    HubName,
    HubState,
    fetch_file,
    parse_hub_name,
    read_state,
)
from vitrieve.model.text import (
    MAP_NAME,
    TEXT_GRAPH_NAME,
    TEXT_NAMES,
    TEXT_SUBFOLDER,
    TOKENIZER_NAME,
    find_text_part,
    read_text_part,
)
from vitrieve.model.towers import (
    MAX_TOKENIZER_BYTES,
)
from vitrieve.progress import print_message
from vitrieve.writing import explaining_full_disk, write_text_durably

REVISIONS_FILE = "revisions.json"


@dataclass(frozen=True, kw_only=True)
class PulledEncoder:
    """An encoder that was fetched.

    Attributes:
        name: ``hf:OWNER/NAME@COMMIT``, which names these bytes and no others.
        folder: The encoder's folder in the cache.
        fingerprint: Its identity.
        spec: What the encoder is.
        was_present: It was here already.
    """

    name: str
    folder: Path
    fingerprint: str
    spec: EncoderSpec
    was_present: bool

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "name": self.name,
            "path": str(self.folder),
            "fingerprint": self.fingerprint,
            "reads_text": find_text_part(self.folder) is not None,
            "was_present": self.was_present,
            "license": self.spec.weights_license,
            "note": self.spec.weights_note,
            "embedding_dim": self.spec.embedding_dim,
            "image_size": self.spec.preprocessing.image_size,
            "pooling": self.spec.pooling,
        }

    def describe(self) -> list[str]:
        """Tell in lines what it is, where it is, and its license."""
        state = "already here" if self.was_present else "fetched"
        size = self.spec.preprocessing.image_size
        return [
            f"{self.name}: {state}, checksums right; {self.spec.embedding_dim} numbers for an image of {size} px",
            str(self.folder),
            *(["it reads texts, too: search --text"] if find_text_part(self.folder) else []),
            f"license: {self.spec.weights_license}",
            *([self.spec.weights_note] if self.spec.weights_note else []),
        ]


def pull_encoder(source: str | Path, *, is_asked_anew: bool = False, show_progress: bool = True) -> PulledEncoder:
    """Return an encoder of the hub, fetched, checked and made ready when it is not here yet.

    The commit that a name without one stands for is asked for once and noted in the cache; ``is_asked_anew`` asks
    again.

    Args:
        source: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION`` with a branch, a tag or a commit.
        is_asked_anew: Ask the hub what the revision is now, and fetch again what is here and damaged.
        show_progress: Show the download on standard error.

    Raises:
        WeightsError: Another form, an unreachable hub, a missing or private repository, a file that is damaged or too
            large, or a repository that holds no encoder that can be read without torch.
        ArtifactError: The folder of an encoder that is incomplete or damaged.
        DiskFullError: There is no room; what was fetched is kept, and the next call goes on.
    """
    name = parse_hub_name(source)
    if not is_asked_anew:
        found = _find_pulled(name)
        if found is not None:
            return found
    state = read_state(name)
    with explaining_full_disk(name.folder):
        name.folder.mkdir(parents=True, exist_ok=True)
        with _locking(name.folder):
            found = _find_whole(state.name)
            if found is None:
                _make_folder(state, show_progress)
            _note_revision(name, state.commit)
    return replace(found or _require_pulled(state.name), was_present=found is not None)


def _locking(folder: Path) -> Any:
    from huggingface_hub.utils import WeakFileLock

    return WeakFileLock(folder / "writer.lock")


def _find_pulled(name: HubName) -> PulledEncoder | None:
    commit = name.commit or _read_revisions(name).get(name.revision or "")
    if commit is None or not (name.folder / commit / MANIFEST_NAME).is_file():
        return None
    return _require_pulled(replace(name, revision=commit))


def pull_whole(source: str | Path) -> PulledEncoder:
    """Return an encoder of the hub, as ``pull_encoder`` does, and compare it with its checksums.

    Raises:
        WeightsError: As ``pull_encoder``, or the encoder that is here is damaged.
    """
    try:
        pulled = pull_encoder(source)
        _check(pulled)
    except ArtifactError as error:
        raise WeightsError(f"{error} This fetches it again: vitrieve weights pull {source}") from error
    return pulled


def _check(pulled: PulledEncoder) -> None:
    fingerprint = read_contents(pulled.folder).fingerprint
    part = find_text_part(pulled.folder)
    if part is not None:
        read_text_part(part, fingerprint=fingerprint)


def _find_whole(name: HubName) -> PulledEncoder | None:
    """Find an encoder that is here and whole; one that is damaged is removed."""
    folder = name.folder / str(name.commit)
    try:
        found = _find_pulled(name)
        if found is not None:
            _check(found)
    except ArtifactError as error:
        print_message(f"{folder} is fetched again, because it is damaged: {error}")
        shutil.rmtree(folder)
        return None
    return found


def _require_pulled(name: HubName) -> PulledEncoder:
    folder = name.folder / str(name.commit)
    fingerprint = read_manifest(folder, "encoder").get("fingerprint")
    if not isinstance(fingerprint, str):
        raise ArtifactError(f"the manifest of {folder} has no fingerprint: it is damaged.")
    return PulledEncoder(
        name=str(name), folder=folder, fingerprint=fingerprint, spec=read_spec(folder), was_present=True
    )


def _read_revisions(name: HubName) -> dict[str, str]:
    """Read which commit each revision was when it was asked for; the main branch has the empty name."""
    try:
        noted = json.loads((name.folder / REVISIONS_FILE).read_text(encoding="utf-8"))
        return {str(one): commit for one, commit in noted.items() if COMMIT.fullmatch(commit)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _note_revision(name: HubName, commit: str) -> None:
    noted = {**_read_revisions(name), name.revision or "": commit}
    write_text_durably(name.folder / REVISIONS_FILE, json.dumps(noted, indent=2) + "\n")


def _make_folder(state: HubState, show_progress: bool) -> None:
    """Fetch what makes the encoder; its folder appears under its name only when it is complete."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if show_progress else disable_progress_bars)()
    folder = state.name.folder / state.commit
    fetched = state.name.folder / f"{state.commit}.fetched"
    for left in folder.parent.glob(f".{state.commit}-*"):  # by a process that was killed: the lock is ours now
        shutil.rmtree(left)
    make = _make_own if {SPEC_NAME, MANIFEST_NAME} <= state.files.keys() else _make_of_export
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{state.commit}-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        num_bytes = make(state, fetched, complete)
        publish_folder(complete, folder, (folder / MANIFEST_NAME).is_file)
    shutil.rmtree(fetched)
    print_message(f"{state.name}: {num_bytes / 1e6:.1f} MB, checksums right; license: {state.license}")


def _make_own(state: HubState, fetched: Path, complete: Path) -> int:
    """Make an encoder of the folder of one; return the bytes that were fetched."""
    large = (WEIGHTS_NAME, *(name for name in CHECKED_NAMES if name != SPEC_NAME))
    names = [name for name in (SPEC_NAME, CARD_NAME, *large, MANIFEST_NAME) if name in state.files]
    paths = [fetch_file(state, name, fetched, max_bytes=None if name in large else MAX_SMALL_BYTES) for name in names]
    for path in paths:  # the manifest last
        path.rename(complete / path.name)
    contents = read_contents(complete)
    num_bytes = sum(state.files[name].num_bytes for name in names)
    return num_bytes + _fetch_text_part(state, fetched, complete, fingerprint=contents.fingerprint)


_MAX_TEXT_BYTES = {TOKENIZER_NAME: MAX_TOKENIZER_BYTES, TEXT_GRAPH_NAME: MAX_GRAPH_BYTES, MAP_NAME: MAX_GRAPH_BYTES}
"""Most bytes of a file of a text part that is no description."""


def _fetch_text_part(state: HubState, fetched: Path, complete: Path, *, fingerprint: str) -> int:
    """Add the text part of an encoder, where there is one, and check it; return the bytes that were fetched."""
    if f"{TEXT_SUBFOLDER}/{MANIFEST_NAME}" not in state.files:
        return 0
    names = [name for name in TEXT_NAMES if name in state.files]
    part = complete / TEXT_SUBFOLDER
    part.mkdir()
    for name in names:  # the manifest last
        max_bytes = _MAX_TEXT_BYTES.get(name.rpartition("/")[2], MAX_SMALL_BYTES)
        path = fetch_file(state, name, fetched / TEXT_SUBFOLDER, max_bytes=max_bytes)
        path.rename(part / path.name)
    read_text_part(part, fingerprint=fingerprint)
    return sum(state.files[name].num_bytes for name in names)


def _make_of_export(state: HubState, fetched: Path, complete: Path) -> int:
    export = Export(
        name=str(state.name),
        files=state.files,
        source=f"hub {state.name.repository}, commit {state.commit}",
        license=state.license,
        folder=fetched,
        fetch=lambda name, max_bytes: fetch_file(state, name, fetched, max_bytes=max_bytes),
    )
    return convert_export(export, complete)
