"""The service behind a proxy that puts a path before everything: its pages and clients made from its document work."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urljoin

import httpx
import pytest
from playwright.sync_api import Browser

from tests.service.conftest import Labelled, Server
from tests.service.console import console, shown

pytestmark = pytest.mark.e2e

PREFIX = "/tools/saucier"
PER_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}


class Front(NamedTuple):
    """Where the service is reached."""

    url: str


@pytest.fixture
def front(server: Server) -> Iterator[Front]:
    """A proxy that knows the service below the prefix, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def _relay(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {key: value for key, value in self.headers.items() if key.lower() not in PER_HOP}
            target = f"{server.url}{self.path.removeprefix(PREFIX)}"
            answer = httpx.request(self.command, target, headers=headers, content=body, timeout=60)
            self.send_response(answer.status_code)
            for key, value in answer.headers.items():
                if key not in PER_HOP:
                    self.send_header(key, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_DELETE = _relay

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield Front(f"http://127.0.0.1:{proxy.server_port}{PREFIX}")
        proxy.shutdown()
        thread.join()


def test_client_that_follows_the_document_keeps_the_prefix(front: Front, labelled: Labelled) -> None:
    """Server URLs are resolved against the document's place, and paths put behind them (OpenAPI 3.1, section 4.8.5)."""
    place = f"{front.url}/openapi.json"
    document = httpx.get(place).json()
    (listed,) = document["servers"]
    base = urljoin(place, listed["url"]).removesuffix("/")
    assert "/bases" in document["paths"]
    assert httpx.get(f"{base}/bases").json()["bases"]
    answer = httpx.post(f"{base}/predict", files=labelled.request(0, 2)["files"])
    assert len(answer.json()["predictions"]) == 2


def test_console_and_pages_keep_the_prefix(browser: Browser, front: Front) -> None:
    with console(browser, front) as page:
        shown(page, "default")
        page.goto(f"{front.url}/docs")
        page.click("a[href='openapi.json']")
        assert page.url == f"{front.url}/openapi.json"
