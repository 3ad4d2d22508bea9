"""Repositories of a model hub, ``hf:OWNER/NAME``: their names, their states, and files that are fetched and checked.

The hub's own client asks and downloads, with its own settings: address, token, proxy, offline (``HF_ENDPOINT``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``). Which files are wanted, and what becomes of them, stands in ``published.py``. Nothing
that the hub calls a file becomes a path here: only names that vitrieve knows are asked for.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from vitrieve import __version__
from vitrieve.errors import DiskFullError, VitrieveError, WeightsError, first_line
from vitrieve.machine import cache_folder
from vitrieve.model.pretrained import HUB_TIMEOUT_SECONDS
from vitrieve.model.tensors import hash_file
from vitrieve.quoting import quote_name
from vitrieve.writing import describe_full_disk, is_full_disk, sync_folder

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
_NAME = re.compile(rf"hf:(?P<repository>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_SMALL_BYTES = 1 << 20
"""Most bytes of a description; real ones have some hundred."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """Name of a repository, and of a state of it.

    Attributes:
        repository: ``OWNER/NAME``.
        revision: A branch, a tag or a commit; None: the newest state of the main branch.
    """

    repository: str
    revision: str | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of the cache that keeps what is fetched of the repository."""
        return cache_folder() / "hub" / self.repository.replace("/", "--")

    @property
    def commit(self) -> str | None:
        """Return the revision where it is a commit, which never changes."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: Path inside the repository.
        num_bytes: Its size.
        sha256: Checksum of its content; empty: the hub knows only ``git_sha1``.
        git_sha1: Checksum that git gives a file that is small.
    """

    name: str
    num_bytes: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True, kw_only=True)
class HubState:
    """What a repository holds in one of its states.

    Attributes:
        name: Name with the commit.
        commit: The commit.
        license: License that the repository states.
        files: Files by name.
    """

    name: HubName
    commit: str
    license: str
    files: Mapping[str, HubFile]


def is_hub_name(source: str | Path) -> bool:
    """Say whether an encoder's name is that of a repository of the hub."""
    return str(source).startswith(PREFIX)


def parse_hub_name(source: str | Path) -> HubName:
    """Take ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION`` apart.

    >>> parse_hub_name("hf:someone/dinov2-small@v1.0").revision
    'v1.0'

    Raises:
        WeightsError: Another form.
    """
    match = _NAME.fullmatch(str(source))
    if match is None:
        raise WeightsError(
            f"{quote_name(source)} is no name of a repository; expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION with "
            "a branch, a tag or a commit."
        )
    return HubName(repository=match["repository"], revision=match["revision"])


def read_state(name: HubName) -> HubState:
    """Ask the hub for a repository's commit, license and files, once and with a short limit.

    Raises:
        WeightsError: The client is not installed, or the hub does not answer or does not give this repository.
    """
    with _explaining(name):
        from huggingface_hub import HfApi

        api = HfApi(library_name="vitrieve", library_version=__version__)
        info = api.model_info(name.repository, revision=name.revision, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):  # it becomes the name of a folder
        raise WeightsError(f"the hub names no commit for {name}, but {quote_name(commit)}; ask its owner.")
    files = [_read_file(sibling) for sibling in info.siblings or ()]
    return HubState(
        name=HubName(repository=name.repository, revision=commit),
        commit=commit,
        license=_find_license(info.tags or ()),
        files={file.name: file for file in files if file},
    )


def _read_file(sibling: Any) -> HubFile | None:
    """Read the hub's entry of a file; None where it tells neither size nor checksum, or has a name that no file has."""
    name = sibling.rfilename
    is_plain = name.isprintable() and {"\\", ":"}.isdisjoint(name)  # to Windows too
    if not is_plain or not {"", ".", ".."}.isdisjoint(name.split("/")):
        return None
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    num_bytes = sibling.lfs.size if sibling.lfs else sibling.size
    if not isinstance(num_bytes, int) or not (sha256 or sibling.blob_id):
        return None
    return HubFile(name=name, num_bytes=num_bytes, sha256=sha256, git_sha1="" if sha256 else sibling.blob_id)


def _find_license(tags: Any) -> str:
    found = [str(tag).removeprefix("license:") for tag in tags if str(tag).startswith("license:")]
    return quote_name(found[0]) if found else "none stated: ask the owner before you use it"


