"""Everything a stranger can send is bounded: bytes while they arrive, pixels, time, concurrent work."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import HTTPException
from starlette.testclient import TestClient

from tests.serve.conftest import Connect, make_picture
from tests.serve.test_hostile import png_of
from vitrieve.data import decode
from vitrieve.errors import ConfigError
from vitrieve.search.searcher import Searcher
from vitrieve.serve import pictures, service
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import Limits


def test_limits_refuse_what_nothing_could_pass() -> None:
    for name in ("k", "body_bytes", "num_workers"):
        with pytest.raises(ConfigError, match=name):
            Limits(**{name: 0})
    with pytest.raises(ConfigError, match="request_seconds"):
        Limits(request_seconds=0)
    assert Limits(num_waiting=0).num_waiting == 0


def test_body_is_bounded_with_and_without_an_announced_length(connect: Connect) -> None:
    client = connect(Limits(body_bytes=1000))

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"\xff\xd8\xff" + b"x" * 97

    for content in (b"x" * 1001, chunks()):
        answer = client.post("/search", content=content)
        assert answer.status_code == 413
        assert "larger than" in answer.json()["detail"]
    assert client.app.state.service.bodies.held_bytes == 0


def test_a_huge_body_is_cut_off_while_it_arrives(searcher: Searcher) -> None:
    app, taken = create_app(searcher, limits=Limits(body_bytes=1000, drained_bytes=10_000)), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/search", content=endless())

    assert asyncio.run(main()).status_code == 413
    assert taken <= 12_000


def test_a_body_that_trickles_is_let_go(searcher: Searcher) -> None:
    app = create_app(searcher, limits=Limits(body_seconds=0.05))

    async def trickle() -> AsyncIterator[bytes]:
        yield b"\xff\xd8\xff"
        await asyncio.sleep(30)

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/search", content=trickle())

    assert asyncio.run(main()).status_code == 408


def test_all_bodies_together_are_bounded(connect: Connect) -> None:
    client = connect(Limits(held_bytes=1000))
    answer = client.post("/search", content=make_picture((400, 400), "BMP"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert client.app.state.service.bodies.held_bytes == 0


def test_pixels_are_bounded_in_every_way_in(connect: Connect) -> None:
    """The limit is that of collections; the header alone is too large, and nothing is decoded."""
    client = connect()
    large, small = png_of(89_478_486, 1, b"\x00"), make_picture((20, 20))
    assert client.post("/search", content=small).status_code == 200
    answers = [
        client.post("/search", content=large),
        client.post("/search", files={"image": large}),
        client.post("/search", files={"image": small, "minus_image": large}),
        client.post("/explain?image_id=class0/0.png", content=large),
        client.post("/uploads", files={"image": large}),
    ]
    assert [answer.status_code for answer in answers] == [413] * 5
    assert all("89,478,485" in answer.text for answer in answers)


def test_the_queue_is_bounded_and_health_answers_meanwhile(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that hang take all workers; the health check and the thumbnails go on, the next search is refused."""
    app = create_app(searcher, limits=Limits(num_workers=1, num_waiting=1))
    gate, begun = threading.Event(), threading.Event()
    answer_now = searcher.answer

    def answer_later(request: object) -> object:
        begun.set()
        gate.wait(30)
        return answer_now(request)  # type: ignore[arg-type]

    monkeypatch.setattr(searcher, "answer", answer_later)

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:

            def ask() -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(client.post("/search", content=json.dumps({"id": "class0/0.png"})))

            first, second = ask(), ask()
            await asyncio.to_thread(begun.wait)
            while app.state.service.shared.searches.num_unfinished < 2:  # the second waits
                await asyncio.sleep(0.001)
            refused = await ask()
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/thumbnails/class0/0.png")).status_code == 200
            assert "vitrieve_in_work" in (await client.get("/metrics")).text
            gate.set()
            assert [(await one).status_code for one in (first, second)] == [200, 200]

    asyncio.run(main())


def test_time_is_bounded(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(searcher, "answer", lambda _: gate.wait(30))
    app = create_app(searcher, limits=Limits(request_seconds=0.05))

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/search", json={"id": "class0/0.png"})

    answer = asyncio.run(main())
    gate.set()
    assert answer.status_code == 504
    assert "0.05 seconds" in answer.json()["detail"]


def test_not_ready_says_when_to_try_again(searcher: Searcher) -> None:
    client = TestClient(create_app(searcher))  # without its lifespan nothing is warmed up
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert client.get("/healthz").status_code == 200


def test_warming_up_is_tried_again_and_readiness_says_so(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WARM_UP_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(service, "MAX_WARM_UP_PAUSE_SECONDS", 0.02)
    has_memory, num_attempts = threading.Event(), 0

    def hold(_: int) -> bool:
        nonlocal num_attempts
        num_attempts += 1
        if not has_memory.is_set():
            raise MemoryError
        return False

    monkeypatch.setattr(searcher.store, "hold", hold)
    with TestClient(create_app(searcher)) as client:
        while num_attempts < 3:
            answer = client.get("/readyz")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "the first search failed; the log says why" in client.get("/readyz").json()["detail"]
        has_memory.set()
        while (answer := client.get("/readyz")).status_code == 503:
            assert "tried again" in answer.json()["detail"]
        assert answer.json()["num_images"] == 20


def test_the_file_of_a_thumbnail_is_bounded_in_bytes(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may grow after its size was looked at."""
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(pictures, "open_image_file", lambda path: path.open("rb"))
    with pytest.raises(HTTPException) as gone:
        pictures.Pictures(searcher.store, Limits()).build_thumbnail("class0/0.png", 160)
    assert gone.value.status_code == 410
