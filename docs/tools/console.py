"""Make the pictures of docs/how-to/console.md: `python -m docs.tools.console`. Takes two to four minutes.

Serves `bases/photos`, adapts it to drawings in a browser, and takes two screenshots, one light and one dark.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.pictures import with_palette
from examples.demo_photos import BASE_SET, draw_pictures
from service.demo.server import Server, serve, wait_for_workers
from service.demo.story import Pictures
from training.manifest import read_manifest

FOLDER = Path(__file__).resolve().parents[1] / "how-to"
NAME = "night-shift"
WIDTH, WIDE = 1000, 1400  # pixels: of the pictures, of the browser's window
LIGHT_HEIGHT, DARK_HEIGHT = 1900, 1250  # of the page; the rest is cut off
SEARCH_MS = 300_000


def main() -> int:
    """Serve, adapt, take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.console", description="Make the console's pictures.")
    parser.parse_args()
    pictures = draw_pictures(read_manifest(BASE_SET).class_names, seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelled = _write(pictures, pictures.support, folder / "drawings")
        more = _write(pictures, pictures.test[:42], folder / "more")
        with serve(folder, BASE_SET.parent) as server, sync_playwright() as playwright:
            wait_for_workers(server, 2)
            server.call("PUT", f"/deployments/{NAME}", {"base_set": BASE_SET.name})
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            _take_light(browser, server, labelled, more)
            _take_dark(browser, server, more)
            browser.close()
    return 0


def _write(pictures: Pictures, positions: npt.NDArray[np.int64], folder: Path) -> Path:
    for position, label in zip(positions, pictures.labels(positions), strict=True):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{position}.jpg").write_bytes(pictures.files[position])
    return folder


def _take_light(browser: Browser, server: Server, labelled: Path, more: Path) -> None:
    page = _opened(browser, server, "light")
    page.set_input_files("#pick-folder", labelled)
    page.select_option("#effort", "quick")
    page.click("#adapt-start")
    page.wait_for_selector("#adapt .found", timeout=SEARCH_MS)
    page.set_input_files("#trial-folder", more)
    page.wait_for_selector("#trial-result .verdict", timeout=SEARCH_MS)
    page.wait_for_timeout(1000)
    _save(page, LIGHT_HEIGHT, FOLDER / "console.png")


def _take_dark(browser: Browser, server: Server, more: Path) -> None:
    page = _opened(browser, server, "dark")
    page.set_input_files("#pick-folder", more)
    page.wait_for_timeout(1000)
    _save(page, DARK_HEIGHT, FOLDER / "console-dark.png")


def _opened(browser: Browser, server: Server, scheme: str) -> Page:
    options = {"viewport": {"width": WIDE, "height": 900}, "color_scheme": scheme}
    page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
    page.goto(f"{server.url}/ui#/{NAME}")
    page.wait_for_function("name => document.getElementById('name').textContent === name", arg=NAME)
    return page


def _save(page: Page, height: int, path: Path) -> None:
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        part = image.convert("RGB").crop((0, 0, image.width, min(height, image.height)))
        part = part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS)
        with_palette(part, 48).save(path, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
