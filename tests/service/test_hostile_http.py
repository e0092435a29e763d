"""A corpus of hostile files, forms, tensors and connections, on every route that takes them.

All of it is refused with a 4xx that says why and nothing of the inside; at the end nothing is stored, the processes are
the same, they hold about as much memory as before, and answers are what they were.
"""

import base64
import json
import random
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.hostile import archives, bodies, pictures, tensors, wire
from tests.service.conftest import ROOT, Server, as_parts, sample_files

pytestmark = pytest.mark.e2e

GROWTH_BYTES = 192 * 2**20  # of both workers together, which unpack up to 20 MB at a time; allocators keep some
GOOD, OTHER = bodies.GOOD, bodies.OTHER
PREDICTING = ("/predict", "/deployments/default/soups/1/predict")
INFERRING = ("/v2/models/default/infer", "/v2/models/default/versions/1/infer")
PUTTING = ("/deployments/default/soup", "/deployments/default/reservoir", "/deployments/hostile")
MUTANTS = 1500


def contents(server: Server) -> list[Any]:
    """Return all that is stored, by its rows and by its files."""
    parts = ("soups", "samples", "jobs?limit=1000", "events?limit=1000")
    soups, *others = [server.client.get(f"/deployments/default/{part}").json() for part in parts]
    deployments = [found["deployment"] for found in server.client.get("/deployments").json()["deployments"]]
    files = {path: path.stat().st_size for path in sample_files(server)}
    return [files, deployments, [(soup["version"], soup["is_current"]) for soup in soups["soups"]], *others]


def pids(server: Server) -> list[int]:
    return [process.pid for service in ("Saucier", "Adapter") for process in server.processes(service)]


def resident(server: Server) -> int:
    """Return the bytes that the workers hold; what is refused never reaches the adapter."""
    return sum(process.memory_info().rss for process in server.processes("Saucier"))


def warm(server: Server) -> Any:
    """Return the answer to good requests, after which both workers have what they need to answer at all."""
    large = pictures.saved(Image.new("RGB", (1000, 1000), "red"), "JPEG")
    for _ in range(8):
        for path in PREDICTING:
            with httpx.Client(base_url=server.url) as client:  # another connection, perhaps another worker
                assert client.post(path, files=as_parts([large] * 4)).status_code == 200
    answer = server.client.post("/predict", files=as_parts([GOOD, OTHER]))
    assert answer.status_code == 200
    return answer.json()


