"""Bodies that are made to take long, to be large or to break what reads them; and values too long anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi import HTTPException
from pydantic import ValidationError
from starlette.datastructures import QueryParams

from tests.serve.conftest import Connect, make_picture
from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve import middleware, pictures, schemas
from vitrieve.serve.app import create_app
from vitrieve.serve.body import BodyReader, parse_form
from vitrieve.serve.changes import MAX_FIELDS
from vitrieve.serve.schemas import SearchBody, check_json, parse_json, validate_json
from vitrieve.serve.settings import Limits
from vitrieve.serve.views import Address, parse_address
from vitrieve.serve.writing import MAX_BATCH, BatchBody

TOKEN = "a-token-of-some-length"
HTML = {"Accept": "text/html"}


@pytest.mark.parametrize(
    "text",
    ['{"examples": [%s]}', '{"filter": [%s]}', '{"vector": [%s]}', '{"box": [%s]}', '{"examples": [{"vector": [%s]}]}'],
)
@pytest.mark.parametrize("entry", ["1", '"a"', "null", "{}", "[]"])
def test_lists_end_at_their_first_fault_or_their_bound(text: str, entry: str) -> None:
    """Two million faults of one request made 3 GB of messages."""
    data = text % ",".join([entry] * 20_000)
    with pytest.raises(ValidationError) as caught:
        SearchBody.model_validate_json(data)
    # One entry is told of; a condition is neither a text nor a table of parts, which are up to four messages.
    assert len({error["loc"][:2] for error in caught.value.errors()}) == 1
    assert caught.value.error_count() <= 4


def test_json_is_bounded_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(json_bytes=10_000, json_values=1000, json_fields=100)
    assert parse_json(b'{"id": "a"}', limits).id == "a"
    monkeypatch.setattr(SearchBody, "model_validate_json", None)  # whoever calls it fails
    too_much = {
        413: [b'{"id": "' + b"a" * 10_000 + b'"}'],
        422: [b'{"examples": [' + b"1," * 2000 + b"1]}", b"{" + b",".join(b'"a%d": 1' % i for i in range(101)) + b"}"],
    }
    for status, bodies in too_much.items():
        for body in bodies:
            with pytest.raises(HTTPException) as caught:
                parse_json(body, limits)
            assert caught.value.status_code == status


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_json_is_bounded_in_depth(connect: Connect, depth: int) -> None:
    client = connect()
    for text in ('{"examples": ' + "[" * depth + "]" * depth + "}", '{"a":' * depth + "1" + "}" * depth):
        answer = client.post("/search", content=text)
        assert answer.status_code == 422
        assert len(answer.text) < 2000


def test_what_a_json_may_hold_at_most_is_enough_for_what_the_server_allows() -> None:
    """A search by as many vectors as the server allows, each as long as it may be."""
    limits = Limits()
    vectors = [{"vector": [0.123456789012345] * 16_384}] * limits.examples
    assert len(parse_json(json.dumps({"examples": vectors}).encode(), limits).examples) == limits.examples


def test_the_largest_batch_is_read() -> None:
    """100 changes of 17 columns each were refused for their colons, and fewer where the values were times."""
    metadata = {f"column {number}": "12:30:59 https://a" for number in range(MAX_FIELDS)}
    changes = [{"do": "patch", "image_id": f"a:{number}", "metadata": metadata} for number in range(MAX_BATCH)]
    data = json.dumps({"changes": changes}).encode()
    check_json(data, Limits())
    assert len(validate_json(BatchBody, data).changes) == MAX_BATCH


@pytest.mark.parametrize("sign", [":", " :", "\r\n\t :"])
def test_fields_are_counted_however_they_are_spaced(sign: str) -> None:
    body = "{" + ",".join(f'"a{number}"{sign}"b:c"' for number in range(50)) + "}"
    check_json(body.encode(), Limits(json_fields=50))
    with pytest.raises(HTTPException, match="more than 49 fields"):
        check_json(body.encode(), Limits(json_fields=49))


@pytest.mark.parametrize("kind", ["json", "form"])
def test_bodies_are_read_in_a_worker(connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    threads: list[str] = []

    def note(read: object) -> object:
        def read_and_note(*args: object, **options: object) -> object:
            threads.append(threading.current_thread().name)
            return read(*args, **options)  # type: ignore[operator]

        return read_and_note

    monkeypatch.setattr(schemas, "parse_json", note(schemas.parse_json))
    monkeypatch.setattr(schemas, "parse_form", note(schemas.parse_form))
    body = {"json": {"id": "class0/0.png"}} if kind == "json" else {"files": {"id": (None, "class0/0.png")}}
    assert connect().post("/search", **body).status_code == 200  # type: ignore[arg-type]
    assert len(threads) == 1
    assert threads[0].startswith("search")


def test_addresses_hold_no_more_than_a_search_may() -> None:
    limits = Limits(examples=4, filters=3)
    names = [f"{number}.jpg" for number in range(5)]
    assert parse_address(QueryParams([("plus", name) for name in names[:4]]), limits).num_examples == 4
    for field in ("plus", "minus", "upload"):
        with pytest.raises(ConfigError, match="5 examples"):
            parse_address(QueryParams([(field, name) for name in names]), limits)
    with pytest.raises(ConfigError, match="5 examples"):
        parse_address(
            QueryParams([("plus", "a"), ("plus", "b"), ("minus", "c"), ("minus", "d"), ("upload", "e")]), limits
        )
    with pytest.raises(ConfigError, match="4 conditions"):
        parse_address(QueryParams([("filter", f"a={name}") for name in names[:4]]), limits)


@pytest.mark.parametrize("field", ["plus", "minus", "filter", "upload"])
def test_a_page_grows_no_faster_than_its_address(connect: Connect, field: str) -> None:
    client = connect()
    lengths = []
    for count in (0, 8, 16, 500):
        prefix = "plus=class0/0.png&" if field == "filter" else ""
        query = prefix + "&".join(
            f"{field}={'label!%3D' if field == 'filter' else ''}{number:04}" for number in range(count)
        )
        answer = client.get(f"/?{query}", headers=HTML)
        lengths.append((len(query), len(answer.content)))
    assert answer.status_code == 422
    (_, start), (_, half), (_, whole), (_, refused) = lengths
    assert whole - half < 3 * (half - start) + 10_000  # twice the examples, not four times the page
    assert refused < 20_000


@pytest.mark.parametrize("name", ["plus", "minus", "filter", "group_by", "upload", "box"])
def test_long_values_are_refused_everywhere(connect: Connect, name: str) -> None:
    client = connect()
    for length in (2001, 4096, 5000):
        value = quote("ü" * 10 + "a" * (length - 10))
        for address in (
            f"/?{name}={value}",
            f"/?plus=class0/0.png&{name}={value}",
            f"/compare?image_id=a&plus=b&{name}={value}",
        ):
            for headers in ({}, HTML):
                answer = client.get(address, headers=headers)
                assert answer.status_code in (404, 410, 422), address[:40]
        overlay = client.get(f"/compare/overlay?image_id={value}&plus=class0/0.png&{name}={value}")
        assert overlay.status_code in (404, 410, 422)


def test_programs_may_send_long_values_too(connect: Connect) -> None:
    client = connect()
    known, long, longer = "class0/0.png", "a" * 4096, "a" * 4097
    for name, status in ((long, 404), (longer, 422)):
        assert client.get("/explain", params={"image_id": known, "id": name}).status_code == status
        assert client.get("/explain", params={"image_id": name, "id": known}).status_code in (status, 422)
        assert client.post("/search", json={"id": name}).status_code == status
        assert client.post("/search", json={"examples": [{"id": name}]}).status_code == status
        assert client.post("/search", files={"id": (None, name)}).status_code == status
        assert client.get(f"/thumbnails/{name}").status_code == 404
    for values in ({"box": longer}, {"filter": longer}, {"group_by": longer}, {"box": long}):
        assert client.post("/search", params=values, json={"id": known}).status_code == 422, list(values)
        assert client.get("/explain", params={"image_id": known, "id": known, "box": longer}).status_code == 422


def test_no_model_is_built_without_validation() -> None:
    for path in Path(schemas.__file__).parent.glob("*.py"):
        assert "model_construct" not in path.read_text(), path.name


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=b; charset=nonsense",
        "multipart/form-data; charset=utf-7; boundary=b",
        "multipart/form-data; boundary=" + "b" * 1000,
        "multipart/form-data; boundary=\u00fc",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-16",
    ],
)
def test_forms_whose_header_is_odd_are_refused(connect: Connect, content_type: str | None) -> None:
    client = connect(token=TOKEN)
    headers = {} if content_type is None else {"Content-Type": content_type.encode("latin-1")}
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--b--\r\n'
    for body in (
        b"",
        b"token=x",
        part % (b"token", b"x"),
        part % (b"token", b"\xff\xfe"),
        part % (b"\xff", b"x"),
        b"\xff",
    ):
        assert client.post("/login", content=body, headers=headers).status_code in (401, 422)
        signed = {**headers, "Authorization": f"Bearer {TOKEN}"}
        assert client.post("/uploads", content=body, headers=signed).status_code == 422
        assert client.post("/search", content=body, headers=signed).status_code == 422


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Disposition: form-data",
        b"Content-Disposition: x; name",
        b"Content-Disposition: form-data; filename=x",
        b"X" * 70_000,
        b"A: b\r\n" * 5000,
        b"Content-Disposition: form-data; name=image; filename*=utf-9''%ff",
        b"Content-Disposition: form-data; name=image; filename=a\r\nContent-Transfer-Encoding: base64",
        b"Content-Disposition: form-data; name=image; filename=a\r\nContent-Transfer-Encoding: quoted-printable",
    ],
)
def test_parts_whose_headers_are_odd_break_nothing(connect: Connect, head: bytes) -> None:
    body = b"--b\r\n" + head + b"\r\n\r\n\xff=\xff%%%\r\n--b--\r\n"
    answer = connect().post("/uploads", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 422


def test_forms_are_bounded_in_files_and_fields() -> None:
    kind = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="image"%s\r\n\r\nx\r\n'
    file = part % b'; filename="a"'
    assert parse_form(kind, file * 3 + b"--b--\r\n", max_files=3).files == {"image": [b"x"] * 3}
    for body in (file * 4, part % b"" * 101, (part % b"").replace(b"\r\nx\r\n", b"\r\n" + b"x" * 70_000 + b"\r\n")):
        with pytest.raises(HTTPException) as caught:
            parse_form(kind, body + b"--b--\r\n", max_files=3)
        assert caught.value.status_code == 422


def test_pictures_are_sent_in_where_nothing_can_be_written(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for temporary files, as in a container that is read-only."""
    client = connect()
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    picture = make_picture((900, 900), "BMP")
    assert len(picture) > 2 * 2**20
    assert client.post("/uploads", files={"image": picture}).status_code == 303
    assert client.post("/search", files={"image": picture}).status_code == 200
    assert client.post("/explain?image_id=class0/0.png", files={"image": picture}).status_code in (200, 422)


