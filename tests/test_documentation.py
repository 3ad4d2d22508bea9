"""Every code block of the README and the pages runs; what cannot run here says why; links lead somewhere.

Blocks of shell and Python run page by page, in order, in a folder with a few tiny photographs. Recipes keep their names
and lose their length: a small random model, and two steps. A block before which a comment says ``not run: REASON`` is
left out, and the reason is one of ``REASONS``.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.cli.main import COMMANDS, main
from vitrieve.config import Config
from vitrieve.recipes import RECIPES, Recipe

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
OTHER_PAGES = [CHECKOUT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "dev/LOG.md")]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
PROGRAMS = ("sh", "python")
"""Languages of blocks that run."""
TEXTS = ("text", "csv", "nginx", "yaml", "toml", "json", "math")
"""Languages of blocks that are read: output, other programs' settings, equations."""
REASONS = (
    "fetches data and weights, and runs the tests",
    "installs packages",
    "needs a CUDA device",
    "needs a Milvus server",
    "needs a PostgreSQL server",
    "needs a cluster of Kubernetes",
    "needs a cluster of Ray",
    "needs a container engine",
    "needs a server of the S3 protocol",
    "needs SLURM",
    "needs a benchmark that must be fetched by hand",
    "needs pre-trained weights",
    "needs a finished run",
    "needs root",
    "needs the model hub",
    "needs several CUDA devices",
    "needs the extras wandb and mlflow",
    "needs two hosts",
    "runs the tests",
    "runs until Ctrl-C",
    "moves files",
    "needs a labeled source and an encoder",
    "needs an index",
    "needs another library",
    "needs another library and its data sets",
    "needs weights of others",
    "needs a running service",
    "needs an index with feedback",
    "trains for minutes",
)
SERVER = "http://127.0.0.1:8000"
"""The address in the pages; the test takes a free port."""
PREPARED = ("runs/mine", "embeddings", "index")
"""What a page may use without making it: the results of the README's commands."""

Namespace = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page: its language, its text, and the comment in the line before it."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None when it is."""
        found = re.fullmatch(r"not run: (.+)", self.comment)
        return found[1] if found else None

    @property
    def is_run(self) -> bool:
        return self.language in PROGRAMS and self.reason is None

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    blocks, start, lines = [], None, page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        comment = re.fullmatch(r"<!-- (.*) -->", lines[start - 1])
        blocks.append(
            Block(
                page=page,
                line=start + 1,
                language=lines[start].removeprefix("```"),
                text="\n".join(lines[start + 1 : number]),
                comment=comment[1] if comment else "",
            )
        )
        start = None
    assert start is None, f"{page}: the block of line {start} has no end"
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


# What the blocks run on


@pytest.fixture(scope="module")
def quick_recipes(tiny_weights: Path) -> Iterator[None]:
    """The recipes by their names, with a small random model and few steps."""

    def quicken(recipe: Recipe) -> Recipe:
        def quick() -> Config:
            config = recipe()
            model = replace(config.model, backbone="test_vit", weights=str(tiny_weights), image_size=32)
            steps = {"num_steps": 2, "evaluate_every": 2, "checkpoint_every": 2}
            train = replace(config.train, batch_size=8, microbatch_size=8, num_threads=1, **steps)
            return replace(config, model=model, train=train)

        quick.__doc__ = recipe.__doc__
        return quick

    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in RECIPES.items():
            patch.setitem(RECIPES, name, quicken(recipe))
        yield


