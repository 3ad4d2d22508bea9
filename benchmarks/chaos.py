"""Chaos: two services answer under load while disks fill, drives go, indexes are replaced and servers are killed.

    python benchmarks/chaos.py WORK GROCERY_FOLDER [--minutes 20] [--num-images 10000] [--seed 0]

It needs root, for mounts of its own. In WORK it makes a collection of small photographs, cut from those of Grocery:
half of them in a folder, half on a "drive" that is bound into the collection. Then, all at the same time:

- `vitrieve sync --watch` keeps an index, which lies on a disk of its own (a tmpfs), in step with the collection, while
  pictures come, change and go;
- `vitrieve serve` answers from that index: by vector, by name, and with the files of the pictures;
- a second `vitrieve serve` answers uploaded pictures from an index that `vitrieve index --overwrite` replaces;
- a schedule drawn from --seed kills the first server and starts it again, fills the disk of the index and frees it,
  takes the drive out of the collection and puts it back, and replaces the second index by one of another encoder.

Every answer is checked: a picture that has been in the collection from the start is the nearest to its own vector, its
file has the bytes that were written, and an uploaded picture finds itself. Anything else must be a refusal (a status of
4xx or 5xx with one sentence, or no connection while a server is dead). In the end the disk is free, the drive is back,
`index --verify` and `sync` must find nothing to do, and the memory of the processes that lived through all of it is
compared between the first and the last third. Writes results/chaos_DATE.json; the exit status is 1 when something is
not as it must be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from contest import describe_machine
from PIL import Image

from vitrieve.data.sources import read_source

RESULTS = Path(__file__).parent / "results"
ENCODER, IMAGE_SIZE, OTHER_IMAGE_SIZE = "dinov2-vits14", 56, 42
SIDE_PX = 96
INDEX_DISK_MIB = 700
BALLAST_STEP = 2**20
NUM_SPARE = 300
"""Pictures that come and go during the run; the others stay."""
NUM_UPLOADED = 2_000
"""Pictures of the index that is replaced, at most."""
EVENTS = ("kill server", "fill disk", "unmount drive", "replace index")
REST_SECONDS = 10.0
REFUSED_PAUSE_SECONDS = 0.1
"""A client that is not answered waits for so long, so that a dead server does not fill the counts."""
EVENT_SECONDS = 15.0
CHANGE_SECONDS = 7.0
MEMORY_SECONDS = 5.0
LOGS = ("first.log", "second.log", "watch.log")
MIN_SELF_SCORE = 0.999
UPLOADED_SELF_SCORE = 0.99
"""An uploaded picture is decoded and embedded again, perhaps beside others: its score may differ in the last places."""


def make_pictures(folder: Path, out: list[Path], seed: int) -> None:
    """Cut small squares from photographs, each from another place; the same seed gives the same bytes."""
    photographs = [record.path for record in read_source(f"grocery:{folder}").records]
    generator = np.random.default_rng(seed)
    for number, path in enumerate(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        with Image.open(photographs[number % len(photographs)]) as image:
            image.draft("RGB", (3 * SIDE_PX, 3 * SIDE_PX))
            side = int(min(image.size) * generator.uniform(0.5, 0.9))
            left, top = (int(generator.integers(0, one - side + 1)) for one in image.size)
            square = image.convert("RGB").crop((left, top, left + side, top + side)).resize((SIDE_PX, SIDE_PX))
        square.save(path, quality=90)


def vitrieve(*words: Any) -> list[str]:
    return [sys.executable, "-m", "vitrieve", *map(str, words)]


def run_json(*words: Any) -> tuple[int, Any]:
    done = subprocess.run(vitrieve(*words), capture_output=True, text=True, check=False)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, {"stdout": done.stdout[-2000:], "stderr": done.stderr[-2000:]}


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Server:
    """A `vitrieve serve` at a fixed port, which can be killed and started again."""

    def __init__(self, name: str, index: Path, log: Path, port: int) -> None:
        self.name, self.index, self.log, self.port = name, index, log, port
        self.url = f"http://127.0.0.1:{port}/"
        self.num_starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; ``wait_ready`` tells when it answers."""
        self.num_starts += 1
        with self.log.open("ab") as log:
            command = vitrieve("serve", "--index", self.index, "--port", self.port, "--reads-per-minute", "0")
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def is_ready(self) -> bool:
        """Tell whether the server says that it can search."""
        try:
            return httpx.get(f"{self.url}readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self, seconds: float = 120.0) -> bool:
        """Wait until the server is ready; return whether it is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.is_ready():
                return True
            time.sleep(0.2)
        return False

    def stop(self, how: signal.Signals) -> None:
        """End the process by a signal."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)


class Tally:
    """What became of every request, by kind; wrong answers are kept whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: dict[str, Counter[str]] = {}
        self.wrong: list[dict[str, Any]] = []

    def add(self, kind: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        """Count one answer; ``detail`` describes a wrong one."""
        with self._lock:
            self.counts.setdefault(kind, Counter())[outcome] += 1
            if detail is not None and len(self.wrong) < 50:
                self.wrong.append({"kind": kind, **detail})


Check = Callable[[httpx.Response], str | None]
"""Says what is wrong with an answer of status 200; None where it is right."""


def ask(tally: Tally, kind: str, send: Callable[[], httpx.Response], check: Check) -> None:
    """Send a request and judge the answer."""
    try:
        answer = send()
    except httpx.HTTPError as error:
        tally.add(kind, f"no answer ({type(error).__name__})")
        time.sleep(REFUSED_PAUSE_SECONDS)
        return
    if answer.status_code == 200:
        fault = check(answer)
        tally.add(kind, "wrong" if fault else "right", {"fault": fault} if fault else None)
        return
    try:
        is_sentence = isinstance(answer.json()["detail"], str)
    except (ValueError, KeyError, TypeError):
        is_sentence = False
    is_honest = is_sentence and answer.status_code != 500
    detail = None if is_honest else {"fault": f"{answer.status_code}: {answer.text[:300]}"}
    tally.add(kind, f"refused {answer.status_code}" if is_honest else "wrong", detail)


def check_nearest(image_id: str, min_score: float) -> Check:
    def check(answer: httpx.Response) -> str | None:
        results = answer.json()["results"]
        first = (results[0]["image_id"], results[0]["score"]) if results else None
        if first is None or first[0] != image_id or first[1] < min_score:
            return f"{image_id} is not the nearest to itself: {first}"
        return None

    return check


def check_neighbors(image_id: str) -> Check:
    def check(answer: httpx.Response) -> str | None:
        found = [result["image_id"] for result in answer.json()["results"]]
        scores = [result["score"] for result in answer.json()["results"]]
        if image_id in found or len(found) != 10 or scores != sorted(scores, reverse=True):
            return f"the neighbors of {image_id} are {list(zip(found, scores, strict=True))}"
        return None

    return check


def check_bytes(image_id: str, digest: str) -> Check:
    def check(answer: httpx.Response) -> str | None:
        return None if hashlib.sha256(answer.content).hexdigest() == digest else f"{image_id} has other bytes"

    return check


class Chaos:
    """Everything that runs, and what happens to it."""

    def __init__(self, work: Path, folder: Path, num_images: int, seed: int) -> None:
        self.work, self.folder, self.seed = work.resolve(), folder.resolve(), seed
        self.collection, self.drive = self.work / "collection", self.work / "drive"
        self.mount_point = self.collection / "drive"
        self.disk = self.work / "disk"
        self.index, self.second = self.disk / "index", self.work / "second"
        half = num_images // 2
        self.names = [f"desk/{n:05}.jpg" for n in range(half)] + [f"drive/{n:05}.jpg" for n in range(half)]
        self.num_uploaded = min(NUM_UPLOADED, half)
        self.spare = [self.work / "spare" / f"{n:05}.jpg" for n in range(NUM_SPARE)]
        self.tally = Tally()
        self.stopping = threading.Event()
        self.random = random.Random(seed)
        self.log: list[dict[str, Any]] = []
        self.memory: dict[str, list[float]] = {"watch": [], "second server": []}
        self.begun = 0.0

    # ---- setting up -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the pictures, the mounts, both indexes and what is known of every picture."""
        for mounted in (self.mount_point, self.disk):
            subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False)
        for old in (self.second, self.collection / "new"):
            shutil.rmtree(old, ignore_errors=True)
        files = [self.collection / name if name.startswith("desk") else self.work / name for name in self.names]
        make_pictures(self.folder, [*files, *self.spare], self.seed)
        for made in (self.mount_point, self.disk, self.collection / "new"):
            made.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", self.drive, self.mount_point], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={INDEX_DISK_MIB}m", "tmpfs", self.disk], check=True)
        for size in (IMAGE_SIZE, OTHER_IMAGE_SIZE):
            self._embed(size)
        self._sync("--encoder", ENCODER, "--image-size", IMAGE_SIZE)
        self._build_second(IMAGE_SIZE)
        self._read_truth()

    def _embed(self, size: int) -> None:
        uploaded = self.work / "uploaded"
        if not uploaded.exists():
            uploaded.mkdir()
            for name in self.names[: self.num_uploaded]:
                shutil.copy(self.collection / name, uploaded / Path(name).name)
        out = self.work / f"embeddings-{size}"
        if not (out / "manifest.json").exists():
            words = ("embed", "--encoder", ENCODER, "--image-size", size, "--data", uploaded, "--out", out)
            subprocess.run(vitrieve(*words, "--overwrite"), check=True)

    def _sync(self, *words: Any) -> None:
        subprocess.run(vitrieve("sync", self.collection, "--index", self.index, *words), check=True)

    def _build_second(self, size: int) -> None:
        words = ("index", "--embeddings", self.work / f"embeddings-{size}", "--out", self.second, "--overwrite")
        subprocess.run(vitrieve(*words), check=True, stdout=subprocess.DEVNULL)

    def _read_truth(self) -> None:
        """Read the vector of every picture from the index, and the digest of its file."""
        from vitrieve.index.open import open_index

        store = open_index(self.index)
        vectors = np.concatenate([store.get(self.names[n : n + 500])[0] for n in range(0, len(self.names), 500)])
        store.close()
        self.vectors = dict(zip(self.names, vectors, strict=True))
        self.digests = {name: hashlib.sha256((self.collection / name).read_bytes()).hexdigest() for name in self.names}

    # ---- load -------------------------------------------------------------------------------------------------------

    def load_first(self, seed: int) -> None:
        """Ask the first server, one request after the other."""
        generator = random.Random(seed)
        url = self.first.url
        with httpx.Client(timeout=60) as client:
            while not self.stopping.is_set():
                name = generator.choice(self.names)
                kind = generator.choice(("vector", "vector", "id", "file"))
                if kind == "vector":
                    body = {"vector": self.vectors[name].tolist()}
                    check = check_nearest(name, MIN_SELF_SCORE)
                    ask(self.tally, kind, lambda: client.post(f"{url}search?k=10", json=body), check)  # noqa: B023
                elif kind == "id":
                    body = {"id": name}
                    send = lambda: client.post(f"{url}search?k=10", json=body)  # noqa: B023, E731
                    ask(self.tally, kind, send, check_neighbors(name))
                else:
                    send = lambda: client.get(f"{url}images/{name}")  # noqa: B023, E731
                    ask(self.tally, kind, send, check_bytes(name, self.digests[name]))

    def load_second(self) -> None:
        """Upload pictures to the server whose index is replaced."""
        generator = random.Random(self.seed + 1)
        with httpx.Client(timeout=60) as client:
            while not self.stopping.is_set():
                path = self.work / "uploaded" / Path(self.names[generator.randrange(self.num_uploaded)]).name
                content = path.read_bytes()
                send = lambda: client.post(f"{self.second_server.url}search?k=10", content=content)  # noqa: B023, E731
                ask(self.tally, "upload", send, check_nearest(path.name, UPLOADED_SELF_SCORE))

    def change_collection(self) -> None:
        """Let pictures come, change and go, in a folder of their own."""
        generator = random.Random(self.seed + 2)
        new = self.collection / "new"
        while not self.stopping.wait(CHANGE_SECONDS):
            spare = generator.choice(self.spare)
            target = new / spare.name
            if target.exists() and generator.random() < 0.5:
                target.unlink()
            else:
                shutil.copy(generator.choice(self.spare), target)

    def watch_memory(self) -> None:
        """Read the memory of the processes that are never killed."""
        while not self.stopping.wait(MEMORY_SECONDS):
            for name, process in (("watch", self.watching), ("second server", self.second_server.process)):
                if process is not None and process.poll() is None:
                    self.memory[name].append(resident_mib(process.pid))

    # ---- events -----------------------------------------------------------------------------------------------------

    def note(self, event: str, **fields: Any) -> None:
        """Write an event that is over into the result, and on standard error."""
        entry = {"seconds": round(time.monotonic() - self.begun, 1), "event": event, **fields}
        self.log.append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def run_event(self, event: str) -> None:
        """Let one thing happen, and end it."""
        if event == "kill server":
            self.first.stop(signal.SIGKILL)
            self.first.start()
            self.note(event, is_ready_again=self.first.wait_ready())
        elif event == "fill disk":
            ballast = self.disk / "ballast"
            num_bytes = self._fill(ballast)
            # A picture that must be written now, so that the disk is really missed.
            shutil.copy(self.spare[0], self.collection / "new" / f"full-{len(self.log)}.jpg")
            self.stopping.wait(EVENT_SECONDS)
            ballast.unlink()
            self.note(event, ballast_mib=round(num_bytes / 2**20))
        elif event == "unmount drive":
            subprocess.run(["umount", "--lazy", self.mount_point], check=True)
            # Something that must be looked at now, so that the missing drive is noticed.
            shutil.copy(self.spare[1], self.collection / "new" / f"off-{len(self.log)}.jpg")
            self.stopping.wait(EVENT_SECONDS)
            subprocess.run(["mount", "--bind", self.drive, self.mount_point], check=True)
            self.note(event)
        else:
            size = OTHER_IMAGE_SIZE if self.second_size == IMAGE_SIZE else IMAGE_SIZE
            self._build_second(size)
            self.second_size = size
            is_ready = self.second_server.wait_ready(60)
            if not is_ready:
                self.second_server.stop(signal.SIGTERM)
                self.second_server.start()
                self.second_server.wait_ready()
            self.note(event, image_size=size, is_ready_again=is_ready)

    def _fill(self, ballast: Path) -> int:
        num_bytes = 0
        with ballast.open("wb", buffering=0) as file:
            for step in (BALLAST_STEP, 4096):
                block = bytes(step)
                try:
                    while True:
                        num_bytes += file.write(block)
                except OSError:
                    continue
        return num_bytes

    # ---- the run ----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> dict[str, Any]:
        """Let everything happen, then settle and judge."""
        self.begun = time.monotonic()
        self.second_size = IMAGE_SIZE
        for log in LOGS:
            (self.work / log).unlink(missing_ok=True)
        self.first = Server("first", self.index, self.work / "first.log", 18_431)
        self.second_server = Server("second", self.second, self.work / "second.log", 18_432)
        with (self.work / "watch.log").open("wb") as log:
            command = vitrieve("sync", self.collection, "--index", self.index, "--watch")
            self.watching = subprocess.Popen(command, stdout=log, stderr=log)
        jobs = [lambda: self.load_first(10), lambda: self.load_first(11), self.load_second]
        jobs += [self.change_collection, self.watch_memory]
        threads = [threading.Thread(target=job) for job in jobs]
        try:
            for server in (self.first, self.second_server):
                server.start()
                if not server.wait_ready():
                    raise SystemExit(f"the {server.name} server does not get ready; see {server.log}")
            for thread in threads:
                thread.start()
            self._let_things_happen(seconds)
            return self._judge(threads)
        finally:
            self._end(threads)

    def _let_things_happen(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        events: list[str] = []
        while time.monotonic() < end and self.watching.poll() is None:
            time.sleep(REST_SECONDS)
            events = events or self.random.sample(EVENTS, len(EVENTS))  # each once before one comes again
            self.run_event(events.pop())

    def _end(self, threads: list[threading.Thread]) -> None:
        self.stopping.set()
        for thread in threads:
            if thread.is_alive():
                thread.join(90)
        for server in (self.first, self.second_server):
            if server.is_alive():
                server.stop(signal.SIGTERM)
        if self.watching.poll() is None:
            self.watching.kill()
        for mounted in (self.mount_point, self.disk):
            subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False)

    def _judge(self, threads: list[threading.Thread]) -> dict[str, Any]:
        is_watching = self.watching.poll() is None
        time.sleep(REST_SECONDS)  # the load goes on while everything is whole again: the last answers must be right
        before = {kind: Counter(counts) for kind, counts in self.tally.counts.items()}
        time.sleep(REST_SECONDS)
        after = {kind: dict(counts - before[kind]) for kind, counts in self.tally.counts.items()}
        self.stopping.set()
        for thread in threads:
            thread.join(90)
        status = None
        if is_watching:
            self.watching.send_signal(signal.SIGINT)
            status = self.watching.wait(120)
        settled = run_json("sync", self.collection, "--index", self.index, "--json")
        again = run_json("sync", self.collection, "--index", self.index, "--json")
        verified = run_json("index", "--verify", "--index", self.index, "--json")
        verified_second = run_json("index", "--verify", "--index", self.second, "--json")
        memory = {name: _compare_thirds(values) for name, values in self.memory.items()}
        tracebacks = {log: (self.work / log).read_text(errors="replace").count("Traceback") for log in LOGS}
        num_expected = sum(path.is_file() for path in self.collection.rglob("*.jpg"))
        return {
            "answers": {kind: dict(counts) for kind, counts in self.tally.counts.items()},
            "answers_when_whole_again": after,
            "wrong": self.tally.wrong,
            "events": self.log,
            "num_events": Counter(entry["event"] for entry in self.log),
            "watch_lived": is_watching,
            "watch_exit_status": status,
            "sync_afterwards": settled,
            "sync_once_more": again,
            "verify": verified,
            "verify_second": verified_second,
            "num_pictures": num_expected,
            "memory_mib": memory,
            "tracebacks": tracebacks,
        }


