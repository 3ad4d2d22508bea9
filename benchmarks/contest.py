"""What every benchmark of the suite shares: sides that alternate, and the machine. ``lines.py`` has what they end as.

A part of the suite is a script with ``measure(is_quick) -> list[Line]`` and ``main(measure)`` at its end; ``run.py``
starts each in a process of its own and makes one page of all lines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lines import Line, find_ours

from vitrieve.machine import read_peak_memory, restart_peak_memory
from vitrieve.writing import write_text_durably

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "numpy",
    "torch",
    "timm",
    "openvino",
    "onnxruntime",
    "faiss-cpu",
    "pytorch-metric-learning",
    "torchmetrics",
    "sentence-transformers",
    "lancedb",
    "pillow",
    "nncf",
    "transformers",
)
PINNED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDE_FLAG = "--side"
PAUSE_SECONDS = 0.2
"""Before a side's turn: threads of OpenBLAS go on spinning for a while after the turn of another."""
LEAST_ROUNDS = 3
"""Rounds that a contest has, however long they take (or all, if it is to have fewer): one or two tell no noise."""
QUICK_SECONDS, FULL_SECONDS = 30, 120
"""After rounds of so many seconds a contest begins no more than those: a slow machine has fewer, not more minutes."""
BuildSide = Callable[..., Callable[[], object]]
FP32, BF16, INT8 = "product, fp32", "product, bf16", "product, int8"
"""The ceilings of products, by the names of their tasks."""
DECODING = "decoding alone"
LIBRARIES = """
import re, numpy, threadpoolctl, torch
for one in threadpoolctl.threadpool_info():
    if one["user_api"] == "blas":
        print("NumPy: OpenBLAS", one["version"], "for", one["architecture"] + ",", one["num_threads"], "threads")
onednn = re.search(r"MKL-DNN v(\\S+)|oneDNN v(\\S+)", torch.__config__.show())
print("torch: oneDNN", onednn[1] or onednn[2] if onednn else "unknown", "for", torch.backends.cpu.get_cpu_capability())
"""
RECORDED = (*PINNED, "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def alternate(sides: Mapping[str, Callable[[], object]], num_rounds: int) -> dict[str, list[float]]:
    """Time sides in turn; the round before the first one warms up and does not count.

    Returns:
        Seconds of each round of each side.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(num_rounds + 1):
        for side, run in sides.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number:
                seconds[side].append(elapsed)
            print(f"  {side}: {elapsed:.3f} s{'' if number else ' (warm-up)'}", file=sys.stderr, flush=True)
    return seconds


def max_seconds(is_quick: bool) -> float:
    """Return the seconds after which a contest begins no more than the least rounds."""
    return QUICK_SECONDS if is_quick else FULL_SECONDS


class Rounds(NamedTuple):
    """What one side needed.

    Attributes:
        seconds: Of each round.
        extra_mib: The most memory above what its process held when the rounds began.
        process_mib: The most memory of its process.
        check: What the last round returned, where that is a number.
    """

    seconds: list[float]
    extra_mib: float
    process_mib: float
    check: float | None


def alternate_processes(
    script: str,
    sides: Sequence[str],
    num_rounds: int,
    most_seconds: float = FULL_SECONDS,
    *,
    others: Mapping[str, tuple[list[str], dict[str, Any]]] | None = None,
    **given: Any,
) -> dict[str, Rounds]:
    """Time sides in turn, each in a process of its own that stays; the round before the first one warms up.

    Args:
        script: ``__file__`` of the caller, whose ``main`` gets ``build_side``.
        sides: Their names.
        num_rounds: Rounds that count.
        most_seconds: After rounds of so many seconds, all sides and the warm-up together, no further one begins,
            unless there were fewer than ``LEAST_ROUNDS`` that count.
        others: More sides, in scripts and environments of their own: how each is started, and what is passed on to it.
        given: Passed on to ``build_side``; anything that JSON can say.
    """
    started = {side: ([sys.executable, script], given) for side in sides} | dict(others or {})
    processes = {
        side: subprocess.Popen(
            [*command, SIDE_FLAG, json.dumps({"side": side, **passed})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side, (command, passed) in started.items()
    }
    try:
        answers: dict[str, list[dict[str, Any]]] = {side: [] for side in processes}
        for number in range(num_rounds + 1):
            spent = sum(one["seconds"] for ones in answers.values() for one in ones)
            if number > LEAST_ROUNDS and spent > most_seconds:
                break
            for side, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                time.sleep(PAUSE_SECONDS)
                try:
                    process.stdin.write("\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                except BrokenPipeError:
                    answer = ""
                if not answer:
                    raise RuntimeError(f"{side} stopped; its reason stands above, or the machine ran out of memory.")
                answers[side].append(json.loads(answer))
                print(f"  {side}: {answers[side][-1]}", file=sys.stderr, flush=True)
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {
        side: Rounds(
            seconds=[one["seconds"] for one in ones[1:]],
            extra_mib=ones[-1]["process_mib"] - ones[-1]["before_mib"],
            process_mib=ones[-1]["process_mib"],
            check=ones[-1]["check"],
        )
        for side, ones in answers.items()
    }


def _answer_rounds(build_side: BuildSide, words: str) -> None:
    """Be one side: build it, and run a round for each line of standard input."""
    given = json.loads(words)
    run = build_side(given.pop("side"), **given)
    before_mib = restart_peak()
    for _ in sys.stdin:
        start = time.perf_counter()
        result = run()
        answer = {
            "seconds": time.perf_counter() - start,
            "before_mib": before_mib,
            "process_mib": peak_mib(),
            "check": result if isinstance(result, float) else None,
        }
        print(json.dumps(answer), flush=True)


def restart_peak() -> float:
    """Forget the most memory so far, which building a side may have needed for a moment; return the MiB held now."""
    restart_peak_memory()  # not on Linux: the peak stays what it is
    return peak_mib()


def peak_mib() -> float:
    """Return the most MiB of memory that this process has held."""
    num_bytes = read_peak_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if num_bytes is None else num_bytes / 2**20


def pin_threads() -> int:
    """Give every library of this process, and of those it starts, as many threads as there are cores."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in PINNED:
        os.environ.setdefault(name, str(num_cores))
    return num_cores


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "instructions": _instructions(),
        "num_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "libraries": _libraries(),
        "packages": {name: _version(name) for name in PACKAGES},
        "settings": {name: os.environ.get(name, "not set") for name in RECORDED},
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a file of results, with the machine that they are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = json.dumps({**result, "machine": describe_machine()}, indent=1, ensure_ascii=False)
    write_text_durably(path, written + "\n")


def has_bf16() -> bool:
    """Return whether the processor multiplies bf16; emulated, a product takes 400 times as long, so it is left out."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_instructions())


def has_int8() -> bool:
    """Return whether the processor multiplies int8."""
    return not {"avx_vnni", "avx512_vnni", "amx_int8"}.isdisjoint(_instructions())


def has_avx512() -> bool:
    """Return whether the processor computes with 16 float32 numbers at a time."""
    return "avx512f" in _instructions()


def best_product() -> str:
    """Return the ceiling of what computes in bf16 where the processor has it, else in fp32."""
    return BF16 if has_bf16() else FP32


def processor_name() -> str:
    """Return the name of the processor as the system tells it, which is its architecture alone outside of Linux."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def _instructions() -> list[str]:
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.exists() else []
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return [name for name in wanted if name in flags]


def _libraries() -> list[str]:
    """Return what multiplies here, and by which instructions; asked for in another process, as it loads them."""
    done = subprocess.run([sys.executable, "-c", LIBRARIES], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main(measure: Callable[[bool], list[Line]], description: str | None, build_side: BuildSide | None = None) -> None:
    """Run one part of the suite; prints a table, and writes its lines where ``--json`` says.

    Args:
        measure: The part; takes whether to be quick.
        description: For ``--help``.
        build_side: From a side's name and what else was given to what a round does, for ``alternate_processes``.
    """
    if sys.argv[1:2] == [SIDE_FLAG]:
        assert build_side is not None
        _answer_rounds(build_side, sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer rounds")
    parser.add_argument("--json", type=Path, help="file for the lines")
    arguments = parser.parse_args()
    pin_threads()
    lines = measure(arguments.quick)
    if arguments.json:
        write_result(arguments.json, {"lines": [asdict(line) for line in lines]})
    print("| task | side | median | least to most | ours is | peak MiB |\n|---|---|---:|---:|---:|---:|")
    for line in lines:
        ours = find_ours(line, lines)
        ratio = "" if ours is None else ours.compare(line).describe()
        peak = "" if line.peak_mib is None else f"{line.peak_mib:,.0f}"
        spread = f"{line.low:.4g} to {line.high:.4g}"
        print(f"| {line.task} | {line.side} | {line.value:.4g} {line.unit} | {spread} | {ratio} | {peak} |")