def make_photographs(folder: Path) -> None:
    """Ten classes of four small pictures, each class of one color: so many that two are kept for testing."""
    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
        color = generator.integers(0, 200, 3)
        for copy in range(4):
            pixels = (color + generator.integers(0, 56, (40, 36, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{copy}.png")


@pytest.fixture(scope="module")
def prepared_folder(quick_recipes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have been run: photographs, a query, a run, embeddings, an index."""
    folder = tmp_path_factory.mktemp("documentation")
    make_photographs(folder / "PHOTOGRAPHS")
    shutil.copy(folder / "PHOTOGRAPHS" / "class0" / "0.png", folder / "query.jpg")
    shutil.copy(folder / "PHOTOGRAPHS" / "class1" / "1.png", folder / "other.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "train small --data folder:PHOTOGRAPHS --out runs/mine",
            "embed --encoder runs/mine --data PHOTOGRAPHS --out embeddings",
            "index --embeddings embeddings --out index",
        ):
            assert main(words.split()) == 0
    return folder


@pytest.fixture
def workplace(prepared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page: a copy of the prepared one."""
    folder = tmp_path / "work"
    shutil.copytree(prepared_folder, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VITRIEVE_CONFIG")  # a page keeps flags in a file of its project
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch measure: most of the time of a contest of tiny models is their exports, which the other pages have."""
    for name in ("vitrieve.comparison.cells", "vitrieve.training.finishing"):
        monkeypatch.setattr(f"{name}.export_folder", lambda folder: None)


@pytest.fixture
def server(workplace: Path, tmp_path: Path) -> Iterator[str]:
    """The address of ``vitrieve serve`` on the prepared index."""
    words = [sys.executable, "-m", "vitrieve", "serve", "--index", "index", "--port", "0", "--num-threads", "1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=workplace, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().rstrip("/")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def remove_what_is_made(blocks: list[Block], folder: Path) -> None:
    """Remove the prepared results that a page makes itself."""
    text = "\n".join(block.text for block in blocks if block.is_run)
    for name in PREPARED:
        if re.search(rf"--out {name}\b|out=\"{name}\"", text):
            shutil.rmtree(folder / name)


def run_block(block: Block, address: str) -> None:
    if block.language == "python":
        code = compile(block.text, str(block), "exec")
        exec(code, {"__name__": "__main__"})
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "vitrieve":
            assert main(words[1:]) == 0, f"{block}: {line}"
        else:
            command = line.replace(SERVER, address)
            subprocess.run(["bash", "-euc", command], check=True, capture_output=True, timeout=60)


# The tests


def test_blocks_are_run_or_say_why_not() -> None:
    unknown = [str(block) for block in BLOCKS if block.language not in (*PROGRAMS, *TEXTS)]
    assert not unknown, f"a block needs one of the languages {PROGRAMS + TEXTS}: {unknown}"
    comments = {str(block): block.comment for block in BLOCKS if block.comment and block.reason is None}
    assert not comments, f"the comment before a block is 'not run: REASON': {comments}"
    reasons = {block.reason for block in BLOCKS if block.reason is not None}
    assert reasons == set(REASONS), "REASONS lists the reasons that are used, and no other"
    excused = [str(block) for block in BLOCKS if block.reason is not None and block.language not in PROGRAMS]
    assert not excused, f"only blocks that would run need a reason: {excused}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.is_run for block in read_blocks(page))], ids=lambda page: page.name
)
def test_page_runs(page: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    blocks = read_blocks(page)
    remove_what_is_made(blocks, workplace)
    if page.name == "comparing.md":
        request.getfixturevalue("without_export")
    address = ""
    if any(block.is_run and SERVER in block.text for block in blocks):
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        address = request.getfixturevalue("server")
    for block in blocks:
        if block.is_run:
            run_block(block, address)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(notebook: Path, workplace: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    namespace: Namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], f"{notebook.name}: cell {number} is kept with its output; clear all outputs"
        exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), namespace)


def test_notebooks_are_three() -> None:
    assert len(NOTEBOOKS) == 3


def test_readme_is_one_page() -> None:
    lines = (CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", [CHECKOUT / "README.md", *OTHER_PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """The links of the pages of the site are checked by its build, which is strict."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in list_anchors(path), f"{page.name}: {target}"


def list_anchors(page: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both spell them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_rows_of_tables_have_as_many_cells_as_their_heads(page: Path) -> None:
    """Where a row has more, a page shows the first ones and drops the rest."""
    lines, fences = page.read_text(encoding="utf-8").splitlines(), 0
    num_cells = None
    for number, line in enumerate(lines, start=1):
        fences += line.startswith("```")
        if fences % 2 or not line.startswith("|"):
            num_cells = None
            continue
        count = len(re.findall(r"(?<!\\)\|", line)) - 1
        num_cells = num_cells or count
        assert count == num_cells, f"{page.name}:{number} has {count} cells, and its head {num_cells}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests|docs|dev|benchmarks|notebooks)/[^`\s]+)`", text):
        found = list(CHECKOUT.glob(name.rstrip("/"))) if "NAME" not in name else [page]
        assert found, f"{page.name} names {name}, which is not there"


def test_generated_reference_has_every_command_and_flag() -> None:
    pytest.importorskip("mkdocs", reason="needs vitrieve[docs]")
    sys.path.insert(0, str(CHECKOUT / "dev"))
    try:
        import site_pages
    finally:
        sys.path.remove(str(CHECKOUT / "dev"))
    text = site_pages.build_commands_page()
    for name in COMMANDS:
        assert f"## vitrieve {name} " in text
    assert "| `--index PATH` | required | " in text
    assert "| `-k INT, --k INT` | `10` | " in text
    assert "| `--objective.koleo" in text
    assert "(default:" not in text
    assert "### irt_r_sop" in site_pages.build_recipes_page()
    assert "::: vitrieve.Searcher" in site_pages.build_python_page()
