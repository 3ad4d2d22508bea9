"""What each extra costs whoever installs it: seconds, packages, bytes, and the time of its imports.

    python benchmarks/extras.py [EXTRA...] [--before CHECKOUT] [--torch-here] [--json FILE]
    python benchmarks/extras.py --here [EXTRA...] [--before CHECKOUT] [--json FILE]

A wheel is built of this checkout, and of an earlier one. For each extra it is installed into a fresh environment of the
Python that runs this script, without pip's cache; ``core`` is the wheel alone. Counted is what the installation added:
packages, bytes of all files, of which torch with its CUDA libraries apart. Then ``pip check`` must pass, and the
imports run in new processes with the page cache warm: the median of ``--rounds``, the first left out.

torch and CUDA's libraries are gigabytes. ``--torch-here`` takes them from the environment that runs the script, by
links, so an installation is timed without them; their bytes are those of the linked files. Rows that FILE has already
are not measured again, so a run that was stopped goes on. Where others use the machine, the seconds of the processor
say more than those of the wall; those of the imports are of the processor.

``--here`` installs nothing. It counts, in the environment that runs the script, the packages that an extra needs, those
they need, and so on: the same packages and bytes, where that environment has them all, in seconds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contest import processor_name
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CORE = "core"
FOR_DEVELOPERS = ("test", "bench", "check", "docs")
"""Extras that nobody installs who uses the package."""
BRINGS = {
    CORE: "lancedb, numpy, onnx, onnxruntime, PIL, pyarrow, safetensors",
    "train": "openvino, tensorboard, timm, torch, torchvision",
    "emoji": "resvg_py",
    "fast": "openvino",
    "hub": "huggingface_hub",
    "int8": "nncf, openvino",
    "heic": "pillow_heif",
    "raw": "rawpy",
    "remote": "aiohttp, fsspec, s3fs",
    "map": "openTSNE",
    "milvus": "pymilvus",
    "pgvector": "pgvector.psycopg, psycopg",
    "ray": "ray",
    "ocr": "rapidocr_onnxruntime",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "words": "tokenizers",
    "serve": "faiss, fastapi, prometheus_client, uvicorn",
    "mcp": "fastapi, mcp, uvicorn",
}
"""The modules of each extra, which its commands import."""
HEAVY = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)")
"""Names of the packages that ``--torch-here`` links."""
NEEDS_TORCH = ("train",)
TIMED_IMPORT = "import time; start = time.process_time(); import {modules}; print(time.process_time() - start)"


def list_extras(checkout: Path) -> list[str]:
    """List the extras for users of a checkout, without those of developers; the wheel alone is the first."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [CORE, *(name for name in project["optional-dependencies"] if name not in FOR_DEVELOPERS)]


