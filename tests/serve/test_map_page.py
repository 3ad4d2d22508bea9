"""The page of a map as one file: what it holds, hostile names in it, and what people do with it in Chromium."""

from __future__ import annotations

import base64
import codecs
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.conftest import PATIENCE_MS
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import DataError
from vitrieve.index.open import build_index, open_index
from vitrieve.mapping.collection_map import CollectionMap, map_collection
from vitrieve.serve.map_page import MAX_VALUES, STATIC_FOLDER, MapView, build_coloring, spread_rows, write_map_page
from vitrieve.similarity import normalize

pytest.importorskip("openTSNE", reason="needs vitrieve[map]")

MAX_SCRIPT_BYTES = 30_000
HOSTILE = '=</script><img src=x onerror="alert(1)"><!--\u2028'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 60 pictures in three groups of 30, 20 and 10; one of them has a hostile name and label."""
    parent = tmp_path_factory.mktemp("map")
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    vectors = np.eye(12)[labels] + 0.08 * generator.normal(size=(60, 12))
    records = []
    for row, label in enumerate(labels.tolist()):
        path = parent / f"{row:02}.png"
        color = np.array([[200, 40, 40], [40, 160, 60], [50, 70, 200]])[label]
        Image.fromarray((color + generator.integers(0, 50, (30, 36, 3))).astype(np.uint8)).save(path)
        name = HOSTILE if row == 0 else f"{label}/{row:02}.png"
        kind = HOSTILE if row == 0 else ("red", "green", "blue")[label]
        metadata = {"label": kind, "price": f"{row}.25", "shop": ("a", "b")[row % 2]}
        records.append(ImageRecord(image_id=name, path=path, label=label, split="test", metadata=metadata))
    embeddings = Embeddings(
        vectors=normalize(vectors.astype(np.float32)),
        records=tuple(records),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="tiny",
        image_size=32,
        license="Made by <b>nobody</b>",
    )
    build_index(embeddings, parent / "index", store="exact").close()
    return parent / "index"


@pytest.fixture(scope="module")
def made(folder: Path) -> CollectionMap:
    return map_collection(folder)


@pytest.fixture(scope="module")
def page_file(made: CollectionMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new" / "map.html"
    write_map_page(made, path)
    return path


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of the element with the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._is_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_data = ("id", "map-data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._is_data = False

    def handle_data(self, data: str) -> None:
        if self._is_data:
            self.data += data


def test_the_page_holds_everything_and_hostile_names_stay_text(page_file: Path, made: CollectionMap) -> None:
    text = page_file.read_text()
    found = Tags(text)
    assert not [tag for tag in found.tags if tag[0] == "img" or "onerror" in tag[1]]
    assert [tag for tag, _ in found.tags].count("script") == 3  # the class, the data, the script
    assert not [value for _, attrs in found.tags for name, value in attrs.items() if name == "src"]
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "<b>nobody" not in text
    data = json.loads(found.data)
    assert data["ids"] == made.image_ids
    assert HOSTILE in data["ids"]
    steps = np.frombuffer(base64.b64decode(data["xy"]), dtype="<u2").reshape(-1, 2)
    assert np.abs(steps / 32767.5 - 1 - made.places).max() < 2e-5
    assert len(data["thumbnails"]) == 60
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["thumbnails"].values())


def test_columns_groups_and_titles(made: CollectionMap) -> None:
    view = MapView(made)
    columns = {one.name: one for one in view.colorings}
    assert list(columns) == ["cluster", "match", "similarity to the nearest", "label", "price", "shop"]
    labels = made.table["label"].to_pylist()
    similarities = made.table["nearest_similarity"].to_numpy()
    nearest = np.array([made.image_ids.index(name) for name in made.table["nearest"].to_pylist()])
    is_same = [labels[row] == labels[other] for row, other in enumerate(nearest.tolist())]
    assert columns["match"].codes.tolist() == [0 if same else 1 for same in is_same]
    assert 50 < sum(is_same) < 60, "the hostile label is that of one picture"
    assert columns["similarity to the nearest"].is_ordered
    assert similarities[columns["similarity to the nearest"].codes == 0].max() < np.median(similarities)
    assert columns["label"].values[:2] == ("red", "green")
    assert columns["shop"].values == ("a", "b")
    assert columns["price"].is_ordered
    assert columns["price"].values[0] == "0.25 to 7.25"
    assert np.bincount(columns["price"].codes).tolist() == [8, 7, 8, 7, 8, 7, 8, 7]
    assert sum(group.num_images for group in view.groups) == 60
    assert {"Group 1: red", "Group 2: green"} < {group.name for group in view.groups}
    assert view.title(made.image_ids.index("0/01.png")) == "red"


def test_build_coloring_keeps_what_is_shared() -> None:
    assert build_coloring("name", [f"picture {row}" for row in range(100)]) is None
    assert build_coloring("empty", [None, "", None]) is None
    many = [f"v{number}" for number in range(400) for _ in range(2)]
    coloring = build_coloring("many", [*many, None])
    assert coloring is not None
    assert len(coloring.values) == MAX_VALUES + 2
    assert coloring.values[-2:] == ("other values", "no value")
    assert coloring.num_colored == MAX_VALUES
    assert np.bincount(coloring.codes)[-2:].tolist() == [2 * (400 - MAX_VALUES), 1]
    dates = build_coloring("day", [f"2024-01-{day:02}" for day in range(1, 31)])
    assert dates is not None
    assert dates.values[0] == "2024-01-01 to 2024-01-04"
    assert dates.is_ordered


def test_spread_rows_come_from_all_over() -> None:
    places = np.random.default_rng(0).uniform(-1, 1, (5000, 2)).astype(np.float32)
    rows = spread_rows(places, 64)
    assert len({*rows}) == 64
    quarters = np.bincount((places[rows] > 0) @ np.array([1, 2]), minlength=4)
    assert quarters.min() >= 10
    assert spread_rows(places, 9000) == list(range(5000))
    assert len(spread_rows(np.zeros((20, 2)), 5)) == 1  # all in one place


def test_a_map_of_another_index_is_refused(made: CollectionMap, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "index")
    kept = map_collection(tmp_path / "index")
    store = open_index(tmp_path / "index")
    store.delete(["0/01.png"])
    store.close()
    with pytest.raises(DataError, match="run vitrieve map again"):
        write_map_page(kept, tmp_path / "map.html")


def test_the_script_is_small() -> None:
    assert (STATIC_FOLDER / "map.js").stat().st_size <= MAX_SCRIPT_BYTES


# ---- In a browser -------------------------------------------------------------------------------------------------

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
Browser, Page = playwright_api.Browser, playwright_api.Page
expect = playwright_api.expect


def open_page(browser: Browser, path: Path, **options: object) -> Page:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("dialog", lambda dialog: pytest.fail(f"a name became a script: {dialog.message}"))
    page.goto(path.as_uri())
    page.wait_for_selector("#map[data-ready]")
    return page


def draw_lasso(page: Page) -> None:
    """Draw a line around everything, with the lasso that is switched on."""
    box = page.locator("#map-canvas").bounding_box()
    assert box is not None
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


@pytest.mark.browser
def test_lasso_save_groups_and_keys(browser: Browser, page_file: Path, made: CollectionMap) -> None:
    page = open_page(browser, page_file)
    page.get_by_role("button", name="Lasso").click()
    draw_lasso(page)
    expect(page.get_by_role("heading", name="60 pictures chosen")).to_be_visible()
    expect(page.locator("#map-cards img")).to_have_count(60)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert Path(download.value.path()).read_bytes().startswith(codecs.BOM_UTF8), (
        "Excel would take it for another encoding"
    )
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    lines = text.splitlines()
    assert lines[0] == '"image_id","title","cluster"'
    assert '"0/01.png","red","Group 1: red"' in lines
    assert "\n\"'=</script><img " in text, "a spreadsheet would compute it"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the names").click()
    assert Path(download.value.path()).read_text() == "".join(f"{name}\n" for name in made.image_ids)
    page.get_by_role("button", name="Choose none").click()
    expect(page.locator("#map-chosen")).to_be_hidden()

    page.get_by_label("Color by").select_option(label="shop")
    group = page.locator("#map-groups details").first
    group.locator("summary").focus()
    page.keyboard.press("Enter")
    group.get_by_role("button", name="Choose these 30: a").press("Enter")
    expect(page.get_by_role("heading", name="30 pictures chosen")).to_be_visible()
    group.get_by_role("link").first.press("Enter")
    expect(page.get_by_role("heading", name="1 picture chosen")).to_be_visible()

    frames = int(page.get_attribute("#map-stage", "data-frames") or 0)
    page.locator("#map-canvas").press("+")
    page.wait_for_function(
        "(frames) => Number(document.getElementById('map-stage').dataset.frames) > frames", arg=frames
    )
    page.locator("#map-canvas").press("Escape")
    expect(page.locator("#map-chosen")).to_be_hidden()
    page.context.close()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_everybody_can_use_it(browser: Browser, page_file: Path, scheme: str, width: int) -> None:
    axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(
        browser,
        page_file,
        color_scheme=scheme,
        reduced_motion="reduce",  # or a color would be measured on its way
        viewport={"width": width, "height": 800},
        bypass_csp=True,
    )
    page.locator("#map-groups summary").first.click()
    page.get_by_role("button", name=re.compile("^Choose these")).first.click()
    expect(page.locator("#map-cards img").first).to_be_visible()
    results = axe_api.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


@pytest.mark.browser
def test_the_hint_names_what_the_device_has(browser: Browser, page_file: Path) -> None:
    hint = "Drag to move, pinch to zoom; drag with Lasso to choose."
    phone = open_page(browser, page_file, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 780})
    assert phone.locator(".map-hint").inner_text() == hint
    phone.context.close()
    hint = "Drag to move, scroll or pinch to zoom; drag with Shift, or with Lasso, to choose."
    desktop = open_page(browser, page_file)
    assert desktop.locator(".map-hint").inner_text() == hint
    desktop.context.close()


PRETEND_CARD = """
const ask = WebGLRenderingContext.prototype.getParameter;
WebGLRenderingContext.prototype.getParameter = function (name) {
  return name === 0x9246 ? "a card" : ask.call(this, name); };"""
"""Script that has WebGL's renderer called by another name than that of a program."""


