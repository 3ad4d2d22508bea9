"""The page in a real Chromium: what people do, what goes wrong, and whether everybody can use it."""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import PATIENCE_MS
from tests.serve.conftest import Server, make_picture
from tests.serve.states import wait_until
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold
from vitrieve.serve.app import STATIC_FOLDER, create_app
from vitrieve.serve.settings import Limits

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
Browser, BrowserContext, Page = playwright_api.Browser, playwright_api.BrowserContext, playwright_api.Page
expect = playwright_api.expect

pytestmark = pytest.mark.browser

MAX_SCRIPT_BYTES = 60_000
RESULTS = "/?plus=class0%2F0.png"


@pytest.fixture
def context(browser: Browser, server: Server) -> Iterator[BrowserContext]:
    with browser.new_context(base_url=server.address, permissions=["clipboard-read", "clipboard-write"]) as context:
        context.set_default_timeout(PATIENCE_MS)
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page on which no script may fail, and nothing may break the content policy."""
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    yield page
    assert not faults


@pytest.fixture(scope="module")
def photograph(class_folder: Path) -> Path:
    return class_folder / "class3" / "2.png"


@pytest.fixture(scope="module")
def strict_server(searcher: Searcher) -> Iterator[Server]:
    """A service that finds a match only in the same picture, and takes 100 kB."""
    threshold = Threshold(score=0.9999, fingerprint=searcher.encoder.fingerprint, method="for this test")
    strict = Searcher(searcher.store, searcher.encoder, threshold=threshold)
    server = Server(create_app(strict, limits=Limits(body_bytes=100_000)))
    yield server
    server.stop()


def choose(page: Page, path: Path | dict[str, object]) -> None:
    page.set_input_files("[data-file] >> nth=0", path)  # type: ignore[arg-type]


def first_title(page: Page) -> str:
    return str(page.locator(".found .card a.title").first.text_content())


# ---- Flows --------------------------------------------------------------------------------------------------------


def test_choose_a_picture_and_go_on(page: Page, photograph: Path) -> None:
    page.goto("/")
    choose(page, photograph)
    page.wait_for_url(re.compile(r"\?upload="))
    expect(page.locator(".found .card").first).to_be_visible()
    assert first_title(page) == "Class3"
    address = page.url
    page.get_by_role("link", name=re.compile("^More like this")).first.click()
    page.wait_for_url(re.compile(r"\?plus=class3%2F2\.png"))
    page.go_back()
    page.wait_for_url(address)
    expect(page.locator(".query-title")).to_have_text("Your picture")
    page.go_back()
    expect(page.get_by_role("heading", name="Find the same thing again")).to_be_visible()
    page.go_forward()
    expect(page.locator(".found .card").first).to_be_visible()


def test_an_address_can_be_shared(browser: Browser, page: Page, photograph: Path, server: Server) -> None:
    page.goto("/")
    choose(page, photograph)
    expect(page.locator(".found .card").first).to_be_visible()
    titles = page.locator(".found a.title").all_text_contents()
    with browser.new_context() as colleague:
        other = colleague.new_page()
        other.goto(page.url)
        assert other.locator(".found a.title").all_text_contents() == titles


def test_drop_and_paste_a_picture(page: Page, photograph: Path) -> None:
    page.goto("/")
    give = """([kind, text]) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "a.png", { type: "image/png" }));
        const event = kind === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
            : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    encoded = base64.b64encode(photograph.read_bytes()).decode()
    page.evaluate(give, ["dragover", encoded])
    expect(page.locator("#drop-veil")).to_be_visible()
    page.evaluate(give, ["drop", encoded])
    expect(page.locator("#drop-veil")).to_be_hidden()
    page.wait_for_url(re.compile(r"\?upload="))
    assert first_title(page) == "Class3"
    page.goto("/")
    page.evaluate(give, ["paste", encoded])
    page.wait_for_url(re.compile(r"\?upload="))


