"""Several real processes at one address: they are one service, and none of their ends is noticed outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from vitrieve.serve.settings import Limits, share_cores

WATCHDOG_SECONDS = 300
NUM_PROCESSES = 2


class ManyProcesses:
    """``vitrieve serve --num-processes 2`` in a session of its own."""

    def __init__(self, index: Path | None, folder: Path, *words: str) -> None:
        folder.mkdir()
        self.folder = folder / "temporary"
        self.folder.mkdir()
        self._log = folder / "log"
        command = [sys.executable, "-m", "vitrieve", "serve", "--port", "0"]
        if index is not None:
            command += ["--index", str(index)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--num-processes", str(NUM_PROCESSES), "--num-threads", "1", *words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "TMPDIR": str(self.folder)},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip().rstrip("/")
        self.wait_for_processes(NUM_PROCESSES)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def list_events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.splitlines(keepends=True) if re.fullmatch(r"\{.*\}\n", line)]
        return [line for line in lines if line["event"] == name]

    def list_started(self) -> list[int]:
        return [int(str(event["process_id"])) for event in self.list_events("process ready")]

    def list_alive(self) -> list[int]:
        return [one for one in self.list_started() if is_alive(one)]

    def wait_for_processes(self, num_started: int) -> None:
        """Wait until so many processes were ever ready, and only the last ones live."""
        wait_until(lambda: len(self.list_started()) >= num_started and len(self.list_alive()) == NUM_PROCESSES, self)

    def read_count(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = httpx.get(f"{self.address}/metrics", timeout=WATCHDOG_SECONDS).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))

    def ask_alone(self, process_id: int, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Stop all other processes while one answers."""
        others = [one for one in self.list_alive() if one != process_id]
        for one in others:
            os.kill(one, signal.SIGSTOP)
        try:
            return ask()
        finally:
            for one in others:
                os.kill(one, signal.SIGCONT)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=WATCHDOG_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(WATCHDOG_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


def send(service: ManyProcesses, picture: bytes) -> httpx.Response:
    files, headers = {"image": picture}, {"Accept": "application/json"}
    return httpx.post(f"{service.address}/uploads", files=files, headers=headers, timeout=WATCHDOG_SECONDS)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_true: Callable[[], bool], service: ManyProcesses) -> None:
    until = time.monotonic() + WATCHDOG_SECONDS
    while not is_true():
        assert time.monotonic() < until, service.log
        assert service.address, service.log
        time.sleep(0.02)


@pytest.fixture(scope="module")
def service(index_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyProcesses]:
    """A service that Ctrl-C ends, which reaches every process of a terminal: they end and leave nothing."""
    service = ManyProcesses(index_folder, tmp_path_factory.mktemp("processes") / "service")
    yield service
    processes = service.list_alive()
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(WATCHDOG_SECONDS) == 0, service.log
    check_that_nothing_is_left(service, processes)
    service.end()


def test_uploads_and_metrics_are_those_of_all_processes(service: ManyProcesses, picture: bytes) -> None:
    processes = service.list_alive()
    before = service.read_count("vitrieve_requests_total")
    num_asked = 1  # the look itself is counted when it is answered

    def is_all_counted() -> bool:
        nonlocal num_asked
        num_asked += 1
        return service.read_count("vitrieve_requests_total") - before == num_asked - 1

    address = service.ask_alone(processes[0], lambda: send(service, picture)).json()["address"]
    for process_id in processes:
        page = service.ask_alone(process_id, lambda: service.get(address))
        assert page.status_code == 200
        assert "class2/1.png" in page.text
        counts = service.ask_alone(process_id, lambda: service.get("/metrics")).text
        assert len(re.findall(r"(?m)^process_resident_memory_bytes \d", counts)) == 1
    num_asked += 1 + 2 * len(processes)
    wait_until(is_all_counted, service)
    wait_until(lambda: service.read_count("vitrieve_in_work") == 0, service)


def test_a_restart_under_load_fails_no_request(service: ManyProcesses, picture: bytes) -> None:
    """Connections that stay open and new ones, searches and probes; all processes are other ones afterwards."""
    old, is_over = service.list_alive(), threading.Event()

    def ask(number: int) -> int:
        num_answers = 0
        with httpx.Client(timeout=WATCHDOG_SECONDS) as client:
            while not is_over.wait(0.02):  # a client's pause: new processes start on the same cores
                if number == 0:
                    answer = client.post(f"{service.address}/search?k=1", content=picture)
                elif number == 1:
                    answer = client.get(f"{service.address}/readyz")
                else:
                    answer = httpx.get(f"{service.address}/healthz", timeout=WATCHDOG_SECONDS)
                assert answer.status_code == 200, answer.text
                num_answers += 1
        return num_answers

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        try:
            service.process.send_signal(signal.SIGHUP)
            service.wait_for_processes(len(service.list_started()) + NUM_PROCESSES)
        finally:
            is_over.set()
        assert min(one.result() for one in asking) > 0
    assert not set(old) & set(service.list_alive())
    assert not service.list_events("process ended")  # none of them ended by itself


