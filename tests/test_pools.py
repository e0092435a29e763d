"""Pools of 2 to 16 ingredients, whatever the threat model they start from, through every stage."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt.documents.soup import check_soup, default_soup, make_soup, read_soup, write_soup
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.mixing import mix
from adapt.networks.prepared import PreparedBase
from adapt.reporting.plots import plot_report
from adapt.reporting.report import make_report, table
from adapt.robustness.fronts import choose_pairs, choose_triangle
from adapt.search.grid import MAX_CANDIDATES, GridTooLarge, finest, lattice
from adapt.search.search import search
from deploy.bundle import build_bundle, check_bundle
from deploy.parity import TorchReference
from deploy.runtime import Bundle, find_bundle
from service.prediction.catalog import check_bundles, choose_default, read_catalog
from service.settings import Settings
from tests.conftest import CLASSES, make_base_set
from training.bases import BaseSet, load_base_set, rewrite_manifest
from training.data import from_arrays
from training.images import to_input
from training.manifest import NORMS, BaseSetError, Norm, ThreatModel, check_coefficients, read_manifest

EPS: dict[Norm, float] = {"Linf": 8 / 255, "L2": 0.5, "L1": 12}
POOLS = [(count, start) for count in (2, 5, 16) for start in NORMS]
COUNTS = [(2, "L2"), (5, "L1"), (16, "Linf")]
# Hypothesis sees the pool as one fixture for all its examples, which is what it is.
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Pool(NamedTuple):
    """A base set on disk and in memory."""

    folder: Path
    base: BaseSet
    prepared: PreparedBase

    @property
    def names(self) -> tuple[str, ...]:
        return self.base.manifest.ingredient_names


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def threat_models(count: int, start: Norm) -> dict[str, ThreatModel | None]:
    """The robust start, then nominal, then smaller and smaller radii of each norm in turn."""
    norms = (start, *(norm for norm in NORMS if norm != start))
    radii = [ThreatModel(norm=norms[index % 3], eps=EPS[norms[index % 3]] / (1 + index // 3)) for index in range(count)]
    models = enumerate([radii[0], None, *radii[1:]][:count])
    return {f"{'nominal' if model is None else model.norm.lower()}-{index}": model for index, model in models}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Norm], Pool]:
    made: dict[tuple[int, Norm], Pool] = {}

    def pool(count: int, start: Norm) -> Pool:
        if (count, start) not in made:
            threats = threat_models(count, start)
            name = f"pool-{count}-{start.lower()}"
            folder = make_base_set(tmp_path_factory.mktemp("pools") / name, names=tuple(threats), name=name)
            manifest = read_manifest(folder)
            first = manifest.ingredient_names[0]
            ingredients = [
                one.model_copy(
                    update={
                        "threat_model": threats[one.name],
                        "objective": "adversarial" if threats[one.name] else "nominal",
                        "parent": None if one.name == first else first,
                    }
                )
                for one in manifest.ingredients
            ]
            rewrite_manifest(folder, manifest.model_copy(update={"ingredients": tuple(ingredients)}))
            base = load_base_set(folder)
            made[count, start] = Pool(folder, base, PreparedBase(base))
        return made[count, start]

    return pool


@pytest.fixture(params=POOLS, ids=lambda one: f"{one[0]} from {one[1]}")
def pool(request: pytest.FixtureRequest, pools: Callable[[int, Norm], Pool]) -> Pool:
    return pools(*request.param)


@pytest.fixture(params=COUNTS, ids=lambda one: f"{one[0]} from {one[1]}")
def any_pool(request: pytest.FixtureRequest, pools: Callable[[int, Norm], Pool]) -> Pool:
    return pools(*request.param)


def images(n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), np.arange(n, dtype=np.int64) % len(CLASSES)


def affine_soup(count: int, seed: int) -> np.ndarray:
    """Coefficients within [-0.25, 1.25] that sum to 1."""
    row = np.random.default_rng(seed).dirichlet(np.ones(count))
    return 1.25 * row - 0.25 / count


def by_name(pool: Pool, row: np.ndarray) -> dict[str, float]:
    return dict(zip(pool.names, row.tolist(), strict=True))


def test_manifests_are_written_read_and_verified(pool: Pool, tmp_path: Path):
    manifest = read_manifest(pool.folder)
    assert manifest == pool.base.manifest
    assert tuple(pool.base.state_dicts) == manifest.ingredient_names
    assert manifest.vector(by_name(pool, np.arange(len(pool.names)))) == list(range(len(pool.names)))
    check_coefficients(manifest.default_coefficients, manifest.ingredient_names)
    assert manifest.ingredients[0].threat_model is not None
    last = pool.folder / manifest.ingredients[-1].file
    whole = last.read_bytes()
    try:
        last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BaseSetError, match=re.escape(last.name)):
            load_base_set(pool.folder)
    finally:
        last.write_bytes(whole)


@pytest.mark.parametrize("kind", ["affine", "simplex"])
def test_grids_fit_or_say_what_to_do(pool: Pool, kind):
    count = len(pool.names)
    rows = finest(kind, count).points(count)
    assert rows.shape[1] == count
    assert len(rows) <= MAX_CANDIDATES
    for row in rows[:: len(rows) // 20 + 1]:
        check_coefficients(by_name(pool, row), pool.names)
    try:
        lattice(kind).points(count)
    except GridTooLarge as refused:
        assert count > 4
        named = re.search(r"more than 2000; use strategy surrogate, or a coarser step, e\.g\. ([0-9.]+)", str(refused))
        assert named is not None
        assert len(lattice(kind, float(named[1])).points(count)) == len(rows)
    else:
        assert count <= 5


@quick
@given(seed=st.integers(0, 10**6))
def test_mixing_is_linear_and_order_changes_rounding_only(any_pool: Pool, seed: int):
    states = list(any_pool.base.state_dicts.values())
    generator = np.random.default_rng(seed)
    row, order = generator.dirichlet(np.ones(len(states))), generator.permutation(len(states))
    soup = mix(states, torch.from_numpy(row))
    shuffled = mix([states[index] for index in order], torch.from_numpy(row[order]))
    for key, tensor in soup.items():
        assert torch.allclose(tensor, shuffled[key], rtol=1e-5, atol=1e-6), key
    key = "head.weight"
    expected = sum(c * state[key].double() for c, state in zip(row.tolist(), states, strict=True))
    assert torch.allclose(soup[key].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bn_mode", ["folded", "raw"])
def test_soups_are_evaluated_as_the_networks_they_are(any_pool: Pool, bn_mode):
    count = len(any_pool.names)
    pixels, labels = images()
    convex = np.full(count, 1 / count)
    rows = np.concatenate([np.eye(count), convex[None]])
    scores = evaluate_soups(any_pool.prepared, rows, pixels, labels, bn_mode=bn_mode, temperatures=[1.0])
    x = torch.from_numpy(to_input(pixels))
    reference = TorchReference(any_pool.base)
    states = [*any_pool.base.state_dicts.values(), reference.mix(by_name(any_pool, convex), bn_mode)]
    for position, state in enumerate(states):
        logits = torch.from_numpy(reference.logits(state, x.numpy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
        np.testing.assert_allclose(scores.losses[position, 0], loss.numpy(), rtol=1e-3, atol=1e-4)


def test_a_search_covers_every_ingredient(any_pool: Pool, tmp_path: Path):
    pixels, labels = images(18)
    data = from_arrays(pixels, labels, CLASSES)
    support = Support(data.images, data.labels, hashes=data.hashes, class_names=data.class_names)
    manifest = any_pool.base.manifest
    current = default_soup(manifest)
    found = search(any_pool.prepared, support, current=current)
    assert set(found.outcome.coefficients) == set(found.outcome.ingredients) == set(any_pool.names)
    assert found.outcome.search.candidates <= MAX_CANDIDATES + 1 + len(any_pool.names)
    check_soup(found.soup, manifest)
    write_soup(tmp_path / "soup.json", found.soup)
    assert read_soup(tmp_path / "soup.json") == found.soup
    report = make_report(found, current)
    plot_report(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert all(name in table(report) for name in any_pool.names)


def test_fronts_find_their_edges_and_corners(pool: Pool):
    manifest = pool.base.manifest
    count = len(pool.names)
    assert len(choose_pairs([manifest], ())) == count * (count - 1) // 2
    corners = choose_triangle(manifest, None)
    threats = {one.name: one.threat_model for one in manifest.ingredients}
    if count < 4:
        assert corners is None
    else:
        assert corners is not None
        assert [threats[name].norm for name in corners] == list(NORMS)  # type: ignore[union-attr]
        assert pool.names[0] in corners


def test_bundles_agree_with_torch_and_serve(any_pool: Pool, tmp_path: Path):
    folder = build_bundle(any_pool.folder, tmp_path / "bundles")
    bundle = Bundle.open(folder, base_digest=any_pool.base.manifest.digest)
    assert bundle.info.ingredient_names == any_pool.names
    reference = TorchReference(any_pool.base)
    assert all(comparison.holds for comparison in check_bundle(bundle, reference, seed=3))
    x = to_input(images()[0])
    for seed in (1, 2):
        coefficients = by_name(any_pool, affine_soup(len(any_pool.names), seed))
        make_soup(any_pool.base.manifest, coefficients)
        found = bundle.session(coefficients, bn_mode="folded").run(x)
        expected = reference.logits(reference.mix(coefficients, "folded"), x)
        assert np.abs(found - expected).max() <= 1e-4
    missing = {name: value for name, value in coefficients.items() if name != any_pool.names[-1]}
    with pytest.raises(ValueError, match="expected one coefficient for each"):
        bundle.session(missing, bn_mode="folded")


def test_catalogs_name_pools_of_every_size(pools: Callable[[int, Norm], Pool], tmp_path: Path):
    for count, start in COUNTS:
        folder = pools(count, start).folder  # type: ignore[arg-type]
        (tmp_path / "bases").mkdir(exist_ok=True)
        (tmp_path / "bases" / folder.name).symlink_to(folder)
    catalog = read_catalog(tmp_path / "bases", check_files=True)
    assert {len(base.manifest.ingredients) for base in catalog.values()} == {2, 5, 16}
    name = "pool-16-linf"
    chosen = choose_default(catalog, Settings(bases=tmp_path / "bases", base_set=name, home=tmp_path / "home"))
    assert chosen.manifest.name == name
    assert chosen.bundle(tmp_path / "home") is None
    built = build_bundle(chosen.folder, tmp_path / "home" / "bundles")
    assert chosen.bundle(tmp_path / "home") == built == find_bundle(chosen.folder, chosen.manifest, tmp_path / "home")
    check_bundles(catalog, tmp_path / "home")
