"""Whether what has vanished may be removed: a drive that is off must not cost its images.

A folder whose drive is off looks like a folder that was emptied. One file is deleted by a person; a tenth of all, or
all that a top folder held, is more likely a drive. So that much is removed only where somebody says so, and until
then it stays in the index, and nothing is embedded again when the drive is back.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data.ignore import Rules
from vitrieve.errors import DataError
from vitrieve.quoting import quote_name

MASS_FRACTION = 0.1
"""From this share of the index on, a removal is a mass removal."""
MIN_MASS_IMAGES = 3
"""Fewer images than this are no tenth worth asking about: small collections change by hand."""
NUM_FOLDERS_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class MassRemoval:
    """A removal that somebody has to allow.

    Attributes:
        num_images: That have vanished from the collection, contents that are still there under another name aside.
        num_indexed: In the index.
        folders: Top folders that have vanished whole, sorted.
    """

    num_images: int
    num_indexed: int
    folders: tuple[str, ...]

    def describe(self) -> str:
        """Say in a clause what has vanished."""
        named = ", ".join(map(quote_name, self.folders[:NUM_FOLDERS_NAMED]))
        more = f" and {len(self.folders) - NUM_FOLDERS_NAMED} more" if len(self.folders) > NUM_FOLDERS_NAMED else ""
        what = "folder" if len(self.folders) == 1 else "folders"
        whole = f", among them all of the {what} {named}{more}" if self.folders else ""
        return f"{self.num_images} of {self.num_indexed} images of the index have vanished from the collection{whole}"


def find_mass_removal(lost: Sequence[str], indexed: Collection[str], wanted: Iterable[str]) -> MassRemoval | None:
    """Say whether a removal is one that somebody has to allow; None where it is not.

    Args:
        lost: Names of the images whose content the collection no longer has.
        indexed: Names of all images of the index, the lost ones included.
        wanted: Names of the images of the collection as it is now: a top folder that still has one is not gone.
    """
    if not lost:
        return None
    lost_by_folder = Counter(map(_top_folder, lost))
    kept = set(map(_top_folder, wanted))
    folders = tuple(sorted(folder for folder in lost_by_folder if folder and folder not in kept))
    is_large = len(lost) >= max(MIN_MASS_IMAGES, MASS_FRACTION * len(indexed))
    if not is_large and not folders:
        return None
    return MassRemoval(num_images=len(lost), num_indexed=len(indexed), folders=folders)


def find_unreachable(root: Path | None, lost: Iterable[str]) -> dict[str, str]:
    """Find the images that have vanished because a folder above them cannot be looked into.

    Args:
        root: Folder below which the names are paths; None where they are none.
        lost: Names of images that the collection no longer has.

    Returns:
        For each such image the folder: a link that leads nowhere, or one that may not be read.
    """
    verdicts: dict[str, bool] = {}
    found = {}
    for image_id in lost if root is not None else ():
        parts = image_id.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder not in verdicts:
                verdicts[folder] = _is_unreachable(Path(str(root), folder))
            if verdicts[folder]:
                found[image_id] = folder
                break
    return found


def is_left_out(rules: Rules | None, image_id: str) -> bool:
    """Say whether a name that the collection no longer has is one that somebody excluded: no drive is off."""
    try:
        return rules is not None and rules.is_passed_over(image_id)
    except DataError:  # patterns behind a folder that cannot be looked into
        return False


def _is_unreachable(folder: Path) -> bool:
    try:
        os.lstat(folder)
    except (OSError, ValueError):
        return False  # it is not there at all: somebody may have removed it
    try:
        with os.scandir(folder):
            return False
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _top_folder(image_id: str) -> str:
    """Return the first folder of a name; empty for an image directly in the collection."""
    head, slash, _ = image_id.partition("/")
    return head if slash else ""