def fetch_file(state: HubState, name: str, folder: Path, *, max_bytes: int | None = None) -> Path:
    """Download a file, or go on with what a stopped download left, and check it.

    Args:
        state: State of the repository, which has the file.
        name: Name of the file, one that vitrieve knows or has checked.
        folder: Folder that the file is put in, under the last part of its name.
        max_bytes: Most bytes that it may have; None: as many as the disk has room for.

    Returns:
        Path of the whole file.

    Raises:
        WeightsError: The hub does not give it, it is too large, or its checksum is wrong; then nothing is kept.
        DiskFullError: There is no room; what was fetched is kept.
    """
    file = state.files[name]
    path = folder / name.rpartition("/")[2]
    if path.is_file():  # it was whole and right when it got this name
        return path
    if max_bytes is not None and file.num_bytes > max_bytes:
        raise WeightsError(
            f"{name} of {state.name} has {file.num_bytes:,} bytes; at most {max_bytes:,} are read. It is not what "
            "its name says, or too large for vitrieve."
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.touch()
    if partial.stat().st_size > file.num_bytes:
        partial.write_bytes(b"")
    num_missing = file.num_bytes - partial.stat().st_size
    if shutil.disk_usage(folder).free < num_missing:
        raise DiskFullError(describe_full_disk(path, num_bytes=num_missing, advice=_ADVICE))
    with _explaining(state.name, path):
        _download(state, file, partial)
    _check(state, file, partial)
    partial.replace(path)
    sync_folder(folder)
    return path


_ADVICE = "Make room, or name another folder with VITRIEVE_CACHE; the same command then goes on."


class _Bounded(io.BufferedRandom):
    """A file that takes no more bytes than the hub has stated, whatever is sent."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(io.FileIO(path, "r+"))
        self._max_bytes = max_bytes
        self.seek(0, io.SEEK_END)

    def write(self, data: Any) -> int:
        """Write, unless it becomes too much."""
        if self.tell() + len(data) > self._max_bytes:
            raise WeightsError(
                f"more than the {self._max_bytes:,} bytes were sent that the hub had stated for {self.name.stem}; "
                "nothing is kept. Try again, or ask the owner of the repository."
            )
        return super().write(data)


def _download(state: HubState, file: HubFile, partial: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(state.name.repository, file.name, revision=state.commit)
    try:
        with _Bounded(partial, file.num_bytes) as target:
            http_get(
                url,
                cast(BinaryIO, target),
                resume_size=partial.stat().st_size,
                headers=build_hf_headers(library_name="vitrieve", library_version=__version__),
                expected_size=file.num_bytes,
                displayed_filename=file.name,
            )
    except WeightsError:  # of _Bounded: what was sent is not the file
        partial.unlink()
        raise
    except OSError as error:
        if error.errno is not None or type(error) is not OSError:  # the system's; a refusal or a lost connection
            raise
        num_bytes = partial.stat().st_size  # the client's: the answer ended as it should, and is not the file
        partial.unlink()
        raise WeightsError(
            f"{file.name} ended after {num_bytes:,} bytes, where the hub states {file.num_bytes:,}: another file was "
            "sent, such as the login page of a network; nothing is kept. Check the network, then try again."
        ) from error


def _check(state: HubState, file: HubFile, path: Path) -> None:
    """Compare a file's checksum with the hub's; a wrong one is removed."""
    if file.sha256:
        found, expected = hash_file(path), file.sha256
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        found, expected = hash_file(path, digest), file.git_sha1
    if found != expected:
        path.unlink()
        raise WeightsError(
            f"{file.name} of {state.name} has checksum {found}; the hub states {quote_name(expected)}. It is damaged "
            "or was exchanged; nothing of it was kept. Try again."
        )


@contextmanager
def _explaining(name: HubName, path: Path | None = None) -> Iterator[None]:
    """Turn what the hub's client raises (errors of its own, of its HTTP library and the system's) into one message."""
    try:
        yield
    except VitrieveError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        if path is not None and is_full_disk(error):
            raise DiskFullError(describe_full_disk(path, advice=_ADVICE)) from error
        raise WeightsError(f"the hub cannot give {name}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "its client is not installed; install vitrieve[hub]."
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE says not to ask it. Unset it, or use an encoder that is here."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):  # the hub answers the same for both
        return "there is no such repository, or it is private or gated; with access to it, set HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit."
    advice = "Check the network, or use an encoder that is here; the same command goes on where it stopped."
    return f"{quote_name(first_line(error))}. {advice}"


def send_folder(
    repository: str, files: Mapping[str, Path], *, removed: Collection[str], is_private: bool, is_overwrite: bool
) -> str:
    """Send files to a repository of the hub in one commit; nothing of it is seen there before all of it is.

    The client checks the card by the hub's own rules first. A repository that is missing is made; an empty one, which a
    stopped push leaves, is filled.

    Args:
        repository: ``OWNER/NAME``.
        files: Files here, by their names there.
        removed: Names that are removed there where ``files`` has them not.
        is_private: Only its owner may see the repository.
        is_overwrite: It may hold files already.

    Returns:
        The commit.

    Raises:
        WeightsError: There is no client or no token, or the hub does not take it.
    """
    with _explaining_sending(repository):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

        if not get_token():
            raise WeightsError(
                "there is no token of the hub: set HF_TOKEN to one that may write (from the settings of your account), "
                "or log in with hf auth login."
            )
        api = HfApi(library_name="vitrieve", library_version=__version__)
        found = _make_repository(api, repository, is_private)
        present = [] if found is None else [sibling.rfilename for sibling in found.siblings or ()]
        if {*present} - {".gitattributes"} and not is_overwrite:
            raise WeightsError(
                f"{repository} is on the hub already and holds files; pass --overwrite to send into it, or give "
                "another name."
            )
        if found is not None and is_private and not found.private:
            raise WeightsError(f"{repository} is there already and public; change that on the hub, or drop --private.")
        stale = [name for name in present if name in removed and name not in files]
        committed = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Encoder of vitrieve",
            parent_commit=None if found is None else found.sha,
        )
    return str(committed.oid)


def _make_repository(api: Any, repository: str, is_private: bool) -> Any:
    """Make a repository; return what the hub knows of one that was there, None of a new one."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=is_private or None)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        return api.model_info(repository, timeout=HUB_TIMEOUT_SECONDS)
    return None


@contextmanager
def _explaining_sending(repository: str) -> Iterator[None]:
    try:
        yield
    except VitrieveError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        raise WeightsError(f"{repository} was not sent: {_describe_sending(error)}") from error


def _describe_sending(error: Exception) -> str:
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of a large file
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError):
        return "the hub's client is not installed; install vitrieve[hub]."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know the token; make a new one in the settings of your account, and set HF_TOKEN."
    if status in (403, 404):
        return "the token may not write there; check the owner's name, and that the token has the right to write."
    if status == 412:
        return "the repository was changed meanwhile; look at it, and push again."
    return _describe(error).replace("an encoder that is here; the same command goes on where it stopped", "--dry-run")
