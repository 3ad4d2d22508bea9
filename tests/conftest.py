"""Where tests find what is not in the repository (photographs, weights), and a tiny encoder and pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests.forked import ForkedVitrieve

collect_ignore = ["evaluation/mteb_task.py"]
"""A program of a test, which imports what need not be there."""

settings.register_profile(
    "vitrieve",
    deadline=None,  # a busy machine is no fault of the code
    suppress_health_check=[HealthCheck.too_slow],
    # `make test` has the same examples each time, so that it fails by a change alone; `make test-all` looks for others.
    derandomize=os.environ.get("VITRIEVE_LONG_TESTS") != "1",
)
settings.load_profile("vitrieve")

os.environ["VITRIEVE_CONFIG"] = "off"  # what the user keeps is no part of a test
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a real hub; its client reads this when it is imported

CHECKOUT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
PATIENCE_MS = 30_000
"""A busy machine is no fault of the page."""


def _pin_to_one_core() -> None:
    """Give each worker of pytest-xdist a core of its own: threads of two workers on one core wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


_pin_to_one_core()  # before anything counts the cores that it may use


@pytest.fixture(scope="session", autouse=True)
def _subprocesses_find_the_checkout() -> Iterator[None]:
    """Let processes that tests start import this checkout, installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT / "src"), prepend=os.pathsep)
        yield


@pytest.fixture
def benchmark_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the scripts of benchmarks/ importable as they import each other, and forget them again."""
    folder, known = str(CHECKOUT / "benchmarks"), set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture(scope="session")
def grocery_folder() -> Path:
    """The Grocery Store data set: in the folder that VITRIEVE_DATA names, or beside the checkout."""
    parents = [CHECKOUT.parent / "shared" / "datasets"]
    if os.environ.get("VITRIEVE_DATA"):
        parents.insert(0, Path(os.environ["VITRIEVE_DATA"]))
    for parent in parents:
        if (parent / "grocery-store" / "classes.csv").is_file():
            return parent / "grocery-store"
    pytest.skip("the grocery-store data set is missing; name the folder that holds it with VITRIEVE_DATA")


@pytest.fixture(scope="session")
def dinov2_weights() -> Path:
    """The cached weights ``dinov2-vits14``; fetched only with VITRIEVE_TEST_DOWNLOAD=1."""
    from vitrieve.model import pretrained

    cached = pretrained.find_pulled("dinov2-vits14")
    if cached is not None:
        return cached
    if os.environ.get("VITRIEVE_TEST_DOWNLOAD") == "1":
        return pretrained.pull_weights("dinov2-vits14")
    pytest.skip("weights dinov2-vits14 are not cached; fetch them: vitrieve weights pull dinov2-vits14")


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real encoder with random weights, 0.4 million of them, exported for ONNX Runtime too."""
    torch = pytest.importorskip("torch", reason="needs vitrieve[train]")
    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder, save_encoder
    from vitrieve.model.export import export_folder

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(ModelConfig(backbone="test_vit", image_size=32), is_pretrained=False)
    save_encoder(encoder, folder)
    export_folder(folder)
    return folder


@pytest.fixture(scope="session")
def text_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder with random weights that knows the names of colors."""
    from tests.text_encoders import write_text_encoder

    return write_text_encoder(tmp_path_factory.mktemp("text") / "colors")


@pytest.fixture(scope="session")
def aligned_folder(
    tiny_encoder_folder: Path, text_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny encoder with a text part that was learned from the names of colors."""
    pytest.importorskip("torch", reason="needs vitrieve[train]")
    from tests.text_encoders import write_colors
    from vitrieve import align

    folder = tmp_path_factory.mktemp("aligned")
    colors = write_colors(folder / "colors")
    align(tiny_encoder_folder, colors, folder / "aligned", text_columns=["name"], text_encoder=text_encoder_folder)
    return folder / "aligned"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file with random weights of timm's ``test_vit``, for 32 px."""
    torch = pytest.importorskip("torch", reason="needs vitrieve[train]")
    from safetensors.torch import save_file

    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(ModelConfig(backbone="test_vit", image_size=32), is_pretrained=False)
    save_file(encoder.backbone.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of four noisy pictures, each class of one color: ``class0/0.png`` to ``class4/3.png``."""
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for label in range(5):
        (folder / f"class{label}").mkdir()
        color = generator.integers(0, 200, 3)
        for copy in range(4):
            pixels = (color + generator.integers(0, 56, (40, 36, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{copy}.png")
    return folder


@pytest.fixture(scope="session")
def without_torch() -> str:
    """The first lines of a Python script that then runs as on a machine without ``vitrieve[train]``.

    Not by None in ``sys.modules``: tyro and others take a name there for a module that is loaded.
    """
    return (
        "import importlib.machinery\n"
        "_find = importlib.machinery.PathFinder.find_spec\n"
        "def _find_without_torch(name, path=None, target=None):\n"
        "    is_hidden = name.split('.')[0] in ('torch', 'torchvision', 'timm', 'tensorboard', 'huggingface_hub')\n"
        "    return None if is_hidden else _find(name, path, target)\n"
        "importlib.machinery.PathFinder.find_spec = _find_without_torch\n"
    )


@pytest.fixture(scope="session")
def forked_vitrieve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedVitrieve]:
    """Commands that need not load their libraries each, and may be killed."""
    pytest.importorskip("torch", reason="needs vitrieve[train]")
    forked = ForkedVitrieve(tmp_path_factory.mktemp("forked"))
    yield forked
    forked.close()


@pytest.fixture
def mount_small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a disk of so many bytes (rounded up to pages) and returns its folder; needs root."""
    mounted: list[Path] = []

    def mount(num_bytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a small disk (tmpfs) can only be mounted by root, on Linux")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def make_read_only() -> Iterator[Callable[[Path], None]]:
    """A function that takes the right to write from a folder and all in it, until the test ends."""
    modes: list[tuple[Path, int]] = []

    def forbid(folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            modes.append((path, path.stat().st_mode))
            path.chmod(0o555 if path.is_dir() else 0o444)

    yield forbid
    for path, mode in modes:
        path.chmod(mode)


@pytest.fixture
def refuse_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes a folder read-only in the eyes of the process: a root may write everywhere."""
    may = os.access

    def make(folder: Path) -> None:
        monkeypatch.setattr(
            os, "access", lambda path, mode: may(path, mode) and not (mode & os.W_OK and Path(path) == folder)
        )

    return make


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Twelve different PNG pictures of random blocks, ``pictures/00.png`` to ``pictures/11.png``."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        blocks = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        blocks.resize((48, 40), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Ten classes of three noisy pictures, each class of one color; the fifth and the last are for testing."""
    generator = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "photographs" / f"class{number}"
        folder.mkdir(parents=True)
        color = generator.integers(0, 200, 3)
        for copy in range(3):
            pixels = (color + generator.integers(0, 56, (40, 40, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{copy}.png")
    return tmp_path / "photographs"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of playwright; a test that asks for it is skipped where either is missing."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    playwright_api.expect.set_options(timeout=PATIENCE_MS)
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which no script may fail, and nothing may break the content policy."""
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page, faults = context.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
        yield page
        assert not faults
