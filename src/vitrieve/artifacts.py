"""Artifacts: folders on disk whose manifest is written last.

A run, an encoder, embeddings, an index, an evaluation, a reproduction, a comparison and packed shards are artifacts.
A folder without ``manifest.json`` is partial: it can be resumed, not used. Every reader goes through ``read_manifest``
and so refuses what does not fit. To overwrite a finished artifact, the new one is built beside it and takes its place
when it is complete: a failure or a kill at any moment leaves the old artifact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from vitrieve.errors import ArtifactError
from vitrieve.folders import LOCK_NAME, exchange_folders, find_aside, find_beside, is_replaceable
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.writing import check_writable, is_full_disk, write_text_durably

Kind = Literal[
    "run",
    "encoder",
    "text",
    "embeddings",
    "index",
    "evaluation",
    "reproduction",
    "comparison",
    "shards",
    "export",
]
_MADE_BY: Mapping[Kind, str] = {
    "run": "vitrieve train",
    "encoder": "vitrieve train, export, adapt, reduce, align or pull",
    "text": "vitrieve align",
    "embeddings": "vitrieve embed, or vitrieve adapt with --embeddings-out",
    "index": "vitrieve index, sync or up",
    "evaluation": "vitrieve evaluate",
    "reproduction": "vitrieve reproduce",
    "comparison": "vitrieve compare",
    "shards": "vitrieve data pack",
    "export": "vitrieve export",
}
"""What makes an artifact of each kind, for messages."""
_RESUMED_KINDS: Collection[Kind] = ("run", "embeddings", "evaluation", "comparison", "shards")
"""What a command goes on with when it is given again with ``--resume``."""
MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_PARTIAL_NAME = ".partial"
MAX_MARK_BYTES = 64
"""A mark of ours is shorter: it says the kind of what is made."""
_NEW_NAME = ".new"
"""A file in the folder that is to take the place of another: it tells the new artifact from the old one, which stands
beside it once they have changed places."""


def prepare_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
) -> None:
    """Make ``folder`` ready to be written.

    A finished artifact is refused unless ``is_overwrite``; a partial one unless ``is_resume`` (kept, also with
    ``is_overwrite``: a stopped command that replaces goes on) or ``is_overwrite`` (emptied). A folder that is not ours,
    or holds another kind of artifact, is never emptied.

    Args:
        folder: Folder that ``--out`` names.
        kind: Kind of what will be written there; None: whatever is there may be replaced.
        is_overwrite: Replace what is there.
        is_resume: Go on with a partial artifact.
        is_resumable: Whether the caller can go on at all, and may advise it.

    Raises:
        ArtifactError: As above, with what to do.
    """
    check_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
    is_there = _is_ours(folder / MANIFEST_NAME) or _is_marked(folder)
    if is_there and is_overwrite and not (is_resume and is_partial(folder)):
        _empty_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _mark_partial(folder, kind)


def check_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
) -> None:
    """Refuse a folder that ``prepare_folder`` would refuse, and change nothing: before long work, for example.

    Raises:
        ArtifactError: As ``prepare_folder``.
    """
    try:
        str(folder.absolute()).encode()  # LanceDB makes a name whole, and other libraries may
    except UnicodeEncodeError:  # pyarrow, LanceDB and ONNX Runtime take text, and would fail after the work
        raise ArtifactError(
            f"the whole name {quote_name(folder.absolute())} is not UTF-8, and libraries that write there take text "
            "alone; give a folder elsewhere."
        ) from None
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give the name of a new folder with --out.")
    # Looked at first: another process may begin it just now.
    has_files = folder.exists() and any(path.name != LOCK_NAME for path in folder.iterdir())
    is_finished = _is_ours(folder / MANIFEST_NAME)
    is_partial = _is_marked(folder)
    if (is_finished or is_partial) and (is_overwrite or is_resume):
        _refuse_another_kind(folder, kind)
    if (is_finished or is_partial) and is_overwrite:
        return
    if is_finished:
        raise ArtifactError(f"{folder} holds a finished result; pass --overwrite to replace it, or another --out.")
    if is_partial and not is_resume:
        advice = "--resume to go on, --overwrite to start again" if is_resumable else "--overwrite to start again"
        raise ArtifactError(f"{folder} holds an unfinished result; pass {advice}, or another --out.")
    if has_files and not is_partial:
        raise ArtifactError(f"{folder} holds other files; give the name of a new or empty folder with --out.")


def _refuse_another_kind(folder: Path, kind: Kind | None) -> None:
    """Refuse what another command has made: a wrong ``--out`` must not cost a training, for example."""
    found = find_kind(folder)
    if None not in (kind, found) and found != kind:
        raise ArtifactError(
            f"{folder} holds an artifact of kind {found!r}, which one of kind {kind!r} does not replace; give another "
            "--out, or remove the folder first."
        )


def find_kind(folder: Path) -> str | None:
    """Tell what an artifact is, finished or not; None where that is not written."""
    try:
        if _is_ours(folder / MANIFEST_NAME):
            return str(json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["kind"])
        noted = (folder / _PARTIAL_NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return noted if noted in get_args(Kind) else None


def _is_marked(folder: Path) -> bool:
    """Tell our mark of a partial artifact from the ``.partial`` of another program, unless that file is empty, too."""
    mark = folder / _PARTIAL_NAME
    try:
        return mark.stat().st_size < MAX_MARK_BYTES and mark.read_text(encoding="utf-8") in ("", *get_args(Kind))
    except (OSError, ValueError):
        return False


def _mark_partial(folder: Path, kind: str | None) -> None:
    mark = folder / _PARTIAL_NAME
    if mark.is_dir():
        raise ArtifactError(f"{mark} is a folder of another program; remove it first, or give another --out.")
    if not _is_marked(folder):
        try:
            mark.write_text(kind or "", encoding="utf-8")
        except OSError as error:  # an empty mark needs no free block, and what is deleted next may make room
            if not is_full_disk(error):
                raise
            mark.write_bytes(b"")


def has_artifact(folder: Path) -> bool:
    """Say whether a folder holds a finished artifact."""
    return _is_ours(folder / MANIFEST_NAME)


def is_partial(folder: Path) -> bool:
    """Say whether a folder holds an artifact that was begun and not finished."""
    return _is_marked(folder) and not has_artifact(folder)


def require_outside(out: Path, read: Iterable[Path | None]) -> None:
    """Refuse an output folder that is or contains something that is read, because replacing it would delete that.

    Args:
        out: Folder to write.
        read: Files and folders that are read; None: there is nothing.

    Raises:
        ArtifactError: One is ``out``, or lies in it.
    """
    for path in read:
        if path is not None and path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise ArtifactError(f"--out {out} holds {path}, which is read; give another folder.")


def reopen_folder(folder: Path) -> None:
    """Make an artifact partial, whether it is finished or not: what it holds stays."""
    _mark_partial(folder, find_kind(folder))
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Tell our manifest from the ``manifest.json`` of a web page or another program."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["kind"] in get_args(Kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _empty_folder(folder: Path) -> None:
    """Delete what an artifact holds; killed in between, it is partial, not a finished one with files missing.

    The folder stays, which may be a mount point, and so does the lock that ``locking_folder`` holds in it.
    """
    reopen_folder(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def write_manifest(folder: Path, kind: Kind, contents: Mapping[str, Any]) -> None:
    """Finish an artifact: write its manifest, which marks the folder as complete.

    Args:
        folder: Folder whose other files are already written.
        kind: Which of the artifacts it is.
        contents: Plain JSON values that readers depend on; kind, format and package version are added.
    """
    from vitrieve import __version__

    manifest = {"kind": kind, "format_version": FORMAT_VERSION, "vitrieve_version": __version__, **contents}
    write_text_durably(folder / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    (folder / _PARTIAL_NAME).unlink(missing_ok=True)


def read_manifest(folder: Path, kind: Kind) -> dict[str, Any]:
    """Read and check the manifest of a finished artifact.

    Raises:
        ArtifactError: Missing folder, unfinished artifact, another kind, or a newer format.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; expected {_describe_kind(kind)}.")
    if not path.is_file():
        again = "run its command again with --resume" if kind in _RESUMED_KINDS else "make it again"
        state = f"is unfinished ({again})" if _is_marked(folder) else "is not one"
        raise ArtifactError(f"expected {_describe_kind(kind)}, but {folder} {state}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, version = manifest["kind"], int(manifest["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); make the artifact again.") from None
    if found != kind:
        raise ArtifactError(f"{folder} is an artifact of kind {found!r}; expected {_describe_kind(kind)}.")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format version {version}, written by a newer vitrieve; "
            f"this one reads up to {FORMAT_VERSION}."
        )
    return dict(manifest)


