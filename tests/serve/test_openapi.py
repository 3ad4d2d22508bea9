"""What the OpenAPI document says is what happens: no 5xx, no status, content type or header it does not name."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app

schemathesis.checks.load_all_checks()
CHECKS = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]
OPERATIONS = [
    ("/search", "POST"),
    ("/explain", "GET"),
    ("/explain", "POST"),
    ("/images/{image_id}", "GET"),
    ("/thumbnails/{image_id}", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def api(searcher: Searcher) -> Iterator[schemathesis.BaseSchema]:
    app = create_app(searcher)
    with TestClient(app) as client:
        while client.get("/readyz").status_code == 503:
            time.sleep(0.01)
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_answer_is_undocumented(
    api: schemathesis.BaseSchema, path: str, method: str, mode: schemathesis.GenerationMode
) -> None:
    """Requests that follow the document, and requests that break it in one place."""
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    if mode == schemathesis.GenerationMode.NEGATIVE and path in ("/healthz", "/readyz", "/metrics"):
        return  # they take nothing that could be wrong
    check()


def test_document_describes_the_bodies_of_a_search(searcher: Searcher) -> None:
    document = create_app(searcher).openapi()
    search = document["paths"]["/search"]["post"]
    assert set(search["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert {"SearchBody", "ExampleBody", "AnswerBody", "ErrorBody"} <= set(document["components"]["schemas"])
    assert {"200", "401", "413", "422", "503"} <= set(search["responses"])
    assert set(document["paths"]) == {
        "/search",
        "/explain",
        "/images/{image_id}",
        "/thumbnails/{image_id}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
