"""What ``benchmarks/extras.py`` counts; it installs from the network, which no test uses, so no test runs it whole."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return import_module("extras")


def write_package(folder: Path, name: str, files: dict[str, bytes], *needs: str) -> None:
    """Write files and what an installer leaves beside them."""
    home = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    home.mkdir(parents=True)
    (home / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
    )
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (home / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def test_every_extra_of_users_is_measured_with_what_it_brings(extras: ModuleType) -> None:
    names = extras.list_extras(CHECKOUT)
    assert set(names) == set(extras.BRINGS)
    assert set(names) | set(extras.FOR_DEVELOPERS) == {"core", *PROJECT["optional-dependencies"]}
    assert {name for name in names if "torch" in str(PROJECT["optional-dependencies"].get(name))} == {"train"}


def test_packages_are_counted_with_the_bytes_of_their_files(extras: ModuleType, tmp_path: Path) -> None:
    write_package(tmp_path, "Some_Name", {"some/a.py": b"12345", "some/b.py": b"123"})
    write_package(tmp_path, "other", {"other.py": b"1"})
    assert extras.list_packages(tmp_path) == {"some-name": 8, "other": 1}


def test_what_an_extra_needs_is_followed_to_its_end(
    extras: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["one>=1"]\n[project.optional-dependencies]\n'
        """more = ["two[fast]", "winner; sys_platform == 'nowhere'"]\nless = ["gone"]\n"""
    )
    write_package(tmp_path, "one", {"one.py": b"1"}, "three; python_version > '3'", "ghost; extra == 'other'")
    write_package(tmp_path, "two", {"two.py": b"12"}, 'four; extra == "fast"', "one")
    write_package(tmp_path, "three", {"three.py": b"123"}, "two")  # a circle
    write_package(tmp_path, "four", {"four.py": b"1234"})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.count_here(tmp_path, "core") == {"vitrieve": 0, "one": 1, "three": 3, "two": 2}
    assert extras.count_here(tmp_path, "more") == {"vitrieve": 0, "one": 1, "three": 3, "two": 2, "four": 4}
    with pytest.raises(SystemExit, match="gone is not in this environment"):
        extras.count_here(tmp_path, "less")


def test_torch_is_linked_with_its_libraries_and_nothing_else(
    extras: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, linked = tmp_path / "there", tmp_path / "linked"
    linked.mkdir()
    write_package(there, "numpy", {"numpy/a.py": b"1"})
    monkeypatch.setattr(sys, "path", [str(there)])
    with pytest.raises(SystemExit, match="torch is not in the environment"):
        extras.link_torch(linked)
    write_package(there, "torch", {"torch/a.py": b"12", "../../bin/torchrun": b"run"})
    write_package(there, "nvidia-one", {"nvidia/one/a.so": b"123"})
    write_package(there, "nvidia-two", {"nvidia/two/a.so": b"1234"})
    assert sorted(extras.link_torch(linked)) == ["nvidia-one", "nvidia-two", "torch"]
    assert not (linked / "numpy").exists()
    assert (linked / "nvidia" / "two" / "a.so").read_bytes() == b"1234"


def test_the_table_tells_torch_apart(extras: ModuleType) -> None:
    row = {"wheel_bytes": 2**21, "install_s": 7.4, "install_cpu_s": 5, "num_packages": 3, "num_bytes": 2**30}
    row |= {"import_s": 0.012, "help_s": 0.08, "brings_s": 1.5}
    rows = [
        {**row, "extra": "train", "side": "today", "num_bytes_of_torch": 2**29, "is_torch_here": True},
        {**row, "extra": "core", "side": "before", "num_bytes_of_torch": 0, "is_torch_here": False},
        {**row, "extra": "hub", "side": "today", "num_bytes_of_torch": 0, "is_torch_here": False, "install_s": None},
    ]
    lines = extras.format_table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "7 s without torch | 5 s | 3 | 1,024 MiB | 512 MiB | 1.50 s | 12 ms | 80 ms" in lines[2]
    assert "| 7 s | 5 s | 3 | 1,024 MiB | no torch |" in lines[3]
    assert "| - | 5 s |" in lines[4]


def test_what_is_kept_is_not_measured_again(tmp_path: Path) -> None:
    """Every extra of this checkout is in the file, so no environment is made and nothing fetched but the wheel."""
    script = f"""
import sys; sys.path.insert(0, {str(CHECKOUT / "benchmarks")!r})
import extras, json, pathlib
extras.build_wheel = lambda checkout, folder: pathlib.Path("none.whl")
extras.measure = lambda *words, **flags: sys.exit("measured " + words[1])
row = dict(side="today", wheel_bytes=1, install_s=1, install_cpu_s=1, num_packages=1, num_bytes=1, num_bytes_of_torch=0,
           is_torch_here=False, import_s=1, help_s=1, brings_s=1)
rows = [dict(row, extra=name) for name in extras.list_extras(extras.ROOT)]
file = pathlib.Path({str(tmp_path / "rows.json")!r})
for missing in (None, "serve"):
    file.write_text(json.dumps({{"rows": [row for row in rows if row["extra"] != missing]}}))
    sys.argv = ["extras.py", "--json", str(file)]
    extras.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "measured serve"), done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(PROJECT["optional-dependencies"]) + 1 - 4
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]
