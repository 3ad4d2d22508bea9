from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.machine import cache_folder


def test_cache_folder_is_the_named_one_or_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("VITRIEVE_CACHE", "~/kept")
    assert cache_folder() == Path("/home/someone/kept")
    monkeypatch.delenv("VITRIEVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/vitrieve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/vitrieve")


def test_cache_folder_of_an_unknown_user_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", "~no-such-user/x")
    with pytest.raises(ConfigError, match=r"VITRIEVE_CACHE is '~no-such-user/x', but the home folder of ~no-such-user"):
        cache_folder()


def test_a_user_without_a_home_folder_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "VITRIEVE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", find_nobody)
    assert main(["weights", "list"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: this user has no home folder, so set VITRIEVE_CACHE")
    assert len(printed.splitlines()) == 1


MEASURE_PEAK = """
import json
from vitrieve.machine import read_peak_memory, restart_peak_memory

found = [restart_peak_memory(), read_peak_memory()]
held = b"x" * (64 << 20)
del held
found.append(read_peak_memory())
restart_peak_memory()
print(json.dumps([*found, read_peak_memory()]))
"""


def test_peak_memory_is_kept_until_it_is_restarted() -> None:
    # In a process of its own: the threads that other tests left in this one take memory as they like.
    done = subprocess.run([sys.executable, "-c", MEASURE_PEAK], check=True, capture_output=True, text=True)
    can_restart, before, kept, after = json.loads(done.stdout)
    if not can_restart:
        pytest.skip("the system does not forget the peak")
    assert kept - before > 60 * 2**20
    assert after - before < 30 * 2**20
