"""Load on the service over the loopback: by vector, by id and by uploaded photograph, with several clients.

    python benchmarks/service_load.py WORK GROCERY_FOLDER [--num-vectors 100000] [--num-clients 4] [--seconds 200]
        [--resident-mib 1024]

`vitrieve serve` answers from an index of --num-vectors images in WORK: the photographs of Grocery, embedded by
dinov2-vits14 at 112 px, and copies of their vectors with noise, which point at the same files. Each client is a
process of its own that sends its next request when the answer is there; three rounds of --seconds, one of each kind
(200 s each: ten minutes in all). The server's memory is read from /metrics every five seconds. Writes
results/service_load_DATE.json. Clients and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
RESULTS = Path(__file__).parent / "results"
KINDS = ("vector", "id", "image")
MEMORY_SECONDS = 5.0


def ensure_index(work: Path, folder: Path, num_vectors: int) -> Path:
    """Build the index, unless an earlier run did."""
    index = work / f"index-{num_vectors}"
    if not (index / "manifest.json").exists():
        encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
        dataset = read_source(f"grocery:{folder}")
        settings = EmbedSettings(show_progress=True)
        shutil.rmtree(work / "embeddings", ignore_errors=True)
        embeddings = embed_collection(encoder, dataset, work / "embeddings", settings=settings)
        build_index(perturb(embeddings, num_vectors), index, overwrite=True).close()
    return index


@contextmanager
def serving(index: Path, log: Path, resident_mib: int) -> Iterator[str]:
    """Serve the index; yield the address."""
    command = [sys.executable, "-m", "vitrieve", "serve", "--index", str(index), "--port", "0"]
    command += ["--resident-mib", str(resident_mib), "--reads-per-minute", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
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


def read_memory_mib(address: str) -> float:
    text = httpx.get(f"{address}metrics", timeout=60).text
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert found is not None
    return float(found[1]) / 2**20


def measure_kind(kind: str, address: str, folder: Path, num_clients: int, seconds: float) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(num_clients) as pool:
        pool.starmap(run_client, [(kind, address, folder, 100 + n, 2.0) for n in range(num_clients)])  # warm up
        jobs = pool.starmap_async(run_client, [(kind, address, folder, n, seconds) for n in range(num_clients)])
        memory = []
        while not jobs.ready():
            memory.append(read_memory_mib(address))
            jobs.wait(MEMORY_SECONDS)
        answers = jobs.get()
    times = [1e3 * one for client_times, _ in answers for one in client_times]
    faults = [status for _, statuses in answers for status in statuses]
    half = max(1, len(memory) // 2)
    return {
        "kind": kind,
        "num_requests": len(times),
        "requests_per_second": len(times) / seconds,
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
        "p99_ms": float(np.percentile(times, 99)),
        "num_faults": len(faults),
        "faults": sorted(set(faults)),
        "memory_first_half_mib": float(np.mean(memory[:half])),
        "memory_last_half_mib": float(np.mean(memory[half:] or memory)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-vectors", type=int, default=100_000)
    parser.add_argument("--num-clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--resident-mib", type=int, default=1024, help="of the server; 0: it searches on disk")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder.resolve()
    index = ensure_index(arguments.work, folder, arguments.num_vectors)
    with serving(index, arguments.work / "serve.log", arguments.resident_mib) as address:
        rounds = [measure_kind(kind, address, folder, arguments.num_clients, arguments.seconds) for kind in KINDS]
    machine = describe_machine()
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {name: machine[name] for name in ("processor", "instructions", "num_cores", "packages")},
        "num_vectors": arguments.num_vectors,
        "num_clients": arguments.num_clients,
        "seconds_each": arguments.seconds,
        "resident_mib": arguments.resident_mib,
        "rounds": rounds,
    }
    kind = "" if arguments.resident_mib else "_on_disk"
    (RESULTS / f"service_load_{result['date']}{kind}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
