"""Make the pictures of docs/how-to/console.md: `python -m docs.tools.console`. Takes a minute.

Serves `bases/cifar10-small`, adapts it to drawings in a browser, and takes two screenshots, one light and one dark.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.pictures import with_palette
from examples.drawings import DRAWINGS, draw
from service.demo.server import Server, serve, wait_for_workers
from service.settings import PACKAGE_ROOT
from training.manifest import read_manifest

FOLDER = Path(__file__).resolve().parents[1] / "how-to"
BASE_SET = PACKAGE_ROOT / "bases" / "cifar10-small"
NAME = "night-shift"
LABELLED, MORE = 40, 10  # drawings of each class: to adapt to, to try
WIDTH, WIDE = 1000, 1400  # pixels: of the pictures, of the browser's window
LIGHT_HEIGHT, DARK_HEIGHT = 1880, 1700  # of the page; the rest is cut off
SEARCH_MS = 300_000


def main() -> int:
    """Serve, adapt, take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.console", description="Make the console's pictures.")
    parser.parse_args()
    names = [name for name in read_manifest(BASE_SET).class_names if name in DRAWINGS]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labelled = _drawn(names, LABELLED, folder / "drawings", generator)
        more = _drawn(names, MORE, folder / "more", generator)
        with serve(folder, BASE_SET) as server, sync_playwright() as playwright:
            wait_for_workers(server, 2)
            server.call("PUT", f"/deployments/{NAME}", {"base_set": BASE_SET.name})
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            _take_light(browser, server, labelled, more)
            _take_dark(browser, server, more)
            browser.close()
    return 0


def _drawn(names: Sequence[str], count: int, folder: Path, generator: np.random.Generator) -> Path:
    """Write `folder/<class>/<number>.png`."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            draw(name, generator).save(folder / name / f"{number}.png")
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
