"""Answers in two steps on a real server: the quick one, and the follow-up that trains."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from deploy.bundle import build_bundle
from tests.blind import blue_pictures, make_blind
from tests.service.conftest import Server, as_parts, encode, sample_files
from tests.service.console import console, shown

pytestmark = pytest.mark.e2e

CLASSES = ("cat", "dog", "ship")
MANY = 450  # images, whose training takes some seconds


@pytest.fixture(scope="module")
def own(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bases = tmp_path_factory.mktemp("blind")
    folder = make_blind(tiny_base_set, bases / "tiny")
    build_bundle(folder, folder / "bundle")
    home = tmp_path_factory.mktemp("effort") / "home"
    limits = {"MAX_UPLOAD_MB": "8", "MAX_IMAGES": "1000", "MAX_QUEUED_JOBS": "1"}
    server = Server(home, bases, BASE_SET="tiny", STALE_SECONDS="2", HEARTBEAT_SECONDS="0.3", **limits)
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def name(own: Server, request: pytest.FixtureRequest) -> str:
    """A deployment of the test's own."""
    name = f"d{abs(hash(request.node.name)) % 10**8}"
    assert own.client.put(f"/deployments/{name}", json={"base_set": "tiny"}).status_code == 201
    return name


def pictures(n: int, *, seed: int = 0, is_visible: bool = False) -> dict[str, Any]:
    images, labels = blue_pictures(n, seed=seed, is_visible=is_visible)
    names = [CLASSES[label] for label in labels]
    return {"files": as_parts([encode(image) for image in images]), "data": {"labels": json.dumps(names)}}


def adapt(server: Server, name: str, content: dict[str, Any], **query: Any) -> dict[str, Any]:
    answer = server.client.post("/adapt", params={"deployment": name, "wait": 40, **query}, **content)
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    return job


def job_of(server: Server, job: str) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get(f"/jobs/{job}").json()
    return found


def until(
    server: Server, job: str, condition: Callable[[dict[str, Any]], object], seconds: float = 60
) -> dict[str, Any]:
    """Return a job as soon as a condition holds for it."""

    def look() -> dict[str, Any] | None:
        view = job_of(server, job)
        assert condition is is_over or not is_over(view), view
        return view if condition(view) else None

    found: dict[str, Any] = server.wait_for(look, "such a job", seconds)
    return found


def is_over(job: dict[str, Any]) -> bool:
    return job["state"] not in ("queued", "running")


def is_training(job: dict[str, Any]) -> bool:
    return job["state"] == "running" and "training" in job["message"]


def accuracy(server: Server, name: str) -> float:
    images, labels = blue_pictures(150, seed=9)
    files = as_parts([encode(image) for image in images])
    found = server.client.post("/predict", params={"deployment": name}, files=files).json()["predictions"]
    return sum(one["index"] == label for one, label in zip(found, labels, strict=True)) / len(labels)


def test_the_answer_comes_soon_and_the_follow_up_promotes_what_training_finds(own: Server, name: str) -> None:
    first = adapt(own, name, pictures(300))
    assert (first["state"], first["version"], first["effort"], first["follows"]) == ("promoted", 2, "auto", None)
    assert {first["not_tried"][rung] for rung in ("early", "site")} == {"effort=quick leaves out what trains weights"}
    between = accuracy(own, name)
    told = []
    with own.client.stream("GET", f"/jobs/{first['followed_by']}/events") as stream:
        told = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: ")]
    assert any(is_training(view) for view in told)
    later = told[-1]
    assert (later["state"], later["previous_version"], later["version"]) == ("promoted", 2, 3)
    assert (later["effort"], later["follows"], later["followed_by"]) == ("full", first["job"], None)
    assert (later["attempt"], set(later["not_tried"])) == (1, {"frequencies", "stream"})
    assert first["search"]["image_forwards"] < 0.3 * later["search"]["image_forwards"]
    assert later["accuracy"]["judged"] == {"fresh": 0, "held_out": 300, "left_out": 0}
    assert later["accuracy"]["p_value"] < later["level"]
    assert later["patch"]["rungs"][-1] in ("early", "site")
    own.wait_for(lambda: own.client.get(f"/deployments/{name}").json()["is_rolled_out"], "rollout", 10)
    assert accuracy(own, name) > between + 0.1
    events = own.client.get(f"/deployments/{name}/events").json()["events"]
    assert [(event["kind"], event["job"], event["unproven"]) for event in events[:2]] == [
        ("promoted", later["job"], False),
        ("promoted", first["job"], False),
    ]
    listed = own.client.get(f"/deployments/{name}/jobs").json()["jobs"]
    assert [(job["job"], job["follows"], job["followed_by"]) for job in listed] == [
        (later["job"], first["job"], None),
        (first["job"], None, later["job"]),
    ]


