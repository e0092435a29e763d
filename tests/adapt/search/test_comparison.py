"""Two given soups on images that neither was chosen on."""

import numpy as np
import pytest

from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.evidence.cross_fit import NUM_FOLDS
from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from adapt.search.comparison import compare
from tests.adapt.pictures import HIDDEN, support_for


@pytest.fixture(scope="module")
def images(prepared: PreparedBase) -> Support:
    return support_for(prepared, 60, seed=4)


@pytest.fixture(scope="module")
def right(prepared: PreparedBase) -> Soup:
    return make_soup(prepared.manifest, HIDDEN)


def test_the_better_soup_is_told_from_the_worse_one(prepared: PreparedBase, images: Support, right: Soup):
    found = compare(prepared, right, default_soup(prepared.manifest), images)
    assert (found.n, found.soup, found.objection) == (60, 1.0, None)
    assert found.current < 0.9
    assert found.p_value < 0.001
    turned = compare(prepared, default_soup(prepared.manifest), right, images)
    assert (turned.soup, turned.current) == (found.current, found.soup)
    assert turned.p_value > 0.99


def test_a_soup_is_no_better_than_itself(prepared: PreparedBase, images: Support, right: Soup):
    assert compare(prepared, right, right, images).p_value == 1.0


def test_too_little_is_told_whatever_the_p_value(prepared: PreparedBase, images: Support, right: Soup):
    current = default_soup(prepared.manifest)
    assert "got 9, expected 10" in str(compare(prepared, right, current, images.subset(np.arange(9))).objection)
    largest = np.bincount(images.labels).argmax()
    one, others = np.flatnonzero(images.labels == largest), np.flatnonzero(images.labels != largest)
    assert "of one class" in str(compare(prepared, right, current, images.subset(one)).objection)
    few = np.concatenate([one, others[: NUM_FOLDS - 1]])
    assert f"{NUM_FOLDS - 1} of the others" in str(compare(prepared, right, current, images.subset(few)).objection)


def test_a_soup_without_finite_logits_is_wrong_everywhere(prepared: PreparedBase, images: Support, right: Soup):
    broken = make_soup(prepared.manifest, {"linf": 1e30, "nominal": -1e30, "l2": 0.0, "l1": 1.0})
    assert compare(prepared, broken, right, images)[1] == 0.0
    assert compare(prepared, broken, right, images).p_value > 0.99
    assert compare(prepared, right, broken, images).p_value < 0.001
