"""Services of an index that tests change, and the lines that changes leave."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from vitrieve.index.written import get_audit_file
from vitrieve.runtime.encoder import Encoder
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import Limits

SMALL = Limits(free_bytes=1, request_seconds=600.0)
"""The disk of a test machine may be almost full, and the machine busy."""


def enter_service(
    running: ExitStack, index: Path, encoder: Encoder, *, limits: Limits = SMALL, **access: Any
) -> TestClient:
    """Start a service of an index, which ends with ``running``, and wait until it is ready."""
    searcher = running.enter_context(Searcher.open(index, encoder))
    client = running.enter_context(TestClient(create_app(searcher, limits=limits, **access)))
    while client.get("/readyz").status_code == 503:
        time.sleep(0.01)
    return client


def read_lines(index: Path) -> list[dict[str, object]]:
    """Read the lines that the changes of an index have left."""
    return [json.loads(line) for line in get_audit_file(index).read_text().splitlines()]