def test_a_follow_up_that_finds_nothing_better_keeps_what_is_served(own: Server, name: str) -> None:
    content = pictures(150, is_visible=True)
    first = adapt(own, name, content)
    assert (first["state"], first["version"]) == ("promoted", 2)
    later = until(own, first["followed_by"], is_over)
    assert (later["state"], later["version"]) == ("kept", 2)
    again = adapt(own, name, content)
    assert (again["job"], again["followed_by"]) == (first["job"], later["job"])
    assert adapt(own, name, content, effort="full")["job"] == later["job"]
    assert len(own.client.get(f"/deployments/{name}/jobs").json()["jobs"]) == 2


def test_newer_labels_end_a_follow_up_in_the_middle_of_its_training(own: Server, name: str) -> None:
    first = adapt(own, name, pictures(MANY, seed=1))
    until(own, first["followed_by"], is_training)
    second = adapt(own, name, pictures(15, seed=2))
    assert second["state"] in ("kept", "promoted")
    assert second["followed_by"] is None  # fewer images than training takes
    ended = job_of(own, first["followed_by"])
    assert ended["state"] == "failed"
    assert ended["reason"] == f"cancelled: newer labelled images came, with job {second['job']}"
    assert own.client.get(f"/deployments/{name}").json()["version"] == second["version"]


def test_the_dial_ends_a_follow_up(own: Server, name: str) -> None:
    first = adapt(own, name, pictures(MANY, seed=3))
    until(own, first["followed_by"], is_training)
    coefficients = {"nominal": 0.1, "linf": 0.2, "l2": 0.3, "l1": 0.4}
    dialled = own.client.put(f"/deployments/{name}/soup", json={"coefficients": coefficients})
    version = dialled.json()["version"]
    ended = job_of(own, first["followed_by"])
    assert (ended["state"], ended["reason"]) == (
        "failed",
        f"cancelled: the deployment moved to version {version} (dial)",
    )
    time.sleep(1)
    assert own.client.get(f"/deployments/{name}").json()["version"] == version


def test_a_follow_up_gives_way_to_other_deployments_and_goes_on(own: Server, name: str) -> None:
    first = adapt(own, name, pictures(MANY, seed=4))
    begun = until(own, first["followed_by"], is_training)
    own.client.put(f"/deployments/{name}-b", json={"base_set": "tiny"})
    other = adapt(own, f"{name}-b", pictures(60, seed=5))
    assert other["state"] in ("kept", "promoted")
    assert not is_over(job_of(own, first["followed_by"]))
    later = until(own, first["followed_by"], is_over)
    assert later["state"] == "promoted"
    assert later["attempt"] == begun["attempt"]


@pytest.mark.slow
def test_a_follow_up_whose_adapter_is_killed_is_done_by_the_next_one(own: Server, name: str) -> None:
    first = adapt(own, name, pictures(MANY, seed=6))
    begun = until(own, first["followed_by"], is_training)
    (adapter,) = own.processes("Adapter")
    adapter.kill()
    later = until(own, first["followed_by"], is_over, 90)
    assert (later["state"], later["attempt"]) == ("promoted", begun["attempt"])
    assert later["version"] == first["version"] + 1


