import itertools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.networks.mixing import mix
from adapt.networks.prepared import PreparedBase
from adapt.reporting.plots import plot_fronts
from adapt.robustness.fronts import choose_pairs, choose_triangle
from adapt.robustness.robust import (
    BaseFronts,
    Fronts,
    FrontSettings,
    edge,
    edge_steps,
    inside,
    known_of,
    measure_soups,
    num_missing,
    random_starts,
    read_fronts,
    write_fronts,
)
from tests.adapt.commands.test_cli import failure, make_folder, run_json
from training.attacks import apgd
from training.bases import BaseSet, load_base_set, rewrite_manifest
from training.data import ImageSet, from_arrays
from training.evaluate import APGD_LOSSES
from training.images import to_input
from training.manifest import Manifest, ThreatModel
from training.threat import DEFAULT_THREATS

SOUPS = [{"linf": 1.0}, {"linf": 0.5, "l1": 0.5}, {"linf": 1.25, "nominal": -0.25}]
NORMS = ("Linf", "L2", "L1")


@pytest.fixture(scope="module")
def labelled(base: BaseSet) -> ImageSet:
    """600 images, labelled by the first ingredient: it has clean accuracy 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = base.model()(torch.from_numpy(to_input(pixels))).argmax(1).numpy()
    return from_arrays(pixels, labels, base.manifest.class_names)


def settings(images: ImageSet, **changes: object) -> FrontSettings:
    found = FrontSettings(
        n=len(images),
        images=images.digest,
        seed=0,
        num_steps=4,
        losses=APGD_LOSSES,
        threat_models=DEFAULT_THREATS,
        bn_mode="folded",
    )
    return found.model_copy(update=changes)


def measure(prepared: PreparedBase, images: ImageSet, soups=SOUPS, known=None, on_soup=lambda found: None, **options):
    chosen = options.pop("settings", None) or settings(images)
    known = known or known_of((), prepared.manifest)
    return measure_soups(prepared, soups, known, images, chosen, on_soup=on_soup, **options)


def test_steps_hold_both_ends_and_reach_a_quarter_beyond():
    assert edge_steps() == tuple(np.arange(-0.25, 1.26, 0.125))
    assert edge_steps(0.05)[5] == 0.0
    assert edge_steps(0.05)[-6] == 1.0
    for step in (0.0, -0.1, 0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"expected a step that divides 0\.25"):
            edge_steps(step)


def test_soups_of_edges_and_triangles_sum_to_one():
    soups = [*edge(("linf", "l2"), edge_steps()), *inside(("linf", "l2", "l1"))]
    assert all(sum(soup.values()) == pytest.approx(1) for soup in soups)
    assert len(inside(("linf", "l2", "l1"))) == 45
    assert edge(("linf", "l2"), [0.25]) == [{"linf": 0.75, "l2": 0.25}]


def test_the_triangles_edges_are_not_measured_twice(base: BaseSet):
    known = known_of((), base.manifest)
    corners = ("linf", "l2", "l1")
    edges = [soup for pair in itertools.combinations(corners, 2) for soup in edge(pair, edge_steps())]
    assert num_missing(edges, known) == 3 * 11 + 3
    assert num_missing(edges + inside(corners), known) == 3 * 11 + 3 + 21


def test_accuracy_is_that_of_the_mixed_network_under_the_same_attack(
    base: BaseSet, prepared: PreparedBase, labelled: ImageSet
):
    images = labelled.subset(range(40))
    threat = ThreatModel(norm="L2", eps=0.1)
    chosen = settings(images, threat_models=(threat,), bn_mode="raw")
    soup = {"linf": 0.5, "l1": 0.5}
    found = measure(prepared, images, [soup], settings=chosen).at(soup)
    classifier = base.model()
    classifier.net.load_state_dict(mix([base.state_dicts["linf"], base.state_dicts["l1"]], torch.tensor([0.5, 0.5])))
    x, y = torch.from_numpy(to_input(images.images)), torch.from_numpy(images.labels)
    with torch.no_grad():
        clean = classifier(x).argmax(1) == y
    noise = torch.Generator().manual_seed(random_starts(0, "L2", 0, 0))
    x_adv = apgd(classifier, x[clean], y[clean], threat, num_steps=4, loss="dlr", generator=noise)
    with torch.no_grad():
        robust = int((classifier(x_adv).argmax(1) == y[clean]).sum()) / 40
    assert found is not None
    assert found["clean"] == int(clean.sum()) / 40
    assert found["L2"] == pytest.approx(robust, abs=1 / 40 + 1e-9)  # an image on the edge may fall on either side
    assert robust < found["clean"]


def test_folded_soups_can_be_differentiated_and_attacks_bite(prepared: PreparedBase, labelled: ImageSet):
    images = labelled.subset(range(60))
    weak = tuple(ThreatModel(norm=one.norm, eps=one.eps / 1000) for one in DEFAULT_THREATS)
    strong = tuple(ThreatModel(norm=one.norm, eps=min(1, one.eps * 4)) for one in DEFAULT_THREATS)
    for soup in SOUPS:
        little = measure(prepared, images, [soup], settings=settings(images, threat_models=weak)).at(soup)
        much = measure(prepared, images, [soup], settings=settings(images, threat_models=strong)).at(soup)
        assert little is not None
        assert much is not None
        assert all(abs(little[norm] - little["clean"]) <= 2 / 60 for norm in NORMS)
        assert much["union"] <= min(much[norm] for norm in NORMS) <= 0.5 * much["clean"]
    first = measure(prepared, images, [{"linf": 1.0}]).at({"linf": 1.0})
    assert first is not None
    assert first["clean"] == 1.0
    assert set(first) == {"clean", *NORMS, "union"}


def test_threads_and_order_change_nothing(prepared: PreparedBase, labelled: ImageSet):
    images = labelled.subset(range(300))  # more than one batch
    one = measure(prepared, images)
    two = measure(prepared, images, SOUPS[::-1], num_threads=3)
    assert all(one.at(soup) == two.at(soup) for soup in SOUPS)
    assert one.at({"l2": 1.0}) is None
    assert torch.get_num_threads() == 1


def test_an_interrupted_run_goes_on_where_it_stopped(prepared: PreparedBase, labelled: ImageSet, tmp_path: Path):
    images = labelled.subset(range(20))
    kept: list[BaseFronts] = []

    def stop(found: BaseFronts) -> None:
        kept.append(found)
        if len(found.soups) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(prepared, images, on_soup=stop)
    chosen = settings(images)
    fronts = Fronts(settings=chosen, pairs=(), steps=(), triangle=None, bases=(kept[-1],))
    write_fronts(tmp_path / "fronts.json", fronts)
    known = known_of(read_fronts(tmp_path / "fronts.json", chosen), prepared.manifest)
    assert num_missing(SOUPS, known) == 1
    done: list[BaseFronts] = []
    found = measure(prepared, images, known=known, on_soup=done.append)
    assert len(done) == 1
    assert found == measure(prepared, images)
    assert read_fronts(tmp_path / "none.json", chosen) == ()


def test_results_of_other_settings_are_refused(labelled: ImageSet, tmp_path: Path):
    chosen = settings(labelled)
    path = tmp_path / "fronts.json"
    write_fronts(path, Fronts(settings=chosen, pairs=(), steps=(), triangle=None, bases=()))
    with pytest.raises(ValueError, match=r"fronts\.json: has results for num_steps 4, not 10; choose another --out"):
        read_fronts(path, chosen.model_copy(update={"num_steps": 10}))
    path.write_text("{")
    with pytest.raises(ValueError, match="expected the results of `fronts`"):
        read_fronts(path, chosen)


def test_raw_soups_with_negative_variances_are_left_out(
    base_set_factory: Callable[..., Path], labelled: ImageSet, tmp_path: Path
):
    base = load_base_set(base_set_factory(tmp_path / "tiny"))
    for state_dict in base.state_dicts.values():
        for key, tensor in state_dict.items():
            if key.endswith("running_var"):
                tensor.mul_(0.01 if state_dict is base.state_dicts["linf"] else 1.0)
    images = labelled.subset(range(10))
    soup = {"linf": 1.25, "l2": -0.25}
    found = measure(PreparedBase(base), images, [soup], settings=settings(images, bn_mode="raw"))
    assert found.soups[0].accuracy is None
    assert measure(PreparedBase(base), images, [soup]).soups[0].accuracy is not None


def test_soups_whose_logits_are_not_finite_have_no_accuracy(
    base_set_factory: Callable[..., Path], labelled: ImageSet, tmp_path: Path
):
    base = load_base_set(base_set_factory(tmp_path / "tiny"))
    prepared, images = PreparedBase(base), labelled.subset(range(10))
    rows = prepared.model("folded").rows
    rows[base.manifest.ingredient_names.index("l2")] = float("nan")
    found = measure(prepared, images, [{"linf": 1.0}, {"l2": 1.0}, {"l1": 1.0}])
    assert [soup.accuracy is None for soup in found.soups] == [False, True, False]


def other_threats(manifest: Manifest, threats: dict[str, ThreatModel | None]) -> Manifest:
    ingredients = [
        one.model_copy(update={"threat_model": threats.get(one.name, one.threat_model)}) for one in manifest.ingredients
    ]
    return manifest.model_copy(update={"ingredients": tuple(ingredients)})


def test_the_triangle_is_that_of_the_threat_models(base: BaseSet, caplog: pytest.LogCaptureFixture):
    manifest = base.manifest
    assert choose_triangle(manifest, None) == ("linf", "l2", "l1")
    assert choose_triangle(manifest, "nominal, l2,linf") == ("nominal", "l2", "linf")
    with caplog.at_level(logging.INFO, "adapt.robustness.fronts"):
        assert choose_triangle(other_threats(manifest, {"l1": None}), None) is None
    assert "no ingredient was trained against L1 alone" in caplog.text
    swapped = {"nominal": ThreatModel(norm="L1", eps=6)}
    assert choose_triangle(other_threats(manifest, swapped), None) == ("linf", "l2", "nominal")
    for given in ("linf,l2", "linf,l2,l2", "linf,l2,l7", ""):
        with pytest.raises(ValueError, match="--ingredients: expected three of"):
            choose_triangle(manifest, given)


def test_pairs_are_all_or_those_given(base: BaseSet, base_set_factory: Callable[..., Path], tmp_path: Path):
    manifest = base.manifest
    assert len(choose_pairs([manifest], ())) == 6
    assert choose_pairs([manifest], ("l1:linf", "l1:linf", "linf:l2")) == (("l1", "linf"), ("linf", "l2"))
    other = load_base_set(base_set_factory(tmp_path / "other", names=("l2", "linf", "extra"))).manifest
    assert choose_pairs([manifest, other], ()) == (("linf", "l2"),)
    for given in ("linf", "linf:linf", "linf:l7", ":"):
        with pytest.raises(ValueError, match="--pairs: expected first:second"):
            choose_pairs([manifest], (given,))
    with pytest.raises(ValueError, match="two ingredients that both"):
        choose_pairs([manifest, load_base_set(base_set_factory(tmp_path / "b", names=("l2", "x"))).manifest], ())
    with pytest.raises(ValueError, match="the input size and classes of 'tiny'"):
        choose_pairs([manifest, manifest.model_copy(update={"class_names": ("a", "b", "c")})], ())


def test_many_edges_go_into_several_pictures(base: BaseSet, labelled: ImageSet, tmp_path: Path):
    names = [f"i{index}" for index in range(6)]
    pairs = tuple(itertools.combinations(names, 2))
    fronts = Fronts(
        settings=settings(labelled),
        pairs=pairs,
        steps=edge_steps(),
        triangle=None,
        bases=(known_of((), base.manifest),),
    )
    written = plot_fronts(fronts, tmp_path / "fronts.png")
    assert [path.name for path in written] == ["fronts.png", "fronts-2.png"]
    assert all(path.is_file() for path in written)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), 12, seed=3)


@pytest.mark.slow
def test_the_command_draws_compares_and_resumes(
    tiny_base_set: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = shutil.copytree(tiny_base_set, tmp_path / "other")
    manifest = load_base_set(other).manifest
    recipe = {"ingredients": [{"name": name, "epochs": 3} for name in manifest.ingredient_names]}
    provenance = manifest.provenance.model_copy(update={"recipe": recipe})
    rewrite_manifest(other, manifest.model_copy(update={"name": "longer", "provenance": provenance}))
    out = tmp_path / "fronts"
    args = ("fronts", tiny_base_set, "--data", data, "--n", 9, "--steps", 2, "--step", 0.25, "--out", out)
    found = run_json(capsys, *args, "--pairs", "linf:l2", "linf:l1")
    assert found["pictures"] == [str(out / "fronts.png"), str(out / "triangle.png")]
    assert found["triangle"] == ["linf", "l2", "l1"]
    assert found["settings"]["n"] == 9
    assert len(found["bases"][0]["soups"]) == 2 * 5 + 3 + 3 + 3  # two edges, corners, the third edge and the inside
    for name in ("fronts.png", "triangle.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 800
    compared = run_json(capsys, *args, "--pairs", "linf:l2", "--compare", other)
    assert [base["base_set"] for base in compared["bases"]] == ["tiny", "longer"]
    assert compared["bases"][0]["soups"] == found["bases"][0]["soups"]
    assert compared["bases"][1]["epochs"] == dict.fromkeys(manifest.ingredient_names, 3.0)
    assert compared["bases"][1]["soups"][0]["accuracy"] == found["bases"][0]["soups"][0]["accuracy"]
    again = run_json(capsys, *args, "--pairs", "linf:l2")
    assert [base["base_set"] for base in again["others"]] == ["longer"]
    assert json.loads((out / "fronts.json").read_text())["others"] == again["others"]
    assert "has results for num_steps 2, not 3" in failure(capsys, *args, "--steps", "3")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--step", "0.1"], "a step that divides 0.25"),
        (["--ingredients", "linf"], "expected three of"),
        (["--pairs", "linf"], "expected first:second"),
        (["--compare", "missing"], "missing/manifest.json"),
        (["--data", "missing"], "missing"),
        (["--n", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str], message: str, tiny_base_set: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in failure(capsys, "fronts", tiny_base_set, "--data", data, "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
