"""What nobody can search for gets the same message on every way: Python, command, HTTP, assistant, page in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.conftest import PATIENCE_MS
from tests.serve.conftest import Server
from vitrieve.cli.main import main
from vitrieve.errors import InputError
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app

SCRIPT = "does not know the script of 红苹果; write it in a language that it was trained on"
LONG = "the text to search for has 10,000 characters; at most 1,000 are read: say it in fewer words."
EMPTY = "the text to search for is empty; say in words what is wanted."
COLUMN = "unknown metadata column 'colour'. Valid: copy, label."
FILTER = {"filter": ["colour=red"]}
CASES = {
    "another script": ({"text": "红苹果"}, SCRIPT),
    "10,000 letters": ({"text": "a" * 10_000}, LONG),
    "10,000 signs of another script": ({"text": "红" * 10_000}, LONG),
    "spaces": ({"text": "  "}, EMPTY),
    "nothing": ({"text": ""}, EMPTY),
    "a column that is not there": ({"text": "red", **FILTER}, COLUMN),
    "groups of a column that is not there": ({"text": "red", "group_by": "colour"}, COLUMN),
}


@dataclass(frozen=True)
class Ways:
    """Where one index can be asked.

    Attributes:
        searcher: In Python.
        encoder: Folder of its encoder, for the command.
        address: Of the service.
        assistant: Of the service for assistants.
        page: Of a browser.
    """

    searcher: Searcher
    encoder: Path
    address: str
    assistant: str
    page: Any


@pytest.fixture(scope="module")
def ways(index_folder: Path, aligned_folder: Path, browser: Any) -> Iterator[Ways]:
    pytest.importorskip("mcp", reason="needs vitrieve[mcp]")
    from vitrieve.serve.mcp_server import PATH, create_mcp_app
    from vitrieve.serve.settings import LOCAL_NAMES

    searcher = Searcher.open(index_folder, load_encoder(aligned_folder, engine="onnx", num_threads=1))
    servers = [Server(create_app(searcher)), Server(create_mcp_app(searcher, hosts=LOCAL_NAMES))]
    with browser.new_context(base_url=servers[0].address) as context:
        context.set_default_timeout(PATIENCE_MS)
        addresses = [server.address for server in servers]
        yield Ways(searcher, aligned_folder, addresses[0], addresses[1] + PATH, context.new_page())
    for server in servers:
        server.stop()
    searcher.close()


def ask_python(ways: Ways, text: str, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        ways.searcher.answer(SearchRequest(plus=(Example(text=text),), **more))
    return str(caught.value)


def ask_command(ways: Ways, text: str, capsys: pytest.CaptureFixture[str], **more: Any) -> str:
    words = ["search", "--index", str(ways.searcher.folder), "--encoder", str(ways.encoder), "--text", text]
    for name, value in more.items():
        words += [f"--{name.replace('_', '-')}", *([value] if isinstance(value, str) else value)]
    assert main([*words, "--num-threads", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("error: ") == 1
    return " ".join(printed.err.split())


def ask_http(ways: Ways, **body: Any) -> str:
    answer = httpx.post(f"{ways.address}/search", json=body)
    assert answer.status_code == 422
    return str(answer.json()["detail"])


def ask_assistant(ways: Ways, **arguments: Any) -> str:
    from tests.serve.test_mcp import refuse

    with ThreadPoolExecutor(1) as other:  # the browser's client runs an event loop in this thread
        return other.submit(refuse, ways.assistant, "search", **arguments).result()


def ask_page(ways: Ways, text: str, **more: Any) -> str:
    """Type the text on the start page; conditions are in its address."""
    page = ways.page
    page.goto("/?" + urlencode({"text": text, **more}, doseq=True) if more else "/")
    if more:  # a link of somebody else's, or an index that has changed since: the address is all there is
        return str(page.locator(".detail").text_content())
    field = page.get_by_label("Words to search for")
    field.fill(text)
    field.press("Enter")
    if not text:  # the browser's own message
        return EMPTY if field.evaluate("field => field.matches(':invalid') && !!field.validationMessage") else ""
    page.locator(".detail, #notice:not([hidden])").first.wait_for()
    return str(page.locator(".detail, #notice:not([hidden])").first.text_content())


ASK: dict[str, Callable[..., str]] = {
    "python": ask_python,
    "command": ask_command,
    "http": ask_http,
    "assistant": ask_assistant,
    "page": ask_page,
}


@pytest.mark.browser
@pytest.mark.parametrize("way", ASK)
@pytest.mark.parametrize("case", CASES)
def test_every_way_gives_the_message(case: str, way: str, ways: Ways, capsys: pytest.CaptureFixture[str]) -> None:
    asked, message = CASES[case]
    if (case, way) == ("nothing", "assistant"):  # some assistants send an empty text for what they leave out
        message = "say what to search for: text, image_id, image or path."
    more = {"capsys": capsys} if way == "command" else {}
    told = ASK[way](ways, **asked, **more)
    assert message in told or (way == "page" and message[:1].upper() + message[1:] in told)


@pytest.mark.browser
@pytest.mark.parametrize("address", ["/?filter=colour%3Dred", "/?group_by=colour", "/?filter=%3D"])
def test_a_filter_without_a_query_is_looked_at(address: str, ways: Ways) -> None:
    answer = ways.page.goto(address)
    assert answer.status == 422
    said = "is no filter" if address.endswith("%3D") else COLUMN
    assert said in ways.page.locator(".detail").text_content()
    ways.page.get_by_role("link", name="To the start").click()
    ways.page.wait_for_url(f"{ways.address}/")
    ways.page.get_by_role("heading", name="Find the same thing again").wait_for()


@pytest.mark.browser
def test_a_condition_of_the_start_page_holds_for_words_and_pictures(ways: Ways, class_folder: Path) -> None:
    page, only = ways.page, "filter=label%3DClass2"
    for begin in ("words", "picture", "sample"):
        page.goto(f"/?{only}")
        page.get_by_role("link", name="label=Class2").wait_for()
        if begin == "words":
            page.get_by_label("Words to search for").fill("class2")
            page.keyboard.press("Enter")
        elif begin == "picture":
            page.set_input_files("[data-file] >> nth=0", class_folder / "class2" / "1.png")
        else:
            page.locator(".sample").first.click()
        page.locator(".found .card").first.wait_for()
        assert only in page.url, begin
        assert set(page.locator(".found .card a.title").all_text_contents()) == {"Class2"}


@pytest.mark.browser
def test_examples_that_are_all_unwanted_are_refused(ways: Ways) -> None:
    for address in ("/?minus=class0%2F0.png", "/?minus_text=red"):
        assert ways.page.goto(address).status == 422
        assert "needs an example of what is wanted" in ways.page.locator(".detail").text_content()


@pytest.mark.browser
def test_a_map_of_no_pictures(
    ways: Ways, empty_searcher: Searcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(create_app(empty_searcher))
    try:
        assert ways.page.goto(f"{server.address}/map").status == 404
        assert ways.page.get_by_role("heading", name="There is nothing to map").is_visible()
        assert "The index holds no pictures" in ways.page.locator(".detail").text_content()
    finally:
        server.stop()
    copy = tmp_path / "index"
    shutil.copytree(empty_searcher.folder, copy)
    assert main(["map", "--index", str(copy)]) == 2
    assert "holds no picture" in capsys.readouterr().err
