"""Watching where the system watches no more folders: a name space of users has limits of its own on Linux."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrieve.syncing.watch import watch_changes

LOOK_TWICE = """
import sys
from pathlib import Path

from vitrieve.syncing.watch import watch_changes

folder = Path(sys.argv[1])
looks = watch_changes(folder, folder / "index", rescan_seconds=0)
next(looks), next(looks)
print("looked twice")
"""


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_a_collection_that_the_system_does_not_watch_is_looked_at_all_the_same(limit: str, tmp_path: Path) -> None:
    lower = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    limited = ("unshare", "--user", "--map-root-user", "sh", "-c", lower, "sh")
    if shutil.which("unshare") is None or subprocess.run([*limited, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare of Linux, and the right to use it")
    done = subprocess.run(
        [*limited, sys.executable, "-c", LOOK_TWICE, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "looked twice\n"), done.stderr
    assert done.stderr.count("the system does not tell of every change") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("is_all_locked", [False, True])
def test_a_folder_that_may_not_be_read_does_not_end_the_looks(
    is_all_locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path, *, ignore_permission_denied: bool, **settings: object) -> Iterator[set[object]]:
        if is_all_locked or not ignore_permission_denied:
            raise PermissionError(13, "Permission denied")
        while True:
            yield set()

    monkeypatch.setattr("vitrieve.syncing.watch.watch", refuse)
    monkeypatch.setattr("vitrieve.syncing.watch.TICK_MS", 10)
    looks = watch_changes(tmp_path, tmp_path / "index", rescan_seconds=0)
    next(looks), next(looks)
    printed = capsys.readouterr().err
    assert printed.count("the system does not tell of every change") == int(is_all_locked)
    assert ("Permission denied" in printed) == is_all_locked
