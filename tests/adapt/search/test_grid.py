import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.search.grid import MAX_CANDIDATES, GridTooLarge, Lattice, affine, custom, finest, lattice, simplex


def test_published_sizes_for_four_ingredients():
    assert len(affine(4)) == 149
    assert len(simplex(4)) == 286
    assert len(affine(4, step=0.2, low=-0.4, high=1.4)) == 480


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(-3, 0), st.integers(0, 3))
def test_lattice_is_every_combination_that_sums_to_one(num_ingredients: int, parts: int, below: int, above: int):
    points = Lattice(1 / parts, below / parts, 1 + above / parts)
    values = range(below, parts + above + 1)
    expected = [row for row in itertools.product(values, repeat=num_ingredients) if sum(row) == parts]
    assert points.count(num_ingredients) == len(expected)
    if len(expected) <= MAX_CANDIDATES:
        found = points.points(num_ingredients)
        assert np.array_equal(np.rint(found * parts).astype(int), expected)
        assert np.abs(found.sum(axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize("num_ingredients", range(2, 17))
@pytest.mark.parametrize("kind", ["affine", "simplex"])
def test_finest_fits_any_pool_and_holds_every_ingredient_alone(kind, num_ingredients: int):
    rows = {tuple(row) for row in finest(kind, num_ingredients).points(num_ingredients)}
    assert len(rows) <= MAX_CANDIDATES
    assert all(tuple(row) in rows for row in np.eye(num_ingredients))


def test_a_large_pool_is_refused_before_it_is_built_and_a_step_is_named():
    with pytest.raises(
        GridTooLarge, match=r"3268760 candidates for 16 ingredients.*coarser step, e\.g\. 0\.33"
    ) as refused:
        simplex(16)
    assert "2000" in str(refused.value)
    assert lattice("simplex").count(64) > 10**10


def test_the_step_named_is_one_that_works():
    with pytest.raises(GridTooLarge, match=r"e\.g\. 0\.333333"):
        affine(6)
    assert len(affine(6, step=1 / 3)) <= MAX_CANDIDATES
    assert np.array_equal(affine(6, step=0.333333), affine(6, step=1 / 3))  # as the message prints it


@pytest.mark.parametrize("step", [0.0, -0.25, 0.3, 2.0, float("nan")])
def test_a_step_that_does_not_divide_one_is_refused(step: float):
    with pytest.raises(ValueError, match="1 divided by a whole number"):
        Lattice(step, 0.0, 1.0)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_pools_outside_2_to_16_are_refused(count: int):
    with pytest.raises(ValueError, match="2 to 16 ingredients"):
        affine(count)


def test_custom_grids_are_checked():
    assert custom([[0.5, 0.5], [2.0, -1.0]], 2).shape == (2, 2)
    with pytest.raises(ValueError, match="candidate 1 sums to"):
        custom([[0.5, 0.5], [0.5, 0.6]], 2)
    with pytest.raises(ValueError, match="shape"):
        custom([[1.0]], 2)
    with pytest.raises(ValueError, match="finite"):
        custom([[float("nan"), 1.0]], 2)
    with pytest.raises(GridTooLarge):
        custom(np.full((2001, 2), 0.5), 2)
