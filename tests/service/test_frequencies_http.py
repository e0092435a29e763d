"""Class frequencies on a running server: reported for any labels, judged by labels that are a fair draw."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.conftest import Labelled, Server, as_parts

pytestmark = pytest.mark.e2e

OFTEN = 0.8  # share of one class in the stream


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server; what is asked for goes to a deployment of its own."""
    assert server.client.put("/deployments/frequent", json={"base_set": "tiny"}).status_code == 201
    yield server.client
    assert server.client.delete("/deployments/frequent").status_code == 204


@pytest.fixture(scope="module")
def drawn(labelled: Labelled) -> tuple[str, dict[str, Any]]:
    """The frequent class, and a request with 25 labelled images and 60 without a label, drawn alike."""
    labels = np.asarray(labelled.labels)
    common = int(np.bincount(labels).argmax())
    ours, others = np.flatnonzero(labels == common), np.flatnonzero(labels != common)
    parts = []
    for n in (25, 60):
        many, few = round(OFTEN * n), n - round(OFTEN * n)
        parts.append([*ours[:many], *others[:few]])
        ours, others = ours[many:], others[few:]
    assert [len(part) for part in parts] == [25, 60]
    files = [as_parts([labelled.files[index] for index in part], name) for part, name in zip(parts, KINDS, strict=True)]
    asked = {"files": [*files[0], *files[1]], "data": {"labels": json.dumps(labels[parts[0]].tolist())}}
    return labelled.class_names[common], asked


KINDS = ("images", "unlabelled")


def adapt(client: httpx.Client, asked: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = client.post(f"/adapt?deployment=frequent&promote=never{query}", **asked)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize("draw", ["any", "fair"])
def test_frequencies_are_estimated_with_intervals(
    client: httpx.Client, drawn: tuple[str, dict[str, Any]], draw: str
) -> None:
    name, asked = drawn
    job = adapt(client, asked, f"&draw={draw}")
    assert job["draw"] == draw
    classes = {each["name"]: each for each in job["classes"]}
    assert set(classes) == {"cat", "dog", "ship"}
    assert sum(each["estimated"] for each in classes.values()) == pytest.approx(1, abs=1e-4)
    assert all(0 <= each["low"] <= each["estimated"] <= each["high"] <= 1 for each in classes.values())
    found = classes[name]
    assert found["expected"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["estimated"] > 0.5
    assert found["low"] <= OFTEN <= found["high"]
    assert ("frequencies" in job["not_tried"]) == (draw == "any")


def test_another_draw_is_another_question(client: httpx.Client, drawn: tuple[str, dict[str, Any]]) -> None:
    _, asked = drawn
    plain, fair, again = (adapt(client, asked, query) for query in ("", "&draw=fair", "&draw=any"))
    assert again == plain
    assert fair["job"] != plain["job"]
    assert client.get(f"/jobs/{fair['job']}").json()["classes"] == fair["classes"]


def test_the_job_says_why_where_images_are_too_few(client: httpx.Client, labelled: Labelled) -> None:
    job = adapt(client, labelled.request(100, 130), "&draw=fair")
    assert job["classes"] is None
    assert job["not_tried"]["frequencies"] == "expected at least 50 images, labelled or not, got 30"


def test_images_without_any_label_report_frequencies(client: httpx.Client, drawn: tuple[str, dict[str, Any]]) -> None:
    _, asked = drawn
    unlabelled = {"files": [part for part in asked["files"] if part[0] == "unlabelled"]}
    job = adapt(client, unlabelled)
    assert (job["state"], job["support"]["n"]) == ("kept", 0)
    assert [each["name"] for each in job["classes"]] == ["cat", "dog", "ship"]
