"""The page itself: served from this machine and driven in Chromium, by mouse and by keyboard, wide and narrow."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app import hostile
from tests.app.test_explorer import NAMES, SIDE, write_network

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra app is not installed", allow_module_level=True)

import httpx  # comes with gradio

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync".split()
WAIT, UPLOAD = 60_000, "#photograph input[type=file]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    write_network(place / "model<img src=x onerror=alert(1)>.safetensors")
    hostile.picture().save(place / "photo.png")
    return place


# The command itself, in a process that notes which other machines it asks for.
SERVE = """
import socket, sys
before = socket.getaddrinfo
def noted(host, *words, **options):
    if str(host) not in ("127.0.0.1", "localhost", "None"):
        print("ASKED FOR", host, flush=True)
    return before(host, *words, **options)
socket.getaddrinfo = noted
from bcos_fx.cli import main
sys.argv = ["bcos-fx", "serve", sys.argv[1], "--port", "0", "--no-browser"]
main()
"""


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    (folder / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-c", SERVE, str(next(folder.glob("*.safetensors")))]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        first = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", first)
        assert found, first + server.stdout.read()
        for _ in range(200):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(found[0])
                break
            time.sleep(0.1)
        yield found[0]
        assert server.poll() is None, "the server has died"
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=30)[0]
        assert "ASKED FOR" not in rest
        assert "Traceback" not in rest
        assert server.returncode in (0, 130)
    assert not list((folder / "temporary").glob("bcos-fx-serve-*")), "photographs are left"


def get(address: str, path: str, **headers: str) -> Any:
    return httpx.get(address + path, headers=headers, timeout=60)


def test_the_page_is_for_this_machine_alone(address: str, folder: Path) -> None:
    found = get(address, "")
    assert found.status_code == 200
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert get(address, "", host="evil.example").status_code == 400
    config = get(address, "config").json()
    assert config["analytics_enabled"] is False
    assert config["max_file_size"] == 256 * 2**20
    assert not re.search(r"@import|url\(['\"]?https?:", get(address, "theme.css").text)
    assert not get(address, "gradio_api/info").json()["named_endpoints"]
    for path in ("/etc/passwd", str(folder / "photo.png"), "../../../etc/passwd"):
        assert get(address, f"gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("query", ["", "?target=1", "?target=99", "?target=x", "?target=1&against=2"])
@pytest.mark.parametrize("photo", ["0" * 64, "..%2F..%2Fetc%2Fpasswd", "<script>"])
def test_a_report_of_nothing_is_a_message(address: str, photo: str, query: str) -> None:
    found = get(address, f"report/{photo}{query}")
    assert found.status_code in (404, 422)
    assert "html" not in found.headers["content-type"]


def chromium() -> str:
    pytest.importorskip("playwright", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    return program


@pytest.fixture(params=[(1280, 900), (360, 740)], ids=["wide", "narrow"])
def page(request: Any, address: str) -> Iterator[Any]:
    """The page in a browser; it may ask its own server alone, and nothing in it may run or fail."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        width, height = request.param
        opened = browser.new_page(viewport={"width": width, "height": height})
        requests, errors = list[str](), list[str]()
        opened.on("request", lambda found: requests.append(found.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
        opened.goto(address)
        opened.wait_for_selector(UPLOAD, state="attached", timeout=WAIT)
        yield opened
        assert all(url.startswith((address, "blob:", "data:")) for url in requests), requests
        assert not errors
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        browser.close()


def says(page: Any, place: str, text: str, wait: int = WAIT) -> str:
    """Wait for a text, and return all of the place's."""
    from playwright.sync_api import expect

    expect(page.locator(place)).to_contain_text(text, timeout=wait)
    return str(page.locator(place).inner_text())


def sums(page: Any) -> dict[str, float]:
    rows = page.locator("#answer tr").all_inner_texts()
    pairs = [row.split("\t") for row in rows]
    return {name: float(value) for name, value in pairs if name != "the sum is"}


def click_first_pixel(page: Any) -> None:
    """Click the corner of the explanation, again where the picture was replaced under the click."""
    for _ in range(5):
        page.locator("#map img").click(position={"x": 3, "y": 3})
        with contextlib.suppress(AssertionError):
            says(page, "#region", "Rows 0 to 0, columns 0 to 0", wait=5000)
            return
    raise AssertionError("a click on the picture does not choose a region")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_photograph_is_explored(page: Any, folder: Path, address: str) -> None:
    page.set_input_files(UPLOAD, folder / "photo.png")
    says(page, "#status", "%")
    says(page, "#answer", "Why ")
    boxes = page.locator("#classes input[type=checkbox]")
    assert boxes.count() == 10
    first = sums(page)
    assert first["from the image"] + first["from constants"] + first["rounding"] == pytest.approx(
        first["score"], rel=1e-4
    )

    boxes.nth(1).check()
    title = says(page, "#answer", " - ")
    assert sums(page)["score"] > 0, "the highest class minus the next"
    assert "Why " in title

    click_first_pixel(page)
    before = page.locator("#map img").get_attribute("src")
    page.locator("#way input").click()
    page.get_by_role("option", name="contributions", exact=True).click()
    page.wait_for_function("old => document.querySelector('#map img').src != old", arg=before, timeout=WAIT)

    page.locator("#more input").click()
    page.get_by_role("option", name="cup", exact=True).click()
    says(page, "#answer", "- cup")

    link = page.locator("#link a").get_attribute("href")
    report = get(address, link.removeprefix("/"))
    assert report.status_code == 200
    assert "- cup" in report.text
    assert "default-src 'none'" in report.text

    page.get_by_text("The network, its proof and its certificate").click()
    says(page, "#network", "DYNAMIC LINEAR")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_keyboard_is_enough(page: Any, folder: Path) -> None:
    def tab_to(condition: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.closest({condition!r}) !== null"):
                return
        raise AssertionError(f"no Tab leads to {condition}")

    with page.expect_file_chooser(timeout=WAIT) as chooser:
        tab_to("#photograph button")
        page.keyboard.press("Enter")
    chooser.value.set_files(folder / "photo.png")
    says(page, "#answer", "Why ")
    tab_to("#classes input")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    says(page, "#answer", " - ")
    where = says(page, "#region", "Rows ")
    tab_to("#row input[type=range]")
    page.keyboard.press("Home")
    assert where.startswith("Rows 0 ") or says(page, "#region", "Rows 0 to 0")
    tab_to("#link a")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hostile_files_are_answered_on_the_page(page: Any, folder: Path) -> None:
    for place, (name, content, wrong) in enumerate(hostile.FILES.values()):
        file = folder / f"hostile{place}"
        file.mkdir(exist_ok=True)
        (file / name).write_bytes(content)
        page.set_input_files(UPLOAD, file / name)
        says(page, "#status", "%" if wrong is None else wrong)
        if wrong is not None:
            assert page.locator("#status [role=alert]").is_visible()
            assert not page.locator("#answer").is_visible()
        page.locator("#photograph button[aria-label=Clear]").click()
        page.wait_for_function("document.querySelector('#status').innerText.trim() == ''", timeout=WAIT)
        page.wait_for_selector(UPLOAD, state="attached", timeout=WAIT)
    assert page.locator("script", has_text="alert(1)").count() == 0
    assert page.locator("#head img").count() == 0
    page.set_input_files(UPLOAD, folder / "photo.png")
    says(page, "#classes", NAMES[2])
    assert page.locator("#classes b").count() == 0
    assert page.locator("#row input[type=range]").get_attribute("max") == str(SIDE - 1)
