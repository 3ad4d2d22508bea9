from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrieve.cli.main import main
from vitrieve.errors import ConfigError
from vitrieve.machine import cache_folder, read_peak_memory, restart_peak_memory


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


def test_peak_memory_is_kept_until_it_is_restarted() -> None:
    if not restart_peak_memory():
        pytest.skip("the system does not forget the peak")
    before = read_peak_memory() or 0
    held = np.ones(8 * 2**20)  # 64 MiB
    del held
    assert (read_peak_memory() or 0) - before > 60 * 2**20
    restart_peak_memory()
    assert (read_peak_memory() or 0) - before < 30 * 2**20
