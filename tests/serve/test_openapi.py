"""What the OpenAPI document says is what happens: no 5xx, no status, content type or header it does not name."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.serve.conftest import Connect, Server
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import ProxySettings

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
ANYTHING_GOES = ("/images/{image_id}", "/healthz", "/readyz", "/metrics")
BEFORE_THE_APPLICATION = b"Invalid HTTP request received."
OPERATIONS = [
    ("/search", "POST"),
    ("/explain", "GET"),
    ("/explain", "POST"),
    ("/feedback", "GET"),
    ("/feedback", "POST"),
    ("/feedback/tags", "POST"),
    ("/images/{image_id}", "GET"),
    ("/thumbnails/{image_id}", "GET"),
    ("/images", "GET"),
    ("/thumbnails", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def api(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


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
        answer = case.call()
        if answer.status_code == 400 and answer.content == BEFORE_THE_APPLICATION:
            return  # more than 64 KiB of head, which ends a connection before there is a request
        case.validate_response(answer, checks=CHECKS)

    if mode == schemathesis.GenerationMode.NEGATIVE and path in ANYTHING_GOES:
        pytest.skip("no value could break the document: it takes any text, or nothing")
    check()


@pytest.mark.parametrize(("prefix", "servers"), [("", None), ("/photos", [{"url": "/photos"}])])
def test_document_says_behind_which_prefix_the_service_is(
    connect: Connect, prefix: str, servers: list[dict[str, str]] | None
) -> None:
    client = connect(proxy=ProxySettings(root_path=prefix))
    assert client.get(f"{prefix}/openapi.json").json().get("servers") == servers


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
        "/feedback",
        "/feedback/tags",
        "/images/{image_id}",
        "/thumbnails/{image_id}",
        "/images",
        "/images:batch",
        "/thumbnails",
        "/healthz",
        "/readyz",
        "/columns",
        "/facets",
        "/metrics",
    }