def test_a_text_is_pasted_as_text_where_one_types(page: Page) -> None:
    """Spreadsheets put a picture of their cells beside the text; a picture alone is searched for from anywhere."""
    page.goto("/")
    is_left_alone = """([place, hasText]) => {
        const data = new DataTransfer();
        data.items.add(new File(["no picture"], "cells.png", { type: "image/png" }));
        if (hasText) data.setData("text/plain", "red cup");
        const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
        return document.querySelector(place).dispatchEvent(event);
    }"""
    assert page.evaluate(is_left_alone, ["#words", True])
    expect(page.locator("#loading-picture")).to_have_count(0)
    assert not page.evaluate(is_left_alone, ["#words", False])
    page.goto("/")
    assert not page.evaluate(is_left_alone, ["body", True])


def test_draw_a_box_and_take_it_away(page: Page, photograph: Path) -> None:
    page.goto("/")
    choose(page, photograph)
    stage = page.locator("[data-stage]")
    expect(stage).to_be_visible()
    place = stage.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] * 0.25, place["y"] + place["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.75, place["y"] + place["height"] * 0.75, steps=4)
    page.mouse.up()
    page.wait_for_url(re.compile(r"box=9%2C10%2C27%2C30"))  # of 36 x 40 pixels
    assert page.locator("[data-stage] rect").first.get_attribute("width") == "18.0"
    page.get_by_role("link", name="Search the whole picture").click()
    page.wait_for_url(lambda url: "box" not in url)


def test_plus_and_minus_examples(page: Page) -> None:
    page.goto(RESULTS)
    page.locator(".card .sign.wanted").first.click()
    expect(page.locator(".examples .wanted")).to_have_count(2)
    page.locator(".card .sign:not(.wanted)").last.click()
    expect(page.locator(".examples .unwanted")).to_have_count(1)
    page.get_by_role("link", name=re.compile("^Take away")).last.click()
    expect(page.locator(".examples .unwanted")).to_have_count(0)


def test_filter_group_and_page(page: Page) -> None:
    page.goto(RESULTS + "&k=12")
    expect(page.locator(".found .card")).to_have_count(12)
    page.get_by_role("link", name="Next").click()
    page.wait_for_url(re.compile("page=2"))
    expect(page.locator(".found .card")).to_have_count(7)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(lambda url: "page=" not in url)
    page.get_by_label("Where").select_option("label")
    page.get_by_label("Value").fill("Class4")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(re.compile("filter=label%3DClass4"))
    assert set(page.locator(".found a.title").all_text_contents()) == {"Class4"}
    page.get_by_role("link", name=re.compile("label=Class4")).click()
    page.wait_for_url(lambda url: "filter=" not in url)
    page.get_by_label("One result for each").select_option("label")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(re.compile("group_by=label"))
    expect(page.locator(".found .card")).to_have_count(5)
    page.locator(".others summary").first.click()
    expect(page.locator(".others img").first).to_be_visible()
    page.get_by_role("link", name=re.compile("^All of them")).first.click()
    page.wait_for_url(re.compile("filter=label%3D"))
    expect(page.locator(".found .card")).to_have_count(3)  # of four, without the query itself


def test_compare_side_by_side_with_the_overlay(page: Page) -> None:
    page.goto(RESULTS)
    page.locator(".found a.title").first.click()
    expect(page.locator(".pair img")).to_have_count(2)
    page.get_by_text("Show what matches").click()
    overlay = page.locator(".overlay img")
    expect(overlay).to_be_visible()
    wait_until(page, "document.querySelector('.overlay img').naturalWidth > 100")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("figcaption").nth(1)).to_contain_text("Result 2")
    expect(overlay).to_be_visible()  # it stays while one goes from result to result


@pytest.mark.parametrize("width", [390, 1280])
def test_the_texts_below_a_result_and_its_examples_stand_in_one_line(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 860})
    for num_examples in (1, 5):
        plus = "&".join(f"plus=class{number}%2F0.png" for number in range(num_examples))
        page.goto(f"/compare?{plus}&image_id=class0%2F1.png")
        captions = page.locator(".pair figcaption")
        query, result = captions.evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().top)")
        assert query == pytest.approx(result, abs=2)  # one frame is thicker


