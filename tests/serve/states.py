"""Every page of the service, and what is done there before it is looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.conftest import PATIENCE_MS

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BrowserContext, Page, expect = playwright_api.BrowserContext, playwright_api.Page, playwright_api.expect

RESULTS = "/?plus=class0%2F0.png&k=12"


def open_all(page: Page) -> None:
    page.evaluate("for (const one of document.querySelectorAll('#page details')) one.open = true")


def open_failures(page: Page) -> None:
    page.get_by_text("could not be read").click()


def open_tags(page: Page) -> None:
    page.locator(".feedback summary").first.click()


def enlarge(page: Page) -> None:
    page.get_by_role("button", name=re.compile("^Enlarge")).nth(1).click()
    expect(page.locator("#light-box")).to_be_visible()


def choose_two(page: Page) -> None:
    for place in (0, 2):
        page.locator("[data-choose]").nth(place).check()


def show_matches(page: Page) -> None:
    page.get_by_text("Show what matches").click()


def give_no_picture(page: Page) -> None:
    page.set_input_files("[data-file] >> nth=0", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_be_visible()


def give_wrong_token(page: Page) -> None:
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert").last).to_have_text("That is not the token.")


def ask_too_often(page: Page) -> None:
    """Ask once more where a minute has passed since the last time."""
    for _ in range(3):
        if page.get_by_role("heading", name="Too many requests").count():
            return
        page.reload()
    expect(page.get_by_role("heading", name="Too many requests")).to_be_visible()


def wait_for_map(page: Page) -> None:
    page.wait_for_selector("#map[data-ready]")


def choose_group(page: Page) -> None:
    wait_for_map(page)
    page.locator("#map-groups summary").first.click()
    page.get_by_role("button", name=re.compile("^Choose these")).first.click()
    expect(page.locator("#map-cards img").first).to_be_visible()


@dataclass(frozen=True)
class State:
    """A page: its address, the service that has it, and what is done there."""

    address: str
    service: str = "index"
    act: Callable[[Page], None] = lambda page: None


STATES = {
    "start": State("/"),
    "start with a condition": State("/?filter=label%3DClass1"),
    "start with a wrong condition": State("/?filter=no_such%3D1"),
    "empty index": State("/", "empty"),
    "results": State(RESULTS),
    "everything open": State(f"{RESULTS}&filter=copy%3E%3D0&group_by=label", act=open_all),
    "tags": State(RESULTS, act=open_tags),
    "light box": State(RESULTS, act=enlarge),
    "chosen": State(RESULTS, act=choose_two),
    "no match": State(RESULTS, "unmatched"),
    "words": State("/?text=Class1&k=12"),
    "unknown words": State("/?text=zebra"),
    "examples": State("/?plus=class0%2F0.png&plus=nobody.png&minus=class2%2F0.png&text=Class1&k=12"),
    "box": State(f"{RESULTS}&box=2,2,20,20"),
    "nothing found": State(f"{RESULTS}&filter=label%3DNobody"),
    "wrong condition": State(f"{RESULTS}&filter=no_such%3D1"),
    "no picture": State(RESULTS, act=give_no_picture),
    "upload gone": State("/?upload=abc"),
    "unknown picture": State("/?plus=nobody.png"),
    "compare": State("/compare?plus=class0%2F0.png&image_id=class0%2F1.png"),
    "matches": State("/compare?plus=class0%2F0.png&image_id=class0%2F1.png", act=show_matches),
    "compare with many": State(
        "/compare?" + "&".join(f"plus=class{n}%2F0.png" for n in range(5)) + "&image_id=class0%2F1.png"
    ),
    "page not found": State("/nowhere"),
    "asked too often": State(RESULTS, "strict", ask_too_often),
    "sign in": State("/", "token"),
    "wrong token": State("/", "token", give_wrong_token),
    "no map": State("/map"),
    "map": State("/map", "map", wait_for_map),
    "chosen on the map": State("/map", "map", choose_group),
    "collections": State("/", "collections"),
    "a collection": State("/c/birds/", "collections"),
    "results of a collection": State(f"/c/birds{RESULTS}", "collections"),
    "search in a file": State("", "search.html"),
    "duplicates in a file": State("", "duplicates.html", open_failures),
    "audit in a file": State("", "audit.html"),
}


def open_state(context: BrowserContext, services: dict[str, str], name: str) -> Page:
    """Open a page and do there what belongs to it."""
    state = STATES[name]
    if state.service not in services:
        pytest.skip("needs vitrieve[map]")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(services[state.service] + state.address)
    state.act(page)
    return page


def wait_until(page: Page, condition: str) -> None:
    """Wait until a script's condition holds. The page's content policy forbids what Playwright's own wait does."""
    for _ in range(PATIENCE_MS // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)
