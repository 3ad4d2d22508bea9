"""The page by keyboard alone, in a real Chromium: every place can be reached and seen, and everything can be done."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_MS
from tests.serve.conftest import Server
from tests.serve.states import RESULTS, open_state

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
Browser, Locator, Page = playwright_api.Browser, playwright_api.Locator, playwright_api.Page
expect = playwright_api.expect

pytestmark = pytest.mark.browser

LIST_STOPS = """() => {
  const most = document.querySelector("dialog[open]") ?? document;
  window.stops = [...most.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")].filter(
    (one) => one.tabIndex >= 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true }));
  stops[0].focus();
  return stops.length;
}"""
"""Where the Tab key is to stop, in the order of the page; the first of them gets the focus."""
FIND_FAULT = """(place) => {
  const spell = (one) => one.outerHTML.slice(0, 160);
  const one = document.activeElement;
  if (one !== stops[place]) return `${spell(one)} has the focus in place of ${spell(stops[place])}`;
  const shown = one.closest(".file") ?? (one.id === "show-overlay" ? one.nextElementSibling : one);
  const style = getComputedStyle(shown);
  if (style.outlineStyle !== "solid") return `${spell(one)} does not show that it has the focus`;
  const [part] = shown.getClientRects();
  const over = document.elementFromPoint(part.left + part.width / 2, part.top + part.height / 2);
  if (!over || !(shown.contains(over) || over.contains(shown))) return `${spell(over ?? one)} hides ${spell(one)}`;
  const { left, right, top, bottom } = shown.getBoundingClientRect();
  const grown = parseFloat(style.outlineOffset) + parseFloat(style.outlineWidth) - 2; // two pixels less are enough
  const frames = [{ left: 0, top: 0, right: innerWidth, bottom: innerHeight }];
  for (let box = shown.parentElement; box; box = box.parentElement) {
    if (getComputedStyle(box).overflow !== "visible") frames.push(box.getBoundingClientRect());
  }
  for (const frame of frames) {
    const isCutBeside = left - grown < frame.left || right + grown > frame.right;
    const isCutAcross = top - grown < frame.top && bottom + grown > frame.bottom; // where it scrolls, one edge may be
    if (isCutBeside || isCutAcross) return `the ring around ${spell(one)} is cut off`;
  }
  return "";
}"""


@pytest.mark.parametrize("width", [390, 1280] if os.environ.get("VITRIEVE_LONG_TESTS") == "1" else [390])
@pytest.mark.parametrize(
    "name",
    [
        *("start", "everything open", "chosen", "light box", "examples", "no picture", "compare", "asked too often"),
        *("sign in", "chosen on the map", "collections"),
    ],
)
def test_the_tab_key_stops_everywhere_in_order_and_shows_it(
    browser: Browser, services: dict[str, str], name: str, width: int
) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce") as context:
        page = open_state(context, services, name)
        num_stops = page.evaluate(LIST_STOPS)
        assert num_stops >= 3
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")  # the focus is shown where a key brought it
        for place in range(num_stops):
            fault = page.evaluate(FIND_FAULT, place)
            assert not fault, f"stop {place}"
            page.keyboard.press("Tab")


def go_to(page: Page, locator: Locator, key: str = "Tab") -> None:
    """Press a key until it brings the focus to an element."""
    locator = locator.first
    locator.wait_for(state="attached")
    for _ in range(300):
        page.keyboard.press(key)
        if locator.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError(f"the keyboard does not come to {locator}")


def test_a_search_with_everything_is_done_by_keyboard(browser: Browser, own_server: Server, class_folder: Path) -> None:
    with browser.new_context(
        base_url=own_server.address, permissions=["clipboard-read", "clipboard-write"], reduced_motion="reduce"
    ) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        keys, cards = page.keyboard, page.locator(".found .card")
        page.goto("/")
        go_to(page, page.locator("#words"))
        keys.type("Class1")
        keys.press("Enter")
        page.wait_for_url(re.compile("text=Class1"))
        expect(page.locator("#page")).to_be_focused()
        keys.press("Tab")
        expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
        keys.press("Enter")

        go_to(page, page.get_by_role("button", name=re.compile("^Copy the address")))
        keys.press("Enter")
        expect(page.get_by_role("button", name="Copied")).to_be_focused()
        assert page.evaluate("navigator.clipboard.readText()") == page.url.partition("#")[0]

        go_to(page, cards.nth(0).get_by_role("link", name=re.compile("^More like this")))
        keys.press("Enter")
        page.wait_for_url(re.compile(r"\?plus=class1"))
        keys.press("Tab")
        keys.press("Enter")
        go_to(page, cards.nth(1).get_by_role("link", name=re.compile("^Add as wanted")))
        keys.press("Enter")
        expect(page.locator(".examples .wanted")).to_have_count(2)
        go_to(page, cards.nth(1).get_by_role("link", name=re.compile("^Add as not wanted")))
        keys.press("Enter")
        expect(page.locator(".examples .unwanted")).to_have_count(1)
        go_to(page, page.get_by_role("link", name=re.compile("^Take away")))
        keys.press("Enter")
        expect(page.locator(".examples .wanted")).to_have_count(1)
        go_to(page, page.get_by_label("Words to add to this search"))
        keys.type("Class2")
        keys.press("Enter")
        expect(page.locator(".examples .wanted")).to_have_count(2)
        go_to(page, page.get_by_label("Whether it is wanted"))
        keys.press("ArrowDown")
        keys.press("Tab")
        keys.type("Class3")
        keys.press("Enter")
        expect(page.locator(".examples .unwanted")).to_have_count(2)
        for name in ("“Class3”", "“Class2”"):
            go_to(page, page.get_by_role("link", name=f"Take away {name}"))
            keys.press("Enter")
            expect(page.locator(".examples li", has_text=name)).to_have_count(0)
        go_to(page, page.locator(".facet a"))
        keys.press("Enter")
        page.wait_for_url(re.compile("filter="))

        # The browser hears of keys on another way than of the wish to see file choosers. The walk to the field asks the
        # page several things, which come after that wish, so that the key at its end cannot be faster.
        with page.expect_file_chooser() as chooser:
            go_to(page, page.locator("[data-file]"))
            keys.press("Enter")
        chooser.value.set_files(class_folder / "class3" / "2.png")
        page.wait_for_url(re.compile(r"\?upload="))
        expect(cards.first).to_be_visible()
        go_to(page, cards.nth(0).locator("[data-choose]"))
        keys.press("Space")
        expect(page.locator("#status")).to_have_text("1 chosen; Enter leads to what can be done with them")
        expect(page.get_by_text("Enter leads here")).to_be_visible()
        keys.press("Enter")
        expect(page.get_by_role("button", name="Export CSV")).to_be_focused()
        expect(page.get_by_text("Enter leads here")).to_be_hidden()
        go_to(page, cards.nth(0).locator("summary", has_text="Tags"))
        keys.press("Enter")
        keys.press("Tab")
        keys.type("ripe")
        keys.press("Enter")
        expect(page.locator("#num-corrections")).to_have_text("1 correction since the last training")
        expect(cards.nth(0).locator("summary", has_text="Tags")).to_be_focused()
        go_to(page, page.get_by_role("button", name="Export JSON"))  # and so does the Tab key
        with page.expect_download() as download:
            keys.press("Enter")
        assert download.value.path().stat().st_size > 0
        go_to(page, page.get_by_role("button", name="Choose none"))
        keys.press("Enter")
        expect(page.locator("#chosen")).to_be_hidden()
        expect(cards.nth(0).locator("[data-choose]")).to_be_focused()


def test_the_light_box_keeps_the_focus_where_keys_are_heard(browser: Browser, server: Server) -> None:
    with browser.new_context(base_url=server.address) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto("/?plus=class0%2F0.png&filter=label%3DClass1")
        openers = page.get_by_role("button", name=re.compile("^Enlarge"))
        num = openers.count()
        openers.first.focus()
        page.keyboard.press("Enter")
        closer, title = page.locator("#light-box-close"), page.locator("#light-box-title")
        expect(closer).to_be_focused()
        go_to(page, page.locator("#light-box-next"), "Shift+Tab")
        for _ in range(num - 1):
            page.keyboard.press("Enter")
        expect(page.locator("#light-box-next")).to_be_disabled()
        expect(closer).to_be_focused()
        last = title.text_content()
        page.keyboard.press("ArrowLeft")
        expect(title).not_to_have_text(last or "")
        page.keyboard.press("ArrowRight")
        expect(title).to_have_text(last or "")
        page.keyboard.press("Enter")
        expect(page.locator("#light-box")).to_be_hidden()
        expect(openers.last).to_be_focused()


def test_a_card_that_is_opened_does_not_stretch_those_beside_it(browser: Browser, server: Server) -> None:
    with browser.new_context(base_url=server.address, viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        for address, opener in ((RESULTS, ".feedback summary"), (f"{RESULTS}&group_by=label", ".others summary")):
            page.goto(address)
            find_heights = "[...document.querySelectorAll('.found .card')].map((card) => card.offsetHeight)"
            before = page.evaluate(find_heights)
            page.locator(opener).first.click()
            after = page.evaluate(find_heights)
            assert after[0] > before[0]
            assert after[1:] == before[1:]


def test_what_is_chosen_in_the_list_of_the_map_is_where_the_focus_goes(
    browser: Browser, services: dict[str, str]
) -> None:
    with browser.new_context() as context:
        page = open_state(context, services, "map")
        go_to(page, page.locator("#map-groups summary"))
        page.keyboard.press("Enter")
        page.locator("#map-groups button").first.wait_for()  # the list of a group is made when it is opened
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#map-chosen-title")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#map-search")).to_be_focused()