def test_a_process_that_is_killed_is_replaced_and_its_counts_stay(service: ManyProcesses) -> None:
    victim, num_started = service.list_alive()[0], len(service.list_started())
    for _ in range(3):
        assert service.ask_alone(victim, lambda: service.get("/healthz")).status_code == 200
    before = service.read_count("vitrieve_requests_total")
    os.kill(victim, signal.SIGKILL)
    service.wait_for_processes(num_started + 1)
    assert service.get("/healthz").status_code == 200
    assert service.read_count("vitrieve_requests_total") >= before
    assert [event["process_id"] for event in service.list_events("process ended")][-1] == victim
    folder = next(service.folder.iterdir())
    assert len(list(folder.glob("*.process"))) <= NUM_PROCESSES + 2  # numbers are taken again


def test_all_processes_end_when_the_first_is_killed(index_folder: Path, tmp_path: Path, picture: bytes) -> None:
    service = ManyProcesses(index_folder, tmp_path / "service")
    try:
        processes = service.list_alive()
        assert send(service, picture).status_code == 200
        service.process.kill()
        check_that_nothing_is_left(service, processes)
    finally:
        service.end()


def check_that_nothing_is_left(service: ManyProcesses, processes: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, processes)), service)
    assert service.process.wait(WATCHDOG_SECONDS) <= 0
    assert list(service.folder.iterdir()) == []
    assert "Traceback" not in service.log
    assert service.process.stdout is not None
    assert service.process.stdout.read() == ""  # the address was told once


def test_what_keeps_the_processes_from_starting_is_told_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitrieve", "serve", "--index", str(tmp_path / "none"), "--port", "0"]
    done = subprocess.run([*command, "--num-processes", "2"], capture_output=True, text=True, timeout=WATCHDOG_SECONDS)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_bounds_of_memory_are_divided_and_cores_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits().divide(4)
    assert (limits.held_bytes * 4, limits.thumbnail_bytes * 4) == (Limits().held_bytes, Limits().thumbnail_bytes)
    assert Limits().divide(100).held_bytes == Limits().body_bytes  # one body always fits
    assert Limits().divide(1) == Limits()
    monkeypatch.setattr("vitrieve.serve.settings.count_cores", lambda: 12)
    assert share_cores(1, None, 5) == (None, 5)
    assert share_cores(3, None, None) == (4, 4)
    assert share_cores(64, None, None) == (1, 2)
    assert share_cores(2, 7, 3) == (7, 3)


def test_several_collections_are_one_service_and_a_restart_reads_their_file_anew(
    index_folder: Path, tmp_path: Path, picture: bytes
) -> None:
    """Uploads are found by every process, counts are those of all, and SIGHUP brings a collection without a failure."""
    file, token = tmp_path / "collections.toml", "a-token-for-cats-alone"
    for name in ("cats", "dogs"):
        shutil.copytree(index_folder, tmp_path / name)
    (tmp_path / "token").write_text(token)
    cats = '[cats]\nindex = "cats"\ntokens = [{ role = "read", file = "token" }]\n'
    file.write_text(cats)
    service = ManyProcesses(None, tmp_path / "service", "--collections", str(file))
    headers = {"Authorization": f"Bearer {token}"}
    statuses: list[int] = []
    try:
        sent = httpx.post(
            f"{service.address}/c/cats/uploads",
            files={"image": picture},
            headers={**headers, "Accept": "application/json"},
            timeout=WATCHDOG_SECONDS,
        )
        for one in service.list_alive():
            page = service.ask_alone(
                one,
                lambda: httpx.get(service.address + sent.json()["address"], headers=headers, timeout=WATCHDOG_SECONDS),
            )
            assert (page.status_code, "class2/1.png" in page.text) == (200, True)
        counts = httpx.get(f"{service.address}/metrics", headers=headers, timeout=WATCHDOG_SECONDS).text
        assert re.search(
            r'vitrieve_requests_total\{collection="cats",method="GET",route="/",status="200"\} 2.0', counts
        )

        assert service.get("/c/cats/columns").status_code == 401
        file.write_text(cats + '[dogs]\nindex = "dogs"\n')
        service.process.send_signal(signal.SIGHUP)
        while len(service.list_started()) < 2 * NUM_PROCESSES or len(service.list_alive()) != NUM_PROCESSES:
            answer = httpx.get(f"{service.address}/c/cats/columns", headers=headers, timeout=WATCHDOG_SECONDS)
            statuses.append(answer.status_code)
            time.sleep(0.02)
        assert set(statuses) == {200}, service.log
        assert service.get("/c/dogs/columns").status_code == 200
        names = [one["name"] for one in service.get("/").json()["collections"]]
        assert names == ["dogs"]
        file.write_text("[cats]\n")  # a fault: what runs goes on
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "index is missing" in service.log, service)
        assert service.get("/c/dogs/columns").status_code == 200
    finally:
        service.end()
    assert not service.list_alive()
    assert list(service.folder.iterdir()) == []
    assert "Traceback" not in service.log