@pytest.mark.browser
def test_points_are_drawn_with_and_without_webgl(browser: Browser, page_file: Path) -> None:
    """Where there is no graphics card, the page puts pixels into a picture itself."""
    for is_flat in (False, True):
        context = browser.new_context()
        page = context.new_page()
        if not is_flat:
            page.add_init_script(PRETEND_CARD)
        page.goto(page_file.as_uri())
        page.wait_for_selector("#map[data-ready]")
        page.add_style_tag(content=".map-thumbnails, .map-tip { visibility: hidden; }")
        assert page.get_attribute("#map-stage", "data-painter") == ("flat" if is_flat else "webgl")
        wait_for_colors(page, least=50)
        context.close()


def wait_for_colors(page: Page, least: int) -> None:
    """Wait until more pixels of the map are clearly colored: what is drawn comes to the screen a frame later."""
    most = 0
    for _ in range(PATIENCE_MS // 50):
        most = max(most, count_colors(page.locator("#map-canvas").screenshot()))
        if most > least:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{most} colored pixels")


def count_colors(png: bytes) -> int:
    """Count the pixels of a picture that are clearly colored."""
    import io

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int(np.count_nonzero(pixels.max(axis=2) - pixels.min(axis=2) > 60))


@pytest.mark.browser
@pytest.mark.parametrize("num_images", [1, 3])
def test_a_map_of_few_pictures_works(
    browser: Browser, made: CollectionMap, folder: Path, tmp_path: Path, num_images: int
) -> None:
    shutil.copytree(folder, tmp_path / "index")
    store = open_index(tmp_path / "index")
    store.delete(list(store.image_ids())[num_images:])
    store.close()
    write_map_page(map_collection(tmp_path / "index"), tmp_path / "map.html")
    page = open_page(browser, tmp_path / "map.html")
    expect(page.locator("#map-thumbnails img")).to_have_count(num_images)
    page.get_by_role("button", name="Lasso").click()
    draw_lasso(page)
    expect(page.locator("#map-cards li")).to_have_count(num_images)
    page.context.close()


def test_a_table_without_titles_names_groups_by_number(made: CollectionMap) -> None:
    from dataclasses import replace

    view = MapView(replace(made, table=made.table.drop_columns(["label", "price", "shop"])))
    assert [one.name for one in view.colorings] == ["cluster", "similarity to the nearest"]
    assert view.groups[0].name == "Group 1"
    assert view.title(made.image_ids.index("0/01.png")) == "01.png"
    assert view.build_data()["titles"] is None
    assert isinstance(made.table, pa.Table)