def _describe_kind(kind: Kind) -> str:
    return f"an artifact of kind {kind!r} (made by {_MADE_BY[kind]})"


@contextmanager
def replacing_folder(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = True,
    locked: AbstractContextManager[None] | None = None,
) -> Iterator[Path]:
    """Give the block a folder to write an artifact to, its manifest last; afterwards the artifact is at ``folder``.

    Where ``folder`` holds a finished artifact, the block gets another folder beside it, which changes places with it at
    the end. What a stopped block leaves there, ``is_resume`` goes on with.

    Args:
        folder: Folder that ``--out`` names.
        kind: Kind of what will be written there; None: whatever is there may be replaced.
        is_overwrite: Replace what is there.
        is_resume: Go on with a partial artifact.
        is_resumable: Whether the caller can go on at all. If not, what a failed block has written is removed.
        locked: Held while the folders change places.

    Raises:
        ArtifactError: As ``prepare_folder``.
    """
    target = folder.resolve()  # of a link, what it leads to
    beside = find_beside(target)
    _put_back(target)
    is_going_on = is_resume and _is_begun(target)
    if not is_going_on and not (is_overwrite and has_artifact(target) and _can_be_replaced(target)):
        is_new = not folder.exists()
        prepare_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
        try:
            yield folder
        except BaseException:
            if not is_resumable:
                shutil.rmtree(target, ignore_errors=True)
                if not is_new:
                    target.mkdir(exist_ok=True)
            raise
        return
    _refuse_another_kind(target, kind)
    (target / _NEW_NAME).unlink(missing_ok=True)
    if is_going_on:
        reopen_folder(beside)  # killed before the exchange, it is complete; the block finishes it again
    else:
        shutil.rmtree(beside, ignore_errors=True)  # of a block that was killed
        prepare_folder(beside, kind=kind)
        (beside / _NEW_NAME).touch()
    try:
        yield beside
        with locked or nullcontext():
            exchange_folders(beside, target)
    except BaseException:
        if not is_resumable:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    (target / _NEW_NAME).unlink(missing_ok=True)
    shutil.rmtree(beside, ignore_errors=True)  # the old artifact


