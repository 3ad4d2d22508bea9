"""Commands where something is missing or forbidden: a home folder, a place to write, a network, an encoding, rights."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ENTRY = [sys.executable, "-m", "vitrieve"]
NOWHERE = "/proc/none" if sys.platform.startswith("linux") else "/dev/null/none"
"""A folder that nobody can make, root included."""
NO_HOST = "hub.invalid"
"""A name that no server may have (RFC 2606)."""
FROM_OUTSIDE = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "VITRIEVE_CACHE", "LANG", "LC_ALL", "TMPDIR", "PYTHONUTF8")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def places(tmp_path: Path, picture_folder: Path, tiny_encoder_folder: Path) -> dict[str, Path]:
    """Three pictures, an encoder that needs no torch, and where an index and a cache may be made."""
    for path in sorted(picture_folder.iterdir())[3:]:
        path.unlink()
    return {
        "pictures": picture_folder,
        "encoder": tiny_encoder_folder,
        "index": tmp_path / "index",
        "cache": tmp_path / "cache",
    }


@pytest.fixture
def run() -> Run:
    """Run a command in an environment that holds what it is given, and neither HOME nor a cache of its own."""

    def run(
        *words: object, prefix: tuple[str, ...] = (), umask: int = -1, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE} | variables
        command = [*prefix, *ENTRY, *map(str, words)]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", env=environment, umask=umask, timeout=120, check=False
        )

    return run


def index_and_search(
    run: Run, places: dict[str, Path], query: str, prefix: tuple[str, ...] = (), umask: int = -1, **variables: str
) -> None:
    """Sync three pictures into an index, and find one of them."""
    flags = {"prefix": prefix, "umask": umask, **variables}
    words = ("--index", places["index"], "--encoder", places["encoder"], "--num-threads", 1)
    synced = run("sync", "--data", places["pictures"], *words, "--json", **flags)
    assert synced.returncode == 0, synced.stderr
    assert json.loads(synced.stdout)["num_embedded"] == 3
    found = run("search", *words, places["pictures"] / query, "-k", 1, "--json", **flags)
    assert found.returncode == 0, found.stderr
    (result,) = json.loads(found.stdout)["queries"][0]["results"]
    assert result["image_id"] == query
    for done in (synced, found):
        assert "Traceback" not in done.stderr


def become_user() -> tuple[str, ...]:
    """Root may do everything, so it becomes a user without rights, whom the files of root belong to nevertheless."""
    alone = ("unshare", "--user") if os.geteuid() == 0 else ()
    if alone and (shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode):
        pytest.skip("needs unshare of Linux, and the right to use it")
    return alone


def test_with_a_home_folder_that_cannot_be_written(run: Run, places: dict[str, Path]) -> None:
    index_and_search(run, places, "01.png", HOME=NOWHERE)


def test_as_a_user_who_may_only_read_a_home_folder(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    alone = become_user()
    assert subprocess.run([*alone, "id", "-u"], capture_output=True, text=True, check=True).stdout != "0\n"
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    index_and_search(run, places, "01.png", prefix=alone, HOME=str(home))
    assert list(home.iterdir()) == []


def test_a_folder_of_which_only_the_names_may_be_read_is_kept_and_told(run: Run, places: dict[str, Path]) -> None:
    alone, locked = become_user(), places["pictures"] / "locked"
    locked.mkdir()
    (places["pictures"] / "00.png").rename(locked / "00.png")
    words = ("--data", places["pictures"], "--index", places["index"], "--encoder", places["encoder"], "--json")
    assert run("sync", *words, prefix=alone).returncode == 0
    locked.chmod(0o444)
    try:
        done = run("sync", *words, prefix=alone)
    finally:
        locked.chmod(0o755)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["num_removed"], found["num_kept"], found["unreachable"]) == (0, 1, ["locked"])
    assert "locked: Permission denied" in done.stderr


def test_an_index_that_may_not_be_changed_is_one_message(run: Run, places: dict[str, Path]) -> None:
    alone = become_user()
    words = ("--data", places["pictures"], "--index", places["index"], "--encoder", places["encoder"])
    assert run("sync", *words, "--num-threads", 1).returncode == 0
    (places["index"] / "sync.sqlite").unlink()
    places["index"].chmod(0o555)
    try:
        done = run("sync", *words, "--adopt", prefix=alone)
    finally:
        places["index"].chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "")
    assert "sync.sqlite cannot be written: unable to open database file." in done.stderr


def test_a_cache_that_cannot_be_made_is_one_message(run: Run, places: dict[str, Path]) -> None:
    pytest.importorskip("fastapi", reason="needs vitrieve[serve]")
    words = (places["pictures"], "--encoder", places["encoder"], "--port", 0, "--num-threads", 1)
    done = run("up", *words, HOME=NOWHERE)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert NOWHERE in last
    assert "Traceback" not in done.stderr


def test_without_a_network_and_with_proxies_that_do_not_answer(run: Run, places: dict[str, Path]) -> None:
    alone = ("unshare", "--user", "--map-root-user", "--net")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare of Linux, and the right to use it")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    index_and_search(run, places, "01.png", prefix=alone, VITRIEVE_CACHE=str(places["cache"]), **proxies)


def test_with_a_proxy_as_the_only_way_out(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    """An encoder of the hub is fetched through it; the name of the hub leads nowhere here."""
    pytest.importorskip("huggingface_hub", reason="needs vitrieve[hub]")
    from tests.model.hub_server import Handler, Hub, Repository

    class Proxy(Handler):
        """Answers for the hub whoever asks for its whole address, as clients ask a proxy."""

        def _answer(self) -> None:
            where = f"http://{NO_HOST}"
            self.path = self.path.removeprefix(where) if self.path.startswith(where) else "/not-asked-as-a-proxy"
            super()._answer()

    files = {path.name: path.read_bytes() for path in places["encoder"].iterdir() if path.is_file()}
    with Hub() as hub:
        hub.server.RequestHandlerClass = type("BoundProxy", (Proxy,), {"hub": hub})
        hub.repositories["owner/name"] = Repository(files=files)
        variables = {"HF_ENDPOINT": f"http://{NO_HOST}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
        variables |= {"VITRIEVE_CACHE": str(places["cache"]), "NO_PROXY": "", "no_proxy": ""}
        words = ("pull", "owner/name", "--out", tmp_path / "pulled")
        done = run(*words, http_proxy=hub.address, **variables)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "pulled" / "encoder.json").read_bytes() == files["encoder.json"]
        assert hub.requests
        fetched = run(
            *words[:-1], tmp_path / "other", http_proxy="http://127.0.0.1:9", **variables, HF_HUB_DISABLE_XET="1"
        )
    assert fetched.returncode == 2
    assert "Check the network" in fetched.stderr


def test_without_a_home_folder_and_with_a_umask_that_gives_others_nothing(run: Run, places: dict[str, Path]) -> None:
    index_and_search(run, places, "01.png", umask=0o077, VITRIEVE_CACHE=str(places["cache"]))
    made = [places["index"], *places["index"].rglob("*")]
    assert len(made) > 3
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_with_the_language_c_and_no_other_encoding_than_ascii(run: Run, places: dict[str, Path]) -> None:
    (places["pictures"] / "01.png").rename(places["pictures"] / "Äpfel 1.png")
    variables = {"LANG": "C", "LC_ALL": "C", "HOME": NOWHERE, "VITRIEVE_CACHE": str(places["cache"])}
    # Python takes UTF-8 in the place of C, unless it is told not to.
    index_and_search(run, places, "Äpfel 1.png", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", **variables)


def test_help_needs_nothing(run: Run) -> None:
    done = run("--help", umask=0o077, LANG="C", HOME=NOWHERE, VITRIEVE_CACHE=NOWHERE)
    assert done.returncode == 0
    assert done.stderr == ""


def test_what_is_no_terminal_gets_lines_without_colors(run: Run, places: dict[str, Path]) -> None:
    """A log of continuous integration: no carriage return, no sequence that a terminal obeys, asked for or not."""
    words = ("--data", places["pictures"], "--index", places["index"], "--encoder", places["encoder"])
    done = run("sync", *words, HOME=NOWHERE, VITRIEVE_CACHE=str(places["cache"]), TERM="xterm-256color", CI="true")
    helped = run("sync", "--help", TERM="xterm-256color", CI="true")
    assert (done.returncode, helped.returncode) == (0, 0)
    assert "sync: 3/3, " in done.stderr
    for text in (done.stdout, done.stderr, helped.stdout, helped.stderr):
        assert "\r" not in text
        assert "\x1b" not in text
