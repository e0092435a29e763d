"""A server that asks for keys: who may what, what is told about it, and clients that dawdle or never end."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from service.store.keys import add_key, revoke_key
from tests.service.conftest import Labelled, Server, as_parts
from tests.service.console import console, shown, write_folders
from tests.service.keyed import KeyedServer

pytestmark = pytest.mark.e2e

HEAD_SECONDS, BODY_SECONDS, RATE = 1, 2, 40
OF = ("events", "jobs", "soups")


@pytest.fixture(scope="module")
def keyed(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    server = KeyedServer(
        tmp_path_factory.mktemp("keyed") / "home",
        prebuilt_bases,
        KEY_REQUESTS_PER_SECOND=str(RATE),
        HEAD_TIMEOUT_SECONDS=str(HEAD_SECONDS),
        UPLOAD_TIMEOUT_SECONDS=str(BODY_SECONDS),
        METRICS_KEY="always",
        MAX_UPLOAD_MB="1",
        MAX_QUEUED_JOBS="1",
    )
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def client(keyed: KeyedServer) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=keyed.url, timeout=70) as client:
        yield client


def test_roles_hold_from_end_to_end(keyed: KeyedServer, client: httpx.Client, labelled: Labelled) -> None:
    files = as_parts(labelled.files[:2])
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/deployments", "/nowhere"):
        assert client.get(path).status_code == 401
    assert client.post("/predict", files=files).status_code == 401
    predict, adapt = keyed.headers("predict"), keyed.headers("adapt")
    assert client.post("/predict", files=files, headers=predict).status_code == 200
    request = labelled.request(0, 12) | {"params": {"wait": 0, "promote": "never"}}
    assert client.post("/adapt", **request, headers=predict).status_code == 403
    always = labelled.request(0, 12) | {"params": {"promote": "always"}}
    refused = client.post("/adapt", **always, headers=adapt)
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert "promote=always" in refused.json()["detail"]
    likely = client.post("/adapt", **labelled.request(0, 8), params={"promote": "likely"}, headers=adapt)
    assert likely.status_code in (200, 202)  # eight images prove nothing: it is kept
    dial = {"coefficients": {"linf": 0.0, "nominal": 0.0, "l2": 1.0, "l1": 0.0}}
    assert client.put("/deployments/default/soup", json=dial, headers=adapt).status_code == 403
    assert client.get("/deployments/default", headers=predict).json()["version"] == 1
    done = client.post("/adapt", **labelled.request(0, 12), params={"promote": "never"}, headers=adapt)
    assert done.json()["state"] == "kept"
    assert client.get(f"/jobs/{done.json()['job']}", headers=adapt).json() == done.json()


def test_events_name_the_key_that_asked(keyed: KeyedServer, labelled: Labelled) -> None:
    dial = {"coefficients": {"linf": 0.5, "nominal": 0.0, "l2": 0.5, "l1": 0.0}}
    assert keyed.client.put("/deployments/default/soup", json=dial).status_code in (200, 202)
    assert keyed.client.put("/deployments/default/soup", json={"version": 1}).status_code in (200, 202)
    adapted = keyed.client.post("/adapt", **labelled.request(5, 105), headers=keyed.headers("adapt")).json()
    assert adapted["state"] == "promoted"
    events = keyed.client.get("/deployments/default/events").json()["events"]
    found = [(event["kind"], event["who"]) for event in events[:4]]
    assert found == [("promoted", "the-adapt"), ("rollback", "the-admin"), ("dial", "the-admin"), ("created", None)]
    assert keyed.client.put("/deployments/default/soup", json={"version": 1}).status_code in (200, 202)


def test_clients_of_the_inference_protocol_use_keys(keyed: KeyedServer) -> None:
    with InferenceServerClient(f"127.0.0.1:{keyed.port}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="expected an API key"):
            client.get_model_metadata("default")
        headers = {"Authorization": f"Bearer {keyed.secrets['predict']}"}
        assert client.get_model_metadata("default", headers=headers)["name"] == "default"


def test_console_works_with_a_key_that_suffices(
    browser: Browser, keyed: KeyedServer, labelled: Labelled, tmp_path: Path
) -> None:
    folder = write_folders(labelled, 0, 60, tmp_path / "shop")
    with console(browser, keyed, refused={401, 403}) as page:
        for key in ("saucier_wrong", keyed.secrets["predict"]):
            page.fill("#key", key)
            page.keyboard.press("Enter")
            if key == "saucier_wrong":
                expect(page.locator("#sign-in [role=alert]")).to_contain_text("not accepted")
        expect(page.locator("#page-problem")).to_contain_text("needs a key of the role adapt")
        page.click("#sign-out")
        page.fill("#key", keyed.secrets["adapt"])
        page.keyboard.press("Enter")
        shown(page, "default")
        page.set_input_files("#pick-folder", folder)
        page.select_option("#promote", "never")
        page.click("#adapt-start")
        page.wait_for_selector(".result")


def test_late_refusal_does_not_forget_the_key_entered_since(browser: Browser, keyed: KeyedServer) -> None:
    """The fault: a refusal of a request without a key, answered late, signed out who had just signed in."""
    held: dict[bool, Route] = {}

    def hold(route: Route) -> None:
        held["authorization" in route.request.headers] = route

    with console(browser, keyed, refused={401}) as page:
        page.wait_for_selector("#key")
        page.route("**/deployments/default/jobs", hold)
        page.reload()
        page.wait_for_selector("#key")
        page.fill("#key", keyed.secrets["adapt"])
        with page.expect_request(lambda request: request.url.endswith("/jobs")):
            page.keyboard.press("Enter")
        with page.expect_response(lambda response: response.url.endswith("/jobs") and response.status == 401):
            held[False].continue_()
        held[True].continue_()
        shown(page, "default")


def test_running_workers_follow_the_file(keyed: KeyedServer) -> None:
    secret = add_key(keyed.file, "visitor", "predict")

    def settled(status: int) -> Callable[[], bool]:
        def all_say_so() -> bool:
            with httpx.Client(base_url=keyed.url) as fresh:  # connections spread over the workers
                return fresh.get("/bases", headers=keyed.headers(secret)).status_code == status

        return lambda: all(all_say_so() for _ in range(8))

    keyed.wait_for(settled(200), "new key known", 10)
    revoke_key(keyed.file, "visitor")
    keyed.wait_for(settled(401), "revoked key refused", 10)


def test_stream_of_events_ends_when_its_key_is_revoked(keyed: KeyedServer, labelled: Labelled) -> None:
    """The job waits all the time, as the adapter is held; the fault: the stream told of it until it had ended."""
    secret = add_key(keyed.file, "watcher", "adapt")
    (adapter,) = keyed.processes("Adapter")
    adapter.suspend()
    try:
        job = keyed.client.post("/adapt?wait=0&promote=never", **labelled.request(50, 70)).json()["job"]
        path = f"/jobs/{job}/events"
        with httpx.Client(base_url=keyed.url, timeout=20, headers=keyed.headers(secret)) as client:
            keyed.wait_for(lambda: client.get("/bases").status_code == 200, "new key known", 10)
            with client.stream("GET", path) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: progress"
                revoke_key(keyed.file, "watcher")
                start = time.monotonic()
                assert [line for line in lines if line.startswith("event")] == []
                assert time.monotonic() - start < 10
        cancelled = keyed.client.delete(f"/jobs/{job}", headers=keyed.headers("adapt"))
        assert (cancelled.status_code, cancelled.json()["reason"]) == (200, "cancelled by the-adapt")
        assert keyed.client.delete(f"/jobs/{job}", headers=keyed.headers("predict")).status_code == 403
    finally:
        adapter.resume()


def test_key_that_asks_too_often_waits(keyed: KeyedServer) -> None:
    secret = add_key(keyed.file, "eager", "predict")
    time.sleep(1.2)
    found: list[httpx.Response] = []
    with httpx.Client(base_url=keyed.url, headers=keyed.headers(secret)) as client:
        deadline = time.monotonic() + 20
        while (not found or found[-1].status_code == 200) and time.monotonic() < deadline:
            found.append(client.get("/v2"))
    assert len(found) > RATE
    assert (found[-1].status_code, found[-1].headers["retry-after"]) == (429, "1")
    assert set(found[-1].json()) == {"error"}
    assert keyed.client.get("/bases").status_code == 200


def test_answers_tell_browsers_to_be_careful(keyed: KeyedServer) -> None:
    for path, status in (("/deployments", 200), ("/nowhere", 404), ("/docs", 200), ("/livez", 200)):
        answer = keyed.client.get(path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def converse(server: Server, start: bytes, drip: bytes, *, seconds: float) -> tuple[bytes, float]:
    """Send `start`, then `drip` twice a second; return what comes back until the server closes, and after how long."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(start)
        client.settimeout(0.5)
        answer = b""
        while time.monotonic() - began < seconds:
            try:
                if not (data := client.recv(65_536)):
                    return answer, time.monotonic() - began
                answer += data
            except TimeoutError:
                try:
                    client.sendall(drip)
                except OSError:
                    return answer, time.monotonic() - began
            except OSError:
                return answer, time.monotonic() - began
    raise AssertionError(f"the connection is open after {seconds} s, it said {answer[:200]!r}")


