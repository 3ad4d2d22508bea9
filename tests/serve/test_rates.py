"""How much a client may read in a minute."""

from __future__ import annotations

import re
from html import unescape

import pytest

from tests.serve.conftest import Connect
from vitrieve.serve import rates
from vitrieve.serve.rates import Rate, ReadRates
from vitrieve.serve.settings import Limits

TOKEN = "a-token-of-this-test"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_gives_what_a_minute_has_and_fills_again() -> None:
    clock = Clock()
    rate = Rate(60, clock)
    assert [rate.take(20) for _ in range(4)] == [0.0, 0.0, 0.0, 20.0]
    clock.now += 19
    assert rate.take(20) == pytest.approx(1.0)
    clock.now += 1
    assert rate.take(20) == 0.0
    clock.now += 10_000
    assert [rate.take(60), rate.take(1)] == [0.0, 1.0]


def test_each_client_has_its_own_rate_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_CLIENTS", 2)
    known = ReadRates(10, Clock())
    assert [known.take("a", 10), known.take("b", 10)] == [0.0, 0.0]
    assert known.take("a", 1) > 0
    assert known.take("c", 10) == 0.0  # b, who came longest ago, is forgotten
    assert known.take("a", 1) > 0
    assert known.take("b", 10) == 0.0
    assert known.take("large", 1000) == 0.0  # more than a minute has is answered once a minute
    assert ReadRates(0).take("a", 10**9) == 0.0


def test_who_asks_too_often_is_told_when_to_come_again(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(Limits(reads_per_minute=25), token=TOKEN)
    monkeypatch.setattr(client.app.state.service.shared.read_rates, "_clock", Clock())  # or a busy machine gives more
    reader = {"Authorization": f"Bearer {TOKEN}"}
    search = {"id": "class0/0.png"}
    statuses = [client.post("/search", json=search, headers=reader).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = client.post("/search", json=search, headers=reader)
    assert "try again in" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 14
    page = client.get("/?plus=class0/0.png", headers={**reader, "Accept": "text/html"})
    assert (page.status_code, "Too many requests" in page.text) == (429, True)
    assert [client.get("/thumbnails/class0/0.png", headers=reader).status_code for _ in range(5)] == [200] * 5
    assert client.get("/thumbnails/class0/0.png", headers=reader).status_code == 429
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/static/page.css")] == [200] * 3
    # Who tries tokens is another client, and is bounded as well.
    tries = [client.get("/columns", headers={"Authorization": f"Bearer guess{n}"}).status_code for n in range(27)]
    assert (tries[0], tries[-1]) == (401, 429)


def test_the_page_of_a_refusal_offers_the_same_again_and_no_search_that_would_be_refused(connect: Connect) -> None:
    client = connect(Limits(reads_per_minute=1))
    headers = {"Accept": "text/html"}
    assert client.get("/", headers=headers).status_code == 200
    page = client.get("/?plus=class0/0.png&k=12", headers=headers)
    assert page.status_code == 429
    assert unescape(re.findall(r'href="([^"]+)">Try again', page.text)[0]) == "/?plus=class0/0.png&k=12"
    assert 'type="file"' not in page.text
    elsewhere = client.get("http://testserver//evil.example/", headers=headers)
    assert (elsewhere.status_code, "Try again" in elsewhere.text) == (429, False)


def test_a_person_at_the_page_is_never_turned_away() -> None:
    """Ninety-six results a page, a page a second, for ten minutes: a search and its pictures."""
    clock = Clock()
    known = ReadRates(Limits().reads_per_minute, clock)
    for _ in range(600):
        clock.now += 1
        assert known.take("a person", rates.count_reads("GET", "/", has_query=True)) == 0.0
        for _ in range(96):
            assert known.take("a person", rates.count_reads("GET", "/thumbnails/a.png", has_query=True)) == 0.0