def normalize(name: str) -> str:
    """Return the name of a package as the index of packages compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_bytes_of(distribution: importlib.metadata.Distribution) -> int:
    """Return the bytes of the files of a package; links are followed."""
    paths = {Path(str(distribution.locate_file(path))) for path in distribution.files or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())


def is_heavy(name: str) -> bool:
    """Return whether a package is torch, or one of the libraries of gigabytes that it needs."""
    return HEAVY.fullmatch(normalize(name)) is not None


def list_packages(folder: Path) -> dict[str, int]:
    """List the packages in a folder of packages, by name, with the bytes of their files; links are followed."""
    found = importlib.metadata.distributions(path=[str(folder)])
    return {normalize(one.metadata["Name"]): read_bytes_of(one) for one in found}


def count_here(checkout: Path, extra: str) -> dict[str, int]:
    """List what a checkout with an extra needs, and what that needs in turn, with bytes, in this environment.

    Raises:
        SystemExit: A package is not here.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra != CORE else [])]
    found: dict[str, int] = {"vitrieve": 0}
    seen: set[tuple[str, str]] = set()
    while waiting:
        asked = Requirement(waiting.pop())
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        name = normalize(asked.name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is not in this environment; leave --here away, or install {extra}.") from None
        found[name] = found.get(name) or read_bytes_of(distribution)
        for part in {"", *asked.extras}:
            if (name, part) in seen:
                continue
            seen.add((name, part))
            for text in distribution.requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": part}):
                    needed.marker = None
                    waiting.append(str(needed))
    return found


def link_torch(folder: Path) -> list[str]:
    """Link torch and its libraries from the environment of this script into a folder; return their names.

    Raises:
        SystemExit: torch is not there.
    """
    linked = []
    for one in importlib.metadata.distributions():
        if not is_heavy(one.metadata["Name"]):
            continue
        linked.append(one.metadata["Name"])
        home = Path(str(one.locate_file("")))
        for top in sorted({path.parts[0] for path in one.files or () if path.parts[0] not in ("..", "__pycache__")}):
            if not (folder / top).exists():  # nvidia is one folder of several packages
                (folder / top).symlink_to(home / top)
    if "torch" not in map(normalize, linked):
        raise SystemExit("torch is not in the environment that runs this script; leave --torch-here away.")
    return linked


def run(*words: str | Path, cwd: Path | None = None, source: Path | None = None) -> str:
    """Run a command; return its standard output, and stop with its own words where it fails.

    Args:
        words: The command.
        cwd: Folder to run it in.
        source: Folder of modules for Python that come first; None: what is installed alone.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(source)} if source else {}
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, words))} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a checkout."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, checkout)
    (wheel,) = folder.glob("vitrieve-*.whl")
    return wheel


def count_wheel(wheel: Path) -> int:
    """Return the bytes of the files in a wheel, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def measure_children() -> float:
    """Return the seconds of the processor that ended processes of this one took."""
    times = os.times()
    return times.children_user + times.children_system


def take_median(values: Iterable[float]) -> float:
    """Return the median without the first value, which warms the page cache."""
    return statistics.median(list(values)[1:])


def measure(wheel: Path, extra: str, work: Path, *, is_torch_here: bool, num_rounds: int) -> dict[str, Any]:
    """Install the wheel with an extra into a fresh environment below ``work``, and measure it."""
    environment = work / "environment"
    run(sys.executable, "-m", "venv", environment)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    before = set(list_packages(site))
    is_linked = is_torch_here and extra in NEEDS_TORCH
    if is_linked:
        linked = work / "torch"
        linked.mkdir()
        link_torch(linked)
        (site / "torch_here.pth").write_text(f"{linked}\n", encoding="utf-8")
    target = str(wheel) if extra == CORE else f"{wheel}[{extra}]"
    start, used = time.perf_counter(), measure_children()
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", target)
    seconds, used = time.perf_counter() - start, measure_children() - used
    run(python, "-m", "pip", "check", cwd=work)
    packages = list_packages(site)
    if is_linked:
        packages |= list_packages(linked)
    added = {name: size for name, size in packages.items() if name not in before}
    timed = time_imports(python, extra, work, num_rounds)
    return {"install_s": seconds, "install_cpu_s": used, "is_torch_here": is_linked, **describe(added), **timed}


def describe(packages: dict[str, int]) -> dict[str, int]:
    """Count packages and bytes, those of torch and its libraries apart."""
    return {
        "num_packages": len(packages),
        "num_bytes": sum(packages.values()),
        "num_bytes_of_torch": sum(size for name, size in packages.items() if is_heavy(name)),
    }


def time_imports(
    python: str | Path, extra: str, work: Path, num_rounds: int, source: Path | None = None
) -> dict[str, Any]:
    """Take the seconds of the processor for the package, its help, and what an extra brings, in new processes."""
    rounds = range(num_rounds + 1)

    def time_import(modules: str) -> float:
        return take_median(
            float(run(python, "-c", TIMED_IMPORT.format(modules=modules), cwd=work, source=source)) for _ in rounds
        )

    def time_help() -> float:
        used = measure_children()
        run(python, "-m", "vitrieve", "--help", cwd=work, source=source)
        return measure_children() - used

    return {
        "import_s": time_import("vitrieve"),
        "help_s": take_median(time_help() for _ in rounds),
        "brings": BRINGS[extra],
        "brings_s": time_import(BRINGS[extra]),
    }


def format_seconds(seconds: float | None, is_without_torch: bool = False) -> str:
    """Write seconds that may not have been measured."""
    return "-" if seconds is None else f"{seconds:.0f} s{' without torch' if is_without_torch else ''}"


def format_table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as a table in Markdown, sides below each other."""
    lines = ["| extra | side | wheel | installation | of the processor | packages | installed | of it torch |"]
    lines[0] += " its imports | `import vitrieve` | `--help` |"
    lines.append("|" + "---|" * 11)
    for row in rows:
        torch = f"{row['num_bytes_of_torch'] / 2**20:,.0f} MiB" if row["num_bytes_of_torch"] else "no torch"
        lines.append(
            f"| `{row['extra']}` | {row['side']} | {row['wheel_bytes'] / 2**20:.1f} MiB "
            f"| {format_seconds(row['install_s'], row['is_torch_here'])} "
            f"| {format_seconds(row['install_cpu_s'])} | {row['num_packages']} "
            f"| {row['num_bytes'] / 2**20:,.0f} MiB | {torch} | {row['brings_s']:.2f} s "
            f"| {row['import_s'] * 1000:.0f} ms | {row['help_s'] * 1000:.0f} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="extras to measure, core among them; by default all for users")
    parser.add_argument("--before", type=Path, help="checkout of an earlier state, measured beside this one")
    parser.add_argument("--torch-here", action="store_true", help="link torch from this environment, not fetch it")
    parser.add_argument("--here", action="store_true", help="install nothing, and count in this environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the rows there; those that it has are not measured again")
    arguments = parser.parse_args()
    unknown = set(arguments.extras) - set(list_extras(ROOT))
    if unknown:
        parser.error(f"there is no extra {min(unknown)}; expected {', '.join(list_extras(ROOT))}")
    sides = {"today": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    kept: dict[str, Any] = {"rows": []}
    if arguments.json and arguments.json.exists():
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))
    kept["machine"] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "system": sys.platform,
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    with tempfile.TemporaryDirectory(prefix="vitrieve-extras-") as folder:
        for side, checkout in sides.items():
            wheel = build_wheel(checkout, Path(folder) / side)
            has = {row["extra"] for row in kept["rows"] if row["side"] == side}
            for extra in arguments.extras or list_extras(checkout):
                if extra in has or extra not in list_extras(checkout):
                    continue
                print(f"{side}: {extra} …", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    if arguments.here:
                        row = {"install_s": None, "install_cpu_s": None, "is_torch_here": False}
                        row |= describe(count_here(checkout, extra) | {"vitrieve": count_wheel(wheel)})
                        row |= time_imports(sys.executable, extra, Path(work), arguments.rounds, checkout / "src")
                    else:
                        flags = {"is_torch_here": arguments.torch_here, "num_rounds": arguments.rounds}
                        row = measure(wheel, extra, Path(work), **flags)
                kept["rows"].append({"extra": extra, "side": side, "wheel_bytes": wheel.stat().st_size, **row})
                if arguments.json:
                    arguments.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(format_table(sorted(kept["rows"], key=lambda row: (list(BRINGS).index(row["extra"]), row["side"]))))


if __name__ == "__main__":
    main()
