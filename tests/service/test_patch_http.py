"""Soups with a patch on a running server: what they answer, and what rollback, restart and the dial make of them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from adapt.documents.patch import Patch, make_patch
from adapt.documents.soup import Soup, make_soup
from deploy.parity import TorchReference
from service.store.database import Database
from service.store.registry import Registry
from tests.service.conftest import Labelled, Server, as_parts
from training.bases import load_base_set
from training.images import to_input

pytestmark = pytest.mark.e2e

OUTSIDE = {"linf": 1.25, "nominal": -0.25, "l2": 0.5, "l1": -0.5}


@pytest.fixture(scope="module")
def reference(tiny_base_set: Path) -> TorchReference:
    return TorchReference(load_base_set(tiny_base_set))


@pytest.fixture(scope="module")
def patch(reference: TorchReference) -> Patch:
    """Statistics and a last layer; made up, but of the right size."""
    generator = np.random.default_rng(5)
    like = {key: tensor.numpy() for key, tensor in reference.base.state_dicts["nominal"].items()}
    tensors = {
        key: (array * np.exp(0.3 * generator.normal(size=array.shape))).astype(np.float32)
        for key, array in like.items()
        if key.endswith((".running_mean", ".running_var")) or key.startswith("head.")
    }
    return make_patch(tensors, recalibrated=40, rungs=["statistics", "head"])


@pytest.fixture(scope="module")
def patched(reference: TorchReference, patch: Patch) -> Soup:
    return make_soup(reference.base.manifest, OUTSIDE, bn_mode="raw", temperature=1.5, patch=patch)


def serve(server: Server, soup: Soup) -> int:
    """Store a soup as the newest version of `default` and return its number once all workers serve it."""
    with closing(Database(f"sqlite:///{server.home / 'registry.db'}")) as database:
        version = Registry(database).dial("default", soup).version
    server.wait_for(lambda: {worker["version"] for worker in server.live_workers()} == {version}, "rollout", 20)
    return version


def predict(client: httpx.Client, labelled: Labelled) -> list[dict[str, Any]]:
    answer = client.post("/predict", files=as_parts(labelled.files[:40]))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["predictions"]
    return found


def check_answers(found: list[dict[str, Any]], reference: TorchReference, soup: Soup, labelled: Labelled) -> None:
    """Compare with the confidences of torch."""
    weights = reference.mix(soup.coefficients, soup.bn_mode, soup.patch)
    logits = reference.logits(weights, to_input(labelled.pixels[:40])).astype(np.float64) / soup.temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [item["index"] for item in found] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose([item["confidence"] for item in found], expected.max(axis=1), atol=1e-4)


def test_patched_soup_answers_as_torch_does_and_rollback_takes_the_patch_back(
    default: httpx.Client, server: Server, labelled: Labelled, reference: TorchReference, patched: Soup
) -> None:
    assert patched.patch is not None
    summary = patched.patch.summary.model_dump(mode="json")
    before = predict(default, labelled)
    version = serve(server, patched)
    served = predict(default, labelled)
    check_answers(served, reference, patched, labelled)
    assert default.get("/deployments/default").json()["patch"] == summary
    history = {soup["version"]: soup["patch"] for soup in default.get("/deployments/default/soups").json()["soups"]}
    assert (history[version], history[1]) == (summary, None)
    for wanted, expected, shown in ((1, before, None), (version, served, summary)):
        answer = default.put("/deployments/default/soup", json={"version": wanted})
        assert (answer.status_code, answer.json()["patch"]) == (200, shown)
        for _ in range(4):
            with httpx.Client(base_url=server.url, timeout=30) as client:  # a new connection, perhaps to the other
                assert predict(client, labelled) == expected


def test_dial_drops_the_patch_and_folds_what_had_its_statistics(
    default: httpx.Client, server: Server, labelled: Labelled, reference: TorchReference, patched: Soup
) -> None:
    serve(server, patched)
    answer = default.put("/deployments/default/soup", json={"coefficients": OUTSIDE})
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert (view["patch"], view["bn_mode"], view["temperature"]) == (None, "folded", 1.5)
    check_answers(
        predict(default, labelled),
        reference,
        patched.model_copy(update={"patch": None, "bn_mode": "folded"}),
        labelled,
    )


@pytest.fixture
def own(prebuilt_bases: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home", prebuilt_bases, BASE_SET="tiny")
    server.start()
    yield server
    server.stop()


def test_patch_survives_a_restart(own: Server, labelled: Labelled, reference: TorchReference, patched: Soup) -> None:
    version = serve(own, patched)
    assert own.stop() == 0
    own.start()
    assert own.client.get("/deployments/default").json()["version"] == version
    check_answers(predict(own.client, labelled), reference, patched, labelled)
