"""What every benchmark of the suite shares: sides that alternate, the lines they end as, and the machine.

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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitrieve.machine import read_peak_memory, restart_peak_memory

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
QUICK_SECONDS, FULL_SECONDS = 30, 120
"""After rounds of so many seconds a contest begins no further one: a slow machine has fewer, not more minutes."""
MIN_ROUNDS = 2
"""So many rounds count at least, however long they take: one has no spread."""
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


@dataclass(frozen=True, kw_only=True)
class Line:
    """One side of one task.

    Attributes:
        section: Part of the suite.
        task: What was done; lines of one task are comparable.
        side: Who did it; those that start with ``vitrieve`` are ours.
        value: Median of the rounds, in ``unit``.
        low: Least of the rounds.
        high: Most of the rounds.
        unit: ``s`` and ``ms`` are better when less, everything else when more.
        size: Of the input, where the task is one point of a curve.
        gflop: Billions of operations (multiplications and additions of the matrix products) a unit, or a call.
        ceiling: The task of the section ``ceilings`` that bounds it; with ``gflop`` None, in the same unit.
        peak_mib: Largest memory, where it was measured; of the process, or above what it held before, as the part says.
        note: For a reader of the page.
        num_rounds: Of which ``value`` is the median; 0: not told.
        rounds: Their values, in the order of the turns; empty: not told.
    """

    section: str
    task: str
    side: str
    value: float
    low: float
    high: float
    unit: str
    size: float | None = None
    gflop: float | None = None
    ceiling: str | None = None
    peak_mib: float | None = None
    note: str = ""
    num_rounds: int = 0
    rounds: Sequence[float] = ()

    @property
    def is_ours(self) -> bool:
        """Return whether this is our side."""
        return self.side.startswith("vitrieve")

    @property
    def is_less_better(self) -> bool:
        """Return whether a smaller value is better."""
        return self.unit in ("s", "ms")

    def times_better_than(self, other: Line) -> float:
        """Return how many times better this side is than another of its task."""
        ratio = self.value / other.value
        return 1 / ratio if self.is_less_better else ratio

    def compare(self, other: Line) -> Ratio:
        """Return how many times better this side is than another of its task, with the spread of the rounds."""
        value = self.times_better_than(other)
        if not self.rounds or len(self.rounds) != len(other.rounds):
            return Ratio(value, value, value)
        ratios = [
            theirs / own if self.is_less_better else own / theirs
            for own, theirs in zip(self.rounds, other.rounds, strict=True)
        ]
        return Ratio(value, min(ratios), max(ratios))

    def share_of(self, ceiling: Line) -> float:
        """Return the part of a ceiling that was reached: of its operations a second, or of its own unit."""
        if self.gflop is None:
            return self.value / ceiling.value
        seconds = self.value / (1000 if self.unit == "ms" else 1)
        return (self.gflop / seconds if self.is_less_better else self.gflop * self.value) / ceiling.value


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
    """Return the seconds after which a contest begins no further round."""
    return QUICK_SECONDS if is_quick else FULL_SECONDS


class Ratio(NamedTuple):
    """How many times better one side is than another.

    Attributes:
        value: Ratio of the medians.
        low: Least of the rounds, each beside the other's round of the same turn.
        high: Most of them.
    """

    value: float
    low: float
    high: float

    @property
    def is_told_apart(self) -> bool:
        """Return whether one side was better in every round."""
        return self.low > 1 or self.high < 1

    def describe(self) -> str:
        """Say it with its spread.

        >>> Ratio(1.5, 1.4, 1.7).describe(), Ratio(1.1, 0.9, 1.2).describe(), Ratio(2, 2, 2).describe()
        ('1.50 x (1.40 to 1.70)', '1.10 x (0.90 to 1.20: not told apart)', '2.00 x')
        """
        if self.low == self.high:
            return f"{self.value:.2f} x"
        doubt = "" if self.is_told_apart else ": not told apart"
        return f"{self.value:.2f} x ({self.low:.2f} to {self.high:.2f}{doubt})"


class Rounds(NamedTuple):
    """What one side needed.

    Attributes:
        seconds: Of each round.
        extra_mib: The most memory above what its process held when the rounds began.
        process_mib: The most memory of its process.
        check: What the last round returned, where that is a number.
        note: What a reader must know of the rounds.
    """

    seconds: list[float]
    extra_mib: float
    process_mib: float
    check: float | None
    note: str


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
        most_seconds: After rounds of so many seconds, all sides together, no further one begins; a warm-up that takes
            as long is the only round, and counts.
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
        for _ in range(num_rounds + 1):
            spent = sum(one["seconds"] for ones in answers.values() for one in ones)
            if spent > most_seconds and len(next(iter(answers.values()))) > min(MIN_ROUNDS, num_rounds):
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
            seconds=[one["seconds"] for one in ones[1:] or ones],
            extra_mib=ones[-1]["process_mib"] - ones[-1]["before_mib"],
            process_mib=ones[-1]["process_mib"],
            check=ones[-1]["check"],
            note="" if ones[1:] else "the first round: too long for a warm-up",
        )
        for side, ones in answers.items()
    }


def _answer_rounds(build_side: BuildSide, words: str) -> None:
    """Be one side: build it, and run a round for each line of standard input."""
    given = json.loads(words)
    run = build_side(given.pop("side"), **given)
    before_mib = _restart_peak()
    for _ in sys.stdin:
        start = time.perf_counter()
        result = run()
        answer = {
            "seconds": time.perf_counter() - start,
            "before_mib": before_mib,
            "process_mib": _peak_mib(),
            "check": result if isinstance(result, float) else None,
        }
        print(json.dumps(answer), flush=True)


def _restart_peak() -> float:
    """Forget the most memory so far, which building a side may have needed for a moment; return what is held now."""
    restart_peak_memory()  # not on Linux: the peak stays what it is
    return _peak_mib()


def _peak_mib() -> float:
    num_bytes = read_peak_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if num_bytes is None else num_bytes / 2**20


def rate_lines(
    section: str, task: str, seconds: Mapping[str, list[float]], num_units: float, unit: str, **more: Any
) -> list[Line]:
    """Make lines of units a second out of seconds a call."""
    return [
        Line(
            section=section,
            task=task,
            side=side,
            value=num_units / statistics.median(rounds),
            low=num_units / max(rounds),
            high=num_units / min(rounds),
            unit=unit,
            num_rounds=len(rounds),
            rounds=[num_units / one for one in rounds],
            **more,
        )
        for side, rounds in seconds.items()
    ]


def time_lines(section: str, task: str, seconds: Mapping[str, list[float]], unit: str = "s", **more: Any) -> list[Line]:
    """Make lines of seconds (or milliseconds) a call."""
    factor = 1000 if unit == "ms" else 1
    return [
        Line(
            section=section,
            task=task,
            side=side,
            value=factor * statistics.median(rounds),
            low=factor * min(rounds),
            high=factor * max(rounds),
            unit=unit,
            num_rounds=len(rounds),
            rounds=[factor * one for one in rounds],
            **more,
        )
        for side, rounds in seconds.items()
    ]


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
        "processor": _processor_name(),
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


def _processor_name() -> str:
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
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    print("| task | side | median | least to most | ours is | peak MiB |\n|---|---|---:|---:|---:|---:|")
    for line in lines:
        ours = next((one for one in lines if one.is_ours and (one.task, one.size) == (line.task, line.size)), line)
        ratio = "" if ours is line else ours.compare(line).describe()
        peak = "" if line.peak_mib is None else f"{line.peak_mib:,.0f}"
        spread = f"{line.low:.4g} to {line.high:.4g}"
        print(f"| {line.task} | {line.side} | {line.value:.4g} {line.unit} | {spread} | {ratio} | {peak} |")
