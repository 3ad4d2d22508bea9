"""Does a server grow whose index is replaced again and again? ``python benchmarks/replaced_index.py FOLDER WORK``.

A `vitrieve serve` answers uploaded pictures while `vitrieve index --overwrite` replaces its index by one of another
encoder, in turn. After each exchange that the server has loaded, its resident memory is printed, in MiB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

ENCODER = "dinov2-vits14"
SIZES = (112, 98)
"""Sides of a picture; another side is another encoder."""
NUM_QUESTIONS = 10
"""Asked after each exchange."""


def run(*words: object) -> None:
    """Run a command of vitrieve; its progress is shown, its result is not."""
    subprocess.run([sys.executable, "-m", "vitrieve", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def read_resident_mib(pid: int) -> float:
    """Read what a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]


def ask(address: str, picture: bytes) -> int:
    """Search with an uploaded picture; return the status, 0 without an answer."""
    try:
        return httpx.post(f"{address}/search", content=picture, timeout=60).status_code
    except httpx.TransportError:
        return 0


def main() -> None:
    """Prepare both indexes, exchange them, print the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of photographs")
    parser.add_argument("work", type=Path, help="an empty folder")
    parser.add_argument("--times", type=int, default=40)
    arguments = parser.parse_args()
    work, index, log = arguments.work, arguments.work / "index", arguments.work / "serve.log"
    pictures = sorted(arguments.folder.rglob("*.jpg"))[:400]
    (work / "pictures").mkdir(parents=True)
    for number, path in enumerate(pictures):
        (work / "pictures" / f"{number:04}.jpg").symlink_to(path.resolve())
    for size in SIZES:
        words = ("--encoder", ENCODER, "--image-size", size, "--data", work / "pictures", "--out", work / str(size))
        run("embed", *words)
    run("index", "--embeddings", work / str(SIZES[0]), "--out", index)
    with log.open("w") as file:
        words = [sys.executable, "-m", "vitrieve", "serve", "--index", str(index), "--port", "0"]
        words += ["--reads-per-minute", "0"]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=file, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip().rstrip("/")
    picture = pictures[0].read_bytes()
    memory = []
    try:
        for number, size in zip(range(arguments.times), itertools.cycle(SIZES[::-1]), strict=False):
            run("index", "--embeddings", work / str(size), "--out", index, "--overwrite")
            while log.read_text().count('"reloaded"') <= number or ask(address, picture) != 200:
                ask(address, picture)
                time.sleep(0.2)
            assert all(ask(address, picture) == 200 for _ in range(NUM_QUESTIONS))
            memory.append(round(read_resident_mib(server.pid)))
            print(number + 1, memory[-1], "MiB", flush=True)
    finally:
        server.terminate()
        server.wait()
    third = len(memory) // 3
    means = {name: sum(part) / len(part) for name, part in (("first", memory[:third]), ("last", memory[-third:]))}
    print(json.dumps({"times": len(memory), "mean_mib_of_third": means}))


if __name__ == "__main__":
    main()
