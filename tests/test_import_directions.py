"""The order of reading is the allowed direction of import, and most of the package needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrieve

SOURCE = Path(__file__).resolve().parents[1] / "src" / "vitrieve"

ROWS = (
    ("quoting", "errors", "progress", "machine", "systems", "plugins"),
    ("settings", "choices", "objective", "config", "recipes"),
    ("similarity",),
    ("writing", "folders", "artifacts"),
    ("data",),
    ("feedback",),
    ("model",),
    ("runtime",),
    ("embed",),
    ("rerank",),
    ("evaluation",),
    ("training",),
    ("comparison",),
    ("index",),
    ("syncing",),
    ("search",),
    ("curation",),
    ("mapping",),
    ("serve",),
    ("reproduce",),
    ("doctor",),
    ("cli",),
)
"""Top to bottom; inside a row from the left."""
RANKS = {name: rank for rank, name in enumerate(name for row in ROWS for name in row)}

TRAINING_PACKAGES = {"torch", "torchvision", "timm", "tensorboard"}
MAY_USE_TORCH = {
    "comparison/cells.py",
    "comparison/contest.py",
    "data/loader.py",
    "runtime/device.py",
    "runtime/torch_engine.py",
    "objective/memory.py",
    "objective/objective.py",
    "similarity/product.py",
    "reproduce/gradients.py",
    "rerank/learning.py",
    *(
        f"model/{name}.py"
        for name in (
            "backbone",
            "blocks",
            "checkpoint",
            "device_formats",
            "encoder",
            "export",
            "foreign",
            "hugging_face",
            "lora",
            "pooling",
            "pretrained",
            "prompts",
            "reduction",
            "text_export",
            "tower_export",
            "wheels",
        )
    ),
}
MAY_USE_TORCH_FOLDERS = {"training"}
MAY_USE_TORCH_IN_FUNCTIONS = {"objective"}
"""Folders whose files need torch when they are used, and not when they are imported."""
FILES = sorted(SOURCE.rglob("*.py"))


def list_imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(module, name)`` of every import in a file, also inside functions; name is empty for ``import x``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def stage(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def find_offences(path: Path) -> Iterator[str]:
    """Yield what the imports of a file do against the order and against torch."""
    own = stage(path)
    relative = path.relative_to(SOURCE)
    may_use_torch = str(relative) in MAY_USE_TORCH or own in MAY_USE_TORCH_FOLDERS | MAY_USE_TORCH_IN_FUNCTIONS
    for module, name in list_imports(path):
        if module.split(".")[0] in TRAINING_PACKAGES and not may_use_torch:
            yield f"{relative} imports {module}"
        if own in ("__init__", "__main__"):
            continue
        if module == "vitrieve" and name != "__version__":
            yield f"{relative} imports {name} from the public names; it is to be imported from its own file"
        elif module.startswith("vitrieve."):
            imported = module.split(".")[1]
            if imported != own and RANKS[imported] >= RANKS.get(own, -1):
                yield f"{relative} imports {module}"


def test_imports_follow_the_reading_order_and_torch_is_for_training() -> None:
    unknown = {stage(path) for path in FILES} - {*RANKS, "__init__", "__main__"}
    assert not unknown, f"{unknown} have no place in the order; add them to ROWS and docs/architecture.md"
    assert not [offence for path in FILES for offence in find_offences(path)]


def test_find_offences_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "a.py"
    file.write_text("def f():\n    import torch\nfrom vitrieve import train\nfrom vitrieve.index.open import x\n")
    assert len(list(find_offences(file))) == 3


def test_each_package_lists_its_files_in_its_docstring() -> None:
    missing = []
    for init in SOURCE.glob("*/__init__.py"):
        docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        names = [path.name for path in init.parent.glob("*.py") if path != init]
        missing += [f"{init.parent.name}/{name}" for name in names if name not in docstring]
    assert not missing, f"add {missing} to the reading order in the package's __init__.py"


def test_no_cli_module_loads_torch_when_imported() -> None:
    modules = [f"vitrieve.cli.{path.stem}" for path in sorted((SOURCE / "cli").glob("*.py")) if path.stem != "__init__"]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"loaded = sorted({TRAINING_PACKAGES!r} & set(sys.modules))\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_free_modules_import_without_torch(without_torch: str) -> None:
    modules = [
        ".".join(("vitrieve", *path.relative_to(SOURCE).with_suffix("").parts))
        for path in FILES
        if path.stem not in ("__init__", "__main__")
        and str(path.relative_to(SOURCE)) not in MAY_USE_TORCH
        and path.relative_to(SOURCE).parts[0] not in MAY_USE_TORCH_FOLDERS
    ]
    script = f"{without_torch}import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_exist_and_are_listed() -> None:
    assert dir(vitrieve) == sorted(vitrieve.__all__)
    assert {"train", "recipes", "VitrieveError"} < set(vitrieve.__all__)
    for name in vitrieve.__all__:
        assert getattr(vitrieve, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vitrieve.no_such_name


def test_importing_the_package_costs_nothing() -> None:
    script = "import sys, vitrieve; sys.exit(bool({'numpy', 'PIL', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
