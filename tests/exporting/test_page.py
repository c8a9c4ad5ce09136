"""The page that explains in the browser: made, served from this machine and driven in Chromium."""

from __future__ import annotations

import functools
import io
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.exporting.page import write_page
from tests.exporting.test_export import SIZE, Cnn, converted
from tests.small_networks import images

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

NAMES = ("tabby <b>cat</b>", "dog", "fish", "car", "cup")
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def network() -> bcos_fx.BcosNetwork:
    return converted(Cnn).with_record(classes=NAMES)


@pytest.fixture(scope="module")
def folder(network: bcos_fx.BcosNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches onnxruntime-web")
    place = tmp_path_factory.mktemp("pages") / "page"
    try:
        write_page(network, place)
    except UsageError as error:
        if "npm" not in error.what:
            raise
        pytest.skip(str(error))
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in a browser, ready; it may ask its own server alone, and reports no error."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        opened = browser.new_page(viewport={"width": 360, "height": 800})
        asked, errors = list[str](), list[str]()
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        opened.goto(address)
        says(opened, "Ready.")
        yield opened
        assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
        assert not errors
        browser.close()


def says(page: Any, text: str) -> None:
    """Wait for a text in the page's status; by what needs no eval, which the page forbids."""
    sync_api.expect(page.locator("#status")).to_contain_text(text, timeout=90_000)


def shown(page: Any) -> dict[str, float]:
    says(page, "Computed in")
    line = page.locator("#sum")
    names = ("chosen", "output", "contributions", "constants")
    return {name: float(line.get_attribute(f"data-{name}")) for name in names}


def colors(page: Any, canvas: str) -> int:
    """How many colors a canvas shows on the screen."""
    with Image.open(io.BytesIO(page.locator(canvas).screenshot())) as opened:
        return len(opened.convert("RGB").getcolors(maxcolors=1 << 24))


def assert_explains(found: dict[str, float], network: bcos_fx.BcosNetwork, x: torch.Tensor, target: int | None) -> None:
    expected = bcos_fx.explain(network, x, target)
    assert expected.target is not None
    assert found["chosen"] == int(expected.target)
    assert found["output"] == pytest.approx(float(expected.output), rel=1e-5)
    assert found["contributions"] == pytest.approx(float(expected.contributions.sum()), rel=1e-4, abs=1e-5)
    assert found["constants"] == pytest.approx(float(expected.constants.total()), rel=1e-4, abs=1e-5)
    assert found["contributions"] + found["constants"] == pytest.approx(found["output"], rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_photograph_is_explained_in_the_browser(page: Any, network: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    pixels = (images(3, size=SIZE)[2] * 255).round().byte()
    photograph = tmp_path / "photograph.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photograph)
    x = pixels.unsqueeze(0).float() / 255

    page.set_input_files("#photograph", photograph)
    found = shown(page)
    assert_explains(found, network, x, None)
    assert page.locator("#classes button").count() == len(NAMES)
    pressed = page.locator("#classes button[aria-pressed=true]")
    assert pressed.inner_text().startswith(NAMES[int(found["chosen"])])
    assert page.locator("#constants tr").count() == 5
    assert page.locator("#weights").is_visible()
    assert page.locator("main").bounding_box()["width"] <= 360, "a narrow screen scrolls sideways"
    assert colors(page, "#contributions") > 20
    assert colors(page, "#weights") > 20

    other = page.locator("#classes button[aria-pressed=false]").last
    other.focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#sum")).not_to_have_attribute(
        "data-chosen", str(int(found["chosen"])), timeout=90_000
    )
    sync_api.expect(page.locator("#classes button[aria-pressed=true]")).to_be_focused()
    again = shown(page)
    assert_explains(again, network, x, int(again["chosen"]))

    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    page.set_input_files("#photograph", notes)
    says(page, "not an image")
    assert not page.locator("#answer").is_visible()


def test_a_page_that_cannot_be_made_leaves_nothing(
    network: bcos_fx.BcosNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there already"):
        write_page(network, tmp_path / "there")
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a page"):
        write_page(network, tmp_path / "there", overwrite=True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="npm is not installed") as found:
        write_page(network, tmp_path / "page")
    assert found.value.hint
    (tmp_path / "there" / "mine.txt").rename(tmp_path / "there" / "page.json")
    with pytest.raises(UsageError, match="npm is not installed"):
        write_page(network, tmp_path / "there", overwrite=True)
    assert (tmp_path / "there" / "page.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