def check_replacing(
    folder: Path,
    *,
    kind: Kind | None = None,
    is_overwrite: bool = False,
    is_resume: bool = False,
    is_resumable: bool = False,
) -> None:
    """Refuse a folder that ``replacing_folder`` would refuse, and change nothing: before long work, for example.

    ``is_resumable`` says whether the caller can go on with a partial artifact, so that the message may advise it.

    Raises:
        ArtifactError: As ``prepare_folder`` and ``check_writable``.
    """
    if not (is_resume and _is_begun(folder.resolve())):
        check_folder(folder, kind=kind, is_overwrite=is_overwrite, is_resume=is_resume, is_resumable=is_resumable)
    check_writable(folder)


def _put_back(target: Path) -> None:
    """Bring back an artifact that was left aside, where a process was killed between two renames.

    A process that is between them looks the same; it renames again (``_exchange_in_steps``).
    """
    aside = find_aside(target)
    if has_artifact(aside) and not target.exists():
        try:
            aside.rename(target)
        except OSError:
            if not target.exists():
                raise  # else that process has made its second rename


def _is_begun(target: Path) -> bool:
    """Tell whether a block was stopped that replaces the finished artifact at ``target``."""
    beside = find_beside(target)
    return has_artifact(target) and ((beside / _NEW_NAME).exists() or is_partial(beside))


def _can_be_replaced(target: Path) -> bool:
    """Say whether a folder can be renamed; tell it where it cannot."""
    if is_replaceable(target):
        return True
    print_message(
        f"{target} cannot be renamed (it is a mount point, or the folder around it is read-only): what it holds is "
        "deleted before the new content is complete."
    )
    return False
