"""The documentation as a site: every page is reachable, no link is broken, and no other host is asked for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import bcos_fx

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
yaml = pytest.importorskip("yaml")


def navigated(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of a navigation, in order."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values():
                yield from navigated(part) if isinstance(part, list) else (part,)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(navigated(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    assert written | notebooks <= set(pages)
    assert len(set(pages)) == len(pages)
    assert all(page.startswith("project/") for page in set(pages) - written - notebooks)


def test_the_reference_has_the_whole_public_interface() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = {f"bcos_fx.{name}" for name in bcos_fx.__all__ if not name.startswith("_")} - {"bcos_fx.BcosFxError"}
    assert public - shown == set()
    assert "bcos_fx.errors" in shown  # has BcosFxError


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_to_its_end_and_is_small(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert path.stat().st_size < 600_000
    assert "site-packages" not in path.read_text(encoding="utf-8"), "a warning with a folder of one machine"


class _Fetched(HTMLParser):
    """Collects the addresses that a browser fetches by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "link" and named.get("rel") not in {"canonical", "next", "prev"}:
            self.addresses.append(named.get("href") or "")
        if tag in {"script", "img", "iframe", "source"}:
            self.addresses.append(named.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_asks_no_other_host_and_links_its_references(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page
    converting = (site / "reference" / "converting.html").read_text(encoding="utf-8")
    assert 'id="bcos_fx.bcosify"' in converting
    assert ":func:" not in converting, "a reference of a docstring is not a link"


@pytest.mark.slow
def test_networks_and_functions_are_found(site: Path) -> None:
    """In a real browser: by the field above a long table, and by the search of the whole site."""
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
    handler = partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, api.sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{server.server_port}/coverage.html")
        field = page.get_by_label("Filter these rows").last
        field.fill("timm:halonet")
        rows = field.locator("xpath=following::table[1]").locator("tbody tr:visible")
        names = [row.inner_text() for row in rows.all()]
        assert names
        assert all("halonet" in name for name in names)
        page.locator("input.md-search__input").fill("why_not")
        page.locator(".md-search-result__item").first.wait_for(timeout=60_000)
        assert "why_not" in page.locator(".md-search-result__list").inner_text()
        browser.close()
        server.shutdown()
    assert not [address for address in asked if not address.startswith(("http://127.0.0.1", "data:", "blob:"))]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: Any) -> None:
        pass


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_again(path: Path, tmp_path: Path) -> None:
    """Its own assertions are the test; numbers and pictures may differ in the last digits."""
    for library in ("nbclient", "ipykernel", "foolbox", "sklearn", "lightning", "efficientnet_lite_pytorch"):
        pytest.importorskip(library)
    from benchmarks.notebooks import executed

    found = executed(path, tmp_path)
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for new, old in zip(found["cells"], stored, strict=True):
        assert [kinds_of(output) for output in new.get("outputs", [])] == [
            kinds_of(output) for output in old.get("outputs", [])
        ]


def kinds_of(output: Any) -> list[str]:
    return sorted(output.get("data", {"text": ""}))