def test_the_light_box_goes_through_the_results(page: Page) -> None:
    page.goto(RESULTS)
    titles = page.locator(".found .card a.title").all_text_contents()
    page.locator(".found .card a.picture").first.click()
    title = page.locator("#light-box-title")
    expect(title).to_contain_text(titles[0])
    expect(page.locator("#light-box-previous")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(title).to_contain_text(titles[1])
    wait_until(page, "document.getElementById('light-box-picture').naturalWidth > 0")
    page.keyboard.press("Escape")
    expect(page.locator("#light-box")).to_be_hidden()
    expect(page.locator("#result-2 button[data-enlarge]")).to_be_focused()  # once the browser has told of the closing
    page.keyboard.press("Enter")
    expect(title).to_contain_text(titles[1])
    page.locator("#light-box-compare").click()
    page.wait_for_url(re.compile("/compare"))
    expect(page.locator("#light-box")).to_be_hidden()


def test_chosen_pictures_stay_chosen_and_are_exported_and_tagged(page: Page, own_server: Server) -> None:
    page.goto(own_server.address + RESULTS + "&k=12")
    checks = page.locator("[data-choose]")
    page.evaluate("document.querySelector('.found .card').dataset.title = '=1+1'")
    checks.nth(0).check()
    checks.nth(2).check()
    expect(page.locator("#num-chosen")).to_have_text("2")
    chosen = [page.locator(".found .card").nth(place).get_attribute("data-image-id") for place in (0, 2)]
    page.get_by_role("link", name="Next").click()
    page.wait_for_url(re.compile("page=2"))
    page.go_back()
    expect(checks.nth(2)).to_be_checked()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    assert download.value.path().read_bytes().startswith(codecs.BOM_UTF8), "Excel would take it for another encoding"
    rows = download.value.path().read_text(encoding="utf-8-sig").split("\n")
    assert rows[0].rstrip() == '"image_id","title","score"'
    assert [row.split(",")[0].strip('"') for row in rows[1:3]] == chosen
    assert rows[1].split(",")[1] == '"\'=1+1"', "a spreadsheet would compute it"
    tags = page.locator("#tag-chosen input")
    tags.fill(" , ")
    assert tags.evaluate("one => one.validity.patternMismatch")
    tags.fill("ripe, red\u060cround\uff0cgreen\u3001")
    page.locator("#tag-chosen button").click()
    expect(page.locator("#status")).to_have_text("2 tagged.")
    kept = httpx.get(f"{own_server.address}/feedback").json()["corrections"]
    assert [(one["image_id"], one["tags"]) for one in kept] == [(n, ["ripe", "red", "round", "green"]) for n in chosen]
    expect(page.locator(".card .said").first).to_have_text("ripe, red, round, green")
    page.get_by_role("button", name="Choose none").click()
    expect(page.locator("#chosen")).to_be_hidden()
    expect(checks.nth(0)).not_to_be_checked()


def test_a_facet_narrows_down(page: Page) -> None:
    page.goto(RESULTS)
    page.locator(".facet a", has_text="Class3").click()
    page.wait_for_url(re.compile("filter=label"))
    assert set(page.locator(".found .card a.title").all_text_contents()) == {"Class3"}
    page.locator(".facet [name=most]").fill("1")
    page.locator(".facet [name=most]").press("Enter")
    page.wait_for_url(re.compile("copy%3C%3D1"))
    expect(page.locator(".found .card")).to_have_count(2)


def test_keyboard_alone_is_enough(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#page")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Words to search for")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("search").get_by_role("button", name="Search")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("[data-file]").first).to_be_focused()
    outline = "getComputedStyle(document.activeElement.closest('.file') ?? document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"  # where one is can be seen
    sample = page.locator(".sample").first
    sample.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#page")).to_be_focused()
    expect(page.locator("#status")).to_have_text("Most like it: 19 results")
    page.get_by_text("Type the region").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Right").fill("20")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"box=0%2C0%2C20%2C40"))


def test_the_theme_is_kept(page: Page) -> None:
    page.goto("/")
    button = page.get_by_role("button", name="Dark colors")
    expect(button).to_have_attribute("aria-pressed", "false")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button.click()
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_everything_plain_works_without_scripts(browser: Browser, server: Server, photograph: Path) -> None:
    with browser.new_context(base_url=server.address, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.get_by_role("button", name="Use the camera")).to_be_hidden()
        page.set_input_files("input[type=file] >> nth=0", photograph)
        page.locator("[data-picker]").get_by_role("button", name="Search").click()
        page.wait_for_url(re.compile(r"\?upload="))
        assert first_title(page) == "Class3"
        page.locator(".found a.chip").first.click()
        page.wait_for_url(re.compile(r"\?plus="))
        page.get_by_label("On a page").select_option("12")
        page.get_by_role("button", name="Apply").click()
        page.get_by_role("link", name="Next").click()
        page.wait_for_url(re.compile("page=2"))
        page.locator(".found a.title").first.click()
        expect(page.locator(".pair img")).to_have_count(2)


def test_words_facets_and_spans_work_without_scripts(browser: Browser, server: Server) -> None:
    with browser.new_context(base_url=server.address, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        page.get_by_label("Words to search for").fill("Class3")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(r"/\?text=Class3"))
        expect(page.locator(".found .card")).to_have_count(4)
        page.locator(".facet a", has_text="Class3").click()
        page.wait_for_url(re.compile(r"filter=label%3DClass3"))
        page.get_by_label("copy to").fill("1")
        page.get_by_role("button", name="Set the span of copy").click()
        page.wait_for_url(re.compile("copy"))
        expect(page.locator(".found .card")).to_have_count(2)
        page.get_by_label("Words to add to this search").fill("Class1")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator(".examples .wanted")).to_have_count(2)
        page.get_by_role("link", name="Take away “Class3”").click()
        expect(page.locator(".examples .wanted")).to_have_count(1)


def test_the_end_of_the_side_panel_can_be_reached_in_a_low_window(page: Page) -> None:
    page.set_viewport_size({"width": 1100, "height": 420})
    page.goto(RESULTS)
    apply = page.get_by_role("button", name="Apply")
    apply.scroll_into_view_if_needed()
    expect(apply).to_be_in_viewport(ratio=1)
    expect(page.locator(".found .card").first).to_be_in_viewport()  # without leaving the top of the results


# ---- What goes wrong ------------------------------------------------------------------------------------------------


def test_a_wrong_file_is_refused_and_nothing_is_lost(page: Page) -> None:
    page.goto(RESULTS)
    titles = page.locator(".found a.title").all_text_contents()
    choose(page, {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.get_by_role("alert")).to_contain_text("the content decides")
    assert page.locator(".found a.title").all_text_contents() == titles
    assert page.url.endswith(RESULTS)


def test_a_huge_file_is_refused(page: Page, strict_server: Server, tmp_path: Path) -> None:
    page.goto(strict_server.address)
    (tmp_path / "huge.bmp").write_bytes(make_picture((400, 400), "BMP"))
    choose(page, tmp_path / "huge.bmp")
    expect(page.get_by_role("alert")).to_contain_text("at most 0 MiB")
    answer = page.request.post(
        f"{strict_server.address}/uploads",
        multipart={"image": {"name": "a", "mimeType": "image/bmp", "buffer": make_picture((400, 400), "BMP")}},
        headers={"Accept": "text/html"},
    )
    assert answer.status == 413
    assert "send a smaller picture" in answer.text()


def test_a_server_that_stops_is_noticed_and_nothing_is_lost(page: Page, searcher: Searcher, photograph: Path) -> None:
    server = Server(create_app(searcher))
    try:
        page.goto(server.address + RESULTS)
        titles = page.locator(".found a.title").all_text_contents()
    finally:
        server.stop()
    page.get_by_role("link", name=re.compile("^More like this")).first.click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    choose(page, photograph)
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    assert page.locator(".found a.title").all_text_contents() == titles
    server = Server(create_app(searcher), port=server.port)
    try:
        choose(page, photograph)
        page.wait_for_url(re.compile(r"\?upload="))
        expect(page.get_by_role("alert")).to_be_hidden()
    finally:
        server.stop()


def test_an_upload_that_is_gone_says_what_to_do(page: Page, photograph: Path) -> None:
    page.goto("/?upload=" + "0" * 32)
    expect(page.get_by_role("heading", name="This picture is no longer here")).to_be_visible()
    choose(page, photograph)
    page.wait_for_url(lambda url: "0" * 32 not in url)


def test_no_match_is_said(page: Page, strict_server: Server, photograph: Path) -> None:
    page.goto(strict_server.address)
    choose(page, {"name": "a.png", "mimeType": "image/png", "buffer": make_picture((30, 50))})
    expect(page.get_by_role("heading", name="Probably not in this collection")).to_be_visible()
    expect(page.locator(".found .card").first).to_be_visible()
    choose(page, photograph)
    expect(page.get_by_text("Found in this collection")).to_be_visible()


def test_scripts_are_small_and_load_nothing_from_elsewhere() -> None:
    scripts = list(STATIC_FOLDER.glob("*.js"))
    assert sum(path.stat().st_size for path in scripts) < MAX_SCRIPT_BYTES
    for path in STATIC_FOLDER.iterdir():
        assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")


def test_feedback_is_given_by_keyboard_and_taken_back(page: Page, own_server: Server) -> None:
    page.goto(own_server.address + RESULTS)
    card = page.locator(".card").first
    right = card.get_by_role("button", name="Right")
    right.focus()
    page.keyboard.press("Enter")
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#num-corrections")).to_have_text("1 correction since the last training")
    card.get_by_role("button", name="Same group").click()
    expect(right).to_have_attribute("aria-pressed", "false")
    card.locator("summary", has_text="Tags").click()
    card.get_by_label("Tags, with commas").fill("red, round")
    page.keyboard.press("Enter")
    expect(page.locator("#num-corrections")).to_have_text("2 corrections since the last training")
    page.get_by_label("Your name").fill("Eva")
    page.locator(".card").nth(1).get_by_role("button", name="Wrong").click()
    expect(page.locator("#num-corrections")).to_have_text("3 corrections since the last training")
    kept = page.request.get(f"{own_server.address}/feedback").json()["corrections"]
    assert [(one["kind"], one["query_id"], one["tags"], one["who"]) for one in kept] == [
        ("same_group", "class0/0.png", [], ""),
        ("tagged", "class0/0.png", ["red", "round"], ""),
        ("wrong", "class0/0.png", [], "Eva"),
    ]
    page.locator(".card").nth(1).get_by_role("button", name="Wrong").click()
    expect(page.locator("#num-corrections")).to_have_text("2 corrections since the last training")
    page.reload()
    expect(page.locator("#num-corrections")).to_have_text("2 corrections since the last training")
    expect(page.get_by_label("Your name")).to_have_value("Eva")
    expect(page.locator(".card").nth(1).get_by_role("button", name="Wrong")).to_have_attribute("aria-pressed", "false")
    expect(card.locator(".said")).to_have_text("same group (no name); red, round (no name)")
    page.get_by_label("Your name").fill("")
    expect(card.get_by_role("button", name="Same group")).to_have_attribute("aria-pressed", "true")
    expect(card.locator(".said")).to_have_text("red, round")
    card.locator("summary", has_text="Tags").click()
    expect(card.get_by_label("Tags, with commas")).to_have_value("red, round")
    card.get_by_label("Tags, with commas").fill("")
    page.keyboard.press("Enter")
    expect(card.locator(".said")).to_be_hidden()
    expect(page.locator("#num-corrections")).to_have_text("1 correction since the last training")
    expect(card.get_by_role("button", name="Same group")).to_have_attribute("aria-pressed", "true")
    kept = page.request.get(f"{own_server.address}/feedback").json()["corrections"]
    assert [one["kind"] for one in kept] == ["same_group"]
    card.get_by_role("button", name="Same group").click()
    expect(card.get_by_role("button", name="Same group")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#num-corrections")).to_have_text("0 corrections since the last training")
    page.emulate_media(reduced_motion="reduce")  # or a color would be measured on its way from pressed to not pressed
    assert axe_api.Axe().run(page).violations_count == 0
