"""Take the picture of `bcos-fx serve` in docs/serve.md: python benchmarks/serve_picture.py PHOTO."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu"]
WAIT = 90_000


def explore(page: Page, address: str, photo: Path) -> None:
    """Show the predicted class of a photograph by its contributions."""
    page.goto(address)
    page.set_input_files("#photograph input[type=file]", photo, timeout=WAIT)
    expect(page.locator("#answer")).to_contain_text("Why ", timeout=WAIT)
    before = page.locator("#map img").get_attribute("src")
    page.locator("#way input").click()
    page.get_by_role("option", name="W(x) over the photograph").click()
    expect(page.locator("#map img")).not_to_have_attribute("src", before or "", timeout=WAIT)
    page.wait_for_timeout(500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "imagenette.bcos.safetensors")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "serve.png")
    given = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    words = [sys.executable, "-m", "bcos_fx", "serve", str(given.model), "--port", "0", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the server has not started"
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": given.width, "height": 900})
        explore(page, found[0], given.photo)
        page.screenshot(path=given.out, full_page=True)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
