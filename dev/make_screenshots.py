"""The pictures of the search page in docs/images/: a real collection, the real server, a real browser.

Run it from the checkout: ``python dev/make_screenshots.py``. It takes about two minutes, and needs the Grocery Store
photographs (``../shared/datasets``, or the folder that VITRIEVE_DATA names), the weights ``dinov2-vits14``, playwright
and Chromium. Encoding is deterministic, so a second run shows the same results.

``--every-page FOLDER`` writes every page instead, of the service and those that are files, whole, in light and dark,
1200 and 390 pixels wide: to look at them after a change.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, FilePayload, Page, ViewportSize, sync_playwright

IMAGE_FOLDER = Path(__file__).parent.parent / "docs" / "images"
ENCODER = "dinov2-vits14"
IMAGE_SIZE = 112
SPLITS = ("train", "val")
EVERY = 5
"""One photograph in so many is taken into the collection: about 580."""
PARTS = ("Fruit", "Packages", "Vegetables")
"""Folders of the data set, each a collection of the service of several."""
DAYS = 180
"""Days over which the made-up dates of ``added`` are spread."""
WIDTHS = (1200, 390)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PHONE: ViewportSize = {"width": 390, "height": 780}
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
LIST: ViewportSize = {"width": 1000, "height": 560}
MAX_BYTES = 300_000
WITHOUT_TIME = "one.innerHTML = one.innerHTML.replace(/( · )?[0-9]+ ms/, '')"
"""How long a search took is another number in each run, and says nothing of a machine that draws pictures beside it."""
PATIENCE_MS = 120_000
MAX_WHOLE_PX = 8000
"""A window as high as the page shows the pictures below the fold, too; what is higher is drawn without them."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture of the page.

    Attributes:
        name: Of the file, without suffix.
        show: Brings the page into the state.
        viewport: Of the browser, in CSS pixels.
        scheme: Light or dark.
        has_touch: A phone rather than a mouse.
        service: ``index``; ``collections``, of several; or ``strict``, which answers few requests a minute.
        is_for_looking: It is no picture of the documentation, and loses nothing.
        is_whole: The whole page is shown, not the window alone.
    """

    name: str
    show: Callable[[Page], None]
    viewport: ViewportSize = field(default_factory=lambda: DESKTOP)
    scheme: Literal["light", "dark"] = "light"
    has_touch: bool = False
    service: Literal["index", "collections", "strict"] = "index"
    is_for_looking: bool = False
    is_whole: bool = False


def main() -> int:
    """Build the collection, serve it, and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the collection and its index for the next run")
    parser.add_argument("--out", type=Path, default=IMAGE_FOLDER)
    parser.add_argument("--only", help="names of pictures to take, a regular expression")
    parser.add_argument("--every-page", type=Path, metavar="FOLDER", help="write every page in every look into it")
    arguments = parser.parse_args()
    grocery = Path(os.environ.get("VITRIEVE_DATA", "../shared/datasets")) / "grocery-store"
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if not grocery.is_dir() or browser_path is None:
        print(f"needs the photographs in {grocery} and chromium on the path.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        work = arguments.work or Path(temporary)
        services = start_services(grocery, work, running)
        playwright = running.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        running.callback(browser.close)
        folder = arguments.every_page or arguments.out
        folder.mkdir(parents=True, exist_ok=True)
        for shot in list_pages(grocery, write_pages(grocery, work)) if arguments.every_page else list_shots(grocery):
            if re.search(arguments.only or "", shot.name):
                print(take(browser, services[shot.service], shot, folder), flush=True)
    return 0


# ---- The collection --------------------------------------------------------------------------------------------------


def start_services(grocery: Path, work: Path, running: ExitStack) -> dict[str, str]:
    """Start the services that are shown, until ``running`` ends; return the address of each."""
    lines = read_lines(grocery)
    index = build_index(grocery, work, lines)
    run("map", "--index", index)
    parts = {part: [line for line in lines if line.startswith(f"{part}/", line.index("/") + 1)] for part in PARTS}
    entries = [
        f'[{part.lower()}]\nindex = "{build_index(grocery, work / part.lower(), chosen).resolve()}"\n'
        for part, chosen in parts.items()
    ]
    collections = work / "collections.toml"
    collections.write_text("\n".join(entries))
    arguments = {
        "index": ("--index", index),
        "collections": ("--collections", collections),
        "strict": ("--index", index, "--reads-per-minute", "20"),
    }
    return {name: running.enter_context(serve(*words)) for name, words in arguments.items()}


def read_lines(grocery: Path) -> list[str]:
    """Read the lines of the data set's lists that are taken: path, label and coarse label."""
    lines = [line for split in SPLITS for line in (grocery / f"{split}.txt").read_text().splitlines() if line]
    return lines[::EVERY]


def build_index(grocery: Path, work: Path, lines: list[str]) -> Path:
    """Embed and index some photographs, with a threshold; what is there already is kept, but for feedback."""
    index = work / "index"
    (work / "index.feedback.sqlite").unlink(missing_ok=True)
    if not (index / "threshold.json").is_file():
        write_collection(grocery, work / "collection", lines)
        embeddings = work / "embeddings"
        source = f"table:{work / 'collection' / 'images.csv'}"
        encoder = ("--encoder", ENCODER, "--image-size", str(IMAGE_SIZE))
        run("embed", *encoder, "--data", source, "--out", embeddings, "--overwrite")
        run("index", "--embeddings", embeddings, "--out", index, "--overwrite")
        # Frozen weights tell products badly from one another: few of them are to be turned away.
        run("calibrate", "--index", index, "--false-reject-rate", "0.1")
    return index


def write_collection(grocery: Path, folder: Path, lines: list[str]) -> None:
    """Copy some photographs and write the table that names them; the dates are made up, to have some."""
    with (grocery / "classes.csv").open(newline="") as file:
        classes = {row["Class ID (int)"]: row for row in csv.DictReader(file)}
    rows = []
    for row, line in enumerate(lines):
        path, label, _ = (part.strip() for part in line.split(","))
        name, kind = (classes[label][f"{column} (str)"] for column in ("Class Name", "Coarse Class Name"))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(grocery / path, target)
        rows.append(
            {
                "path": path,
                "label": name.replace("-", " "),
                "kind": kind.replace("-", " "),
                "kilobytes": round(target.stat().st_size / 1000),
                "added": date(2026, 1, 1) + timedelta(days=row * DAYS // len(lines)),
            }
        )
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_pages(grocery: Path, work: Path) -> list[Path]:
    """Write the pages that are files."""
    files = {name: work / f"{name}.html" for name in ("search-file", "map-file", "duplicates-file", "audit-file")}
    index, source = work / "index", f"table:{work / 'collection' / 'images.csv'}"
    run("search", "--index", index, find_carton(grocery), "-k", "12", "--html", files["search-file"])
    run("map", "--index", index, "--html", files["map-file"])
    run("duplicates", index, "--html", files["duplicates-file"])
    audit = ("data", "audit", "--data", source, "--embeddings", work / "embeddings", "--threshold", "0.99")
    run(*audit, "--html", files["audit-file"])
    return list(files.values())


def find_carton(grocery: Path) -> Path:
    """Find the photograph that most pictures begin from."""
    return grocery / "test/Packages/Milk/Arla-Standard-Milk/Arla-Standard-Milk_001.jpg"


def run(*arguments: str | Path) -> None:
    """Run one command of vitrieve; a failure ends everything."""
    subprocess.run([sys.executable, "-m", "vitrieve", *map(str, arguments)], check=True, stdout=sys.stderr)


@contextmanager
def serve(*arguments: str | Path) -> Iterator[str]:
    """Start a service, and give its address.

    Raises:
        RuntimeError: The server ended before it answered.
    """
    command = [sys.executable, "-m", "vitrieve", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip().rstrip("/")
        if not address:
            raise RuntimeError(f"the server ended; see why with: {' '.join(command)}")
        yield address
    finally:
        process.terminate()
        process.wait()


# ---- The pictures ----------------------------------------------------------------------------------------------------


def list_shots(grocery: Path) -> list[Shot]:
    """List the states that are shown; the queries are phone photographs that the collection does not hold."""
    carton = find_carton(grocery)
    carrots = grocery / "test/Vegetables/Carrots/Carrots_001.jpg"
    return [
        Shot(name="page-start", show=lambda page: None),
        Shot(name="page-results", show=lambda page: send(page, carton)),
        Shot(name="page-dark", show=lambda page: send(page, carrots), scheme="dark"),
        Shot(name="page-box", show=lambda page: draw_box(page, carton)),
        Shot(name="page-compare", show=lambda page: compare(page, carton, has_overlay=False)),
        Shot(name="page-overlay", show=lambda page: compare(page, carton, has_overlay=True)),
        Shot(name="page-examples", show=lambda page: add_examples(page, carton)),
        Shot(name="page-groups", show=lambda page: group(page, carton)),
        Shot(name="page-no-match", show=lambda page: send(page, draw_something_else())),
        Shot(name="page-words", show=lambda page: go(page, "/?text=vanilla+yoghurt")),
        Shot(name="page-map", show=open_map),
        Shot(name="page-phone-start", show=lambda page: None, viewport=PHONE, has_touch=True),
        Shot(name="page-phone", show=lambda page: send(page, carton), viewport=PHONE, has_touch=True),
        Shot(name="collections-light", show=lambda page: None, viewport=LIST, service="collections"),
        Shot(name="collections-dark", show=lambda page: None, viewport=LIST, service="collections", scheme="dark"),
    ]


def list_pages(grocery: Path, files: list[Path]) -> list[Shot]:
    """List every page in every look; the files are pages too."""
    carton = find_carton(grocery)
    one = "train/Fruit/Banana/Banana_002.jpg"
    here = f"/?plus={one}&k=12"
    states: list[tuple[str, Literal["index", "collections", "strict"], Callable[[Page], None]]] = [
        ("start", "index", lambda page: None),
        ("start-with-filter", "index", lambda page: go(page, "/?filter=kind%3DApple")),
        ("results", "index", lambda page: send(page, carton)),
        ("words", "index", lambda page: go(page, "/?text=banana&k=12")),
        ("words-unknown", "index", lambda page: go(page, "/?text=zebra")),
        ("examples", "index", lambda page: go(page, f"{here}&text=ripe&minus_text=green")),
        ("filters", "index", lambda page: open_filters(page, here)),
        ("groups", "index", lambda page: group(page, carton)),
        ("no-match", "index", lambda page: send(page, draw_something_else())),
        ("light-box", "index", lambda page: enlarge(page, here)),
        ("chosen", "index", lambda page: choose_two(page, here)),
        ("feedback", "index", lambda page: say_right_and_tag(page, here)),
        ("compare", "index", lambda page: compare(page, carton, has_overlay=False)),
        ("overlay", "index", lambda page: compare(page, carton, has_overlay=True)),
        ("compare-many", "index", lambda page: compare_many(page, one)),
        ("map", "index", open_map),
        ("map-group", "index", choose_on_map),
        ("sign-in", "index", lambda page: go(page, "/login")),
        ("404-page", "index", lambda page: go(page, "/nowhere")),
        ("404-picture", "index", lambda page: go(page, "/?plus=nobody.jpg")),
        ("410-upload", "index", lambda page: go(page, f"/?upload={'0' * 32}")),
        ("422-column", "index", lambda page: go(page, f"{here}&filter=colour%3Dred")),
        ("422-column-alone", "index", lambda page: go(page, "/?filter=colour%3Dred")),
        ("422-empty", "index", lambda page: go(page, "/?text=+")),
        ("429", "strict", lambda page: ask_too_often(page, here)),
        ("collections", "collections", lambda page: None),
        ("collection", "collections", lambda page: go(page, "/c/fruit/")),
        ("collection-results", "collections", lambda page: go(page, f"/c/fruit{here}")),
    ]
    for file in files:
        states.append((file.stem, "index", functools.partial(go, address=file.resolve().as_uri())))
    return [
        Shot(
            name=f"{name}-{scheme}-{width}",
            show=show,
            service=service,
            viewport={"width": width, "height": 860},
            scheme=scheme,
            has_touch=width < 800,
            is_for_looking=True,
            is_whole=name not in ("light-box", "chosen"),
        )
        for name, service, show in states
        for scheme in SCHEMES
        for width in WIDTHS
    ]


def take(browser: Browser, address: str, shot: Shot, folder: Path) -> Path:
    """Take one picture of the page.

    Raises:
        RuntimeError: The file is larger than the documentation should load.
    """
    file = folder / f"{shot.name}.{'png' if shot.is_for_looking else 'jpg'}"
    with browser.new_context(
        base_url=address,
        color_scheme=shot.scheme,
        viewport=shot.viewport,
        device_scale_factor=2 if shot.viewport is PHONE else 1,
        has_touch=shot.has_touch,
        is_mobile=shot.has_touch,
    ) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto("/")
        shot.show(page)
        page.mouse.move(2, 2)  # nothing is pointed at
        wait_for_pictures(page)
        if shot.is_whole:
            stretch(page, shot.viewport["width"])
        if shot.is_for_looking:
            page.screenshot(path=file, full_page=shot.is_whole)
            return file
        page.evaluate(f"for (const one of document.querySelectorAll('.found-head .small')) {WITHOUT_TIME}")
        page.screenshot(path=file, type="jpeg", quality=86)
    if file.stat().st_size > MAX_BYTES:
        raise RuntimeError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_BYTES:,} are kept.")
    return file


def stretch(page: Page, width: int) -> None:
    """Make the window as high as the page, which may grow with it."""
    for _ in range(2):
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": width, "height": min(height, MAX_WHOLE_PX)})
        wait_for_pictures(page)


def wait_for_pictures(page: Page) -> None:
    """Wait until every picture in sight is there; playwright's own waiting knows only whole loads of a page.

    Raises:
        RuntimeError: One could not be loaded, as where the service is too busy to draw what matches.
    """
    in_sight = "image.checkVisibility() && image.getBoundingClientRect().top < innerHeight"
    while page.evaluate(f"[...document.images].some((image) => {in_sight} && !image.complete)"):
        page.wait_for_timeout(100)
    if page.evaluate(f"[...document.images].some((image) => {in_sight} && !image.naturalWidth)"):
        raise RuntimeError(f"a picture of {page.url} could not be loaded.")
    page.wait_for_timeout(300)  # to paint them


def go(page: Page, address: str) -> None:
    """Open an address, whatever it answers."""
    page.goto(address)


def open_filters(page: Page, address: str) -> None:
    """Narrow down by a value, a span of numbers and one of dates; the facets are open."""
    go(page, f"{address}&filter=kind%3DBanana&filter=kilobytes%3E%3D20&filter=added%3E%3D2026-01-05")
    page.evaluate("for (const one of document.querySelectorAll('.refine, .facet')) one.open = true")


def enlarge(page: Page, address: str) -> None:
    """Show the second result large."""
    go(page, address)
    page.locator(".found .card a.picture").first.click()
    page.keyboard.press("ArrowRight")


def choose_two(page: Page, address: str) -> None:
    """Choose two results."""
    go(page, address)
    for place in (0, 2):
        page.locator("[data-choose]").nth(place).check()


def say_right_and_tag(page: Page, address: str) -> None:
    """Say that a result is right and another wrong, and open the tags of a third."""
    go(page, address)
    for place, kind in ((0, "right"), (1, "wrong")):
        button = page.locator(f".card [data-kind={kind}]").nth(place)
        if button.get_attribute("aria-pressed") == "false":
            button.click()
            page.wait_for_selector(f".card:nth-child({place + 1}) [data-kind={kind}][aria-pressed=true]")
    page.locator(".card .feedback summary").nth(2).click()


def ask_too_often(page: Page, address: str) -> None:
    """Search until the service has had enough."""
    for _ in range(3):
        page.goto(address)


def open_map(page: Page) -> None:
    """Open the map."""
    page.goto("/map")
    page.wait_for_selector("#map[data-ready]")


def choose_on_map(page: Page) -> None:
    """Choose a group of the map and open it in the list."""
    open_map(page)
    page.locator("#map-groups summary").first.click()
    page.get_by_role("button", name=re.compile("^Choose these")).first.click()
    page.wait_for_selector("#map-cards img")


def send(page: Page, picture: Path | FilePayload) -> None:
    """Search for a picture."""
    page.set_input_files("[data-file] >> nth=0", picture)
    page.wait_for_selector(".found .card")


def draw_box(page: Page, picture: Path) -> None:
    """Search for a part of a picture."""
    send(page, picture)
    place = page.locator("[data-stage]").bounding_box()
    assert place is not None
    for share, step in ((0.28, page.mouse.down), (0.78, page.mouse.up)):
        page.mouse.move(place["x"] + place["width"] * share, place["y"] + place["height"] * share, steps=4)
        step()
    page.wait_for_url(re.compile("box="))


def compare(page: Page, picture: Path, *, has_overlay: bool) -> None:
    """Show a picture beside its first result."""
    send(page, picture)
    page.locator(".found a.title").first.click()
    page.wait_for_selector(".pair")
    if has_overlay:
        page.get_by_text("Show what matches").click()


def compare_many(page: Page, image_id: str) -> None:
    """Show several examples beside a result."""
    go(page, f"/?plus={image_id}")
    for place in range(1, 5):
        page.locator(".found .card .sign.wanted").nth(place).click()
        page.wait_for_selector(f".examples li:nth-child({place + 1})")
    page.locator(".found a.title").first.click()
    page.wait_for_selector(".pair")


def add_examples(page: Page, picture: Path) -> None:
    """Add the second result as wanted, and the third as not."""
    send(page, picture)
    for sign, place in ((".wanted", 1), (":not(.wanted)", 2)):
        page.locator(f".found .card .actions .sign{sign}").nth(place).click()
        page.wait_for_selector(f".examples li:nth-child({place + 1})")


def group(page: Page, picture: Path) -> None:
    """Show one result for each product, and open what stands behind the first."""
    send(page, picture)
    page.evaluate("document.querySelector('.refine').open = true")  # it is shut on a phone
    page.get_by_label("One result for each").select_option("label")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(re.compile("group_by="))
    page.locator(".others summary").first.click()
    page.evaluate("scrollTo(0, 0)")


def draw_something_else() -> FilePayload:
    """Draw what is no food at all."""
    image = Image.new("RGB", (480, 360), (24, 44, 110))
    draw = ImageDraw.Draw(image)
    for step in range(14):
        draw.ellipse((step * 30, step * 20, step * 30 + 64, step * 20 + 64), fill=(255, 18 * step, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"name": "drawing.png", "mimeType": "image/png", "buffer": file.getvalue()}


if __name__ == "__main__":
    sys.exit(main())
