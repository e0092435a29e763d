"""What the demo says of what it saw; the demo itself runs in tests/e2e."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.demo.client import Load
from service.demo.digits import photograph_digits
from service.demo.performance import _failures
from service.demo.picture import draw as draw_story
from service.demo.story import Story, table


def story(**changes: Any) -> Story:
    names = ("linf", "nominal", "l2", "l1")
    fields: dict[str, Any] = {
        "before": 0.4,
        "after": 0.9,
        "predicted_before": ["1"] * 500,
        "predicted_after": ["2"] * 500,
        "soup_before": dict.fromkeys(names, 0.25),
        "soup_after": dict(zip(names, (1.25, -0.25, 0.0, 0.0), strict=True)),
        "job": {
            "state": "promoted",
            "patch": None,
            "support": {"n": 100},
            "accuracy": {"current": 0.4, "candidate": 0.9, "p_value": 1e-9},
            "search": {"candidates": 149, "seconds": 1.0},
        },
        "num_requests": 4,
        "failures": [],
        "num_failed": 0,
        "answers": [(0.1, 1), (0.5, 1), (1.2, 2), (2.1, 2)],
        "posted": 0.2,
        "decided": 0.8,
        "rolled_out": 1.0,
    }
    return Story(**{**fields, **changes})


def test_the_line_has_the_fields_that_are_promised() -> None:
    assert story(seconds=28.4).line == {
        "demo": "ok",
        "state": "promoted",
        "before": 0.4,
        "after": 0.9,
        "n_support": 100,
        "n_test": 500,
        "requests": 4,
        "failed": 0,
        "swap_ms": 200,
        "seconds": 28,
    }


@pytest.mark.parametrize("changes", [{"after": 0.4}, {"after": 0.3}, {"num_failed": 1, "failures": ["x"]}])
def test_no_gain_or_a_lost_request_is_a_failure(changes: dict[str, Any]) -> None:
    assert story(**changes).line["demo"] == "failed"


def test_where_nothing_was_promoted_there_was_no_swap() -> None:
    assert story(job={**story().job, "state": "kept"}).swap_ms is None


def test_answers_of_an_unknown_or_an_old_version_count_as_failed() -> None:
    answers: list[tuple[float, float, int | None]] = [
        (0.0, 0.1, 1),  # before
        (0.9, 1.1, 1),  # accepted before the rollout was known
        (1.2, 1.3, 2),
        (1.4, 1.5, 1),  # too late for the old one
        (1.4, 1.5, 7),
        (0.3, 0.4, None),
    ]
    found = _failures(Load(failed=["connect: refused"]), answers, {1, 2}, 2, 1.0)
    assert len([failure for failure in found if "refused" in failure]) == 1
    assert "version 1 after the rollout" in found
    assert "an answer names version None" in found
    assert len(found) == 5  # version 7 is both unknown and not the current one


def test_table_and_picture_can_be_made(tmp_path: Path) -> None:
    assert "0.400    0.900" in table(story())
    draw_story(story(), photograph_digits("dull-day", seed=0), tmp_path / "demo.png", title="digits")
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 20


def test_the_table_says_what_a_patch_changes() -> None:
    patch = {"digest": "0" * 64, "recalibrated": 100, "rungs": ["statistics", "head"]}
    lines = table(story(job={**story().job, "patch": patch})).splitlines()
    assert [line.split() for line in lines if line.startswith(("channel", "last", "first"))] == [
        ["channel", "statistics", "of", "training", "100", "new"],
        ["last", "layer", "mixed", "fitted"],
    ]


def test_story_survives_json() -> None:
    from dataclasses import asdict

    assert Story(**json.loads(json.dumps(asdict(story())))).line == story().line
