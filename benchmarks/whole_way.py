"""The whole way beyond one machine, command by command: python benchmarks/whole_way.py OUT --data SOURCE --help.

The images of a source are packed into shards, copied to a server of the S3 protocol, trained on from there, embedded by
two actors of Ray (or in two parts), indexed in PostgreSQL with pgvector, and served by two processes; then a photograph
asks for its product. Each step is a command as in the guides, and prints how long it took. Nothing is simulated: give a
bucket and a database of your own.

Credentials come from the environment, as for the commands: AWS_ACCESS_KEY_ID and its like, PGPASSWORD.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import fsspec
from contest import processor_name

from vitrieve.machine import count_cores

NUM_ACTORS = 2
NUM_PARTS = 2
NUM_PROCESSES = 2
NUM_RESULTS = 5
READY_SECONDS = 120.0

Run = Callable[[Sequence[str]], None]
"""Runs ``vitrieve WORDS…``; raises where that fails."""


def run_command(words: Sequence[str]) -> None:
    """Run a command in a process of its own."""
    subprocess.run([sys.executable, "-m", "vitrieve", *words], check=True)


def list_commands(
    out: Path, place: str, uri: str, train_words: Sequence[str], *, has_ray: bool = True
) -> list[list[str]]:
    """List the commands between the copy of the shards and the service."""
    shards, encoder, vectors = f"shards:{place}", str(out / "run"), str(out / "embeddings")
    embed = ["embed", "--encoder", encoder, "--data", shards, "--out", vectors]
    if has_ray:
        embeds = [[*embed, "--ray", "--ray-actors", str(NUM_ACTORS)]]
    else:
        embeds = [[*embed, "--shard", f"{number}/{NUM_PARTS}"] for number in range(1, NUM_PARTS + 1)]
        embeds.append([*embed, "--join"])
    return [
        ["train", *train_words, "--data", shards, "--out", encoder],
        *embeds,
        ["index", "--embeddings", vectors, "--out", str(out / "index"), "--store", "pgvector", "--uri", uri],
    ]


def copy_shards(shards: Path, place: str) -> None:
    """Copy packed shards to a server, the index last: who finds it finds all that it names."""
    system, target = fsspec.core.url_to_fs(place)
    for path in sorted(shards.iterdir(), key=lambda one: (one.name == "index.parquet", one.name)):
        system.put_file(str(path), f"{target}/{path.name}")


def wait_until_ready(address: str) -> None:
    """Wait until the service has loaded the index."""
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=60).close()
            return
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 503 or time.monotonic() > until:
                    raise
        time.sleep(0.1)


def ask(index: Path, photograph: Path) -> list[dict[str, object]]:
    """Serve an index, ask for a photograph over HTTP, and end the service; return the results."""
    words = ["serve", "--index", str(index), "--port", "0", "--num-processes", str(NUM_PROCESSES)]
    print("$ vitrieve " + " ".join(words), flush=True)
    words = [sys.executable, "-m", "vitrieve", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            address = service.stdout.readline().strip().rstrip("/")
            if not address:
                raise SystemExit("the service did not start")
            wait_until_ready(address)
            request = urllib.request.Request(
                f"{address}/search?k={NUM_RESULTS}", photograph.read_bytes(), method="POST"
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                results: list[dict[str, object]] = json.load(answer)["results"]
            with urllib.request.urlopen(
                f"{address}/thumbnails/{urllib.parse.quote(str(results[0]['image_id']))}", timeout=60
            ) as answer:
                answer.read()  # the picture comes out of the shard on the server
        finally:
            service.terminate()
    return results


def go(arguments: argparse.Namespace, run: Run = run_command) -> list[dict[str, object]]:
    """Go the whole way; return what the photograph found, best first."""
    out, steps = arguments.out, list[tuple[str, Callable[[], object]]]()
    pack = ["data", "pack", "--data", arguments.data, "--out", str(out / "shards"), *arguments.pack.split()]
    steps.append(("vitrieve " + " ".join(pack), lambda: run(pack)))
    steps.append((f"copy to {arguments.place}", lambda: copy_shards(out / "shards", arguments.place)))
    train_words, has_ray = arguments.train.split(), not arguments.no_ray
    for words in list_commands(out, arguments.place, arguments.uri, train_words, has_ray=has_ray):
        steps.append(("vitrieve " + " ".join(words), lambda words=words: run(words)))  # type: ignore[misc]
    told = []
    for what, work in steps:
        print(f"$ {what}", flush=True)
        start = time.perf_counter()
        work()
        shown = what.replace(arguments.uri, "URI").replace(arguments.data, "SOURCE").replace(str(out), "OUT")
        told.append({"step": shown, "seconds": time.perf_counter() - start})
        print(f"  {told[-1]['seconds']:.1f} s", flush=True)
    start = time.perf_counter()
    results = ask(out / "index", arguments.photograph)
    told.append({"step": "vitrieve serve, and the search", "seconds": time.perf_counter() - start})
    if arguments.results is not None:
        found = [{"image_id": result["image_id"], "score": result["score"]} for result in results]
        content = {"date": datetime.now(UTC).date().isoformat(), "num_cores": count_cores(), "steps": told}
        content |= {
            "processor": processor_name(),
            "photograph": arguments.photograph.name,
            "product": arguments.product,
            "found": found,
        }
        arguments.results.write_text(json.dumps(content, indent=1) + "\n")
    return results


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="new folder for the shards, the run, the embeddings and the index")
    parser.add_argument("--data", required=True, help="source of the images")
    parser.add_argument("--place", required=True, help="address for the shards: s3://BUCKET/SHARDS")
    parser.add_argument("--uri", required=True, help="database: postgresql://user@host/database")
    parser.add_argument("--photograph", required=True, type=Path, help="picture that asks")
    parser.add_argument("--product", required=True, help="what the image_id of the first result must hold")
    parser.add_argument("--train", default="small", help="recipe and flags of the training, in one text")
    parser.add_argument("--pack", default="", help="flags of the packing, in one text")
    parser.add_argument("--results", type=Path, help="file of JSON for the seconds of each step and what was found")
    parser.add_argument("--no-ray", action="store_true", help="embed in parts of a job array instead, without Ray")
    return parser.parse_args(words)


def main(words: Sequence[str], run: Run = run_command) -> int:
    """Return 0 where the photograph has found its product."""
    arguments = read_arguments(words)
    results = go(arguments, run)
    for result in results:
        print(f"{result['score']:.3f}  {result['image_id']}")
    is_found = arguments.product in str(results[0]["image_id"])
    print(f"the photograph {'finds' if is_found else 'does not find'} {arguments.product}")
    return 0 if is_found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
