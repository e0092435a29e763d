"""Bad input over real HTTP: the right status, problem details that name the item, nothing stored, the process lives.

Files, forms and tensors made to do harm are in test_hostile_http.py.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import CLASSES
from tests.service.conftest import ROOT, Labelled, Server, as_parts, encode, stored

pytestmark = pytest.mark.e2e

GOOD = encode(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
OTHER = encode(np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def unharmed(server: Server) -> Iterator[None]:
    """Nothing is stored, swapped or lost, and the same processes go on."""
    before = stored(server), [process.pid for process in server.processes("Saucier")]
    yield
    assert (stored(server), [process.pid for process in server.processes("Saucier")]) == before
    assert server.client.post("/predict", files=as_parts([GOOD])).status_code == 200


def check(response: httpx.Response, status: int, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    assert body["status"] == status
    assert "Traceback" not in response.text
    assert str(ROOT) not in response.text
    if field is not None:
        assert field in [error["field"] for error in body["errors"]], body


@pytest.mark.parametrize(
    ("body", "field"), [({"images": []}, "images"), ({"images": ["@"]}, "images[0]"), ({}, "images"), ([], "body")]
)
def test_json_without_usable_images_is_a_422(server: Server, body: Any, field: str) -> None:
    check(server.client.post("/predict", json=body), 422, field)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded"])
def test_wrong_media_type_is_a_415(server: Server, kind: str) -> None:
    headers = {"content-type": kind}
    check(server.client.post("/predict", content=GOOD, headers=headers), 415)
    check(server.client.post("/adapt", content=GOOD, headers=headers), 415)
    check(server.client.put("/deployments/default/soup", content=b"{}", headers=headers), 415)
    check(server.client.post("/predict", content=GOOD), 415)


def test_no_images_are_a_422(server: Server) -> None:
    empty = {"files": [("labels", (None, "[]"))]}
    check(server.client.post("/adapt", **empty), 422, "images")
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    check(server.client.post("/predict", content=b"--x--\r\n", headers=boundary), 422, "images")
    check(server.client.post("/predict", content=b"", headers={"content-type": "image/png"}), 422, "images")


@pytest.mark.parametrize(
    ("labels", "status", "field"),
    [
        ("[0]", 422, "labels"),
        ("[0, 1, 2]", 422, "labels"),
        ("[]", 422, "labels"),
        ('["cat", "unicorn"]', 422, "labels[1]"),
        ("[0, 3]", 422, "labels[1]"),
        ("[-1, 0]", 422, "labels[0]"),
        ("[0, true]", 422, "labels[1]"),
        ("[0, 1.5]", 422, "labels[1]"),
        ("[0, null]", 422, "labels[1]"),
        ("[0, [1]]", 422, "labels[1]"),
        ("[0, NaN]", 422, "labels[1]"),
        ('{"0": 1}', 422, "labels"),
        ("0", 422, "labels"),
        ("cat,dog", 400, "labels"),
        ("", 400, "labels"),
    ],
)
def test_bad_labels_are_named(server: Server, labels: str, status: int, field: str) -> None:
    check(server.client.post("/adapt", files=as_parts([GOOD, OTHER]), data={"labels": labels}), status, field)


def test_one_image_with_two_labels_is_a_422(server: Server) -> None:
    response = server.client.post("/adapt", files=as_parts([GOOD, OTHER, GOOD]), data={"labels": "[0, 1, 2]"})
    check(response, 422, "images[2]")


def test_missing_and_doubled_parts_are_a_422(server: Server) -> None:
    client = server.client
    check(client.post("/adapt", files=as_parts([GOOD])), 422, "labels")
    check(client.post("/adapt", files=as_parts([GOOD]), data={"labels": ["[0]", "[1]"]}), 422, "labels")
    check(client.post("/adapt", files=as_parts([GOOD], "unlabelled"), data={"labels": "[0]"}), 422, "images")
    check(client.post("/adapt", files=as_parts([GOOD]) + as_parts([OTHER], "unlabelled")), 422, "labels")
    check(client.post("/adapt", files=as_parts([GOOD]) + as_parts([b"x"], "archive")), 422, "archive")
    check(client.post("/adapt", files=as_parts([GOOD], "pictures"), data={"labels": "[0]"}), 422, "pictures")
    check(client.post("/predict", files=as_parts([GOOD], "image")), 422, "image")


def test_too_many_bytes_are_a_413(server: Server, labelled: Labelled) -> None:
    big = np.random.default_rng(0).bytes(2_100_000)
    check(server.client.post("/predict", content=big, headers={"content-type": "image/png"}), 413)
    check(server.client.post("/adapt", files=as_parts([big]), data={"labels": "[0]"}), 413)

    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield bytes(10_000)

    check(server.client.post("/predict", content=chunks(), headers={"content-type": "image/png"}), 413)


def test_too_many_images_are_a_413(server: Server) -> None:
    check(server.client.post("/predict", files=as_parts([GOOD] * 301)), 413)
    check(server.client.post("/adapt", files=as_parts([GOOD] * 301), data={"labels": json.dumps([0] * 301)}), 413)
    both = as_parts([GOOD] * 200) + as_parts([GOOD] * 101, "unlabelled")
    check(server.client.post("/adapt", files=both, data={"labels": json.dumps([0] * 200)}), 413)
    check(server.client.post("/adapt", files=as_parts([GOOD] * 301, "unlabelled")), 413)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/predict?top_k=0", "top_k"),
        ("/predict?top_k=-1", "top_k"),
        ("/predict?top_k=two", "top_k"),
        ("/predict?top_k=1.5", "top_k"),
        ("/predict?topk=1", "topk"),
        ("/predict?top_k=1&top_k=2", "top_k"),
        ("/adapt?wait=51", "wait"),
        ("/adapt?wait=-1", "wait"),
        ("/adapt?wait=nan", "wait"),
        ("/adapt?strategy=magic", "strategy"),
        ("/adapt?promote=please", "promote"),
        ("/adapt?promot=always", "promot"),
        ("/adapt?balance=classes", "balance"),
        ("/adapt?balance=none&balance=class", "balance"),
        ("/adapt?draw=even", "draw"),
        ("/adapt?draw=", "draw"),
        ("/adapt?draw=any&draw=fair", "draw"),
    ],
)
def test_bad_query_value_is_a_400(server: Server, path: str, field: str) -> None:
    check(server.client.post(path, files=as_parts([GOOD]), data={"labels": "[0]"}), 400, field)


@pytest.mark.parametrize(
    ("method", "path", "body", "nearest"),
    [
        ("POST", "/predict?topk=1", {"images": []}, "top_k"),
        ("POST", "/adapt?promote=alway", None, "always"),
        ("GET", "/deployments/default/soups?limti=3", None, "limit"),
        ("PUT", "/deployments/default/soup", {"coeficients": {"linf": 1}}, "coefficients"),
        ("PUT", "/deployments/gate", {"base-set": "tiny"}, "base_set"),
        ("PUT", "/deployments/gate", {"base_set": "tyny"}, "tiny"),
    ],
)
def test_the_nearest_name_is_told(server: Server, method: str, path: str, body: object, nearest: str) -> None:
    answer = server.client.request(method, path, json=body)
    assert answer.status_code in (400, 422)
    assert f"did you mean {nearest}?" in answer.json()["detail"]


def test_the_nearest_class_is_told(server: Server) -> None:
    name = CLASSES[0]
    answer = server.client.post("/adapt", files=as_parts([GOOD]), data={"labels": json.dumps([f"{name}s"])})
    check(answer, 422, "labels[0]")
    assert f"got '{name}s'; did you mean {name}?" in answer.json()["detail"]


def test_unknown_deployment_job_and_version_are_a_404(server: Server) -> None:
    client = server.client
    check(client.post("/predict?deployment=nobody", files=as_parts([GOOD])), 404)
    check(client.post("/adapt?deployment=nobody", files=as_parts([GOOD]), data={"labels": "[0]"}), 404)
    for path in (
        "/deployments/nobody",
        "/deployments/nobody/soups",
        "/jobs/nothing",
        "/jobs/nothing/events",
        "/nowhere",
    ):
        check(client.get(path), 404)
    check(client.put("/deployments/nobody/soup", json={"version": 1}), 404)
    check(client.put("/deployments/default/soup", json={"version": 99_999}), 404)
    check(client.delete("/deployments/nobody"), 404)


def test_wrong_method_is_a_405_that_says_what_is_allowed(server: Server) -> None:
    response = server.client.get("/predict")
    check(response, 405)
    assert "POST" in response.headers["allow"]
    response = server.client.post("/deployments/default")
    check(response, 405)
    assert {"GET", "PUT", "DELETE"} <= set(response.headers["allow"].split(", "))
    for path in ("/livez", "/readyz", "/healthz"):
        for method in ("POST", "TRACE"):
            response = server.client.request(method, path)
            check(response, 405)
            assert response.headers["allow"] == "GET, HEAD"
        assert server.client.get(path).status_code == server.client.head(path).status_code == 200


FAIR = {"linf": 0.25, "nominal": 0.25, "l2": 0.25, "l1": 0.25}


@pytest.mark.parametrize(
    "body",
    [
        b'{"coefficients": {"linf": NaN, "nominal": 0.5, "l2": 0.25, "l1": 0.25}}',
        b'{"coefficients": {"linf": Infinity, "nominal": 0.5, "l2": 0.25, "l1": 0.25}}',
        b'{"coefficients": {"linf": 1e999, "nominal": 0.5, "l2": 0.25, "l1": 0.25}}',
        json.dumps({"coefficients": {**FAIR, "linf": 0.2500021}}).encode(),
        json.dumps({"coefficients": {**FAIR, "linf": 0.2499979}}).encode(),
        json.dumps({"coefficients": {**FAIR, "linf": -2.25, "l1": 2.75}}).encode(),
        json.dumps({"coefficients": {**FAIR, "linf": "0.25"}}).encode(),
        json.dumps({"coefficients": {**FAIR, "linf": True, "l1": -0.5}}).encode(),
        json.dumps({"coefficients": {"linf": 1.0}}).encode(),
        json.dumps({"coefficients": {**FAIR, "extra": 0.0}}).encode(),
        json.dumps({"coefficients": {}}).encode(),
        json.dumps({"coefficients": [0.25] * 4}).encode(),
        json.dumps({"coefficients": FAIR, "version": 1}).encode(),
        json.dumps({"coefficients": FAIR, "expected": 1}).encode(),
        json.dumps({"version": 0}).encode(),
        json.dumps({"version": "1"}).encode(),
        json.dumps({"version": True}).encode(),
        b"{}",
        b"[]",
        b"3",
    ],
)
def test_unusable_soup_is_a_422(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    check(server.client.put("/deployments/default/soup", content=body, headers=headers), 422)


def test_other_expected_version_is_a_409(server: Server) -> None:
    check(server.client.put("/deployments/default/soup", json={"coefficients": FAIR, "expected_version": 77}), 409)
    check(server.client.put("/deployments/default/soup", json={"version": 1, "expected_version": 77}), 409)


def test_bad_deployments_are_refused(server: Server) -> None:
    client = server.client
    check(client.put("/deployments/Bad_Name", json={"base_set": "tiny"}), 422, "name")
    check(client.put(f"/deployments/{'x' * 64}", json={"base_set": "tiny"}), 422, "name")
    check(client.put("/deployments/gate", json={"base_set": "unknown"}), 422, "base_set")
    check(client.put("/deployments/gate", json={}), 422, "base_set")
    check(client.put("/deployments/default", json={"base_set": "tiny-ln"}), 409)
    check(client.delete("/deployments/default"), 409)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:3000"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_foreign_requests_change_nothing(server: Server, headers: dict[str, str]) -> None:
    client = server.client
    check(client.post("/predict", files=as_parts([GOOD]), headers=headers), 403)
    check(client.post("/adapt", files=as_parts([GOOD]), data={"labels": "[0]"}, headers=headers), 403)
    check(client.put("/deployments/default/soup", json={"coefficients": FAIR}, headers=headers), 403)
    check(client.put("/deployments/gate", json={"base_set": "tiny"}, headers=headers), 403)
    check(client.delete("/deployments/default", headers=headers), 403)


def test_refusals_are_counted(server: Server) -> None:
    server.client.post("/predict?top_k=0", files=as_parts([GOOD]))
    server.client.get("/bases", headers={"host": "evil.example"})
    text = server.client.get("/metrics").text
    assert 'saucier_rejected_total{deployment="",reason="host"}' in text
    assert 'reason="malformed"' in text
    assert "nobody" not in text
