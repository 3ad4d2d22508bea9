from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from vitrieve.cli.failures import Terminated, interrupted_by_sigterm
from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.serve.settings import MEBIBYTE, ServeSettings, read_token


@pytest.fixture
def index_folder(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact").close()
    return tmp_path / "index"


def test_serve_answers_without_torch_and_stops_when_told(
    without_torch: str, index_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    script = (
        f"{without_torch}import sys\nfrom vitrieve.cli.main import main\nstatus = main(sys.argv[1:])\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)\nsys.exit(status)\n"
    )
    words = [sys.executable, "-c", script, "serve", "--index", str(index_folder), "--port", "0", "--num-threads", "1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        picture = (picture_folder / "04.png").read_bytes()
        answer = httpx.post(f"{address}search?k=1", content=picture, timeout=60)
        assert answer.json()["results"][0]["image_id"] == "04.png"
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        process.stdout.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    (search,) = [line for line in lines if line["event"] == "request" and line["route"] == "/search"]
    assert (search["status"], search["method"], search["level"]) == (200, "POST", "info")
    assert {"wait_seconds", "decode_seconds", "encode_seconds", "search_seconds", "seconds"} <= set(search)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--host", "192.168.1.2"], "VITRIEVE_TOKEN"),
        (["--token", "short"], "16 or more"),
        (["--port", "99999"], "cannot listen"),
        (["--host", "192.0.2.1", "--token", "x" * 20], "cannot listen"),  # TEST-NET-1: no machine's address
        (["--max-body-mib", "0"], "body_bytes"),
        (["--num-workers", "0"], "num_workers"),
    ],
)
def test_serve_refuses_wrong_input_with_one_message(words: list[str], part: str, index_folder: Path) -> None:
    # A process with a time limit: a server that starts after all would keep this one for ever.
    command = [sys.executable, "-m", "vitrieve", "serve", "--index", str(index_folder), "--num-threads", "1", *words]
    environment = {name: value for name, value in os.environ.items() if name != "VITRIEVE_TOKEN"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("most_mib", "held_mib"), [(25, 256), (300, 300)])
def test_serve_can_hold_the_largest_picture_that_it_takes(
    most_mib: int, held_mib: int, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ServeSettings] = []
    monkeypatch.setattr("vitrieve.serve.server.serve", lambda _, settings, **__: given.append(settings))
    words = ["serve", "--index", str(index_folder), "--port", "0", "--num-threads", "1"]
    assert main([*words, "--max-body-mib", str(most_mib)]) == 0
    limits = given[0].limits
    assert (limits.body_bytes, limits.held_bytes) == (most_mib * MEBIBYTE, held_mib * MEBIBYTE)


def test_serve_says_that_a_port_is_taken(index_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--index", str(index_folder), "--port", str(port), "--num-threads", "1"]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_read_token_takes_the_flag_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_TOKEN", "from-the-variable")
    assert read_token("0.0.0.0", None) == "from-the-variable"
    assert read_token("127.0.0.1", "from-the-flag-instead") == "from-the-flag-instead"
    monkeypatch.delenv("VITRIEVE_TOKEN")
    assert read_token("127.0.0.1", None) is None


def test_what_a_library_makes_of_the_signal_is_taken_for_it() -> None:
    """As an extension does that is being imported; an error without a signal stays what it is."""

    def import_extension() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    with pytest.raises(Terminated), interrupted_by_sigterm():
        import_extension()
    with pytest.raises(ImportError), interrupted_by_sigterm():
        raise ImportError("no module")


@pytest.mark.parametrize(
    ("module", "status"), [("vitrieve.search.searcher", 143), ("fastapi", 143), ("uvicorn.lifespan.on", 0)]
)
def test_a_service_told_to_stop_while_it_starts_stops(module: str, status: int, index_folder: Path) -> None:
    """The signal comes while a module is imported, and what it raises there is dropped, as Python's own import does.

    The last module is imported when uvicorn handles signals: from then on a stop is the ordinary end.
    """
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "            except BaseException: pass\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from vitrieve.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", script, "serve", "--index", str(index_folder), "--port", "0", "--num-threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert ("interrupted." in done.stderr) == (status == 143)
    assert "Traceback" not in done.stderr
