"""`POST /adapt` and jobs of a running server."""

import io
import json
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapt.evidence.levels import attempt_level, p_threshold
from deploy.parity import TorchReference
from service.store.database import Database
from service.store.registry import Registry
from tests.service.conftest import KNOWING, Labelled, Server, as_parts, encode, sample_files
from training.bases import load_base_set
from training.images import to_input

pytestmark = pytest.mark.e2e

JOB_FIELDS = {
    "job",
    "deployment",
    "state",
    "version",
    "previous_version",
    "candidate_version",
    "coefficients",
    "patch",
    "support",
    "accuracy",
    "search",
    "reason",
    "attempt",
    "level",
    "not_tried",
    "draw",
    "classes",
    "rolled_back_to",
}


def registry_of(server: Server) -> Registry:
    """What the processes of a server share."""
    return Registry(Database(f"sqlite:///{server.home / 'registry.db'}"))


def adapt(client: httpx.Client, request: dict[str, Any], **query: Any) -> httpx.Response:
    return client.post("/adapt", params=query, **request)


def finished(client: httpx.Client, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        view: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if view["state"] not in ("queued", "running"):
            return view
        time.sleep(0.1)
    raise AssertionError(f"job {job} does not end")


def test_deserved_promotion_is_served_by_every_worker_at_once(
    default: httpx.Client, server: Server, labelled: Labelled
) -> None:
    response = adapt(default, labelled.request(0, 100))
    assert response.status_code == 200, response.text
    job = response.json()
    assert set(job) >= JOB_FIELDS
    assert job["state"] == "promoted"
    assert job["previous_version"] == 1
    assert job["candidate_version"] == job["version"] > 1
    assert job["support"]["n"] == sum(job["support"]["per_class"].values()) == 100
    assert job["accuracy"]["candidate"] > job["accuracy"]["current"]
    assert job["accuracy"]["interval"][0] > 0
    assert (
        0 <= job["accuracy"]["p_value"] < job["level"] == pytest.approx(p_threshold(attempt_level(job["attempt"]), 100))
    )
    assert job["accuracy"]["judged"] == {"fresh": 100, "held_out": 0, "left_out": 0}
    assert job["not_tried"]["early"].startswith("expected labelled images of all 3 classes, got 2")
    assert job["followed_by"] is None
    assert job["not_tried"]["frequencies"].startswith("draw=any: ")
    assert (job["draw"], job["classes"]) == ("any", None)
    assert set(job["coefficients"]) == {"linf", "nominal", "l2", "l1"}
    assert sum(job["coefficients"].values()) == pytest.approx(1)
    assert set(job["search"]) >= {"strategy", "candidates", "image_forwards", "seconds"}
    assert job["ingredients"][KNOWING] == 1.0

    versions = set()
    for position in range(200):  # half on one connection, half on new ones: both workers take some
        send = default.post if position % 2 else lambda *args, **kwargs: httpx.post(server.url + args[0], **kwargs)
        file = labelled.files[position % 240]
        answer = send("/predict", content=file, headers={"content-type": "image/png"})
        versions.add(answer.json()["version"])
    assert versions == {job["version"]}

    unseen = default.post("/predict", files=as_parts(labelled.files[100:])).json()["predictions"]
    right = [item["index"] == label for item, label in zip(unseen, labelled.labels[100:], strict=True)]
    assert sum(right) / len(right) > 0.75

    view = default.get("/deployments/default").json()
    assert (view["version"], view["is_rolled_out"], len(view["workers"])) == (job["version"], True, 2)
    assert (view["coefficients"], view["patch"]) == (job["coefficients"], job["patch"])
    text = default.get("/metrics").text
    assert f'saucier_soup_version{{deployment="default"}} {job["version"]:.1f}' in text
    assert 'saucier_adapt_jobs_total{deployment="default",state="promoted"}' in text
    assert 'saucier_adapt_accuracy{deployment="default",which="candidate"}' in text


def test_history_holds_the_evidence(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(10, 110)).json()
    soups = default.get("/deployments/default/soups").json()["soups"]
    assert [soup["version"] for soup in soups] == list(range(len(soups), 0, -1))
    newest = soups[0]
    assert (newest["version"], newest["job"], newest["source"]) == (job["candidate_version"], job["job"], "adapt")
    assert newest["evidence"]["accuracy"] == job["accuracy"]
    assert newest["patch"] == job["patch"]
    assert soups[-1]["source"] == "default"
    assert [soup["is_current"] for soup in soups].count(True) == 1


def test_same_samples_return_the_earlier_decision(default: httpx.Client, labelled: Labelled) -> None:
    first = adapt(default, labelled.request(0, 8)).json()
    assert first["state"] == "kept"
    assert (first["version"], first["previous_version"]) == (1, None)
    assert first["candidate_version"] >= 1
    turned = {
        "files": as_parts(list(reversed(labelled.files[0:8]))),
        "data": {"labels": json.dumps([labelled.class_names[label] for label in reversed(labelled.labels[0:8])])},
    }
    assert adapt(default, turned).json() == first


def test_repeats_count_once(default: httpx.Client, labelled: Labelled) -> None:
    files = labelled.files[:6] + labelled.files[:3]
    labels = labelled.labels[:6] + labelled.labels[:3]
    job = default.post("/adapt", files=as_parts(files), data={"labels": json.dumps(labels)}).json()
    assert job["support"]["n"] == 6


def archive_of(labelled: Labelled, count: int, kind: str) -> bytes:
    members = {
        f"shop/{labelled.class_names[label]}/{index}.png": file
        for index, (file, label) in enumerate(zip(labelled.files[:count], labelled.labels[:count], strict=True))
    }
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_archives_are_the_same_samples_as_parts(default: httpx.Client, labelled: Labelled) -> None:
    by_parts = adapt(default, labelled.request(0, 6)).json()
    assert by_parts["state"] == "kept"
    for kind in ("zip", "tar", "tar.gz"):
        sent = as_parts([archive_of(labelled, 6, kind)], "archive")
        assert default.post("/adapt", files=sent).json() == by_parts


def test_no_wait_answers_202_and_the_job_can_be_followed(default: httpx.Client, labelled: Labelled) -> None:
    response = adapt(default, labelled.request(40, 140), wait=0)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['job']}"
    assert job["state"] in ("queued", "running")
    assert (job["version"], job["candidate_version"], job["accuracy"]) == (None, None, None)
    events: list[tuple[str, dict[str, Any]]] = []
    with default.stream("GET", f"{response.headers['location']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((kind, json.loads(line.removeprefix("data: "))))
    assert events[-1][0] == "done"
    assert {kind for kind, _ in events[:-1]} <= {"progress"}
    assert events[-1][1] == finished(default, job["job"])
    assert events[-1][1]["state"] == "promoted"


def test_promote_never_keeps_what_it_finds(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(0, 120), promote="never").json()
    assert (job["state"], job["version"]) == ("kept", 1)
    assert job["candidate_version"] > 1
    assert job["accuracy"]["p_value"] < 0.05


def test_promote_likely_answers_like_auto_and_counts(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(0, 12), promote="likely").json()
    assert (job["deployment"], job["support"]["n"]) == ("default", 12)
    assert job["level"] == pytest.approx(p_threshold(attempt_level(job["attempt"]), 12))
    assert 0 <= job["accuracy"]["chance_of_harm"] <= 1
    assert -1 <= job["accuracy"]["expected_gain"] <= 1
    default.put("/deployments/default/soup", json={"version": 1})
    few = adapt(default, labelled.request(30, 39), promote="likely").json()
    assert (few["state"], few["attempt"]) == ("kept", job["attempt"] + 1)
    assert "got 9, expected 10 or more" in few["reason"]
    assert adapt(default, labelled.request(30, 39), promote="likely", strategy="grid").json() == few


def test_promote_always_promotes_without_evidence(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(0, 7), promote="always").json()
    assert (job["state"], job["previous_version"]) == ("promoted", 1)
    assert (job["attempt"], job["level"]) == (None, None)
    event = default.get("/deployments/default/events").json()["events"][0]
    assert (event["job"], event["unproven"]) == (job["job"], True)


def test_of_two_at_once_one_is_superseded(default: httpx.Client, labelled: Labelled) -> None:
    first = adapt(default, labelled.request(0, 90), wait=0).json()
    second = adapt(default, labelled.request(90, 180), wait=0).json()
    one, two = finished(default, first["job"]), finished(default, second["job"])
    assert (one["state"], two["state"]) == ("promoted", "kept")
    assert "superseded" in two["reason"]
    assert two["version"] == one["version"]
    assert two["accuracy"] is not None
    assert two["candidate_version"] not in (None, one["version"])


def test_rollback_serves_the_old_soup_everywhere(default: httpx.Client, server: Server, labelled: Labelled) -> None:
    files = as_parts(labelled.files[:20])
    before = default.post("/predict", files=files).json()
    promoted = adapt(default, labelled.request(20, 140)).json()
    assert promoted["state"] == "promoted"
    response = default.put("/deployments/default/soup", json={"version": 1, "expected_version": promoted["version"]})
    assert response.status_code == 200
    assert response.json()["version"] == 1
    for _ in range(20):
        assert httpx.post(f"{server.url}/predict", files=files).json() == before


def test_events_tell_what_happened_newest_first(default: httpx.Client) -> None:
    for share in (0.5, 0.25):
        rest = {"linf": share, "nominal": 1 - share, "l2": 0.0, "l1": 0.0}
        default.put("/deployments/default/soup", json={"coefficients": rest})
    version = default.get("/deployments/default").json()["version"]
    default.put("/deployments/default/soup", json={"version": 1})
    page = default.get("/deployments/default/events", params={"limit": 2}).json()
    assert page["deployment"] == "default"
    back, dialled = page["events"]
    assert (back["kind"], back["from_version"], back["to_version"], back["unproven"]) == ("rollback", version, 1, False)
    assert (dialled["kind"], dialled["to_version"], dialled["unproven"]) == ("dial", version, True)
    assert (back["who"], back["job"]) == (None, None)
    (earlier,) = default.get("/deployments/default/events", params={"limit": 1, "before": dialled["seq"]}).json()[
        "events"
    ]
    assert (earlier["kind"], earlier["to_version"]) == ("dial", version - 1)
    assert default.get("/deployments/nobody/events").status_code == 404
    assert default.get("/deployments/nobody/events", params={"before": 5}).status_code == 404
    assert default.get("/deployments/default/events", params={"before": 1}).json()["events"] == []
    for wrong in ({"limit": 0}, {"before": "x"}, {"page": 1}):
        assert default.get("/deployments/default/events", params=wrong).status_code == 400


def test_dial_serves_coefficients_set_by_hand(default: httpx.Client, server: Server, labelled: Labelled) -> None:
    alone = {"linf": 0.0, "nominal": 0.0, "l2": 1.0, "l1": 0.0}
    response = default.put("/deployments/default/soup", json={"coefficients": alone})
    assert response.status_code == 200, response.text
    view = response.json()
    assert view["coefficients"] == alone
    assert view["is_rolled_out"]
    for _ in range(10):
        answer = httpx.post(f"{server.url}/predict", files=as_parts(labelled.files)).json()
        assert answer["version"] == view["version"]
        assert [item["index"] for item in answer["predictions"]] == labelled.labels


def test_expected_version_stops_the_second_of_two_dials(default: httpx.Client) -> None:
    fair = {"linf": 0.25, "nominal": 0.25, "l2": 0.25, "l1": 0.25}
    first = default.put("/deployments/default/soup", json={"coefficients": fair, "expected_version": 1})
    second = default.put("/deployments/default/soup", json={"coefficients": fair, "expected_version": 1})
    assert (first.status_code, second.status_code) == (200, 409)
    assert default.get("/deployments/default").json()["version"] == first.json()["version"]


def test_no_request_fails_or_mixes_soups_while_soups_change(
    default: httpx.Client, server: Server, labelled: Labelled
) -> None:
    """Every answer, also to 100 images at once, is that of one version as a whole."""
    soups = [{"linf": 1.0, "nominal": 0.0, "l2": 0.0, "l1": 0.0}, {"linf": 0.0, "nominal": 0.0, "l2": 1.0, "l1": 0.0}]
    answers: list[dict[str, Any]] = []
    problems: list[str] = []
    stop = threading.Event()

    def hammer() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/predict", params={"top_k": 1}, files=as_parts(labelled.files[:100]))
                if response.status_code == 200:
                    answers.append(response.json())
                else:
                    problems.append(response.text)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    kinds: dict[int, int] = {1: 0}
    for turn in range(6):
        response = default.put("/deployments/default/soup", json={"coefficients": soups[turn % 2]})
        kinds[response.json()["version"]] = turn % 2
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len({answer["version"] for answer in answers}) >= 4
    patterns: dict[int, list[list[Any]]] = {0: [], 1: []}
    for answer in answers:
        assert answer["version"] in kinds
        pattern = [item["index"] for item in answer["predictions"]]
        if pattern not in patterns[kinds[answer["version"]]]:
            patterns[kinds[answer["version"]]].append(pattern)
    assert [len(patterns[0]), len(patterns[1])] == [1, 1]
    assert patterns[0] != patterns[1]


def test_deployments_are_made_used_and_deleted(server: Server, labelled: Labelled) -> None:
    client = server.client
    made = client.put("/deployments/gate", json={"base_set": "tiny-ln"})
    again = client.put("/deployments/gate", json={"base_set": "tiny-ln"})
    other = client.put("/deployments/gate", json={"base_set": "tiny"})
    assert (made.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert made.json()["base_set"] == "tiny-ln"
    for _ in range(10):  # at once, by both workers
        answer = httpx.post(f"{server.url}/predict?deployment=gate", files=as_parts(labelled.files[:2]))
        assert answer.status_code == 200, answer.text
        assert (answer.json()["deployment"], answer.json()["version"]) == ("gate", 1)
    names = [entry["deployment"] for entry in client.get("/deployments").json()["deployments"]]
    assert names == ["default", "gate"]
    before = len(sample_files(server))
    job = client.post("/adapt?deployment=gate&promote=never", **labelled.request(0, 10)).json()
    assert job["deployment"] == "gate"
    assert len(sample_files(server)) == before + 1
    assert client.delete("/deployments/gate").status_code == 204
    told = [event["kind"] for event in client.get("/deployments/gate/events").json()["events"]]
    assert told[0] == "deleted"
    assert told[-1] == "created"
    assert client.get("/deployments/gate").status_code == 404
    assert client.get(f"/jobs/{job['job']}").status_code == 404
    assert len(sample_files(server)) == before


def test_bases_are_described(server: Server) -> None:
    bases = {base["name"]: base for base in server.client.get("/bases").json()["bases"]}
    assert set(bases) == {"tiny", "tiny-ln"}
    assert bases["tiny"]["class_names"] == ["cat", "dog", "ship"]
    assert [ingredient["name"] for ingredient in bases["tiny"]["ingredients"]] == ["linf", "nominal", "l2", "l1"]


def test_labelled_images_of_any_size_are_used(default: httpx.Client, labelled: Labelled) -> None:
    large = encode(labelled.pixels[0].repeat(9, axis=0).repeat(7, axis=1))
    job = default.post("/adapt", files=as_parts([large, labelled.files[1]]), data={"labels": '["cat", 1]'}).json()
    assert job["state"] == "kept"
    assert job["support"] == {"n": 2, "unlabelled": 0, "per_class": {"cat": 1, "dog": 1}}


def test_without_labels_a_candidate_is_stored_and_nothing_is_promoted(
    default: httpx.Client, server: Server, labelled: Labelled, tiny_base_set: Path
) -> None:
    sent = as_parts([*labelled.files[:30], labelled.files[3]], "unlabelled")
    response = default.post("/adapt", files=sent)
    assert response.status_code == 200, response.text
    job = response.json()
    assert (job["state"], job["version"], job["previous_version"], job["accuracy"]) == ("kept", 1, None, None)
    assert "without" in job["reason"]
    assert job["support"] == {"n": 0, "unlabelled": 30, "per_class": {}}
    assert (job["patch"]["recalibrated"], job["patch"]["rungs"]) == (30, ["statistics"])
    assert (job["attempt"], job["level"]) == (None, None)
    assert job["candidate_version"] > 1
    assert default.post("/adapt", files=list(reversed(sent))).json() == job

    answer = default.put("/deployments/default/soup", json={"version": job["candidate_version"]})
    assert answer.json()["patch"] == job["patch"]
    soup = registry_of(server).soup("default", job["candidate_version"])
    reference = TorchReference(load_base_set(tiny_base_set))
    logits = reference.logits(reference.mix(soup.coefficients, soup.bn_mode, soup.patch), to_input(labelled.pixels))
    served = default.post("/predict", files=as_parts(labelled.files)).json()["predictions"]
    assert [item["index"] for item in served] == logits.argmax(axis=1).tolist()


def test_promote_always_promotes_without_labels_and_says_so(
    default: httpx.Client, server: Server, labelled: Labelled
) -> None:
    job = adapt(default, {"files": as_parts(labelled.files[:9], "unlabelled")}, promote="always").json()
    assert (job["state"], job["previous_version"], job["version"]) == ("promoted", 1, job["candidate_version"])
    assert "without evidence" in job["reason"]
    event = default.get("/deployments/default/events", params={"limit": 1}).json()["events"][0]
    assert (event["kind"], event["job"], event["unproven"]) == ("promoted", job["job"], True)


def test_unlabelled_images_come_along_with_labelled_ones(default: httpx.Client, labelled: Labelled) -> None:
    request = labelled.request(0, 40)
    request["files"] += as_parts(labelled.files[30:100], "unlabelled")
    job = adapt(default, request, promote="never").json()
    assert (job["support"]["n"], job["support"]["unlabelled"]) == (40, 60)
    assert adapt(default, request, promote="never").json() == job
    without = adapt(default, labelled.request(0, 40), promote="never").json()
    assert without["job"] != job["job"]
    assert without["support"]["unlabelled"] == 0
    archive = as_parts([archive_of(labelled, 40, "zip")], "archive") + as_parts(labelled.files[40:100], "unlabelled")
    assert adapt(default, {"files": archive}, promote="never").json() == job


def test_network_without_batchnorm_cannot_adapt_without_labels(server: Server, labelled: Labelled) -> None:
    client = server.client
    assert client.put("/deployments/vit", json={"base_set": "tiny-ln"}).status_code == 201
    refused = client.post("/adapt?deployment=vit", files=as_parts(labelled.files[:3], "unlabelled"))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "unlabelled"
    request = labelled.request(0, 10)
    request["files"] += as_parts(labelled.files[10:20], "unlabelled")
    job = client.post("/adapt?deployment=vit&promote=never", **request).json()
    assert (job["state"], job["support"]["n"], job["patch"]) == ("kept", 10, None)
    assert client.delete("/deployments/vit").status_code == 204


def test_cancelled_job_ends_at_once_and_is_not_cancelled_twice(server: Server, labelled: Labelled) -> None:
    """Jobs wait, as the adapter is held."""
    client, (adapter,) = server.client, server.processes("Adapter")
    adapter.suspend()
    try:
        request = labelled.request(0, 21)
        request["files"] += as_parts(labelled.files[30:33], "unlabelled")
        queued = client.post("/adapt?wait=0&promote=never", **request)
        assert (queued.status_code, queued.json()["state"]) == (202, "queued")
        path = queued.headers["location"]
        files = sample_files(server)
        answer = client.delete(path)
        assert answer.status_code == 200
        job = answer.json()
        assert (job["state"], job["reason"], job["version"]) == ("failed", "cancelled", 1)
        assert client.get(path).json() == job
        assert [file.parent.name for file in files - sample_files(server)] == ["unlabelled"]
        again = client.delete(path)
        assert again.status_code == 409
        assert again.headers["content-type"] == "application/problem+json"
        assert client.delete("/jobs/none").status_code == 404
    finally:
        adapter.resume()
    assert client.post("/adapt?promote=never", **request).json()["state"] == "kept"
