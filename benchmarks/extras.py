"""What each extra costs whoever installs it: seconds, packages, bytes, and the time of its imports.

    python benchmarks/extras.py [EXTRA...] [--before CHECKOUT] [--torch-here] [--json FILE]

A wheel is built of this checkout, and of an earlier one. For each extra it is installed into a fresh environment of the
Python that runs this script, without pip's cache; ``core`` is the wheel alone. Counted is what the installation added:
packages, bytes of all files, of which torch with its CUDA libraries apart. Then ``pip check`` must pass, and the
imports run in new processes with the page cache warm: the median of ``--rounds``, the first left out.

torch and CUDA's libraries are gigabytes. ``--torch-here`` takes them from the environment that runs the script, by
links, so an installation is timed without them; their bytes are those of the linked files. Rows that FILE has already
are not measured again, so a run that was stopped goes on. Where others use the machine, the seconds of the processor
say more than those of the wall.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
TIMED_IMPORT = "import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"


def list_extras(checkout: Path) -> list[str]:
    """List the extras for users of a checkout, without those of developers; the wheel alone is the first."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [CORE, *(name for name in project["optional-dependencies"] if name not in FOR_DEVELOPERS)]


def normalize(name: str) -> str:
    """Return the name of a package as the index of packages compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_heavy(name: str) -> bool:
    """Return whether a package is torch, or one of the libraries of gigabytes that it needs."""
    return HEAVY.fullmatch(normalize(name)) is not None


def list_packages(folder: Path) -> dict[str, int]:
    """List the packages in a folder of packages, by name, with the bytes of their files; links are followed."""
    found = {}
    for one in importlib.metadata.distributions(path=[str(folder)]):
        paths = {Path(str(one.locate_file(path))) for path in one.files or ()}
        found[normalize(one.metadata["Name"])] = sum(path.stat().st_size for path in paths if path.is_file())
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


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a command; return its standard output, and stop with its own words where it fails."""
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
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
    rounds = range(num_rounds + 1)

    def time_import(modules: str) -> float:
        return take_median(float(run(python, "-c", TIMED_IMPORT.format(modules=modules), cwd=work)) for _ in rounds)

    def time_help() -> float:
        begun = time.perf_counter()
        run(python, "-m", "vitrieve", "--help", cwd=work)
        return time.perf_counter() - begun

    return {
        "install_s": seconds,
        "install_cpu_s": used,
        "num_packages": len(added),
        "num_bytes": sum(added.values()),
        "num_bytes_of_torch": sum(size for name, size in added.items() if is_heavy(name)),
        "is_torch_here": is_linked,
        "import_s": time_import("vitrieve"),
        "help_s": take_median(time_help() for _ in rounds),
        "brings": BRINGS.get(extra, ""),
        "brings_s": time_import(BRINGS[extra]) if extra in BRINGS else None,
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as a table in Markdown, sides below each other."""
    lines = ["| extra | side | wheel | installation | of the processor | packages | installed | of it torch |"]
    lines[0] += " its imports | `import vitrieve` | `--help` |"
    lines.append("|" + "---|" * 11)
    for row in rows:
        torch = f"{row['num_bytes_of_torch'] / 2**20:,.0f} MiB" if row["num_bytes_of_torch"] else "no torch"
        lines.append(
            f"| `{row['extra']}` | {row['side']} | {row['wheel_bytes'] / 2**20:.1f} MiB "
            f"| {row['install_s']:.0f} s{' without torch' if row['is_torch_here'] else ''} "
            f"| {row['install_cpu_s']:.0f} s | {row['num_packages']} "
            f"| {row['num_bytes'] / 2**20:,.0f} MiB | {torch} | {row['brings_s'] or 0:.2f} s "
            f"| {row['import_s'] * 1000:.0f} ms | {row['help_s'] * 1000:.0f} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="extras to measure, core among them; by default all for users")
    parser.add_argument("--before", type=Path, help="checkout of an earlier state, measured beside this one")
    parser.add_argument("--torch-here", action="store_true", help="link torch from this environment, not fetch it")
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
                    flags = {"is_torch_here": arguments.torch_here, "num_rounds": arguments.rounds}
                    row = measure(wheel, extra, Path(work), **flags)
                kept["rows"].append({"extra": extra, "side": side, "wheel_bytes": wheel.stat().st_size, **row})
                if arguments.json:
                    arguments.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(format_table(sorted(kept["rows"], key=lambda row: (list(BRINGS).index(row["extra"]), row["side"]))))


if __name__ == "__main__":
    main()
