"""What the console asks for beyond the contract, and the files that it is: over HTTP, without a browser."""

import json
import re
import time
from typing import Any

import httpx
import pytest

from adapt.images.archive import Limits, read_archive
from adapt.search.surrogate import nodes
from service.http.console import FOLDER, PAGE, read_files
from tests.hostile.archives import GOOD, tarred, zipped
from tests.service.conftest import Labelled, Server, as_parts
from tests.service.test_adapt_http import adapt
from training.data import SUFFIXES
from training.images import FORMATS

pytestmark = pytest.mark.e2e


def test_console_offers_what_the_service_reads() -> None:
    script = (FOLDER / "files.js").read_text()
    lists = {name: set(json.loads(value)) for name, value in re.findall(r"const ([A-Z]+) = (\[.*\]);", script)}
    assert lists["TYPES"] == {f"image/{name.lower()}" for name in FORMATS}
    assert lists["PICTURES"] == SUFFIXES
    kinds = {".zip": zipped(GOOD), ".tar": tarred(GOOD.items()), ".tgz": tarred(GOOD.items(), mode="w:gz")}
    kinds |= {".tar.gz": kinds[".tgz"]}
    assert lists["ARCHIVES"] == kinds.keys()
    for data in kinds.values():
        assert len(list(read_archive(data, Limits(), ignored=lambda _: False))) == len(GOOD)
    others = "".join((FOLDER / name).read_text() for name in ("staging.js", "trial.js", "index.html"))
    assert not re.search(r'accept[:=] ?"', others)  # there are no other lists


def landscape_of(client: httpx.Client, job: str) -> dict[str, Any]:
    """Return the landscape of a job with all plain nodes; the last of them come a moment after the job's end."""
    deadline = time.monotonic() + 20
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}/landscape").json()
        plain = {tuple(point["coefficients"]) for point in found["points"] if point["kind"] == "plain"}
        if {tuple(row) for row in nodes(4).tolist()} <= plain:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_landscape_is_what_the_search_saw(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(5, 105), promote="never").json()
    assert "landscape" not in job
    at_once = default.get(f"/jobs/{job['job']}/landscape").json()
    landscape = landscape_of(default, job["job"])
    assert landscape["points"][: len(at_once["points"])] == at_once["points"]
    assert len(at_once["points"]) >= job["search"]["candidates"]
    assert landscape["ingredients"] == list(job["coefficients"])
    assert landscape["n"] == job["support"]["n"]
    points = landscape["points"]
    assert points[landscape["chosen"]]["coefficients"] == pytest.approx(list(job["coefficients"].values()), abs=1e-6)
    assert points[landscape["current"]]["accuracy"] == pytest.approx(job["accuracy"]["current"], abs=1e-6)
    for position, accuracy in enumerate(job["ingredients"].values()):
        alone = [float(position == other) for other in range(4)]
        same = [point["accuracy"] for point in points if (point["coefficients"], point["kind"]) == (alone, "plain")]
        assert set(same) == {round(accuracy, 6)}
    assert default.get(f"/jobs/{job['job']}").json() == job


def test_plain_points_are_what_the_dial_would_serve(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, labelled.request(5, 105), promote="never").json()
    landscape = landscape_of(default, job["job"])
    mixtures = [
        point for point in landscape["points"] if point["kind"] == "plain" and max(point["coefficients"]) == 0.5
    ]
    assert mixtures
    point = mixtures[-1]
    coefficients = dict(zip(landscape["ingredients"], point["coefficients"], strict=True))
    assert default.put("/deployments/default/soup", json={"coefficients": coefficients}).status_code == 200
    answers = default.post("/predict", files=as_parts(labelled.files[5:105])).json()["predictions"]
    right = [item["index"] == label for item, label in zip(answers, labelled.labels[5:105], strict=True)]
    assert sum(right) / len(right) == pytest.approx(point["accuracy"], abs=0.011)  # one image on a knife's edge


def test_jobs_without_labels_or_unknown_have_no_landscape(default: httpx.Client, labelled: Labelled) -> None:
    job = adapt(default, {"files": as_parts(labelled.files[:9], "unlabelled")}).json()
    for name in (job["job"], "nonsense"):
        assert default.get(f"/jobs/{name}/landscape").status_code == 404


def test_newest_jobs_of_a_deployment_are_listed(default: httpx.Client, labelled: Labelled) -> None:
    first = adapt(default, labelled.request(0, 11), promote="never").json()
    second = adapt(default, labelled.request(0, 12), promote="never").json()
    found = default.get("/deployments/default/jobs").json()
    assert found["deployment"] == "default"
    assert found["jobs"][:2] == [second, first]
    assert {job["base_version"] for job in found["jobs"][:2]} == {1}
    assert [job["job"] for job in default.get("/deployments/default/jobs?limit=1").json()["jobs"]] == [second["job"]]
    assert default.get("/deployments/default/jobs?limit=0").status_code == 400
    assert default.get("/deployments/none/jobs").status_code == 404


def test_without_keys_everybody_is_an_administrator(default: httpx.Client) -> None:
    assert default.get("/whoami").json() == {"name": None, "role": "admin"}


def test_any_version_answers_without_being_served(default: httpx.Client, server: Server, labelled: Labelled) -> None:
    files = as_parts(labelled.files[:40])
    first = default.post("/predict", files=files).json()
    alone = {"linf": 0.0, "nominal": 0.0, "l2": 1.0, "l1": 0.0}
    dialled = default.put("/deployments/default/soup", json={"coefficients": alone}).json()["version"]
    second = default.post("/predict", files=files).json()
    assert second["version"] == dialled
    for version, expected in ((1, first), (dialled, second)):
        answer = default.post(f"/deployments/default/soups/{version}/predict", files=files)
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == version
        for one, other in zip(answer.json()["predictions"], expected["predictions"], strict=True):
            assert one["index"] == other["index"]
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
    assert default.get("/deployments/default").json()["version"] == dialled


def test_version_that_is_not_there_and_images_that_are_none_are_refused(
    default: httpx.Client, labelled: Labelled
) -> None:
    files = as_parts(labelled.files[:1])
    for version in ("999999", "0", "-1", "1.0", "x", "9" * 30):
        assert default.post(f"/deployments/default/soups/{version}/predict", files=files).status_code == 404
    assert default.post("/deployments/none/soups/1/predict", files=files).status_code == 404
    broken = default.post("/deployments/default/soups/1/predict", files=as_parts([b"nonsense"]))
    assert (broken.status_code, broken.json()["errors"][0]["field"]) == (422, "images[0]")
    odd = default.post("/deployments/default/soups/1/predict?top_k=0", files=files)
    assert odd.status_code == 400


def test_page_and_its_files_are_served_with_a_strict_policy(server: Server) -> None:
    page = server.client.get("/ui")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path in ("/ui", *(f"/ui/{name}" for name in read_files() if name != PAGE)):
        answer = server.client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = server.client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in (PAGE, "none.js", "..%2Fapp.py", "%2e%2e/app.py", "index.html%00"):
        assert server.client.get(f"/ui/{name}").status_code == 404


def test_files_are_whole_and_ask_nobody_else() -> None:
    assert set(read_files()) == {path.name for path in FOLDER.iterdir()}
    for name, file in read_files().items():
        text = file.content.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xhtml))", text), name
        assert not re.search(r"(?:@import|url\(|//cdn|innerHTML|outerHTML|insertAdjacentHTML|eval\()", text), name
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text), name
        for imported in re.findall(r"""(?:from|import\()\s*["']\./([^"']+)["']""", text):
            assert imported in read_files(), f"{name} imports {imported}"
