"""The official client of the Model Context Protocol asks a real small index, over both transports."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

pytest.importorskip("mcp", reason="needs vitrieve[mcp]")
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent

from tests.serve.conftest import Server, make_picture
from vitrieve.cli.main import main
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.serve import assistant
from vitrieve.serve.mcp_server import PATH, create_mcp_app
from vitrieve.serve.settings import LOCAL_NAMES, Limits
from vitrieve.serve.sheet import draw_sheet

TOKEN = "a-token-of-some-length"
Ask = Callable[[Client], Awaitable[Any]]


@pytest.fixture(scope="module")
def address(searcher: Searcher, class_folder: Path) -> Iterator[str]:
    server = Server(create_mcp_app(searcher, hosts=LOCAL_NAMES, folders=[class_folder]))
    yield server.address + PATH
    server.stop()


def ask(target: Any, question: Ask, **options: Any) -> Any:
    async def run() -> Any:
        async with Client(target, **options) as client:
            return await question(client)

    return anyio.run(run)


def call(address: str, name: str, **arguments: Any) -> CallToolResult:
    return ask(address, lambda client: client.call_tool(name, arguments))  # type: ignore[no-any-return]


def refuse(address: str, name: str, **arguments: Any) -> str:
    answer = call(address, name, **arguments)
    assert answer.is_error
    (content,) = answer.content
    assert isinstance(content, TextContent)
    return content.text


def get_picture(answer: CallToolResult) -> Image.Image:
    (picture,) = [content for content in answer.content if isinstance(content, ImageContent)]
    assert picture.mime_type == "image/jpeg"
    return Image.open(io.BytesIO(b64decode(picture.data)))


def list_ids(answer: CallToolResult) -> list[str]:
    assert not answer.is_error, answer.content
    return [result["image_id"] for result in answer.structured_content["results"]]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_are_told(address: str, mode: str) -> None:
    tools = ask(address, lambda client: client.list_tools(), mode=mode).tools
    assert [tool.name for tool in tools] == ["search", "get_image", "contact_sheet", "facets", "duplicates"]
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert all("description" in one for one in tool.input_schema["properties"].values()), tool.name


def test_every_way_of_searching_finds_what_the_searcher_finds(
    address: str, searcher: Searcher, picture: bytes, class_folder: Path
) -> None:
    expected = [result.image_id for result in searcher.search(picture, k=4)]
    assert list_ids(call(address, "search", image=b64encode(picture).decode(), k=4)) == expected
    assert list_ids(call(address, "search", path=str(class_folder / "class2" / "1.png"), k=4)) == expected
    request = SearchRequest(plus=(Example(image_id="class2/1.png"),), k=3, filter=["label=Class1"])
    by_id = call(address, "search", image_id="class2/1.png", k=3, filter=["label=Class1"])
    assert list_ids(by_id) == [result.image_id for result in searcher.answer(request).results]
    by_text = call(address, "search", text="class3", k=4)
    assert sorted(list_ids(by_text)) == [f"class3/{copy}.png" for copy in range(4)]
    assert json.loads(by_text.content[0].text) == by_text.structured_content  # type: ignore[union-attr]
    grouped = call(address, "search", image_id="class2/1.png", group_by="label")
    assert len(list_ids(grouped)) == 5


def test_arguments_that_are_left_empty_are_none(address: str) -> None:
    empty = {"text": "", "image": "", "path": "", "group_by": "", "cursor": ""}
    found = call(address, "search", **{**empty, "image_id": "class0/0.png"})
    assert list_ids(found) == list_ids(call(address, "search", image_id="class0/0.png"))
    assert "columns" in call(address, "facets", column="").structured_content
    assert "say what to search for" in refuse(address, "search", **empty)
    assert "image_id" in refuse(address, "get_image", image_id="")


def test_pages_show_every_image_once(address: str) -> None:
    found: list[str] = []
    cursor = None
    while True:
        answer = call(address, "search", image_id="class0/0.png", k=8, cursor=cursor)
        found += list_ids(answer)
        cursor = answer.structured_content["next_cursor"]
        if cursor is None:
            break
    assert len(found) == len(set(found)) == 19


def test_an_image_and_a_contact_sheet_are_pictures(address: str) -> None:
    answer = call(address, "get_image", image_id="class1/0.png", side_px=160)
    values = answer.structured_content
    assert values["metadata"] == {"label": "Class1", "copy": "0"}
    assert get_picture(answer).size == (values["width_px"], values["height_px"])
    sheet = call(
        address, "contact_sheet", image_ids=[f"class{label}/{copy}.png" for label in range(4) for copy in (0, 1)]
    )
    assert [one["number"] for one in sheet.structured_content["images"]] == list(range(1, 9))
    drawn = get_picture(sheet)
    assert drawn.width > 6 * 200
    assert drawn.height > 2 * 200


def test_a_cell_of_a_sheet_shows_its_picture_and_one_that_is_gone_is_gray() -> None:
    red = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 0, 0)).save(red, format="JPEG")
    sheet = Image.open(io.BytesIO(draw_sheet([("a" * 300, red.getvalue()), ("gone\n.png", None)])))
    assert sheet.size == (2 * 208 + 8, 242 + 8)
    red_pixel, gray_pixel = sheet.getpixel((108, 108)), sheet.getpixel((216 + 100, 20))
    assert red_pixel[0] > 180 and max(red_pixel[1:]) < 30  # type: ignore[index,operator]  # noqa: PT018
    assert max(gray_pixel) - min(gray_pixel) < 10  # type: ignore[type-var,operator,arg-type]
    assert sheet.getpixel((108, 20)) == (255, 255, 255)  # above a wide picture


def test_facets_count(address: str) -> None:
    columns = call(address, "facets").structured_content
    assert columns == {"num_images": 20, "columns": {"copy": "number", "label": "text"}}
    counts = call(address, "facets", column="label", filter=["copy<2"]).structured_content
    assert counts["values"] == [{"value": f"Class{label}", "num_images": 2} for label in range(5)]
    assert (counts["num_images"], counts["num_without"], counts["num_values"]) == (10, 0, 5)


def test_duplicates_are_those_of_the_command(address: str, index_folder: Path) -> None:
    from vitrieve.curation.duplicates import duplicates

    expected = duplicates(index_folder, level="exact")
    answer = call(address, "duplicates", level="exact").structured_content
    assert answer["num_groups"] == len(expected.groups)
    assert [group["image_ids"] for group in answer["groups"]] == [list(group.image_ids) for group in expected.groups]


def test_who_waits_too_long_for_duplicates_is_told_to_come_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "DUPLICATES_SECONDS", 0.0)
    assert "the same call in a minute" in refuse(address, "duplicates", level="same-scene")
    monkeypatch.setattr(assistant, "DUPLICATES_SECONDS", 60.0)
    assert call(address, "duplicates", level="same-scene").structured_content["num_images"] == 20
    monkeypatch.setattr(assistant, "MAX_DUPLICATE_IMAGES", 19)
    assert "at most 19" in refuse(address, "duplicates", level="exact")


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("search", {}, "say what to search for"),
        ("search", {"image_id": "no.png"}, "no image"),
        ("search", {"image": b64encode(b"no picture").decode()}, "no readable picture"),
        ("search", {"image": "***"}, "empty"),
        ("search", {"text": " "}, "empty"),
        ("search", {"text": "a", "k": 201}, "at most 200"),
        ("search", {"text": "a", "cursor": "x"}, "next_cursor"),
        ("search", {"text": "a", "cursor": "99999"}, "at most 10,000"),
        ("search", {"text": "a", "filter": ["a=b"] * 17}, "at most 16"),
        ("search", {"text": "a", "filter": ["nothing=b"]}, "unknown metadata column"),
        ("search", {"text": "a", "other": 1}, "other: "),
        ("get_image", {"image_id": "../secret.png"}, "no image"),
        ("get_image", {"image_id": "class0/0.png", "side_px": 5000}, "side_px"),
        ("contact_sheet", {"image_ids": []}, "image_ids"),
        ("contact_sheet", {"image_ids": ["class0/0.png"] * 49}, "image_ids"),
        ("contact_sheet", {"image_ids": ["no.png"]}, "no image"),
        ("facets", {"column": "labels"}, "Did you mean 'label'"),
        ("duplicates", {"level": "some"}, "level"),
        ("delete", {}, "no tool"),
    ],
)
def test_what_does_not_fit_is_an_error_of_the_tool(
    address: str, name: str, arguments: dict[str, Any], part: str
) -> None:
    assert part in refuse(address, name, **arguments)


def test_a_path_is_read_only_below_the_folders_that_are_allowed(
    address: str, class_folder: Path, tmp_path: Path, searcher: Searcher
) -> None:
    secret = class_folder.parent / "secret.png"
    outside = tmp_path / "outside.png"
    outside.write_bytes(make_picture())
    link = class_folder.parent / "link.png"
    inner_link = tmp_path / "in"
    inner_link.symlink_to(class_folder)
    for path in (secret, outside, class_folder / ".." / "secret.png", "relative.png", "/dev/zero", "a\0b", link):
        assert "path" in refuse(address, "search", path=str(path))
    sneaky = class_folder / "sneaky.png"
    sneaky.symlink_to(outside)
    try:
        assert "only in" in refuse(address, "search", path=str(sneaky))
    finally:
        sneaky.unlink()
    assert "can be read at this path" in refuse(address, "search", path=str(class_folder / "missing.png"))
    assert list_ids(call(address, "search", path=str(inner_link / "class2" / "1.png"), k=1))
    server = Server(create_mcp_app(searcher))
    assert "--pictures FOLDER" in refuse(server.address + PATH, "search", path=str(outside))
    server.stop()


def test_the_gate_is_that_of_the_service(searcher: Searcher) -> None:
    server = Server(
        create_mcp_app(searcher, token=TOKEN, hosts=LOCAL_NAMES, limits=Limits(json_bytes=20_000, json_fields=2000))
    )
    url = server.address + PATH
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json, text/event-stream"}
    try:
        assert httpx.post(url, json=message).status_code == 401
        assert httpx.post(url, json=message, headers={**headers, "Authorization": "Bearer no"}).status_code == 401
        assert httpx.post(url, json=message, headers={**headers, "Host": "evil.example"}).status_code == 400
        assert httpx.post(url, json=message, headers={**headers, "Origin": "https://evil.example"}).status_code == 403
        assert httpx.get(url, headers=headers).status_code == 405
        assert len(httpx.post(f"{url}/", json=message, headers=headers).json()["result"]["tools"]) == 5
        assert httpx.post(f"{url}/", json=message).status_code == 401
        assert httpx.get(f"{server.address}/readyz/", headers=headers).status_code == 404, (
            "no redirect to a made address"
        )
        answer = httpx.post(url, json=message, headers=headers)
        assert len(answer.json()["result"]["tools"]) == 5
        assert "mcp-session-id" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
        long = {**message, "params": {"_meta": {"a": "x" * 20_000}}}
        assert httpx.post(url, json=long, headers=headers).status_code == 413
        many = json.dumps(message)[:-1] + ', "params": [' + '"":' * 2001 + "]}"
        assert httpx.post(url, content=many, headers=headers).status_code == 422

        async def with_token() -> int:
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                return len((await client.list_tools()).tools)

        assert anyio.run(with_token) == 5
    finally:
        server.stop()


def test_the_command_answers_on_standard_input_and_output_without_torch(
    without_torch: str, index_folder: Path, tiny_encoder_folder: Path, searcher: Searcher, picture: bytes
) -> None:
    script = (
        f"{without_torch}import sys\nfrom vitrieve.cli.main import main\nstatus = main(sys.argv[1:])\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)\nsys.exit(status)\n"
    )
    words = ["mcp", "--index", str(index_folder), "--encoder", str(tiny_encoder_folder), "--num-threads", "1"]
    server = StdioServerParameters(command=sys.executable, args=["-c", script, *words], env=dict(os.environ))

    async def question(client: Client) -> tuple[CallToolResult, CallToolResult]:
        found = await client.call_tool("search", {"image": b64encode(picture).decode(), "k": 3})
        return found, await client.call_tool("contact_sheet", {"image_ids": list_ids(found)})

    found, sheet = ask(server, question)
    assert list_ids(found) == [result.image_id for result in searcher.search(picture, k=3)]
    assert get_picture(sheet).width == 3 * 208 + 8


def test_the_command_answers_over_http_and_stops_when_told(
    index_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    words = ["mcp", "--http", "--port", "0", "--index", str(index_folder), "--encoder", str(tiny_encoder_folder)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrieve", *words, "--num-threads", "1"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.endswith("/mcp")
        assert list_ids(call(address, "search", text="class4", k=2))
        assert httpx.post(address, json={}, headers={"Host": "evil.example"}).status_code == 400
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert process.stdout is not None
        process.stdout.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["event"] == "tool"] == [200]
    assert {line["route"] for line in lines if line["event"] == "request"} == {"/mcp", "unmatched"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--http", "--host", "0.0.0.0"], "needs a token"),
        (["--http", "--port", "99999"], "cannot listen"),
        (["--pictures", "/nowhere/at/all"], "no folder"),
        (["--index", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    words: list[str],
    part: str,
    index_folder: Path,
    tiny_encoder_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VITRIEVE_TOKEN", raising=False)
    given = ["--index", str(index_folder), "--encoder", str(tiny_encoder_folder), "--num-threads", "1"]
    assert main(["mcp", *given, *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert part in told.err
    assert told.err.count("error: ") == 1


def test_a_missing_extra_is_told(
    index_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.machine.find_spec", lambda name: None if name == "mcp" else object())
    assert main(["mcp", "--index", str(index_folder)]) == 2
    assert "pip install 'vitrieve[mcp]'" in capsys.readouterr().err
