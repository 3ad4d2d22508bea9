"""Layouts of a map from the same exact neighbors: quality, time and memory, beside umap-learn and PaCMAP.

    python benchmarks/collection_map.py --embeddings FOLDER [--seeds 0 1] [--clustered 100000] [--perturbed 100000]

Measures on labeled embeddings (made by `vitrieve embed`): trustworthiness and the share of the 10 nearest by
similarity that are among the 10 nearest points, over 500 pictures; the share of pictures whose nearest point has
their label; and seconds of one thread, without the neighbors. umap-learn gets the same neighbors; PaCMAP finds its own.
Where one of them is not installed, the table says so. --clustered lays out so many generated vectors instead (200
clusters, 128 dimensions) with the whole of `vitrieve map`, and says how long each part takes; --perturbed does so with
copies of the real embeddings and noise, which need --embeddings. The page of that map is then opened in Chromium, which
zooms in and out for --frame-seconds: how many frames a second its trace has, how many the page drew, and the time of a
processor that each took in all of the browser's processes, by the painter that the page chose and by WebGL. For the
latter a script tells the page of a graphics card (pretends_card); webgl is the renderer that there really was.

--page FILE draws a page of `vitrieve map --html` instead. It prints a table, and writes after each part
benchmarks/results/collection_map_DATE.json, beside what an earlier part of the day wrote there. Memory is the most that
the process held during the map (peak_mib), and what it held before (held_mib).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from collections_here import NOISE_NORM
from contest import RESULTS, peak_mib, restart_peak, write_result

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.index.open import build_index
from vitrieve.mapping.collection_map import CollectionMap, map_collection
from vitrieve.mapping.layout import NUM_NEIGHBORS, lay_out, measure_layout
from vitrieve.mapping.neighbors import Neighbors, find_neighbors
from vitrieve.serve.map_page import STATIC_FOLDER, write_map_page
from vitrieve.similarity import FloatArray, IntArray, normalize

Layout = Callable[[FloatArray, Neighbors, int], FloatArray]


def lay_out_by_umap(vectors: FloatArray, neighbors: Neighbors, seed: int) -> FloatArray:
    import umap  # type: ignore[import-not-found, unused-ignore]

    itself = np.arange(len(vectors))[:, None]
    rows = np.concatenate([itself, neighbors.rows[:, :14]], axis=1)
    distances = np.sqrt(np.maximum(0, 2 - 2 * neighbors.similarities[:, :14]))
    distances = np.concatenate([np.zeros_like(distances[:, :1]), distances], axis=1)
    made = umap.UMAP(n_neighbors=15, random_state=seed, metric="cosine", precomputed_knn=(rows, distances, None))
    return np.asarray(made.fit_transform(vectors), dtype=np.float32)


def lay_out_by_pacmap(vectors: FloatArray, neighbors: Neighbors, seed: int) -> FloatArray:
    import pacmap  # type: ignore[import-not-found, unused-ignore]

    made = pacmap.PaCMAP(random_state=seed, apply_pca=False)
    return np.asarray(made.fit_transform(np.array(vectors), init="pca"), dtype=np.float32)


LAYOUTS: dict[str, tuple[str, Layout]] = {
    "vitrieve map (openTSNE)": ("openTSNE", lambda vectors, neighbors, seed: lay_out(vectors, neighbors, seed=seed)),
    "umap-learn": ("umap", lay_out_by_umap),
    "PaCMAP": ("pacmap", lay_out_by_pacmap),
}


def compare(embeddings: Embeddings, seed: int) -> list[dict[str, Any]]:
    vectors = np.asarray(embeddings.vectors)
    labels = np.array([record.label for record in embeddings.records])
    neighbors = find_neighbors(vectors, NUM_NEIGHBORS)
    found: list[dict[str, Any]] = [
        {
            "layout": "the vectors themselves",
            "seed": seed,
            "same_label": float(np.mean(labels[neighbors.rows[:, 0]] == labels)),
        }
    ]
    for name, (package, layout) in LAYOUTS.items():
        if find_spec(package) is None:
            found.append({"layout": name, "seed": seed, "missing": package})
            continue
        started = time.perf_counter()
        places = layout(vectors, neighbors, seed)
        seconds = time.perf_counter() - started
        same = float(np.mean(labels[find_nearest_places(places)] == labels))
        found.append(
            {"layout": name, "seed": seed, "seconds": seconds, "same_label": same} | measure_layout(vectors, places)
        )
    return found


def find_nearest_places(places: FloatArray) -> IntArray:
    nearest = np.empty(len(places), dtype=np.int64)
    for row, place in enumerate(places):
        distances = np.square(places - place, dtype=np.float64).sum(axis=1)
        distances[row] = np.inf
        nearest[row] = distances.argmin()
    return nearest


def map_clustered(num_images: int, folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    centers, labels = generator.normal(size=(200, 128)), generator.integers(0, 200, num_images)
    vectors = normalize((centers[labels] + 0.7 * generator.normal(size=(num_images, 128))).astype(np.float32))
    records = tuple(
        ImageRecord(image_id=f"{row}.jpg", path=Path(f"/nowhere/{row}.jpg"), label=int(labels[row]), split="test")
        for row in range(num_images)
    )
    embeddings = Embeddings(
        vectors=vectors,
        records=records,
        failures=(),
        fingerprint="0" * 64,
        encoder_source="generated",
        image_size=32,
        license="",
    )
    build_index(embeddings, folder / "index", store="exact").close()
    return map_measured(folder / "index")[1]


def map_measured(index: Path) -> tuple[CollectionMap, dict[str, Any]]:
    """Draw the map of an index; return it, and its figures with the CPU time and memory that it took."""
    held_mib, started = restart_peak(), time.process_time()  # making the vectors took memory, too
    whole = map_collection(index, show_progress=True)
    figures = {"cpu_seconds": round(time.process_time() - started, 1), "held_mib": held_mib, "peak_mib": peak_mib()}
    made = whole.to_json()
    del made["points"]
    return whole, made | figures


def perturb(embeddings: Embeddings, num_images: int) -> Embeddings:
    """Return copies of real embeddings with noise: a cosine near 0.94, as between two crops of a picture."""
    generator = np.random.default_rng(0)
    rows = np.arange(num_images) % len(embeddings.records)
    noise = generator.normal(size=(num_images, embeddings.vectors.shape[1]))
    noise *= NOISE_NORM / np.linalg.norm(noise, axis=1, keepdims=True)
    records = tuple(
        replace(
            embeddings.records[row], image_id=f"{number // len(embeddings.records)}/{embeddings.records[row].image_id}"
        )
        for number, row in enumerate(rows.tolist())
    )
    vectors = normalize((embeddings.vectors[rows] + noise).astype(np.float32))
    return replace(embeddings, vectors=vectors, records=records, failures=())


def map_perturbed(embeddings: Embeddings, num_images: int, folder: Path, frame_seconds: float) -> dict[str, Any]:
    index = folder / "perturbed"
    build_index(perturb(embeddings, num_images), index, store="exact").close()
    whole, made = map_measured(index)
    write_map_page(whole, folder / "map.html")
    return made | count_both(folder / "map.html", frame_seconds)


def count_both(page_file: Path, seconds: float) -> dict[str, Any]:
    """Draw a page by the painter that it chooses and by WebGL."""
    return {
        "page_bytes": page_file.stat().st_size,
        "script_bytes": (STATIC_FOLDER / "map.js").stat().st_size,
        "frames": [count_frames(page_file, seconds, is_webgl) for is_webgl in (False, True)],
    }


PRETEND_CARD = """
const ask = WebGLRenderingContext.prototype.getParameter;
WebGLRenderingContext.prototype.askForTruth = ask;
WebGLRenderingContext.prototype.getParameter = function (name) {
  return name === 0x9246 ? "a card" : ask.call(this, name); };"""
"""Script that has WebGL's renderer called by another name than that of a program, so that the page draws with it."""
ZOOM = """async (seconds) => {
  const canvas = document.getElementById("map-canvas"), stage = document.getElementById("map-stage");
  const box = canvas.getBoundingClientRect(), start = performance.now(), before = Number(stage.dataset.frames);
  const times = [];
  while (performance.now() - start < 1000 * seconds) {
    const phase = Math.floor((performance.now() - start) / 1000) % 2;
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: phase ? 12 : -12, clientX: box.left + box.width / 2,
      clientY: box.top + box.height / 2, bubbles: true, cancelable: true }));
    times.push(await new Promise(requestAnimationFrame));
  }
  const gl = document.createElement("canvas").getContext("webgl");
  const name = gl?.getExtension("WEBGL_debug_renderer_info");
  return { painter: stage.dataset.painter, drawn: Number(stage.dataset.frames) - before, times,
    webgl: name ? (gl.askForTruth ?? gl.getParameter).call(gl, name.UNMASKED_RENDERER_WEBGL) : "none" };
}"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def sum_cpu(found: dict[str, Any]) -> float:
    """Return the seconds of a processor that all processes of a browser have taken."""
    return float(sum(process["cpuTime"] for process in found["processInfo"]))


def count_frames(page_file: Path, seconds: float, is_webgl: bool) -> dict[str, Any]:
    """Zoom in a browser; return frames a second of its trace and of the page, and how far apart the slowest are."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        if is_webgl:
            page.add_init_script(PRETEND_CARD)
        page.goto(page_file.as_uri())
        page.wait_for_selector("#map[data-ready]")
        page.add_style_tag(content=".map-thumbnails { display: none; }")
        page.locator("#map-canvas").scroll_into_view_if_needed()
        browser.start_tracing(
            page=page, categories=["devtools.timeline", "disabled-by-default-devtools.timeline.frame"]
        )
        processes = browser.new_browser_cdp_session()
        before = sum_cpu(processes.send("SystemInfo.getProcessInfo"))
        seen = page.evaluate(ZOOM, seconds)
        cpu_seconds = sum_cpu(processes.send("SystemInfo.getProcessInfo")) - before
        events = json.loads(browser.stop_tracing())["traceEvents"]
        version = browser.version
        browser.close()
    gaps = np.diff(seen["times"])
    return {
        "painter": seen["painter"],
        "webgl": seen["webgl"],
        "pretends_card": is_webgl,
        "chromium": version,
        "trace_frames_per_second": sum(event["name"] == "DrawFrame" for event in events) / seconds,
        "drawn_per_second": seen["drawn"] / seconds,
        "cpu_ms_per_frame": 1000 * cpu_seconds / max(1, seen["drawn"]),
        "median_frame_ms": float(np.median(gaps)),
        "p95_frame_ms": float(np.percentile(gaps, 95)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clustered", type=int, default=0)
    parser.add_argument("--perturbed", type=int, default=0)
    parser.add_argument("--frame-seconds", type=float, default=6.0)
    parser.add_argument("--page", type=Path, help="draw a page that is there already")
    parser.add_argument("--skip-layouts", action="store_true", help="compare no layouts of the embeddings")
    arguments = parser.parse_args()
    if arguments.embeddings is not None:
        embeddings = load_embeddings(arguments.embeddings)
        if not arguments.skip_layouts:
            layouts = [one for seed in arguments.seeds for one in compare(embeddings, seed)]
            for one in layouts:
                print(
                    "  ".join(
                        f"{name} {value:.3f}" if isinstance(value, float) else str(value) for name, value in one.items()
                    )
                )
            add_results(num_images=len(embeddings.records), layouts=layouts)
        if arguments.perturbed:
            with tempfile.TemporaryDirectory() as folder:
                found = map_perturbed(embeddings, arguments.perturbed, Path(folder), arguments.frame_seconds)
            add_results(perturbed=found)
            print(json.dumps(found, indent=2))
    if arguments.page is not None:
        page = count_both(arguments.page, arguments.frame_seconds)
        add_results(page=page)
        print(json.dumps(page, indent=2))
    if arguments.clustered:
        with tempfile.TemporaryDirectory() as folder:
            found = map_clustered(arguments.clustered, Path(folder))
        add_results(clustered=found)
        print(json.dumps(found, indent=2))


def add_results(**results: Any) -> None:
    """Write results beside those that are in the file of the day."""
    path = RESULTS / f"collection_map_{date.today()}.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    write_result(path, old | results)


if __name__ == "__main__":
    main()
