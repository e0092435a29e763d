"""What networks cost: the random base sets, the aims, and one row on a real server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pictures import labelled_jpegs
from benchmarks.scale.__main__ import Scale
from benchmarks.scale.networks import INGREDIENTS, NETWORKS, check_rows, make_base_set, make_small_base_set
from benchmarks.scale.report import aims, markdown, with_worker
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from tests.conftest import INPUT, LAYERNORM_NET
from training.bases import load_base_set
from training.images import decode
from training.manifest import Architecture
from training.models import create_classifier


def row(**changes: Any) -> dict[str, Any]:
    latency = {"p50_ms": 1.0, "p99_ms": 2.0, "per_second": 900.0, "answers": 100}
    fields: dict[str, Any] = {
        "bundle_s": 20.0,
        "input": [160, 160],
        "weights_m": 3.4,
        "weights_mib": 10.0,
        "memory": {"1": {"rss": 200, "pss": 150, "private": 140.0}, "4": {"rss": 200, "pss": 500, "private": 112.0}},
        "loaded_private_mib": 160,
        "predict": {"1": latency, "8": latency},
        "swap": {"calm": {"median_s": 0.5, "max_s": 0.6}, "busy": {"median_s": 0.9, "max_s": 1.5}},
        "adapt": {"n": 100, "state": "promoted", "seconds": 60.0, "gave_up_after_s": 900, "peak_mib": 900},
        "requests": 400,
        "failed": 0,
    }
    return with_worker({**fields, **changes}, bare_mib=100.0)


def verdicts(**rows: dict[str, Any]) -> list[bool | None]:
    return [aim["holds"] for aim in aims(rows)]


def test_a_worker_costs_what_no_other_process_has_beyond_one_without_a_network() -> None:
    assert row()["further_worker"] == {"private_mib": 112.0, "session_mib": 12.0, "of_weights": 1.2}


def test_aims_hold_at_their_limits_and_not_beyond() -> None:
    assert verdicts(photos=row()) == [True, True, True, True]
    slow = row(
        swap={"calm": {"median_s": 1, "max_s": 1.2}, "busy": {"median_s": 1, "max_s": 1.6}},
        memory={"1": {}, "4": {"private": 114.0}},
        adapt={"n": 100, "seconds": 60.1},
        failed=1,
    )
    assert verdicts(photos=slow) == [False, False, False, False]
    assert [aim["missed"] for aim in aims({"photos": row(), "other": slow})] == [["other"], ["other"], [], ["other"]]


def test_the_aim_of_an_adaptation_is_for_photos_with_100_images_that_came_to_an_end() -> None:
    assert verdicts(other=row()) == [True, True, None, True]
    assert verdicts(photos=row(adapt={"n": 20, "seconds": 5.0})) == [True, True, None, True]
    assert verdicts(photos=row(adapt={"n": 100, "seconds": None}))[2] is False


def test_the_report_says_what_was_given_up_and_what_was_not_measured() -> None:
    given_up = row(adapt={"n": 100, "state": "given up", "seconds": None, "gave_up_after_s": 900, "peak_mib": 9000})
    rows = {"other": given_up}
    data = {"rows": rows, "aims": aims(rows), "machine": "m", "cores": 2, "quick": True, "bare_worker_mib": 100.0}
    text = markdown(data, "python -m benchmarks.scale")
    assert "> 900 (n = 100)" in text
    assert "not measured" in text
    assert "A quick run" in text


@pytest.mark.parametrize("rows", [("phots",), ("photos", "photos"), ()])
def test_unknown_rows_are_refused_before_anything_is_measured(rows: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="--rows: expected"):
        check_rows(rows)


def test_every_network_is_one_that_timm_makes_at_its_size() -> None:
    import timm

    assert all(timm.is_model(architecture.name) for architecture in NETWORKS.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "has_moments"),
    [(Architecture(name="resnet10t"), False), (LAYERNORM_NET, True)],
)
def test_a_random_base_set_can_be_mixed_searched_and_served(
    architecture: Architecture, has_moments: bool, tmp_path: Path
) -> None:
    spec = INPUT.model_copy(update={"height": 32, "width": 32})
    folder = make_base_set(tmp_path / "made", architecture, spec, seed=3)
    base = load_base_set(folder)
    assert tuple(base.state_dicts) == INGREDIENTS
    assert (base.moments is not None) == has_moments
    fresh = create_classifier(architecture, spec, 10).net.state_dict()
    assert base.state_dicts["nominal"].keys() == fresh.keys()
    bundle = Bundle.open(build_bundle(folder, tmp_path / "bundles"))  # compares with torch, mixtures too
    session = bundle.session(dict.fromkeys(INGREDIENTS, 0.25))
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    logits = session.run(images)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0


def test_a_random_base_set_follows_from_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        load_base_set(make_small_base_set(tmp_path / name, seed=seed)).state_dicts["l1"]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_labelled_pictures_of_a_class_are_alike_and_no_two_are_equal() -> None:
    files, labels = labelled_jpegs(12, 3, 24, 32, seed=0)
    assert labels.tolist() == [0, 1, 2] * 4
    assert len(set(files)) == 12
    pixels = np.stack([decode(file) for file in files]).astype(float)
    assert pixels.shape == (12, 24, 32, 3)
    distances = np.abs(pixels[:, None] - pixels[None]).mean(axis=(2, 3, 4))
    same = labels[:, None] == labels[None]
    assert distances[same & ~np.eye(12, dtype=bool)].mean() < 0.8 * distances[~same].mean()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
def test_a_row_is_measured_on_a_real_server(tiny_base_set: Path, tmp_path: Path) -> None:
    data = Scale(rows=(str(tiny_base_set),), quick=True, out=tmp_path / "out", work=tmp_path).execute().data
    found = data["rows"][tiny_base_set.name]
    assert found["failed"] == 0
    assert found["requests"] > 60
    assert found["adapt"]["state"] in ("promoted", "kept")
    assert found["adapt"]["peak_mib"] > 100
    assert 0 < found["swap"]["calm"]["median_s"] <= found["swap"]["calm"]["max_s"]
    assert found["memory"]["4"]["pss"] > found["memory"]["1"]["pss"]
    assert found["memory"]["4"]["private"] < found["memory"]["4"]["rss"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == data
    assert "| tiny |" in (tmp_path / "out" / "REPORT.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what was measured is gone
