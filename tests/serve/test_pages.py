"""The pages as a browser without scripts gets them."""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import dataclass, field, replace
from html import escape, unescape
from html.parser import HTMLParser
from operator import or_
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient

from tests.serve.conftest import Connect, make_picture
from vitrieve.data import decode
from vitrieve.index.filter import Condition, parse_filter, passes, read_kinds, resolve_filter
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.request import SearchResult
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import Limits
from vitrieve.serve.views import Address, parse_address, spell_group

HTML = {"Accept": "text/html"}


def find_titles(page: str) -> list[str]:
    return re.findall(r'<a class="title" href="[^"]*">([^<]*)</a>', page)


@dataclass
class Form:
    """A form as a browser without scripts sends it, but for its files."""

    method: str
    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)


class FormReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._options: list[tuple[bool, str | None]] = []
        self._select, self._is_in_form = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and "action" in values:
            self.forms.append(Form(values["method"], values["action"]))
            self._is_in_form = True
        elif tag == "select":
            self._select, self._options = values["name"], []
        elif tag == "option":
            self._options.append(("selected" in values, values.get("value")))
        elif tag == "input" and self._is_in_form and values.get("type") not in ("file", "checkbox"):
            self.forms[-1].fields.append((values["name"], values.get("value", "")))

    def handle_data(self, data: str) -> None:
        if self._select and self._options and self._options[-1][1] is None:
            self._options[-1] = (self._options[-1][0], data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_in_form = False
        elif tag == "select":
            chosen = next((value for is_selected, value in self._options if is_selected), self._options[0][1])
            self.forms[-1].fields.append((self._select, chosen or ""))
            self._select = ""


def read_forms(page: str) -> list[Form]:
    """List the forms that are sent to the server."""
    reader = FormReader()
    reader.feed(page)
    return reader.forms


def upload(client: TestClient, data: bytes) -> str:
    answer = client.post("/uploads", files={"image": ("a.png", data)}, headers=HTML)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def test_start_page_shows_samples_and_escapes_every_text(client: TestClient) -> None:
    page = client.get("/").text
    assert 5 <= page.count('class="sample"') <= 12  # of five classes
    assert "Made by &lt;b&gt;nobody&lt;/b&gt;" in page
    assert "Search 20 pictures" in page
    assert "style=" not in page  # the content policy would drop it
    assert "onclick" not in page


def test_upload_then_results_then_more_like_this_then_the_next_page(client: TestClient, picture: bytes) -> None:
    address = upload(client, picture)
    page = client.get(address).text
    assert find_titles(page)[0] == "Class2"
    like = unescape(re.findall(r'href="([^"]+)">More like this', page)[0])
    assert like == "/?plus=class2%2F1.png"
    first = client.get(like + "&k=12").text
    following = unescape(re.findall(r'rel="next" href="([^"]+)"', first)[0])
    second = client.get(following).text
    assert len(find_titles(first) + find_titles(second)) == 19
    assert 'rel="prev"' in second
    assert "page=1" not in second


def test_start_page_takes_a_photograph_on_a_phone(client: TestClient) -> None:
    assert '<input type="file" name="image" accept="image/*" capture="environment" data-file>' in client.get("/").text


def test_start_page_of_an_empty_index_says_how_to_fill_it(empty_searcher: Searcher) -> None:
    with TestClient(create_app(empty_searcher)) as client:
        page = client.get("/").text
    assert "There is nothing to search yet" in page
    assert "vitrieve sync --data FOLDER" in page
    assert 'type="file"' not in page


@pytest.mark.parametrize(
    "address",
    ["/", "/?plus=class0%2F0.png", "/?upload=gone", "/compare?plus=class0%2F0.png&image_id=class0%2F1.png", "/login"],
)
def test_pages_hold_no_script_or_style_of_their_own(client: TestClient, address: str) -> None:
    answer = client.get(address, headers=HTML)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", answer.text) == []
    assert re.findall(r"<img(?![^>]* alt=)[^>]*>", answer.text) == []


def test_what_is_missing_is_shown_without_a_broken_picture(client: TestClient) -> None:
    page = client.get("/?plus=nobody.png&plus=class0%2F0.png", headers=HTML).text
    assert "/thumbnails/nobody.png" not in page
    assert 'class="missing"' in page
    assert "/uploads/gone" not in client.get("/?upload=gone", headers=HTML).text


def test_groups_lead_to_all_of_their_pictures(client: TestClient) -> None:
    page = client.get("/?plus=class0%2F0.png&group_by=label&k=12").text
    assert "/?plus=class0%2F0.png&filter=label%3DClass1&k=12" in unescape(page)


@pytest.mark.parametrize("value", ["a|b", " outer ", 'a "quoted" one', "=x", "plain"])
@pytest.mark.parametrize("column", ["size >= <", "label"])
def test_the_address_of_a_group_names_its_value_alone(column: str, value: str) -> None:
    result = SearchResult(image_id="a.jpg", score=1.0, path=Path("a.jpg"), metadata={column: value})
    address = spell_group(result, Address(group_by=column))
    assert address is not None
    (spelled,) = parse_qs(urlsplit(address).query)["filter"]
    assert parse_filter(spelled) == (Condition(column=column, operator="=", values=(value,)),)


@pytest.mark.parametrize(
    "values",
    [
        ("2020", "2020.0", "1e3", "-2.5"),
        ("true", "True", "FALSE", "false"),
        ("2020-03", "2020-03-01", "2020-03-01T12:00:00", "2020-03-01 12:00", "2020"),
        ("007", "7", "12345678901234567890", "12345678901234567891"),
        (" a", "a", "a|b", "b", '"a"', "true", "2020-03-01", "5", "5.0"),
    ],
)
def test_the_address_of_a_group_finds_it_alone(values: tuple[str, ...]) -> None:
    kinds = functools.reduce(or_, map(read_kinds, values))
    for value in values:
        result = SearchResult(image_id="a.jpg", score=1.0, path=Path("a.jpg"), metadata={"c": value})
        address = spell_group(result, Address(group_by="c"))
        assert address is not None
        filter = parse_address(QueryParams(urlsplit(address).query), Limits()).filter
        tests = resolve_filter(filter, ["c"], lambda names: dict.fromkeys(names, kinds))
        assert [one for one in values if passes({"c": one}, tests)] == [value]


def test_a_condition_from_the_pages_fields_is_one_whatever_its_signs(client: TestClient) -> None:
    fields = {"plus": "a.png", "column": "size <= 5", "operator": "=", "value": "one|two "}
    address = client.get("/?" + urlencode(fields)).headers["location"]
    assert parse_qs(urlsplit(address).query)["filter"] == ['"size <= 5"="one|two "']
    assert client.get("/?plus=a.png&column=copy&operator=~&value=x", headers=HTML).status_code == 422


def test_the_page_names_a_column_as_it_is_spelled(
    index_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Without a value of its own an option has its text as browsers show it, where two blanks are one."""
    column = "shelf  no"
    shutil.copytree(index_folder, tmp_path / "index")
    with Searcher.open(tmp_path / "index", load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)) as searcher:
        vectors, records = searcher.store.get(["class0/0.png", "class0/1.png"])
        searcher.store.upsert(vectors, [replace(one, metadata={**one.metadata, column: "7"}) for one in records])
        with TestClient(create_app(searcher), follow_redirects=True) as client:
            page = client.get("/?plus=class1%2F0.png", headers=HTML).text
            for name in ("column", "group_by"):
                (options,) = re.findall(rf'<select name="{name}">(.*?)</select>', page)
                assert f'<option value="{column}">' in options
                assert "<option>" not in options
            query = urlencode({"plus": "class1/0.png", "column": column, "operator": "=", "value": "7"})
            assert len(find_titles(client.get(f"/?{query}", headers=HTML).text)) == 2


def test_the_same_picture_has_the_same_address(client: TestClient, picture: bytes) -> None:
    assert upload(client, picture) == upload(client, picture)


def test_uploads_are_bounded_and_an_old_address_works_again(connect: Connect, picture: bytes) -> None:
    client = connect(Limits(num_uploads=2))
    address = upload(client, picture)
    for side in (30, 31):
        upload(client, make_picture((side, 20)))
    gone = client.get(address)
    assert gone.status_code == 410
    assert "no longer here" in gone.text
    assert "Send the same picture again" in gone.text
    assert client.get(address.replace("/?upload=", "/uploads/")).status_code == 410
    assert upload(client, picture) == address
    assert client.get(address).status_code == 200


def test_uploads_are_bounded_in_bytes(connect: Connect) -> None:
    first, second = make_picture((60, 60), "BMP"), make_picture((61, 60), "BMP")
    client = connect(Limits(upload_bytes=len(first) + 100))
    address = upload(client, first)
    upload(client, second)
    assert client.get(address).status_code == 410


def test_upload_answers_a_script_with_an_address(client: TestClient, picture: bytes) -> None:
    answer = client.post("/uploads", files={"image": picture}, headers={"Accept": "application/json"})
    assert answer.json() == {"address": upload(client, picture)}


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_wrong_upload_is_a_page_that_offers_another_try(client: TestClient, data: bytes) -> None:
    answer = client.post("/uploads", files={"image": ("a.png", data)}, headers=HTML)
    assert answer.status_code == 422
    assert 'type="file"' in answer.text
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("address", "status", "part"),
    [
        ("/?plus=nobody.png", 404, "There is no such picture"),
        ("/?plus=class0%2F0.png&filter=no_such%3D1", 422, "no_such"),
        ("/?plus=class0%2F0.png&filter=label%3DNobody", 200, "Nothing found"),
        ("/?plus=class0%2F0.png&page=9", 200, "No more results"),
        ("/?plus=class0%2F0.png&page=99999", 422, "offset"),
        ("/?plus=class0%2F0.png&page=x", 422, "page"),
        ("/?plus=class0%2F0.png&k=100000", 422, "k is"),
        ("/?plus=class0%2F0.png&box=1,2", 422, "no box"),
        ("/?plus=class0%2F0.png&plus=class0%2F1.png&box=1,2,3,4", 422, "box belongs to one picture"),
        ("/?upload=../../etc/passwd", 410, "no longer here"),
        ("/compare?plus=class0%2F0.png&image_id=nobody", 404, "no such result"),
        ("/compare?plus=class0%2F0.png", 422, "image_id"),
        ("/nowhere", 404, "Page not found"),
        ("/nowhere", 404, "Words to search for"),
    ],
)
def test_what_cannot_be_shown_is_a_page_with_the_reason(
    client: TestClient, address: str, status: int, part: str
) -> None:
    answer = client.get(address, headers=HTML)
    assert answer.status_code == status, answer.text
    assert part in unescape(answer.text)
    assert answer.text.startswith("<!doctype html>")


def test_texts_from_an_address_are_escaped(client: TestClient) -> None:
    evil = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E"
    for address in (
        f"/?plus={evil}",
        f"/?plus=class0%2F0.png&filter={evil}",
        f"/?upload={evil}",
        f"/?plus=a&group_by={evil}",
    ):
        assert "<script>alert" not in client.get(address, headers=HTML).text


def test_a_forms_long_address_gives_way_to_the_short_one(client: TestClient) -> None:
    answer = client.get("/?plus=a.png&column=label&operator=!%3D&value=x&group_by=&k=24&near_duplicates=together")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?plus=a.png&filter=label%21%3Dx&near_duplicates=together"
    box = client.get("/?plus=a.png&x_1=1&y_1=2&x_2=3&y_2=4")
    assert box.headers["location"] == "/?plus=a.png&box=1%2C2%2C3%2C4"


def test_overlay_is_a_picture(client: TestClient) -> None:
    answer = client.get("/compare/overlay?plus=class0%2F0.png&image_id=class1%2F0.png")
    assert answer.headers["content-type"] == "image/jpeg"
    several = "/compare/overlay?plus=class0%2F0.png&plus=class1%2F0.png&image_id=class1%2F0.png"
    assert client.get(several).status_code == 422


def test_programs_get_json_even_if_they_accept_pages(client: TestClient) -> None:
    assert client.post("/search", content=b"", headers=HTML).json()["detail"]
    assert client.get("/images/nobody", headers=HTML).json()["detail"]


def test_the_start_page_asks_for_a_few_names_alone(
    client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("every name of the index was asked for")

    monkeypatch.setattr(searcher.store, "image_ids", refuse)
    page = client.get("/")
    assert page.status_code == 200
    assert page.text.count("/thumbnails/") >= 12


@pytest.mark.parametrize("has_extras", [True, False])
def test_the_picker_names_the_formats_that_can_be_read_here(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, has_extras: bool
) -> None:
    monkeypatch.setattr(decode, "_list_formats", lambda kind: (kind,) if has_extras else ())
    monkeypatch.setattr(decode, "has_rawpy", lambda: has_extras)
    page = TestClient(create_app(searcher)).get("/").text
    expected = "BMP, TIFF, AVIF, HEIC or RAW" if has_extras else "BMP or TIFF"
    assert f"JPEG, PNG, WebP, GIF, {expected}, up to 25 MiB" in page
    accepted = re.findall(r'accept="([^"]*)"', page)[0]
    assert {"image/*", ".heic"} <= set(accepted.split(","))
    assert (".cr2" in accepted) == has_extras


def test_facets_narrow_down_and_count_what_is_left(client: TestClient) -> None:
    page = client.get("/?plus=class2%2F1.png").text
    facet = re.search(r"<summary>label</summary>.*?</details>", page, re.DOTALL)
    assert facet
    links = {value: unescape(link) for link, value in re.findall(r'href="([^"]+)"><span>([^<]+)</span>', facet[0])}
    assert set(links) == {f"Class{number}" for number in range(5)}
    assert re.findall(r'class="soft">(\d+)<', facet[0]) == ["4"] * 5
    narrowed = client.get(links["Class3"]).text
    assert set(find_titles(narrowed)) == {"Class3"}
    assert "<summary>label</summary>" not in narrowed  # one value is no choice
    copies = re.search(r"<summary>copy</summary>.*?</details>", narrowed, re.DOTALL)
    assert copies
    assert re.findall(r'class="soft">(\d+)<', copies[0]) == ["1"] * 4


def test_a_span_of_numbers_becomes_two_conditions(client: TestClient) -> None:
    answer = client.get("/?plus=class2%2F1.png&range=copy&least=1&most=2")
    assert answer.status_code == 303
    address = answer.headers["location"]
    assert address == "/?plus=class2%2F1.png&filter=copy%3E%3D1&filter=copy%3C%3D2"
    assert len(find_titles(client.get(address).text)) == 9  # ten, and the query is not among them
    assert client.get("/?plus=class2%2F1.png&range=copy&least=&most=").headers["location"] == "/?plus=class2%2F1.png"


def test_the_form_of_a_span_shows_and_replaces_it(client: TestClient) -> None:
    page = client.get("/?plus=class2%2F1.png&filter=copy%3E%3D1&k=12").text
    form = next(form for form in read_forms(page) if ("range", "copy") in form.fields)
    assert ("least", "1") in form.fields
    sent = [(name, value) for name, value in form.fields if name not in ("least", "most")]
    answer = client.get("/?" + urlencode([*sent, ("least", "2"), ("most", "")]))
    assert answer.headers["location"] == "/?plus=class2%2F1.png&filter=copy%3E%3D2&k=12"


@pytest.mark.parametrize(
    ("query", "num_forms"),
    [
        ("k=9", 2),  # words and a picture
        ("k=9&plus=class2%2F1.png&plus=class0%2F0.png&group_by=label", 5),  # words to add, a span, conditions
        ("k=9&text=class1", 5),
        ("k=9&plus=class2%2F1.png", 6),  # a region
    ],
)
def test_every_form_and_link_of_a_search_keeps_the_number_of_results(
    client: TestClient, picture: bytes, query: str, num_forms: int
) -> None:
    page = client.get(f"/?{query}").text
    forms = read_forms(page)
    assert len(forms) == num_forms
    for form in forms:
        if form.action == "/uploads":
            fields = {name: (None, value) for name, value in form.fields}
            answer = client.post("/uploads", files={**fields, "image": ("a.png", picture)}, headers=HTML)
        else:
            answer = client.get("/?" + urlencode([*form.fields, ("words", "blue")]))
        assert parse_qs(urlsplit(answer.headers["location"]).query)["k"] == ["9"], form
    links = re.findall(r'href="((?:/|/compare)\?[^"]*)"', page)
    assert len(links) > 5
    assert [link for link in links if "k=9" not in link] == []


def test_a_number_of_results_that_is_too_large_is_not_offered(client: TestClient) -> None:
    page = client.get("/?plus=class0%2F0.png&k=100000", headers=HTML).text
    (options,) = re.findall(r'<select name="k">(.*?)</select>', page)
    assert re.findall(r"<option( selected)?>(\d+)<", options) == [
        ("", "12"),
        ("", "24"),
        ("", "48"),
        ("", "96"),
        (" selected", "200"),
    ]


def test_a_refused_picture_is_given_again_under_the_same_conditions(client: TestClient) -> None:
    fields = {"filter": (None, "label=Class1"), "k": (None, "9")}
    for files in ({**fields, "image": ("a.png", b"no picture")}, fields):
        answer = client.post("/uploads", files=files, headers=HTML)
        assert answer.status_code == 422
        words, picture = read_forms(answer.text)
        assert words.fields == [("filter", "label=Class1"), ("k", "9"), ("text", "")]
        assert picture.fields == [("filter", "label=Class1"), ("k", "9")]


def test_a_refused_start_page_keeps_all_that_is_not_refused(client: TestClient) -> None:
    good = [("filter", "label=Class1"), ("near_duplicates", "together"), ("k", "9")]
    for bad in ([("filter", "colour=red"), ("group_by", "label")], [("group_by", "colour")]):
        answer = client.get("/?" + urlencode([*bad, *good]), headers=HTML)
        assert (answer.status_code, "colour" in answer.text) == (422, True)
        kept = [good[0], *[one for one in bad if "colour" not in one and "red" not in one[1]], *good[1:]]
        words, picture = read_forms(answer.text)
        assert words.fields == [*kept, ("text", "")]
        assert picture.fields == kept
        assert client.get("/?" + urlencode([*kept, ("text", "class1")])).status_code == 200


@pytest.mark.parametrize("path", ["/?", "/compare?plus=class0%2F0.png&image_id=class0%2F1.png&"])
@pytest.mark.parametrize("refused", ["filter=gone%3D1", "group_by=gone"])
def test_no_form_of_a_problem_page_asks_for_what_was_refused(client: TestClient, path: str, refused: str) -> None:
    answer = client.get(path + refused, headers=HTML)
    assert answer.status_code == 422
    words, picture = read_forms(answer.text)
    assert (words.fields, picture.fields) == ([("text", "")], [])


@pytest.mark.parametrize(
    ("refused", "kept"),
    [
        ([("filter", "gone=1")], []),
        ([("group_by", "gone")], []),
        ([("filter", "copy>=yesterday"), ("group_by", "gone")], [("filter", "label=Class1")]),
        ([("filter", "gone=1")], [("filter", "label=Class1"), ("group_by", "copy"), ("k", "12")]),
    ],
)
def test_results_that_are_refused_offer_the_search_without_what_is_refused(
    client: TestClient, refused: list[tuple[str, str]], kept: list[tuple[str, str]]
) -> None:
    asked = ("plus", "class0/0.png")
    answer = client.get("/?" + urlencode([asked, *refused, *kept, ("page", "2")]), headers=HTML)
    assert answer.status_code == 422
    assert "Search without what is refused" in answer.text
    ways = [unescape(way) for way in re.findall(r' href="(/\?[^"]+)"', answer.text)]
    ways += [f"{form.action}?{urlencode(form.fields)}" for form in read_forms(answer.text)]
    assert "/?" + urlencode([asked, *kept]) in ways
    for way in ways:
        assert not set(refused) & set(parse_qsl(urlsplit(way).query)), way
        if way.startswith("/?"):
            filled = re.sub("((?:text|words)=)(&|$)", r"\1red\2", way)
            assert client.get(filled, headers=HTML, follow_redirects=True).status_code == 200, way
    results = client.get("/compare?" + urlencode([asked, ("image_id", "class0/1.png"), *refused, *kept]), headers=HTML)
    assert results.status_code == 422
    assert f'href="/?{escape(urlencode([asked, *kept]))}">Back to the results' in results.text


def test_results_that_are_refused_for_another_reason_keep_the_conditions(client: TestClient) -> None:
    answer = client.get("/?plus=class0%2F0.png&filter=label%3DClass1&k=9&page=9999", headers=HTML)
    assert (answer.status_code, "Search without" in answer.text) == (422, False)
    assert all(("filter", "label=Class1") in form.fields for form in read_forms(answer.text))


@pytest.mark.parametrize("path", ["/", "/?plus=a&plus=class1%2F0.png", "/compare?plus=a&image_id=b", "/uploads"])
def test_no_form_or_link_asks_for_more_results_than_are_allowed(client: TestClient, path: str) -> None:
    if path == "/uploads":
        files = {"k": (None, "500"), "image": ("a.png", b"no picture")}
        answer = client.post(path, files=files, headers=HTML)
    else:
        answer = client.get(path + ("&" if "?" in path else "?") + "k=500", headers=HTML)
    assert set(re.findall(r'(?:name="k" value="|[?;]k=)(\d+)', answer.text)) == {"200"}


def test_no_page_is_offered_beyond_the_last_that_is_shown(connect: Connect) -> None:
    client = connect(Limits(offset=10))
    first = client.get("/?plus=class0%2F0.png&k=5").text
    second = client.get(unescape(re.findall(r'rel="next" href="([^"]+)"', first)[0])).text
    third = client.get(unescape(re.findall(r'rel="next" href="([^"]+)"', second)[0]))
    reason = "shows no page that begins after result 10"
    assert (third.status_code, len(find_titles(third.text))) == (200, 5)  # and four more are there
    assert 'rel="next"' not in third.text
    assert reason in third.text
    assert reason not in first + second
    assert client.get("/?plus=class0%2F0.png&k=5&page=4", headers=HTML).status_code == 422


def test_facets_over_http(client: TestClient) -> None:
    facets = {one["column"]: one for one in client.get("/facets?filter=label%3DClass1").json()["facets"]}
    assert facets["label"]["values"] == [{"value": "Class1", "count": 4}]
    assert (facets["copy"]["kind"], facets["copy"]["least"], facets["copy"]["most"]) == ("number", "0", "3")
    assert client.get("/facets?filter=colour%3Dred").status_code == 422