@pytest.fixture(scope="module", autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """Everything in this module leaves the service as it was."""
    answer = warm(server)
    before = contents(server), pids(server)
    held = resident(server)
    yield
    assert (contents(server), pids(server)) == before
    assert warm(server) == answer
    assert resident(server) - held < GROWTH_BYTES
    assert "Traceback" not in server.log.read_text()


def check(response: httpx.Response, *statuses: int) -> None:
    """Check a refusal: its status, its form, and that it is short and tells nothing of the inside."""
    assert response.status_code in statuses, response.text[:2000]
    if response.request.url.path.startswith("/v2/"):
        assert list(response.json()) == ["error"]
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert set(response.json()) == {"type", "title", "status", "detail", "errors"}
        assert response.json()["status"] == response.status_code
    assert len(response.content) < 20_000
    for secret in ("Traceback", 'File "', str(ROOT), sys.prefix, "site-packages"):
        assert secret not in response.text


def everywhere(server: Server, file: bytes) -> Iterator[tuple[httpx.Response, str]]:
    """Send a file to every route that takes images, in every way it takes them, beside good ones where it can be.

    Yields each answer and the field that it must name.
    """
    post, three = server.client.post, [GOOD, file, OTHER]
    for path in PREDICTING:
        yield post(path, files=as_parts(three)), "images[1]"
        yield post(path, content=file, headers={"content-type": "image/png"}), "images[0]" if file else "images"
        yield post(path, json={"images": [base64.b64encode(item).decode() for item in three]}), "images[1]"
    yield post("/adapt", files=as_parts(three), data={"labels": "[0, 1, 2]"}), "images[1]"
    yield post("/adapt", files=as_parts(three, "unlabelled")), "unlabelled[1]"
    both = as_parts([GOOD]) + as_parts([OTHER, file], "unlabelled")
    yield post("/adapt", files=both, data={"labels": "[0]"}), "unlabelled[1]"
    members = {"cat/a.png": GOOD, "dog/x.png": file, "ship/b.png": OTHER}
    for archive in (archives.zipped(members), archives.tarred(members.items())):
        yield post("/adapt", files=as_parts([archive], "archive")), "archive"


@pytest.mark.parametrize("kind", pictures.refused())
def test_hostile_image_is_refused_wherever_it_is_sent(server: Server, kind: str) -> None:
    file, status = pictures.refused()[kind]
    for response, field in everywhere(server, file):
        check(response, status)
        assert response.json()["errors"][0]["field"] == field


def test_odd_images_are_classified(server: Server) -> None:
    for kind, file in pictures.odd().items():
        for path in PREDICTING:
            response = server.client.post(path, files=as_parts([file]))
            assert response.status_code == 200, (kind, response.text)
            assert 0 <= response.json()["predictions"][0]["confidence"] <= 1


@pytest.mark.parametrize("kind", archives.refused())
def test_hostile_archive_is_refused(server: Server, kind: str) -> None:
    file, status = archives.refused()[kind]
    response = server.client.post("/adapt", files=as_parts([file], "archive"))
    check(response, status)
    assert response.json()["errors"][0]["field"] == "archive"
    beside = as_parts([file], "archive") + as_parts([GOOD], "unlabelled")
    check(server.client.post("/adapt?promote=always", files=beside), status)
    for path in PREDICTING if kind != "an image" else ():
        check(server.client.post(path, files=as_parts([file])), 422)
        check(server.client.post(path, content=file, headers={"content-type": "image/jpeg"}), 422)


@pytest.mark.parametrize("kind", bodies.forms())
def test_hostile_form_is_refused(server: Server, kind: str) -> None:
    body = bodies.forms()[kind]
    for path in (*PREDICTING, "/adapt", "/adapt?samples=all"):
        check(server.client.post(path, content=body.data, headers=body.headers), *body.statuses)


@pytest.mark.parametrize("kind", bodies.labels())
def test_hostile_labels_are_refused(server: Server, kind: str) -> None:
    text, status = bodies.labels()[kind]
    files = [*as_parts([GOOD, OTHER]), ("labels", (None, text))]
    check(server.client.post("/adapt", files=files), status)
    check(server.client.post("/adapt", files=[*files, ("labels", (None, b"[0, 1]"))]), 422)


@pytest.mark.parametrize("kind", bodies.texts())
def test_hostile_json_is_refused(server: Server, kind: str) -> None:
    body = bodies.texts()[kind]
    for path in PUTTING:
        check(server.client.put(path, content=body.data, headers=body.headers), *body.statuses)
    for path in PREDICTING:
        check(server.client.post(path, content=body.data, headers=body.headers), *body.statuses)
    for path in INFERRING:
        check(server.client.post(path, content=body.data, headers=body.headers), 400)


def test_hostile_soups_are_refused(server: Server) -> None:
    for kind, value in bodies.soups().items():
        headers = {"content-type": "application/json"}
        response = server.client.put("/deployments/default/soup", content=json.dumps(value), headers=headers)
        assert response.status_code in (404, 409, 422), (kind, response.text)
        check(response, response.status_code)


def test_json_images_are_never_fetched(server: Server) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/image.png"
        for body in bodies.images_as_text(url).values():
            for path in PREDICTING:
                check(server.client.post(path, content=body.data, headers=body.headers), *body.statuses)
        for path in PREDICTING:
            check(server.client.post(path, files={"images": (None, url)}), 422)
            check(server.client.post(path, content=url, headers={"content-type": "image/png"}), 422)
        check(server.client.post("/adapt", files={"images": (None, url)}, data={"labels": "[0]"}), 422)
        check(server.client.post("/adapt", files={"archive": (None, url)}), 422)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", tensors.tensors())
def test_hostile_tensor_is_refused(server: Server, kind: str) -> None:
    body = tensors.tensors()[kind]
    for path in INFERRING:
        check(server.client.post(path, content=body.data, headers=body.headers), *body.statuses)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_encoded_bodies_are_not_unpacked(server: Server, encoding: str) -> None:
    headers = {"content-encoding": encoding, "content-type": "image/png"}
    for body in (bodies.texts()["a gzip bomb"].data, b"no gzip at all"):
        for path in PREDICTING:
            check(server.client.post(path, content=body, headers=headers), 415)
        check(server.client.post("/adapt", content=body, headers=headers | {"content-type": bodies.FORM}), 415)
        for path in INFERRING:
            check(server.client.post(path, content=body, headers=headers), 415)
        for path in PUTTING:
            check(server.client.put(path, content=body, headers=headers | {"content-type": bodies.JSON}), 415)


def test_addresses_of_nothing_are_refused(server: Server) -> None:
    for kind, (method, path) in wire.addresses().items():
        files = as_parts([GOOD]) if method == "POST" else None
        response = server.client.request(method, path, files=files)
        assert response.status_code in (400, 404, 422), (kind, response.text)
        check(response, response.status_code)


def exchange(server: Server, *packets: bytes, closes: bool = True) -> bytes:
    """Send bytes packet by packet, close our side, and return what comes back."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # the other side has closed
            for number, packet in enumerate(packets):
                time.sleep(0.1 if number else 0)
                connection.sendall(packet)
            if closes:
                connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        with suppress(ConnectionResetError):
            while more := connection.recv(65_536):
                received += more
        return bytes(received)


@pytest.mark.parametrize("kind", wire.connections())
def test_hostile_connection_is_refused(server: Server, kind: str) -> None:
    answer = exchange(server, wire.connections()[kind])
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:500]
    for status in (b"HTTP/1.1 2", b"HTTP/1.1 5"):  # of what was taken for a second request
        assert status not in answer
    for secret in (b"Traceback", str(ROOT).encode(), sys.prefix.encode()):
        assert secret not in answer


@pytest.mark.parametrize("kind", wire.upgrades())
def test_offer_of_another_protocol_is_passed_over(server: Server, kind: str) -> None:
    """No body is lost, and none is taken for a request."""
    sent = wire.upgrades()[kind]
    packets, statuses = [*sent.packets], [*sent.statuses]
    if sent.goes_on:
        packets, statuses = [*packets, wire.LAST], [*statuses, 200]
    answer = exchange(server, *packets, closes=False)
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)] == statuses, answer[:2000]


def mutant(file: bytes, chance: random.Random) -> bytes:
    """Return a file that is cut off, has other bytes, or repeats a part of itself."""
    data = bytearray(file)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
            case 2:
                data[at:at] = data[at : at + chance.randrange(64)]
            case _:
                del data[at + 1 + chance.randrange(len(data) - at) :]
    return bytes(data)


@pytest.mark.slow
def test_damaged_files_are_refused_or_harmless(server: Server) -> None:
    chance = random.Random(5)
    sources = [*pictures.odd().values(), *(file for file, _ in pictures.refused().values() if file)]
    packs = [archives.zipped(archives.GOOD), archives.tarred(archives.GOOD.items())]
    found: set[int] = set()
    for _ in range(MUTANTS):
        file = mutant(chance.choice(sources), chance)
        response = server.client.post(chance.choice(PREDICTING), files=as_parts([file]))
        found.add(response.status_code)
        if response.status_code != 200:
            check(response, 413, 422)
        unusable = [*as_parts([GOOD, file]), ("labels", (None, b'["cat", "nobody"]'))]
        check(server.client.post("/adapt", files=unusable), 413, 422)
        pack = mutant(chance.choice(packs), chance)  # with a second archive, so that none is taken
        check(server.client.post("/adapt", files=as_parts([pack, pack], "archive")), 422)
    assert found == {200, 413, 422}
