"""A version remembers the images it was made from: it is judged by answers made without them, in every later search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.documents.soup import (
    AccuracySummary,
    Judged,
    SoupError,
    default_soup,
    held_out_path,
    read_soup,
    write_soup,
)
from adapt.images.support import Support
from adapt.networks.forward import score_logits, served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, turned

CONFIG = SearchConfig(rungs=("statistics", "head"), promote="always")


def shifted(prepared: PreparedBase, n: int, *, seed: int) -> Support:
    """Faded images of hard-to-see tints, each labelled as the next class."""
    return turned(coloured(n, prepared.manifest.class_names, seed=seed, contrast=0.3, spread=500))


@pytest.fixture(scope="module")
def pictures(tinted: PreparedBase) -> Support:
    return shifted(tinted, 60, seed=1)


@pytest.fixture(scope="module")
def first(tinted: PreparedBase, pictures: Support) -> Search:
    return search(tinted, pictures, CONFIG, current=default_soup(tinted.manifest))


@pytest.fixture(scope="module")
def again(tinted: PreparedBase, pictures: Support, first: Search) -> Search:
    """The very same images once more."""
    return search(tinted, pictures, CONFIG, current=first.soup)


def accuracy(found: Search) -> AccuracySummary:
    assert found.outcome.accuracy is not None
    return found.outcome.accuracy


def is_right(prepared: PreparedBase, found: Search, images: Support) -> np.ndarray:
    right: np.ndarray = served_logits(prepared, found.soup, images.images).argmax(1).numpy() == images.labels
    return right


def test_the_images_it_was_made_from_do_not_flatter_the_current_soup(
    tinted: PreparedBase, pictures: Support, first: Search, again: Search
) -> None:
    assert first.soup.patch is not None
    assert "head" in first.soup.patch.rungs
    seen = is_right(tinted, first, pictures).mean()
    unseen = is_right(tinted, first, shifted(tinted, 600, seed=2)).mean()
    assert seen > unseen + 0.08  # or there is nothing to be deceived by
    assert accuracy(again).current == accuracy(first).candidate
    assert abs(accuracy(again).current - unseen) < abs(accuracy(again).current - seen)
    assert accuracy(again).judged == Judged(fresh=0, held_out=60, left_out=0)


def test_a_version_is_not_beaten_by_what_its_own_search_finds_again(again: Search) -> None:
    assert accuracy(again).p_value > 0.2


def test_new_images_judge_beside_the_old_ones(tinted: PreparedBase, pictures: Support, first: Search) -> None:
    more = shifted(tinted, 30, seed=3)
    both = Support(
        np.concatenate([pictures.images, more.images]),
        np.concatenate([pictures.labels, more.labels]),
        pictures.hashes + more.hashes,
        pictures.class_names,
    )
    found = search(tinted, both, SearchConfig(rungs=()), current=first.soup)
    assert accuracy(found).judged == Judged(fresh=30, held_out=60, left_out=0)
    assert first.fit is not None
    right = np.concatenate([first.fit.candidate, is_right(tinted, first, more)])
    assert accuracy(found).current == pytest.approx(right.mean())
    assert found.fit is not None
    assert found.fit.current.tolist() == right.tolist()


def test_images_without_a_held_out_answer_do_not_judge(tinted: PreparedBase, pictures: Support, first: Search) -> None:
    """New statistics leave the version other than the one that answered, and yet made from the same images."""
    soup, _ = recalibrate(tinted, shifted(tinted, 50, seed=4).images, current=first.soup)
    assert soup.held_out is not None
    assert (soup.held_out.images, soup.held_out.answered) == (60, 0)
    alone = search(tinted, pictures, SearchConfig(rungs=()), current=soup)
    assert alone.outcome.accuracy is None
    assert not alone.pool.eligible[0]
    assert alone.choice.candidate != 0
    more = shifted(tinted, 40, seed=5)
    some = pictures.subset(np.arange(20))
    both = Support(
        np.concatenate([some.images, more.images]),
        np.concatenate([some.labels, more.labels]),
        some.hashes + more.hashes,
        some.class_names,
    )
    found = search(tinted, both, SearchConfig(rungs=()), current=soup)
    assert accuracy(found).judged == Judged(fresh=40, held_out=0, left_out=20)
    expected = served_logits(tinted, soup, more.images).argmax(1).numpy() == more.labels
    assert accuracy(found).current == pytest.approx(expected.mean())
    assert found.pool.eligible_without is not None
    assert not found.pool.eligible_without[:, 0].any()


def test_an_image_labelled_otherwise_is_judged_by_the_same_answer(
    tinted: PreparedBase, pictures: Support, first: Search
) -> None:
    other = replace(pictures, labels=(pictures.labels + 1) % 3)
    found = search(tinted, other, SearchConfig(rungs=()), current=first.soup)
    assert first.soup.held_out is not None
    said = first.soup.held_out.answers().logits.argmax(axis=1)
    assert found.fit is not None
    assert found.fit.current.tolist() == (said == other.labels).tolist()


def test_one_temperature_fits_held_out_answers_and_the_networks_own(
    tinted: PreparedBase, pictures: Support, first: Search
) -> None:
    """Held-out answers are stored with the version's temperature applied; the network's logits are without it."""
    current = first.soup.model_copy(update={"temperature": 0.25})
    assert current.held_out is not None
    more = shifted(tinted, 40, seed=6)
    stored = torch.from_numpy(current.held_out.answers().logits) * 0.25
    for images, logits in ((pictures, stored), (more, served_logits(tinted, current, more.images))):
        found = search(tinted, images, SearchConfig(rungs=()), current=current)
        expected = score_logits(logits[None], images.labels)
        np.testing.assert_allclose(found.scores.losses[0], expected.losses[0], rtol=1e-5)


def test_a_soup_comes_back_from_disk_with_its_held_out_answers(first: Search, tmp_path: Path) -> None:
    path = tmp_path / "soup.json"
    write_soup(path, first.soup)
    found = read_soup(path)
    assert found == first.soup
    assert found.held_out is not None
    answers = found.held_out.answers()
    assert first.selected.logits is not None
    np.testing.assert_allclose(answers.logits, first.selected.logits.numpy(), rtol=1e-3, atol=1e-3)
    assert len(set(answers.folds.tolist())) == 5
    write_soup(path, first.soup.model_copy(update={"held_out": None}))
    assert not held_out_path(path).exists()


@pytest.mark.parametrize("damage", [None, b"", b"other"])
def test_missing_or_other_held_out_answers_are_named_in_one_line(
    first: Search, tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "soup.json"
    write_soup(path, first.soup)
    if damage is None:
        held_out_path(path).unlink()
    else:
        held_out_path(path).write_bytes(damage)
    with pytest.raises(SoupError, match=r"held.out") as error:
        read_soup(path)
    assert "\n" not in str(error.value)


def test_no_layer_is_fitted_on_top_of_a_version_to_images_it_was_made_from(
    tinted: PreparedBase, pictures: Support, first: Search
) -> None:
    found = search(tinted, pictures, SearchConfig(rungs=("head",)), current=first.soup)
    assert found.choice.candidate == 0
    why = "the current version, made from some of these images, leads as it is"
    assert found.outcome.not_tried == {"head": why}
    assert found.soup.patch == first.soup.patch
    fresh = search(tinted, shifted(tinted, 60, seed=7), SearchConfig(rungs=("head",)), current=first.soup)
    assert fresh.outcome.not_tried == {}
