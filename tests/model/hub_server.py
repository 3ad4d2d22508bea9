"""A server on this machine that speaks the part of the hub's protocol that fetching needs, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT, OTHER_COMMIT = "0" * 39 + "a", "0" * 39 + "b"


@dataclass
class Repository:
    """A repository: its files, and what the hub says of it.

    Attributes:
        files: Content by name.
        commit: Its newest commit; the files are those of every commit that is asked for.
        tags: What the hub's page shows.
        stated: Entries of files that replace the true ones, by name.
        status: Status of every answer, if it is no success.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    tags: tuple[str, ...] = ("onnx", "license:apache-2.0")
    stated: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: int = 200

    def list_files(self) -> list[dict[str, Any]]:
        """List the files as the hub does: small text in git, the rest in its large file storage."""
        entries = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if not name.endswith((".json", ".md")):
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
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: dict[str, list[Callable[[Handler, bytes], None]]] = {}
        self.is_down = False
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
            "private": False,
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

    def send_whole(self, content: bytes, kind: str) -> None:
        self.send_response(200)
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
