"""Uploads that can prove little, and how classes count: what a running server answers."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.service.conftest import Labelled, Server, as_parts, encode

pytestmark = pytest.mark.e2e

PICTURES = np.random.default_rng(11).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
FILES = [encode(picture) for picture in PICTURES]


@pytest.fixture(scope="module")
def guarded(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server; what is asked for goes to a deployment of its own."""
    assert server.client.put("/deployments/guarded", json={"base_set": "tiny"}).status_code == 201
    yield server.client
    assert server.client.delete("/deployments/guarded").status_code == 204


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([2, 2, 1], "too few images to judge a soup by: got 5, expected 10 or more"),
        ([5, 0, 0], "too few images to judge a soup by: got 5, expected 10 or more"),
        ([60, 0, 0], "all 60 images are of one class, which says nothing about the others"),
        (
            [1, 1, 95],
            "95 of 97 images are of one class: 2 of the others say too little about those, expected 5 or more",
        ),
    ],
)
def test_what_proves_nothing_is_kept_and_the_reason_says_why(
    guarded: httpx.Client, counts: list[int], reason: str
) -> None:
    """Whatever is right most often on one class, which a soup can always be: nothing is promoted."""
    labels = np.repeat(np.arange(3), counts).tolist()
    sent = {"files": as_parts(FILES[: len(labels)]), "data": {"labels": json.dumps(labels)}}
    job = guarded.post("/adapt?deployment=guarded", **sent).json()
    assert (job["state"], job["version"], job["previous_version"]) == ("kept", 1, None)
    assert job["reason"] == reason
    assert guarded.get("/deployments/guarded").json()["version"] == 1


def test_few_of_other_classes_may_prove_something(guarded: httpx.Client, labelled: Labelled) -> None:
    """Nine in ten of one class and honest labels: either it is proven on held-out images, or the reason has the p."""
    labels = np.asarray(labelled.labels)
    largest = np.bincount(labels).argmax()
    common, rare = np.flatnonzero(labels == largest), np.flatnonzero(labels != largest)
    chosen = [*common[:54].tolist(), *rare[:6].tolist()]
    assert len(chosen) == 60
    sent = {
        "files": as_parts([labelled.files[index] for index in chosen]),
        "data": {"labels": json.dumps(labels[chosen].tolist())},
    }
    job = guarded.post("/adapt?deployment=guarded", **sent).json()
    is_proven = job["accuracy"]["p_value"] < 0.025
    assert job["state"] == ("promoted" if is_proven else "kept")
    assert "on held-out images: accuracy" in job["reason"]
    guarded.put("/deployments/guarded/soup", json={"version": 1})


def test_balance_is_another_question_and_changes_what_is_counted(guarded: httpx.Client, labelled: Labelled) -> None:
    """With `class` the accuracy is the mean over the classes, with `none` that over the images."""
    asked, labels = labelled.request(0, 70), np.asarray(labelled.labels[:70])
    plain, balanced, again = (
        guarded.post(f"/adapt?deployment=guarded&promote=never{query}", **asked).json()
        for query in ("", "&balance=class", "&balance=none")
    )
    assert (plain["balance"], balanced["balance"]) == ("none", "class")
    assert balanced["job"] != plain["job"]
    assert again == plain
    assert guarded.post("/adapt?deployment=guarded&promote=never&balance=class", **asked).json() == balanced
    answer = guarded.post("/predict?deployment=guarded", files=asked["files"]).json()["predictions"]
    right = np.asarray([item["index"] for item in answer]) == labels
    per_class = [right[labels == index].mean() for index in np.unique(labels)]
    assert plain["accuracy"]["current"] == pytest.approx(right.mean())
    assert balanced["accuracy"]["current"] == pytest.approx(np.mean(per_class))
    assert right.mean() != pytest.approx(np.mean(per_class))
