"""The camera of the page in a real Chromium, in every order in which leave, picture and closing can come.

But for the first test, the test itself gives or refuses leave, so that nothing depends on time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.conftest import Server
from tests.serve.states import wait_until

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
Page = playwright_api.Page
expect = playwright_api.expect

pytestmark = pytest.mark.browser

BY_HAND = """() => {
  const byId = (id) => document.getElementById(id);
  const asked = []; // for leave, and below to play
  const played = [];
  const streams = [];
  let numCloses = 0;
  navigator.mediaDevices.getUserMedia = () => new Promise((allow, refuse) => asked.push({ allow, refuse }));
  byId("camera").addEventListener("close", () => (numCloses += 1));
  const live = () => streams.filter((stream) => stream.getTracks().some((track) => track.readyState === "live"));
  window.hand = {
    press: () => document.querySelector("[data-camera]").click(),
    close: () => byId("camera-close").click(),
    shoot: () => byId("camera-shoot").click(),
    allow: (place) => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [640, 480];
      canvas.getContext("2d").fillRect(0, 0, 320, 480);
      streams[place] = canvas.captureStream();
      asked[place].allow(streams[place]);
    },
    unplug: (place) => {
      for (const track of streams[place].getTracks()) track.stop(), track.dispatchEvent(new Event("ended"));
    },
    refuse: (place) => asked[place].refuse(new DOMException("not allowed", "NotAllowedError")),
    waitToPlay: () => {
      byId("camera-view").play = () => new Promise((_, refuse) => played.push(refuse));
    },
    refuseToPlay: (place) => played[place](new DOMException("taken away", "AbortError")),
    count: () => [asked.length, played.length, numCloses],
    isOff: () => !live().length && byId("camera-view").srcObject === null && !byId("camera").open,
    isOn: (place) => {
      const isShown = byId("camera-view").srcObject === streams[place] && byId("camera").open;
      return isShown && live().length === 1 && live()[0] === streams[place];
    },
    isSeen: () => byId("camera-view").readyState >= 2,
  };
}"""
"""What the tests do and ask. Requests and streams count from 0; what one script settles, the next one finds settled."""


@pytest.fixture
def shown(page: Page, server: Server) -> Page:
    """The page of the start, whose camera is in the test's hand."""
    page.goto(server.address)
    page.evaluate(BY_HAND)
    return page


def close_by_button(page: Page) -> None:
    page.get_by_role("button", name="Close").click()


def close_by_key(page: Page) -> None:
    page.keyboard.press("Escape")


def leave(page: Page) -> None:
    """What the browser says where another document takes the place of this one, which it may keep for the way back."""
    page.evaluate("dispatchEvent(new Event('pagehide'))")


each_way = pytest.mark.parametrize("close", [close_by_button, close_by_key, leave])


def test_photograph_with_the_camera(page: Page, server: Server) -> None:
    page.goto(server.address)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    wait_until(page, "document.getElementById('camera-view').readyState >= 2")
    page.get_by_role("button", name="Take it").click()
    page.wait_for_url(re.compile(r"\?upload="))
    expect(page.locator(".found .card").first).to_be_visible()
    assert page.evaluate("document.getElementById('camera-view').srcObject") is None


@each_way
def test_a_camera_that_is_closed_before_it_is_allowed_never_begins(shown: Page, close: Callable[[Page], None]) -> None:
    for place, answer in enumerate(["allow", "refuse"]):
        shown.get_by_role("button", name="Use the camera").click()
        expect(shown.get_by_role("dialog")).to_be_visible()
        close(shown)
        wait_until(shown, f"hand.count()[2] === {place + 1}")
        shown.evaluate(f"hand.{answer}({place})")
        assert shown.evaluate("hand.isOff()")
        expect(shown.locator("#notice")).to_be_hidden()