def head(server: KeyedServer, method: str, path: str, *lines: str) -> bytes:
    key = f"Authorization: Bearer {server.secrets['admin']}"
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", key, *lines, "", "")).encode()


LATE = 15  # seconds that a loaded machine may add


def test_silence_and_dripping_heads_are_cut(keyed: KeyedServer) -> None:
    for start, drip in ((b"", b""), (b"GET / HTTP/1.1\r\nX-A: ", b"a"), (head(keyed, "GET", "/bases"), b"\r\n")):
        answer, seconds = converse(keyed, start, drip, seconds=LATE)
        assert seconds >= HEAD_SECONDS - 0.2
        assert answer.startswith(b"HTTP/1.1 200") == (b"/bases" in start)


def test_endless_head_is_cut(keyed: KeyedServer) -> None:
    answer, _ = converse(keyed, b"GET / HTTP/1.1\r\nX-A: " + b"a" * 200_000, b"a", seconds=LATE)
    assert answer.startswith(b"HTTP/1.1 431") or not answer  # a reset can overtake the answer


def test_dripping_body_is_cut(keyed: KeyedServer) -> None:
    for lines in (("Content-Length: 100000",), ("Transfer-Encoding: chunked",)):
        start = head(keyed, "POST", "/predict", "Content-Type: image/png", *lines)
        drip = b"x" if "Length" in lines[0] else b"1\r\nx\r\n"
        answer, seconds = converse(keyed, start, drip, seconds=LATE)
        assert answer.startswith(b"HTTP/1.1 408")
        assert seconds >= BODY_SECONDS - 0.2