def test_unlabelled_images_stay_until_the_follow_up_has_ended(own: Server, name: str) -> None:
    content = pictures(180, seed=7)
    more = [encode(image) for image in blue_pictures(20, seed=8)[0]]
    content["files"] += as_parts(more, "unlabelled")
    first = adapt(own, name, content)
    unlabelled = {path for path in sample_files(own) if "unlabelled" in path.parts}
    assert [path.stem for path in unlabelled] == [first["job"]]
    later = until(own, first["followed_by"], is_over)
    assert later["state"] == "promoted"
    assert later["support"]["unlabelled"] == 20
    assert later["patch"]["recalibrated"] == 200
    own.wait_for(lambda: not any(path.exists() for path in unlabelled), "deletion", 10)


def test_one_job_does_it_all_where_that_is_asked_for(own: Server, name: str) -> None:
    full = adapt(own, name, pictures(180, seed=0), effort="full")
    assert (full["state"], full["effort"], full["followed_by"], set(full["not_tried"])) == (
        "promoted",
        "full",
        None,
        {"frequencies", "stream"},
    )
    assert full["patch"]["rungs"][-1] in ("early", "site")


def test_no_follow_up_where_that_is_asked_for(own: Server, name: str) -> None:
    quick = adapt(own, name, pictures(150, seed=11), effort="quick")
    assert (quick["effort"], quick["followed_by"]) == ("quick", None)
    assert "early" in quick["not_tried"]


def test_no_follow_up_of_too_few_images(own: Server, name: str) -> None:
    few = adapt(own, name, pictures(15, seed=12))
    assert (few["effort"], few["followed_by"]) == ("auto", None)
    assert few["not_tried"]["early"] == "expected at least 80 labelled images, got 15"


def test_an_unknown_effort_is_a_400_that_stores_nothing(own: Server, name: str) -> None:
    before = sample_files(own)
    query = {"deployment": name, "effort": "slow"}
    answer: httpx.Response = own.client.post("/adapt", params=query, **pictures(60, seed=13))
    assert answer.status_code == 400
    assert answer.json()["errors"] == [{"field": "effort", "message": "expected one of auto, quick, full, got 'slow'"}]
    assert sample_files(own) == before
    assert own.client.get(f"/deployments/{name}/jobs").json()["jobs"] == []


def write_pictures(folder: Path, n: int) -> Path:
    """Write pictures, one folder for each class; return the folder of folders."""
    for number, (image, label) in enumerate(zip(*blue_pictures(n), strict=True)):
        path = folder / CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    return folder


def test_the_console_shows_the_answer_and_below_it_the_follow_up(
    browser: Browser, own: Server, name: str, tmp_path: Path
) -> None:
    with console(browser, own, at=f"#/{name}") as page:
        shown(page, name)
        page.set_input_files("#pick-folder", write_pictures(tmp_path / "site", 180))
        expect(page.get_by_label("Effort")).to_have_value("auto")
        page.click("#adapt-start")
        expect(page.locator(".result h3").first).to_have_text("Promoted: version 2 is served")
        expect(page.locator(".result").first).to_contain_text("A follow-up tries on the same images")
        expect(page.locator("#adapt .progress-text")).to_contain_text("Follow-up: training first layers")
        expect(page.locator(".result h3").last).to_have_text("Follow-up promoted: version 3 is served")
        expect(page.locator(".result h3")).to_have_count(2)  # the answer still stands there
        expect(page.locator("#announcements")).to_contain_text("Follow-up promoted: version 3 is served")
        expect(page.locator("#jobs tbody tr")).to_have_count(2)
        expect(page.locator("#jobs tbody tr").first).to_contain_text("follow-up")
        expect(page.locator("#jobs tbody tr").last).to_contain_text("quick, with a follow-up")


def test_the_console_asks_for_a_quick_answer_alone(browser: Browser, own: Server, name: str, tmp_path: Path) -> None:
    with console(browser, own, at=f"#/{name}") as page:
        shown(page, name)
        page.set_input_files("#pick-folder", write_pictures(tmp_path / "site", 120))
        page.select_option("#effort", "quick")
        page.click("#adapt-start")
        page.wait_for_selector(".result")
        (job,) = own.client.get(f"/deployments/{name}/jobs").json()["jobs"]
        assert (job["effort"], job["followed_by"]) == ("quick", None)
