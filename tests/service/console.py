"""The console in a browser: opened on a server, watched for errors and for requests to anybody else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect

from tests.service.conftest import Labelled, Server

FAILED_TO_LOAD = "Failed to load resource: the server responded with a status of "
ENOUGH_MS = 30_000

expect.set_options(timeout=ENOUGH_MS)


@contextmanager
def console(
    browser: Browser, server: Server, *, at: str = "", refused: set[int] | None = None, **options: Any
) -> Iterator[Page]:
    """Open the page; at its end there were no errors, and no answers but successes and those of `refused`."""
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
    context.set_default_timeout(ENOUGH_MS)
    page = context.new_page()
    problems: list[str] = []
    statuses: set[int] = set()

    def note_request(request: Request) -> None:
        if not request.url.startswith((f"{server.url}/", f"blob:{server.url}/")):
            problems.append(f"request to {request.url}")

    def note_response(response: Response) -> None:
        if response.status >= 400:
            statuses.add(response.status)

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(FAILED_TO_LOAD):
            problems.append(message.text)

    page.on("request", note_request)
    page.on("response", note_response)
    page.on("console", note_message)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{server.url}/ui{at}")
    yield page
    context.close()
    assert problems == []
    assert statuses <= (refused or set())


def shown(page: Page, name: str) -> Page:
    """Wait until a deployment is shown."""
    page.wait_for_function("name => document.getElementById('name').textContent === name", arg=name)
    return page


def write_folders(labelled: Labelled, start: int, stop: int, root: Path) -> Path:
    """Write labelled images, one folder per class; return the folder of folders."""
    for index in range(start, stop):
        folder = root / labelled.class_names[labelled.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(labelled.files[index])
    return root


def drop(page: Page, selector: str, *paths: Path) -> None:
    """Drop files or folders on an element, as the desktop does."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})


def agree(page: Page) -> None:
    """Press the button of the dialog that does what it asks about."""
    page.locator("#dialog-yes").click()
    page.wait_for_selector("#dialog:not([open])", state="attached")


def current(server: Server, name: str) -> dict[str, Any]:
    """Return a deployment as the server sees it."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        found: dict[str, Any] = client.get(f"/deployments/{name}").json()
    return found
