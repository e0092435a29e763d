"""The watch on a running server: what is promoted and turns out badly goes back by itself, and no request notices."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from tests.service.conftest import Labelled, Server, as_parts
from training.images import to_input

pytestmark = pytest.mark.e2e

NAMES = ("linf", "nominal", "l2", "l1")
SURE, UNSURE = (2.0, 2.0, -1.0, -2.0), (0.25, 0.25, 0.25, 0.25)  # mean confidence 0.77 and 0.49 on the labelled images
RIGHT, WRONG = (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 2.0, 0.0)  # accuracy 1 and 0.27 on them


@contextmanager
def deployment(server: Server, name: str, **watch: Any) -> Iterator[httpx.Client]:
    client = server.client
    assert client.put(f"/deployments/{name}", json={"base_set": "tiny"}).status_code == 201
    assert client.put(f"/deployments/{name}/watch", json=watch).status_code == 201
    yield client
    assert client.delete(f"/deployments/{name}").status_code == 204


def dial(client: httpx.Client, name: str, coefficients: tuple[float, ...]) -> int:
    answer = client.put(f"/deployments/{name}/soup", json={"coefficients": dict(zip(NAMES, coefficients, strict=True))})
    assert answer.status_code == 200, answer.text
    version: int = answer.json()["version"]
    return version


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it does not happen")


def current(client: httpx.Client, name: str) -> int:
    version: int = client.get(f"/deployments/{name}").json()["version"]
    return version


class Traffic:
    """Clients that ask for predictions all the time, by `/predict` and by `/v2`, on connections of their own."""

    def __init__(self, server: Server, name: str, labelled: Labelled) -> None:
        self.versions: set[int] = set()
        self.problems: list[str] = []
        self._server, self._name, self._labelled = server, name, labelled
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._predict, self._infer)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _predict(self) -> None:
        files = as_parts(self._labelled.files[:20])
        while not self._stop.wait(0.05):
            answer = httpx.post(f"{self._server.url}/predict", params={"deployment": self._name}, files=files)
            if answer.status_code == 200:
                self.versions.add(answer.json()["version"])
            else:
                self.problems.append(answer.text)

    def _infer(self) -> None:
        pictures = to_input(self._labelled.pixels[20:40])
        images = InferInput("images", list(pictures.shape), "FP32")
        images.set_data_from_numpy(pictures)
        with InferenceServerClient(f"127.0.0.1:{self._server.port}") as client:
            while not self._stop.wait(0.05):
                try:
                    answer = client.infer(self._name, [images]).get_response()
                    self.versions.add(int(answer["model_version"]))
                except Exception as error:
                    self.problems.append(str(error))


def test_a_soup_that_is_less_sure_goes_back_by_itself(server: Server, labelled: Labelled) -> None:
    with deployment(server, "watched", min_images=60) as client, Traffic(server, "watched", labelled) as traffic:
        good = dial(client, "watched", SURE)
        until(lambda: client.get("/deployments/watched").json()["watch"]["recent"]["images"] >= 200)
        bad = dial(client, "watched", UNSURE)
        assert bad > good
        until(lambda: current(client, "watched") == good)
        event = client.get("/deployments/watched/events").json()["events"][0]
        assert (event["kind"], event["from_version"], event["to_version"]) == ("rollback", bad, good)
        assert (event["who"], event["unproven"]) == ("(watch)", False)
        assert "confidence collapsed: mean 0.4" in event["reason"]

        view = until(
            lambda: (found := client.get("/deployments/watched").json())["watch"]["recent"]["images"] and found
        )
        assert view["watch"]["against"] is None
        assert view["watch"]["recent"]["mean"] > 0.7
        until(lambda: client.get("/deployments/watched").json()["watch"]["recent"]["images"] >= 60)

        back = client.put("/deployments/watched/soup", json={"version": bad})  # deliberately
        assert back.status_code == 200
        until(lambda: current(client, "watched") == good)
        kinds = [event["who"] for event in client.get("/deployments/watched/events").json()["events"]]
        assert kinds[:3] == ["(watch)", None, "(watch)"]
        text = client.get("/metrics").text
        assert 'saucier_automatic_rollbacks_total{cause="confidence",deployment="watched"} 2.0' in text
        until(lambda: client.get("/deployments/watched").json()["is_rolled_out"])
    assert traffic.problems == []
    assert {good, bad} <= traffic.versions <= {1, good, bad}


def test_labelled_images_that_come_later_put_a_worse_soup_back(server: Server, labelled: Labelled) -> None:
    ask = "/adapt?deployment=doubted&promote=never"
    with deployment(server, "doubted") as client:
        good, bad = dial(client, "doubted", RIGHT), dial(client, "doubted", WRONG)
        job = client.post(ask, **labelled.request(0, 60)).json()
        assert (job["state"], job["version"], job["previous_version"]) == ("kept", good, None)
        assert job["rolled_back_to"] == good
        assert job["reason"].startswith(f"rolled back to version {good}: on 60 labelled images that came after")
        assert "accuracy 1.000 against 0." in job["reason"]
        for _ in range(10):  # when the job is answered, every worker has gone back
            answer = httpx.post(f"{server.url}/predict?deployment=doubted", files=as_parts(labelled.files[:2]))
            assert answer.json()["version"] == good
        event = client.get("/deployments/doubted/events").json()["events"][0]
        assert (event["kind"], event["who"], event["job"]) == ("rollback", "(watch)", job["job"])
        assert event["reason"] in job["reason"]
        assert client.post(ask, **labelled.request(0, 60)).json()["version"] == good  # it is not judged in its turn

        client.put("/deployments/doubted/soup", json={"version": bad})
        again = client.post(f"{ask}&strategy=grid", **labelled.request(0, 60)).json()
        assert (again["state"], again["version"], again["rolled_back_to"]) == (
            "kept",
            bad,
            None,
        )  # these images have been counted already
        later = client.post(ask, **labelled.request(60, 120)).json()
        assert (later["state"], later["version"]) == ("kept", good)

        dial(client, "doubted", WRONG)
        best = client.post("/adapt?deployment=doubted", **labelled.request(120, 240)).json()
        assert best["state"] == "promoted"  # something better than the current soup was found: nothing to go back to
        assert current(client, "doubted") == best["version"] > bad
        assert (
            'saucier_automatic_rollbacks_total{cause="accuracy",deployment="doubted"} 2.0'
            in client.get("/metrics").text
        )


def test_nothing_goes_back_where_nobody_watches(server: Server, labelled: Labelled) -> None:
    with deployment(server, "free") as client:
        assert client.delete("/deployments/free/watch").status_code == 204
        dial(client, "free", RIGHT)
        bad = dial(client, "free", WRONG)
        job = client.post("/adapt?deployment=free&promote=never", **labelled.request(0, 60)).json()
        assert (job["state"], job["version"]) == ("kept", bad)
        assert client.get("/deployments/free").json()["watch"] is None


def test_the_watch_is_switched_on_changed_shown_and_off(server: Server) -> None:
    with deployment(server, "switched") as client:
        watch = client.get("/deployments/switched").json()["watch"]
        nothing = {"images": 0, "mean": None}
        expected = {"min_images": 200, "confidence_drop": 0.2, "against": None, "before": nothing, "recent": nothing}
        assert watch == expected
        changed = client.put("/deployments/switched/watch", json={"min_images": 50, "confidence_drop": 0.1})
        assert changed.status_code == 200
        assert (changed.json()["watch"]["min_images"], changed.json()["watch"]["confidence_drop"]) == (50, 0.1)
        for body, field in (
            ({"min_images": 49}, "min_images"),
            ({"min_images": 1_000_001}, "min_images"),
            ({"min_images": "many"}, "min_images"),
            ({"confidence_drop": 0}, "confidence_drop"),
            ({"confidence_drop": 1.0}, "confidence_drop"),
            ({"drop": 0.1}, "drop"),
        ):
            refused = client.put("/deployments/switched/watch", json=body)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field)
        assert client.get("/deployments/switched").json()["watch"]["min_images"] == 50
        assert client.delete("/deployments/switched/watch").status_code == 204
        assert client.get("/deployments/switched").json()["watch"] is None
        assert client.put("/deployments/nowhere/watch", json={}).status_code == 404
        assert client.delete("/deployments/nowhere/watch").status_code == 404
