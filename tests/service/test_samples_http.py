"""Kept images over HTTP: `/adapt?samples=` and `/deployments/{name}/samples` of running servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.store.objects import ObjectStore
from tests.service.conftest import S3_ENVIRONMENT, Labelled, Server, as_parts, sample_files
from training.images import pixel_hash

pytestmark = pytest.mark.e2e


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server, with a deployment of this test's own."""
    assert server.client.put("/deployments/kept", json={"base_set": "tiny"}).status_code == 201
    yield server.client
    server.client.delete("/deployments/kept")


def adapt(client: httpx.Client, request: dict[str, Any], **query: Any) -> dict[str, Any]:
    answer = client.post("/adapt", params={"deployment": "kept", "promote": "never", "wait": 50, **query}, **request)
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    assert view["state"] == "kept", view
    return view


def samples(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/deployments/kept/samples")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_images_accumulate_and_are_searched_on_together(client: httpx.Client, labelled: Labelled) -> None:
    assert (samples(client)["images"], samples(client)["oldest"]) == (0, None)
    first = adapt(client, labelled.request(0, 12))
    assert first["samples"] == {"choice": "new", "added": 12, "relabelled": 0, "relabels": []}
    second = adapt(client, labelled.request(10, 20))
    assert (second["support"]["n"], second["samples"]["added"]) == (10, 8)
    every = adapt(client, labelled.request(20, 24), samples="all")
    assert (every["support"]["n"], every["samples"]["choice"], every["samples"]["added"]) == (24, "all", 4)
    assert adapt(client, {}, samples="all") == every
    found = samples(client)
    assert adapt(client, labelled.request(0, 24))["job"] == every["job"]
    assert (found["images"], found["unused"], found["bytes"]) == (24, 0, 24 * 16 * 16 * 3)
    assert found["per_class"] == every["support"]["per_class"]
    assert found["bytes"] < found["max_bytes"]
    assert found["oldest"] < found["newest"]


def test_relabelled_image_is_reported(client: httpx.Client, labelled: Labelled) -> None:
    request = labelled.request(0, 6)
    first = adapt(client, request)
    wrong = [(labelled.labels[0] + 1) % 3, *labelled.labels[1:6]]
    second = adapt(client, {"files": request["files"], "data": {"labels": json.dumps(wrong)}})
    names = labelled.class_names
    change = {"hash": pixel_hash(labelled.pixels[0]), "before": names[labelled.labels[0]], "after": names[wrong[0]]}
    assert second["samples"] == {"choice": "new", "added": 0, "relabelled": 1, "relabels": [change]}
    assert client.get(f"/jobs/{second['job']}").json()["samples"] == second["samples"]
    back = adapt(client, request)
    assert back["job"] == first["job"]
    assert (back["samples"]["relabelled"], first["samples"]["relabelled"]) == (1, 0)
    assert samples(client)["images"] == 6


def test_deleting_deletes_the_files(client: httpx.Client, server: Server, labelled: Labelled) -> None:
    before = sample_files(server)
    adapt(client, labelled.request(30, 40))
    (pack,) = sample_files(server) - before
    secret = labelled.pixels[33].tobytes()
    assert secret in pack.read_bytes()
    digest = pixel_hash(labelled.pixels[33])
    url = "/deployments/kept/samples"
    assert client.delete(url, params={"hash": digest}).json() == {"deployment": "kept", "deleted": 1}
    (smaller,) = sample_files(server) - before
    assert secret not in smaller.read_bytes()
    assert client.delete(url, params={"hash": digest}).json()["deleted"] == 0
    assert client.delete(url, params={"before": "2020-01-01T00:00:00Z"}).json()["deleted"] == 0
    name = labelled.class_names[labelled.labels[30]]
    count = samples(client)["per_class"][name]
    assert client.delete(url, params={"class": name}).json()["deleted"] == count
    assert client.delete(url).json()["deleted"] == 9 - count
    assert sample_files(server) == before
    assert client.get("/deployments/kept/events").json()["events"][0]["kind"] == "samples_deleted"
    refused = client.post("/adapt", params={"deployment": "kept", "samples": "all"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "images")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/deployments/nobody/samples", 404),
        ("DELETE", "/deployments/nobody/samples", 404),
        ("DELETE", "/deployments/kept/samples?hash=abc", 400),
        ("DELETE", "/deployments/kept/samples?before=yesterday", 400),
        ("DELETE", "/deployments/kept/samples?before=2026-01-01T00:00:00", 400),
        ("DELETE", "/deployments/kept/samples?label=cat", 400),
        ("POST", "/adapt?deployment=kept&samples=some", 400),
        ("POST", "/adapt?deployment=kept&samples=new", 422),
        ("POST", "/adapt?deployment=kept", 415),
    ],
)
def test_what_cannot_be_meant_is_refused(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_request_that_is_refused_keeps_nothing(client: httpx.Client, server: Server, labelled: Labelled) -> None:
    before = sample_files(server)
    broken = as_parts([*labelled.files[:3], b"no image"])
    for query in ({}, {"samples": "all"}):
        answer = client.post(
            "/adapt", params={"deployment": "kept", **query}, files=broken, data={"labels": "[0, 1, 2, 0]"}
        )
        assert answer.status_code == 422
    assert sample_files(server) == before
    assert samples(client)["images"] == 0


@pytest.mark.slow
def test_images_on_s3_with_the_registry_on_postgresql(
    postgres_url: str,
    bucket_url: str,
    s3_endpoint: str,
    prebuilt_bases: Path,
    tmp_path: Path,
    labelled: Labelled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several machines could share both: nothing but bundles is below the home."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    own = Server(tmp_path / "home", prebuilt_bases, BASE_SET="tiny", DATABASE_URL=postgres_url, STORE_URL=bucket_url)
    objects = ObjectStore(bucket_url)
    try:
        own.start()
        own.wait_for(lambda: "the adapter is ready" in own.log.read_text(), "adapter")
        job = own.client.post("/adapt", **labelled.request(0, 100)).json()
        assert job["state"] == "promoted"
        request = labelled.request(100, 110)
        request["files"] += as_parts(labelled.files[110:120], "unlabelled")
        every = own.client.post("/adapt", params={"samples": "all", "promote": "never"}, **request).json()
        assert (every["state"], every["support"]["n"], every["support"]["unlabelled"]) == ("kept", 110, 10)
        assert own.client.get("/deployments/default/samples").json()["images"] == 110
        assert sum("/packs/" in key for key in objects.list("")) == 2
        own.wait_for(lambda: not any("/unlabelled/" in key for key in objects.list("")), "end of unlabelled images", 10)
        assert own.client.delete("/deployments/default/samples").json()["deleted"] == 110
        assert objects.list("") == {}
        assert not (own.home / "samples").exists()
    finally:
        assert own.stop() == 0
