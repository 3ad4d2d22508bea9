"""Load on the service over the loopback: by vector, by id and by uploaded photograph, with several clients.

    python benchmarks/service_load.py WORK GROCERY_FOLDER [--num-vectors 100000] [--num-clients 4] [--seconds 200]
        [--image-size 112] [--resident-mib 1024] [--before CHECKOUT]

`vitrieve serve` answers from an index of --num-vectors images in WORK: the photographs of Grocery, embedded by
dinov2-vits14, and copies of their vectors with noise, which point at the same files. Each client is a process of its
own that sends its next request when the answer is there; three rounds of --seconds, one of each kind (200 s each: ten
minutes in all). The server's memory and its time of the processor are read from /metrics every five seconds. With
--before the server of an earlier checkout takes turns with this one, four turns a round and each its --seconds in all;
so the ratio holds where the machine's speed drifts; the side that begins changes from turn to turn. Writes
results/service_load_DATE.json, with the size in its name where that is another. Clients and server share the machine's
cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from contest import describe_machine
from vector_stores import perturb

from vitrieve.data.sources import read_source
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder

ENCODER, IMAGE_SIZE = "dinov2-vits14", 112
NUM_TURNS = 4
RESULTS = Path(__file__).parent / "results"
KINDS = ("vector", "id", "image")
MEMORY_SECONDS = 5.0


def ensure_index(work: Path, folder: Path, num_vectors: int, image_size: int = IMAGE_SIZE) -> Path:
    """Build the index, unless an earlier run did."""
    name = "" if image_size == IMAGE_SIZE else f"-{image_size}px"
    index = work / f"index-{num_vectors}{name}"
    if not (index / "manifest.json").exists():
        encoder = load_encoder(ENCODER, image_size=image_size)
        dataset = read_source(f"grocery:{folder}")
        settings = EmbedSettings(show_progress=True)
        embeddings = embed_collection(
            encoder, dataset, work / f"embeddings{name}", settings=settings, is_overwrite=True
        )
        build_index(perturb(embeddings, num_vectors), index, overwrite=True).close()
    return index


@contextmanager
def serving(index: Path, log: Path, resident_mib: int, checkout: Path) -> Iterator[str]:
    """Serve the index with the package of a checkout; yield the address."""
    command = [sys.executable, "-m", "vitrieve", "serve", "--index", str(index), "--port", "0"]
    command += ["--resident-mib", str(resident_mib), "--reads-per-minute", "0"]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        while httpx.get(f"{address}readyz", timeout=60).status_code != 200:
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def build_sender(kind: str, address: str, folder: Path, seed: int) -> Callable[[httpx.Client], httpx.Response]:
    """Return what sends one request of a kind; each client draws its own."""
    generator = np.random.default_rng(seed)
    records = read_source(f"grocery:{folder}").records
    url = f"{address}search?k=10"

    def send(client: httpx.Client) -> httpx.Response:
        record = records[generator.integers(len(records))]
        if kind == "image":
            return client.post(url, content=record.path.read_bytes())
        if kind == "id":
            return client.post(url, json={"id": record.image_id})
        return client.post(url, json={"vector": generator.standard_normal(384).tolist()})

    return send


def run_client(kind: str, address: str, folder: Path, seed: int, seconds: float) -> tuple[list[float], list[int]]:
    """Send one request after the other; return the times, and the statuses other than 200 (0: no answer)."""
    send = build_sender(kind, address, folder, seed)
    times: list[float] = []
    faults: list[int] = []
    with httpx.Client(timeout=60) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                status = send(client).status_code
            except httpx.HTTPError:
                status = 0
            times.append(time.monotonic() - begun)
            if status != 200:
                faults.append(status)
    return times, faults


def read_metric(address: str, name: str) -> float:
    """Read a number of the server's process from its metrics."""
    text = httpx.get(f"{address}metrics", timeout=60).text
    found = re.search(rf"^process_{name} (\S+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


class Round:
    """What the requests of one kind to one server took.

    Attributes:
        times_ms: Of each request, as its client saw it.
        faults: Statuses other than 200; 0: no answer.
        memory_mib: The server's memory, read from time to time.
        cpu_seconds: The server's time of the processor.
    """

    def __init__(self) -> None:
        self.times_ms: list[float] = []
        self.faults: list[int] = []
        self.memory_mib: list[float] = []
        self.cpu_seconds = 0.0
        self.seconds = 0.0

    def run(self, pool: Pool, kind: str, address: str, folder: Path, seeds: range, seconds: float) -> None:
        """Let a client of each seed send requests for a while."""
        cpu_seconds = read_metric(address, "cpu_seconds_total")
        jobs = pool.starmap_async(run_client, [(kind, address, folder, seed, seconds) for seed in seeds])
        while not jobs.ready():
            self.memory_mib.append(read_metric(address, "resident_memory_bytes") / 2**20)
            jobs.wait(MEMORY_SECONDS)
        for times, statuses in jobs.get():
            self.times_ms += [1e3 * one for one in times]
            self.faults += statuses
        self.cpu_seconds += read_metric(address, "cpu_seconds_total") - cpu_seconds
        self.seconds += seconds

    def describe(self, kind: str, side: str) -> dict[str, Any]:
        """Return the line of the result."""
        half = max(1, len(self.memory_mib) // 2)
        return {
            "kind": kind,
            "side": side,
            "num_requests": len(self.times_ms),
            "requests_per_second": len(self.times_ms) / self.seconds,
            "p50_ms": float(np.percentile(self.times_ms, 50)),
            "p95_ms": float(np.percentile(self.times_ms, 95)),
            "p99_ms": float(np.percentile(self.times_ms, 99)),
            "server_cpu_ms": 1e3 * self.cpu_seconds / len(self.times_ms),
            "num_faults": len(self.faults),
            "faults": sorted(set(self.faults)),
            "memory_first_half_mib": float(np.mean(self.memory_mib[:half])),
            "memory_last_half_mib": float(np.mean(self.memory_mib[half:] or self.memory_mib)),
        }


def measure_kind(
    kind: str, addresses: dict[str, str], folder: Path, num_clients: int, seconds: float
) -> list[dict[str, Any]]:
    """Send requests of a kind to each server, in turns where there are several."""
    rounds = {side: Round() for side in addresses}
    num_turns = NUM_TURNS if len(addresses) > 1 else 1
    with multiprocessing.get_context("spawn").Pool(num_clients) as pool:
        for address in addresses.values():
            Round().run(pool, kind, address, folder, range(100, 100 + num_clients), 2.0)  # warm up
        for turn in range(num_turns):
            sides = list(addresses.items())
            for side, address in sides if turn % 2 == 0 else reversed(sides):
                seeds = range(turn * num_clients, (turn + 1) * num_clients)
                rounds[side].run(pool, kind, address, folder, seeds, seconds / num_turns)
    return [one.describe(kind, side) for side, one in rounds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-vectors", type=int, default=100_000)
    parser.add_argument("--num-clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="of the encoder, in pixels")
    parser.add_argument("--resident-mib", type=int, default=1024, help="of the server; 0: it searches on disk")
    parser.add_argument("--before", type=Path, help="checkout of an earlier state, which takes turns with this one")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder.resolve()
    index = ensure_index(arguments.work, folder, arguments.num_vectors, arguments.image_size)
    sides = {} if arguments.before is None else {"before": arguments.before.resolve()}
    sides["after"] = Path(__file__).resolve().parents[1]
    rounds = []
    with ExitStack() as servers:
        addresses = {
            side: servers.enter_context(
                serving(index, arguments.work / f"serve-{side}.log", arguments.resident_mib, checkout)
            )
            for side, checkout in sides.items()
        }
        for kind in KINDS:
            rounds += measure_kind(kind, addresses, folder, arguments.num_clients, arguments.seconds)
            for one in rounds[-len(sides) :]:
                print(json.dumps(one), file=sys.stderr, flush=True)
    machine = describe_machine()
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {name: machine[name] for name in ("processor", "instructions", "num_cores", "packages")},
        "num_vectors": arguments.num_vectors,
        "num_clients": arguments.num_clients,
        "image_size": arguments.image_size,
        "seconds_each": arguments.seconds,
        "resident_mib": arguments.resident_mib,
        "rounds": rounds,
    }
    kind = "" if arguments.image_size == IMAGE_SIZE else f"_{arguments.image_size}px"
    kind += "" if arguments.resident_mib else "_on_disk"
    (RESULTS / f"service_load_{result['date']}{kind}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