def test_strangers_may_send_small_forms_only(connect: Connect) -> None:
    client = connect(token=TOKEN)
    assert client.post("/login", files={"token": (None, "x" * 70_000)}).status_code == 413
    assert client.app.state.service.bodies.held_bytes == 0  # type: ignore[attr-defined]


def test_a_timeout_of_the_caller_is_no_slow_body() -> None:
    """B19: what is raised inside the block is the caller's."""

    class Request:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self) -> object:
            yield b"abc"

    async def main() -> BodyReader:
        reader = BodyReader(Limits())

        async def use() -> None:
            async with reader.receive(Request()):  # type: ignore[arg-type]
                assert reader.held_bytes == 3
                raise TimeoutError

        with pytest.raises(TimeoutError):
            await use()
        return reader

    assert asyncio.run(main()).held_bytes == 0


def test_an_upload_that_is_broken_off_is_no_failure(
    searcher: Searcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(searcher)
    monkeypatch.setattr(logging.getLogger("vitrieve.serve"), "propagate", True)
    messages = iter([{"type": "http.request", "body": b"\xff\xd8", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return next(messages)

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/search",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-length", b"1000")],
    }
    with caplog.at_level(logging.INFO):
        asyncio.run(app(scope, receive, send))
    assert sent == []
    assert [(one.levelname, one.message) for one in caplog.records] == [("INFO", "request")]
    assert caplog.records[0].fields["status"] == 499  # type: ignore[attr-defined]
    metrics = app.state.service.metrics.render().decode()
    assert 'status="499"' in metrics
    assert 'status="500"' not in metrics


def test_an_index_that_cannot_be_read_is_no_fault_of_the_client(
    connect: Connect, searcher: Searcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """B8: 503 for whoever asks, the reason with its path for whoever runs the service."""
    client = connect()
    monkeypatch.setattr(logging.getLogger("vitrieve.serve"), "propagate", True)

    def fail(_: object) -> object:
        raise ArtifactError("/srv/index is damaged; make the index again.")

    monkeypatch.setattr(searcher, "answer", fail)
    answers = [client.post("/search", json={"id": "class0/0.png"}), client.get("/?plus=class0/0.png", headers=HTML)]
    for answer in answers:
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "/srv" not in answer.text
    failures = [one for one in caplog.records if one.levelname == "ERROR"]
    assert len(failures) == 2
    assert all("/srv/index" in str(one.exc_info[1]) for one in failures if one.exc_info)


def test_readiness_tells_strangers_nothing_else(connect: Connect) -> None:
    client = connect(token=TOKEN)
    assert client.get("/readyz").json() == {"status": "ready"}
    told = client.get("/readyz", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert set(told) == {"status", "num_images", "encoder_fingerprint", "embedding_dim", "columns"}
    assert set(connect().get("/readyz").json()) == set(told)


def test_an_address_says_the_same_after_it_was_spelled() -> None:
    address = Address(plus=("a" * 4096,), filter=("a=" + "b" * 4000,))
    assert parse_address(QueryParams(address.spell().partition("?")[2]), Limits()) == address


def test_a_shortage_of_memory_is_told_with_the_time_to_come_again(
    connect: Connect, searcher: Searcher, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise MemoryError

    client = connect()
    with monkeypatch.context() as short:
        short.setattr(searcher, "answer", fail)
        short.setattr(pictures, "shrink", fail)
        short.setattr(BodyReader, "_hold", fail)
        answers = [
            client.post("/search", content=picture),
            client.get("/?plus=class0/0.png", headers={"Accept": "text/html"}),
            client.get("/thumbnails/class0/0.png"),
            client.post("/uploads", files={"image": picture}, headers={"Accept": "text/html"}),
        ]
        short.setattr(middleware, "find_head_refusal", fail)  # before any endpoint
        answers.append(client.get("/healthz"))
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert "too little free memory" in answer.text
    assert client.post("/search", content=picture).status_code == 200
    assert client.app.state.service.bodies.held_bytes == 0