def _compare_thirds(values: list[float]) -> dict[str, float]:
    third = max(1, len(values) // 3)
    if not values:
        return {}
    return {
        "first_third": round(float(np.mean(values[:third])), 1),
        "last_third": round(float(np.mean(values[-third:])), 1),
        "largest": round(max(values), 1),
    }


MEMORY_GROWTH_MAX = 1.15
"""Last third against the first: more is no longer flat."""


def find_faults(result: dict[str, Any]) -> list[str]:
    """List what is not as it must be."""
    faults = [f"{len(result['wrong'])} wrong answers"] if result["wrong"] else []
    if not result["watch_lived"]:
        faults.append("sync --watch died")
    faults += [
        f"{name}: {status}, {printed}"
        for name in ("sync_afterwards", "sync_once_more", "verify", "verify_second")
        for status, printed in [result[name]]
        if status != 0 or printed.get("faults")
    ]
    if result["verify"][1].get("num_vectors") != result["num_pictures"]:
        faults.append(f"{result['verify'][1].get('num_vectors')} vectors for {result['num_pictures']} pictures")
    faults += [
        f"memory of {name} grew: {memory}"
        for name, memory in result["memory_mib"].items()
        if memory and memory["last_third"] > MEMORY_GROWTH_MAX * memory["first_third"]
    ]
    faults += [f"{count} tracebacks in {log}" for log, count in result["tracebacks"].items() if count]
    for kind, counts in result["answers_when_whole_again"].items():
        if not counts.get("right"):
            faults.append(f"no right answer by {kind} after everything was whole again: {counts}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path, help="of the Grocery Store data set")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("chaos.py mounts disks and needs root.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    chaos = Chaos(arguments.work, arguments.folder, arguments.num_images, arguments.seed)
    chaos.prepare()
    result = chaos.run(60 * arguments.minutes)
    machine = describe_machine()
    faults = find_faults(result)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {name: machine[name] for name in ("processor", "instructions", "num_cores", "packages")},
        "minutes": arguments.minutes,
        "num_images": arguments.num_images,
        "seed": arguments.seed,
        "faults": faults,
        **result,
    }
    text = json.dumps(content, indent=2, default=str).replace(str(chaos.work), "WORK")
    (RESULTS / f"chaos_{content['date']}.json").write_text(text + "\n")
    print(text)
    print("\n".join(faults) or "no fault", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
