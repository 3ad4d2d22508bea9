"""A server on this machine that speaks the part of the hub's protocol that fetching and sending need, with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

COMMIT, OTHER_COMMIT = "0" * 39 + "a", "0" * 39 + "b"


def _choose_mode(name: str) -> str:
    return "regular" if name.endswith((".json", ".md")) else "lfs"


@dataclass
class Repository:
    """A repository: its files, and what the hub says of it.

    Attributes:
        files: Content by name.
        commit: Its newest commit; the files are those of every commit that is asked for.
        tags: What the hub's page shows.
        stated: Entries of files that replace the true ones, by name.
        status: Status of every answer, if it is no success.
        is_private: Only its owner may see it.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    tags: tuple[str, ...] = ("onnx", "license:apache-2.0")
    stated: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: int = 200
    is_private: bool = False

    def list_files(self) -> list[dict[str, Any]]:
        """List the files as the hub does: small text in git, the rest in its large file storage."""
        entries = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if _choose_mode(name) == "lfs":
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append({**entry, **self.stated.get(name, {})})
        return entries


class Hub:
    """The server, while the ``with`` block lasts.

    Attributes:
        repositories: Repositories by name; a test changes them as it likes.
        requests: Every request so far: method, path, and the range that was asked for.
        faults: What happens to the next downloads of a file instead of the right thing, by its name.
        is_down: Connections are closed without an answer.
        stalled: Set while a download stands still.
        token: The one that may write.
        stored: Large files that were sent, by checksum.
        refusals: Status with which the next request to a path that ends so is refused.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: dict[str, list[Callable[[Handler, bytes], None]]] = {}
        self.is_down = False
        self.token = "hf_right"
        self.stored: dict[str, bytes] = {}
        self.refusals: dict[str, int] = {}
        self.stalled = threading.Event()
        self.is_over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def list_ranges(self, name: str) -> list[str]:
        """List the ranges of the downloads of a file, in order; empty: all of it."""
        return [given for method, path, given in self.requests if method == "GET" and path.endswith(name)]

    def __enter__(self) -> Hub:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """Take what is sent: source is what ``huggingface_hub`` asks of the hub to commit files."""
        path, body = self.path.partition("?")[0], self._read_body()
        self.hub.requests.append((self.command, path, ""))
        refused = next((status for end, status in self.hub.refusals.items() if path.endswith(end)), None)
        if self.hub.is_down:
            self.close_connection = True
        elif refused is not None:
            self._refuse(refused, "")
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.startswith("/lfs/"):  # the address itself is the right to write
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self._refuse(200, "")
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/verify"):
            assert json.loads(body)["oid"] in self.hub.stored
            self._refuse(200, "")
        else:
            self._take_files(path, body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while num_bytes := int(self.rfile.readline(), 16):
            body += self.rfile.read(num_bytes)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _validate(self, content: str) -> None:
        """Check a card's metadata, strictly: the list of licenses is a part of the hub's."""
        try:
            found = yaml.safe_load(content.split("---")[1])
            assert found.get("license", "other") in {"apache-2.0", "mit", "cc-by-4.0", "other"}, "license"
            assert found.get("license") != "other" or found["license_name"], "license_name"
            if "model-index" in found:
                model_index_to_eval_results(found["model-index"])
        except (AssertionError, IndexError, KeyError, TypeError, yaml.YAMLError) as error:
            content_of_error = json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode()
            self.send_whole(content_of_error, "application/json", status=400)
            return
        self.send_whole(b'{"errors": [], "warnings": []}', "application/json")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._refuse(409, "")
            return
        is_private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(files={}, is_private=is_private)
        self.send_whole(json.dumps({"url": f"{self.hub.address}/{name}"}).encode(), "application/json")

    def _take_files(self, path: str, body: bytes) -> None:
        preupload = re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path)
        batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        commit = re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)
        found = preupload or batch or commit
        assert found is not None, path
        repository = self.hub.repositories[found[1]]
        answer: dict[str, Any]
        if preupload:
            modes = {one["path"]: _choose_mode(one["path"]) for one in json.loads(body)["files"]}
            files = [{"path": one, "uploadMode": mode, "shouldIgnore": False} for one, mode in modes.items()]
            answer = {"files": files}
        elif batch:
            objects = [{"oid": one["oid"], "size": one["size"]} for one in json.loads(body)["objects"]]
            for one in objects:
                if one["oid"] not in self.hub.stored:
                    address = f"{self.hub.address}/lfs/{one['oid']}"
                    one["actions"] = {"upload": {"href": address}, "verify": {"href": f"{self.hub.address}/verify"}}
            answer = {"transfer": "basic", "objects": objects}
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            if lines[0]["value"].get("parentCommit", repository.commit) != repository.commit:
                self._refuse(412, "")
                return
            self._commit(repository, lines[1:])
            answer = {"commitUrl": f"{self.hub.address}/{found[1]}/commit/x", "commitOid": repository.commit}
        self.send_whole(json.dumps(answer).encode(), "application/json")

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        repository.files = files
        repository.commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.is_down:
            self.close_connection = True
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.status != 200:
            self._refuse(repository.status, "")
        elif api:
            self._tell_state(repository, api[2])
        elif file:
            self._send_file(repository, file[3])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def _tell_state(self, repository: Repository, revision: str | None) -> None:
        if revision not in (None, "main", repository.commit, COMMIT, OTHER_COMMIT):
            self._refuse(404, "RevisionNotFound")
            return
        commit = repository.commit if revision in (None, "main") else revision
        state = {
            "id": "owner/name",
            "sha": commit,
            "tags": list(repository.tags),
            "private": repository.is_private,
            "siblings": repository.list_files(),
        }
        self.send_whole(json.dumps(state).encode(), "application/json")

    def _send_file(self, repository: Repository, name: str) -> None:
        content = repository.files.get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        faults = self.hub.faults.get(name, [])
        if faults and self.command == "GET":
            faults.pop(0)(self, content)
            return
        start = int((re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
        self.start_file(content, start)
        if self.command == "GET":
            self.wfile.write(content[start:])

    def start_file(self, content: bytes, start: int = 0) -> None:
        """Send the head of an answer with a file, or with what comes after ``start``."""
        self.send_response(206 if start else 200)
        checksum = hashlib.sha256(content).hexdigest()
        self.send_header("ETag", f'"{checksum}"')
        self.send_header("X-Linked-ETag", f'"{checksum}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()

    def send_whole(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def cut(num_bytes: int) -> Callable[[Handler, bytes], None]:
    """Build the fault of a connection that breaks after so many bytes."""

    def send(handler: Handler, content: bytes) -> None:
        handler.start_file(content)
        handler.wfile.write(content[:num_bytes])
        handler.close_connection = True

    return send


def stall(num_bytes: int) -> Callable[[Handler, bytes], None]:
    """Build the fault of a download that stands still after so many bytes, until the client goes or the test ends."""

    def send(handler: Handler, content: bytes) -> None:
        handler.start_file(content)
        handler.wfile.write(content[:num_bytes])
        handler.wfile.flush()
        handler.hub.stalled.set()
        handler.hub.is_over.wait()
        handler.close_connection = True

    return send


def ignore_range(handler: Handler, content: bytes) -> None:
    """Send the whole file whatever was asked for."""
    handler.start_file(content)
    handler.wfile.write(content)


def exchange(other: bytes) -> Callable[[Handler, bytes], None]:
    """Build the fault of other bytes than the hub has stated."""

    def send(handler: Handler, _: bytes) -> None:
        handler.start_file(other)
        handler.wfile.write(other)

    return send


def flood(handler: Handler, content: bytes) -> None:
    """Send bytes without an end: no length is told, and the first ones are right."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    try:
        handler.wfile.write(content)
        while not handler.hub.is_over.is_set():
            handler.wfile.write(b"x" * 65_536)
    except OSError:  # the client has had enough
        return
