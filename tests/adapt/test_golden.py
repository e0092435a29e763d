"""Coefficients alone: a search finds what it found before, whatever is rearranged around it."""

import json
from typing import Any

import pytest

from tests.adapt.golden_searches import BASES, GOLDEN, run

FOUND = ("coefficients", "temperature", "bn_mode", "patch", "support", "search", "ingredients")


@pytest.mark.parametrize("base", BASES)
def test_a_search_over_coefficients_finds_what_it_found_before(base: str):
    before: dict[str, Any] = json.loads((GOLDEN / f"{base}.json").read_text(encoding="utf-8"))
    for name, now in run(base).items():
        for key in FOUND:
            assert now[key] == before[name][key], f"{name}: {key}"
        # Means of float32 losses may differ in the last digit from one processor to another.
        for key in ("current", "candidate", "interval", "p_value"):
            assert now["accuracy"][key] == pytest.approx(before[name]["accuracy"][key], rel=1e-5), f"{name}: {key}"
