"""Servers on this machine that hold shards: one of the S3 protocol, one of HTTP with ranges and faults on demand."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hidden-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "pictures"


class S3:
    """A bucket on a server of the S3 protocol; ``s3://pictures/…`` leads to it while the ``with`` block lasts.

    Attributes:
        prelude: Lines of Python that tell the same to a process that was started before.
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> S3:
        import botocore.session

        self._server.start()
        host, port = self._server.get_host_and_port()
        variables = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        self.prelude = f"import os; os.environ.update({variables!r})\n"
        for name, value in variables.items():
            self._patch.setenv(name, value)
        self._client = botocore.session.get_session().create_client("s3")
        self._client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.stop()
        self._patch.undo()

    def upload(self, folder: Path, place: str) -> str:
        """Copy a folder; return its address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{place}"

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)


Fault = Callable[["_Handler", bytes, int, int], None]
"""What is sent in place of a part: of a content, from a first byte to a last one."""


class FolderServer:
    """Serves a folder by ranges, while the ``with`` block lasts.

    Attributes:
        requests: Method, path and range of every request so far.
        faults: What happens to the next parts that are asked for, instead of the right thing.
        status: Status of every answer, if it is no success.
        is_down: Connections are closed without an answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.status = 200
        self.is_down = False
        self.is_over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"served": self}))
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def count_parts(self) -> int:
        return sum(method == "GET" for method, _, _ in self.requests)

    def __enter__(self) -> FolderServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: FolderServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""

    def _answer(self) -> None:
        served, given = self.served, self.headers.get("Range", "")
        served.requests.append((self.command, self.path, given))
        path = served.folder / self.path.lstrip("/")
        if served.is_down:
            self.close_connection = True
        elif served.status != 200:
            self.refuse(served.status)
        elif not path.is_file():
            self.refuse(404)
        else:
            self._send(path, given)

    def _send(self, path: Path, given: str) -> None:
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", given)
        first, last = (int(found[1]), min(int(found[2]), len(content) - 1)) if found else (0, len(content) - 1)
        if self.command == "GET" and found and self.served.faults:
            self.served.faults.pop(0)(self, content, first, last)
            return
        self.begin(content, first, last)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    def begin(self, content: bytes, first: int, last: int) -> None:
        is_part = (first, last) != (0, len(content) - 1)
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


def refuse(status: int) -> Fault:
    """Build the fault of a server that answers with a status."""
    return lambda handler, content, first, last: handler.refuse(status)


def cut(handler: _Handler, content: bytes, first: int, last: int) -> None:
    """Break the connection in the middle of a part."""
    handler.begin(content, first, last)
    handler.end_headers()
    handler.wfile.write(content[first : (first + last) // 2])
    handler.close_connection = True


def shorten(handler: _Handler, content: bytes, first: int, last: int) -> None:
    """Send less than was asked for, and say so."""
    handler.begin(content, first, last - 1)
    handler.end_headers()
    handler.wfile.write(content[first:last])


def hang_up(handler: _Handler, content: bytes, first: int, last: int) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def stall(handler: _Handler, content: bytes, first: int, last: int) -> None:
    """Stand still in the middle of a part, until the test ends."""
    handler.begin(content, first, last)
    handler.end_headers()
    handler.wfile.write(content[first : (first + last) // 2])
    handler.wfile.flush()
    handler.served.is_over.wait()
    handler.close_connection = True


def send_all(handler: _Handler, content: bytes, first: int, last: int) -> None:
    """Know nothing of ranges."""
    handler.begin(content, 0, len(content) - 1)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def quick_attempts() -> Iterator[None]:
    """Do not wait between attempts."""
    from vitrieve.data import remote

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "RETRY_DELAYS_SECONDS", (0.0, 0.0, 0.0))
        yield
