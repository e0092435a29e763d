"""The benchmark of ways to train all weights, on a tiny network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.rungs.site import SHARES
from benchmarks.plans.__main__ import QUICK, Plans
from tests.adapt.pictures import coloured
from tests.conftest import CLASSES


def test_ways_to_train_are_compared_and_a_run_goes_on(tiny_base_set: Path, tmp_path: Path) -> None:
    support = coloured(120, CLASSES)
    for number, (pixels, label) in enumerate(zip(support.images, support.labels, strict=True)):
        place = tmp_path / "drawn" / CLASSES[label] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    asked = Plans(
        base=tiny_base_set,
        folders=(tmp_path / "drawn",),
        variants=("as it is", "rate 1e-3"),
        n=30,
        n_test=60,
        out=tmp_path / "out",
    )
    found = asked.execute().data
    rows = found["accuracy"]["drawn"]
    assert set(rows) == {QUICK, *asked.variants}
    assert all(set(rows[variant]) == {f"{share:g}" for share in SHARES} for variant in asked.variants)
    assert rows["as it is"] != rows["rate 1e-3"]
    assert np.isfinite([value for row in rows.values() for value in row.values()]).all()
    written = (tmp_path / "out" / "plans.jsonl").read_bytes()
    assert asked.execute().data["accuracy"] == found["accuracy"]
    assert (tmp_path / "out" / "plans.jsonl").read_bytes() == written
    assert "| rate 1e-3 |" in (tmp_path / "out" / "REPORT.md").read_text()
    with pytest.raises(ValueError, match=r"variants: expected some of as it is, .*; got 'none'"):
        asked.model_copy(update={"variants": ("none",)}).execute()