@each_way
def test_a_camera_that_is_closed_before_it_plays_is_no_fault(shown: Page, close: Callable[[Page], None]) -> None:
    shown.evaluate("hand.waitToPlay()")
    for place in range(2):
        shown.evaluate("hand.press()")
        shown.evaluate(f"hand.allow({place})")
        assert shown.evaluate("hand.count()") == [place + 1, place + 1, place]
        close(shown)
        wait_until(shown, f"hand.count()[2] === {place + 1}")
        assert shown.evaluate("hand.isOff()")
    shown.evaluate("hand.press()")
    shown.evaluate("hand.allow(2)")
    shown.evaluate("[0, 1].forEach(hand.refuseToPlay)")
    assert shown.evaluate("hand.isOn(2)")
    expect(shown.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_camera_that_is_asked_for_twice_runs_once(shown: Page, order: list[int]) -> None:
    shown.evaluate("hand.press(), hand.press()")
    for place in order:
        shown.evaluate(f"hand.allow({place})")
    assert shown.evaluate("hand.isOn(1)")
    shown.evaluate("hand.close()")
    wait_until(shown, "hand.isOff()")


def test_a_camera_that_is_opened_again_at_once_stays_open(shown: Page) -> None:
    """A dialog tells late that it was closed: here after it is open again."""
    shown.evaluate("hand.press()")
    shown.evaluate("hand.allow(0)")
    shown.evaluate("hand.close(), hand.press(), hand.allow(1)")
    wait_until(shown, "hand.count()[2] === 1")
    assert shown.evaluate("hand.isOn(1)")


def test_a_camera_that_is_not_allowed_or_not_played_is_told(shown: Page) -> None:
    expect(shown.locator("#notice")).to_be_hidden()
    shown.get_by_role("button", name="Use the camera").click()
    shown.evaluate("hand.refuse(0)")
    expect(shown.locator("#notice")).to_contain_text("The camera cannot be used")
    assert shown.evaluate("hand.isOff()")
    shown.evaluate("document.getElementById('notice').hidden = true")
    shown.evaluate("hand.waitToPlay()")
    shown.get_by_role("button", name="Use the camera").click()
    shown.evaluate("hand.allow(1)")
    assert shown.evaluate("hand.isOn(1)")
    shown.evaluate("hand.refuseToPlay(0)")
    expect(shown.locator("#notice")).to_contain_text("The camera cannot be used")
    assert shown.evaluate("hand.isOff()")


def test_a_camera_that_is_unplugged_is_closed_and_the_page_says_so(shown: Page) -> None:
    """Else the dialog would go on showing the last picture of the camera, as if it were the present one."""
    shown.evaluate("hand.press(), hand.allow(0)")
    wait_until(shown, "hand.isSeen()")
    shown.evaluate("hand.unplug(0)")
    expect(shown.locator("#notice")).to_contain_text("unplugged, or is no longer allowed. Choose a picture instead.")
    assert shown.evaluate("hand.isOff()")


def test_an_earlier_camera_that_is_unplugged_is_no_fault(shown: Page) -> None:
    shown.evaluate("hand.press(), hand.allow(0)")
    shown.evaluate("hand.close(), hand.press(), hand.allow(1)")
    shown.evaluate("hand.unplug(0)")
    assert shown.evaluate("hand.isOn(1)")
    expect(shown.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_picture_that_is_given_otherwise_closes_the_camera(shown: Page, class_folder: Path, is_allowed: bool) -> None:
    shown.evaluate("hand.press()")
    if is_allowed:
        shown.evaluate("hand.allow(0)")
    shown.set_input_files("[data-file] >> nth=0", class_folder / "class3" / "2.png")
    shown.wait_for_url(re.compile(r"\?upload="))
    if not is_allowed:
        shown.evaluate("hand.allow(0)")
    assert shown.evaluate("hand.isOff()")


def test_one_photograph_is_taken_however_often_one_presses(shown: Page) -> None:
    sent = []
    shown.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    shown.evaluate("hand.press(), hand.shoot(), hand.allow(0)")
    assert shown.evaluate("hand.isOn(0)")  # there was nothing to take
    wait_until(shown, "hand.isSeen()")
    shown.evaluate("hand.shoot(), hand.shoot()")
    assert shown.evaluate("hand.isOff()")
    shown.wait_for_url(re.compile(r"\?upload="))
    expect(shown.locator(".found .card").first).to_be_visible()
    assert len(sent) == 1


@pytest.mark.parametrize("size", [(1280, 720), (390, 800), (800, 390)])
def test_no_button_moves_away_when_the_camera_begins(shown: Page, size: tuple[int, int]) -> None:
    """The press would end beside the button on which it began, and would be none."""
    shown.set_viewport_size({"width": size[0], "height": size[1]})
    shown.evaluate("hand.press()")
    closer = shown.get_by_role("button", name="Close")
    closer.hover()
    before = closer.bounding_box()
    assert before is not None
    assert before["y"] + before["height"] <= size[1]
    shown.mouse.down()
    shown.evaluate("hand.allow(0)")
    wait_until(shown, "hand.isSeen()")
    assert closer.bounding_box() == before
    shown.mouse.up()
    wait_until(shown, "hand.isOff()")
