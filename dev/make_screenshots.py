"""The pictures of the search page in docs/images/: a real collection, the real server, a real browser.

Run it from the checkout: ``python dev/make_screenshots.py``. It takes about a minute, and needs the Grocery Store
photographs (``../shared/datasets``, or the folder that VITRIEVE_DATA names), the weights ``dinov2-vits14``, playwright
and Chromium. Encoding is deterministic, so a second run shows the same results.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
PHONE: ViewportSize = {"width": 390, "height": 780}
DESKTOP: ViewportSize = {"width": 1280, "height": 860}
MAX_BYTES = 300_000


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture of the page.

    Attributes:
        name: Of the file, without suffix.
        show: Brings the page into the state.
        viewport: Of the browser, in CSS pixels.
        scheme: Light or dark.
        has_touch: A phone rather than a mouse.
    """

    name: str
    show: Callable[[Page], None]
    viewport: ViewportSize = field(default_factory=lambda: DESKTOP)
    scheme: Literal["light", "dark"] = "light"
    has_touch: bool = False


def main() -> int:
    """Build the collection, serve it, and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the collection and its index for the next run")
    parser.add_argument("--out", type=Path, default=IMAGE_FOLDER)
    parser.add_argument("--only", help="names of pictures to take, a regular expression")
    arguments = parser.parse_args()
    grocery = Path(os.environ.get("VITRIEVE_DATA", "../shared/datasets")) / "grocery-store"
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if not grocery.is_dir() or browser_path is None:
        print(f"needs the photographs in {grocery} and chromium on the path.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        index = build_index(grocery, work)
        with serve(index) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            for shot in list_shots(grocery):
                if re.search(arguments.only or "", shot.name):
                    print(take(browser, address, shot, arguments.out), flush=True)
            browser.close()
    return 0


# ---- The collection --------------------------------------------------------------------------------------------------


def build_index(grocery: Path, work: Path) -> Path:
    """Embed and index some photographs, with a threshold; what is there already is kept."""
    index = work / "index"
    if not (index / "threshold.json").is_file():
        write_collection(grocery, work / "collection")
        embeddings = work / "embeddings"
        source = f"table:{work / 'collection' / 'images.csv'}"
        encoder = ("--encoder", ENCODER, "--image-size", str(IMAGE_SIZE))
        run("embed", *encoder, "--data", source, "--out", embeddings, "--overwrite")
        run("index", "--embeddings", embeddings, "--out", index, "--overwrite")
        # Frozen weights tell products badly from one another: few of them are to be turned away.
        run("calibrate", "--index", index, "--false-reject-rate", "0.1")
    return index


def write_collection(grocery: Path, folder: Path) -> None:
    """Copy some photographs and write the table that names them."""
    with (grocery / "classes.csv").open(newline="") as file:
        classes = {row["Class ID (int)"]: row for row in csv.DictReader(file)}
    lines = [line for split in SPLITS for line in (grocery / f"{split}.txt").read_text().splitlines() if line]
    rows = []
    for line in lines[::EVERY]:
        path, label, _ = (part.strip() for part in line.split(","))
        name, kind = (classes[label][f"{column} (str)"] for column in ("Class Name", "Coarse Class Name"))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(grocery / path, target)
        rows.append({"path": path, "label": name.replace("-", " "), "kind": kind.replace("-", " ")})
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "kind"])
        writer.writeheader()
        writer.writerows(rows)


def run(*arguments: str | Path) -> None:
    """Run one command of vitrieve; a failure ends everything."""
    subprocess.run([sys.executable, "-m", "vitrieve", *map(str, arguments)], check=True, stdout=sys.stderr)


@contextmanager
def serve(index: Path) -> Iterator[str]:
    """Serve an index, and give the address.

    Raises:
        RuntimeError: The server ended before it answered.
    """
    command = [sys.executable, "-m", "vitrieve", "serve", "--index", str(index), "--port", "0"]
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
    carton = grocery / "test/Packages/Milk/Arla-Standard-Milk/Arla-Standard-Milk_001.jpg"
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
        Shot(name="page-phone-start", show=lambda page: None, viewport=PHONE, has_touch=True),
        Shot(name="page-phone", show=lambda page: send(page, carton), viewport=PHONE, has_touch=True),
    ]


def take(browser: Browser, address: str, shot: Shot, folder: Path) -> Path:
    """Take one picture of the page.

    Raises:
        RuntimeError: The file is larger than the documentation should load.
    """
    file = folder / f"{shot.name}.jpg"
    with browser.new_context(
        base_url=address,
        color_scheme=shot.scheme,
        viewport=shot.viewport,
        device_scale_factor=2 if shot.viewport is PHONE else 1,
        has_touch=shot.has_touch,
        is_mobile=shot.has_touch,
    ) as context:
        page = context.new_page()
        page.goto("/")
        shot.show(page)
        page.mouse.move(2, 2)  # nothing is pointed at
        wait_for_pictures(page)
        page.screenshot(path=file, type="jpeg", quality=86)
    if file.stat().st_size > MAX_BYTES:
        raise RuntimeError(f"{file} has {file.stat().st_size:,} bytes; at most {MAX_BYTES:,} are kept.")
    return file


def wait_for_pictures(page: Page) -> None:
    """Wait until every picture in sight is there; playwright's own waiting knows only whole loads of a page."""
    in_sight = "image.checkVisibility() && image.getBoundingClientRect().top < innerHeight"
    while page.evaluate(f"[...document.images].some((image) => {in_sight} && !image.complete)"):
        page.wait_for_timeout(100)
    page.wait_for_timeout(300)  # to paint them


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


def add_examples(page: Page, picture: Path) -> None:
    """Add the second result as wanted, and the third as not."""
    send(page, picture)
    for sign, place in ((".wanted", 1), (":not(.wanted)", 2)):
        page.locator(f".found .card .sign{sign}").nth(place).click()
        page.wait_for_selector(f".examples li:nth-child({place + 1})")


def group(page: Page, picture: Path) -> None:
    """Show one result for each product, and open what stands behind the first."""
    send(page, picture)
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