def test_dripping_body_is_cut_behind_a_whole_one(keyed: KeyedServer) -> None:
    first = head(keyed, "POST", "/predict", "Content-Type: image/png", "Content-Length: 4") + b"none"
    second = head(keyed, "POST", "/predict", "Content-Type: image/png", "Content-Length: 100000") + b"x"
    answer, seconds = converse(keyed, first + second, b"x", seconds=LATE)
    assert answer.startswith(b"HTTP/1.1 422")
    assert b"HTTP/1.1 408" in answer
    assert seconds >= BODY_SECONDS - 0.2


def test_body_that_nobody_reads_is_cut(keyed: KeyedServer) -> None:
    stranger = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    answer, seconds = converse(keyed, stranger, b"x", seconds=LATE)
    assert answer.startswith(b"HTTP/1.1 401")
    assert seconds >= HEAD_SECONDS - 0.2


def test_oversized_chunked_body_is_cut(keyed: KeyedServer) -> None:
    start = head(keyed, "POST", "/predict", "Content-Type: image/png", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    answer, _ = converse(keyed, start + chunk * 20, chunk, seconds=LATE)
    assert answer.startswith(b"HTTP/1.1 413")


def test_idle_connections_between_requests_live_on(keyed: KeyedServer) -> None:
    with closing(HTTPConnection("127.0.0.1", keyed.port, timeout=LATE)) as client:
        client.connect()
        first = client.sock
        for wait in (0, HEAD_SECONDS + 1):  # uvicorn keeps them for 5 s
            time.sleep(wait)
            client.request("GET", "/v2", headers=keyed.headers("predict"))
            with client.getresponse() as answer:
                assert (answer.status, bool(answer.read())) == (200, True)
            assert client.sock is first  # it opens another one when the server closed it


def test_full_queue_is_a_429(keyed: KeyedServer, labelled: Labelled) -> None:
    found = []
    for stop in range(20, 32):
        found.append(keyed.client.post("/adapt", **labelled.request(0, stop), params={"wait": 0, "promote": "never"}))
        if found[-1].status_code == 429:
            break
    assert found[-1].status_code == 429, [answer.status_code for answer in found]
    assert int(found[-1].headers["retry-after"]) >= 1
    assert len(found) >= 2
    nonsense = keyed.client.post("/adapt", files=as_parts([b"nonsense"]), data={"labels": "[0]"})
    assert nonsense.status_code == 429, "the queue is full, so nobody should look at the images"


def test_keys_are_told_to_nobody(keyed: KeyedServer, labelled: Labelled) -> None:
    wrong = "saucier_" + "A" * 43
    request = labelled.request(0, 40) | {"params": {"wait": 0, "promote": "never"}}
    errors = [
        keyed.client.get("/deployments", headers=keyed.headers(wrong)),
        keyed.client.put("/deployments/x", json={}, headers=keyed.headers("predict")),
        keyed.client.post("/adapt", **request, headers=keyed.headers("predict")),
        keyed.client.post("/predict", content=b"nonsense", headers={"content-type": "image/png"}),
    ]
    assert [error.status_code for error in errors] == [401, 403, 403, 422]
    assert keyed.client.post("/adapt", **request).status_code in (202, 429)
    said = {path: keyed.client.get(path).content for path in ("/metrics", *(f"/deployments/default/{of}" for of in OF))}
    assert b'reason="key"' in said["/metrics"]
    assert b'reason="role"' in said["/metrics"]
    assert json.loads(said["/deployments/default/jobs"])["jobs"]
    said |= {str(index): error.content + str(error.headers).encode() for index, error in enumerate(errors)}
    said |= {str(path): path.read_bytes() for path in keyed.home.parent.rglob("*") if path.is_file()}
    assert {str(keyed.log), str(keyed.file), str(keyed.home / "registry.db")} <= said.keys()
    for secret in (*keyed.secrets.values(), wrong):
        assert not [where for where, text in said.items() if secret.removeprefix("saucier_").encode() in text]
