import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from adapt.documents.soup import default_soup
from adapt.networks.forward import soup_logits
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator
from benchmarks.shifts import tuned, tuning
from benchmarks.shifts.bootstrap import Cell, Resampler, holm
from benchmarks.shifts.context import Context, Shared, Unseen
from benchmarks.shifts.finetuning import (
    Schedule,
    affines_of,
    augmented,
    blocks_of,
    finetune,
    inputs_of,
    logits_of,
    network,
)
from benchmarks.shifts.grids import GRID, PHOTO_GRID
from benchmarks.shifts.methods import methods_of
from benchmarks.shifts.options import FineTuning, Recalibration, Refit, Tent
from benchmarks.shifts.results import Found, packed
from benchmarks.shifts.rivals.finetuned import part_of, trained
from benchmarks.shifts.rivals.picked import adapted, recalibrated
from benchmarks.shifts.rivals.registry import RIVALS
from benchmarks.shifts.rivals.tent import entropy_minimised, minimise_entropy
from benchmarks.shifts.sets import as_support
from benchmarks.shifts.sources import Sources
from benchmarks.shifts.suite import SUITE
from benchmarks.shifts.table import soups_of, tabulate
from benchmarks.shifts.tuned import Trial, Trials, chosen
from benchmarks.shifts.tuning import SHIFTS, describe
from training.bases import load_base_set
from training.data import ImageSet, from_arrays

SCHEDULE = Schedule(lr=0.003, steps=30)


def make_context(prepared: PreparedBase, n: int = 30) -> tuple[Context, Unseen, ImageSet]:
    generator = np.random.default_rng(5)
    labels = np.arange(90) % 3
    images = generator.integers(0, 120, (90, 16, 16, 3), dtype=np.uint8)
    images[np.arange(90), :, :, labels] += 100
    data = from_arrays(images, labels, list(prepared.manifest.class_names))
    table = tabulate(prepared, soups_of(prepared.manifest), data)
    part = np.arange(n)
    context = Context(prepared, as_support(data.subset(part)), "noise", 0, table.at(part))
    return context, Unseen(data.images[60:], table.logits[:, 60:]), data


@pytest.fixture(scope="module")
def prepared(tiny_base_set: Path) -> PreparedBase:
    return PreparedBase(load_base_set(tiny_base_set))


@pytest.fixture(scope="module")
def prepared_ln(tiny_ln_base_set: Path) -> PreparedBase:
    return PreparedBase(load_base_set(tiny_ln_base_set))


def test_a_strong_prior_leaves_the_statistics_of_training(prepared: PreparedBase) -> None:
    context, _, _ = make_context(prepared)
    found, _ = recalibrated(prepared, context.support, 1e9)
    own = soup_logits(prepared, np.eye(4), context.support.images, bn_mode="raw")
    torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
    moved, _ = recalibrated(prepared, context.support, 1)
    assert (moved - own).abs().max() > 0.01


def test_recalibrated_logits_are_those_of_the_network_with_these_statistics(prepared: PreparedBase) -> None:
    context, _, _ = make_context(prepared)
    found, statistics = recalibrated(prepared, context.support, 4)
    net = network(prepared, 2, statistics[2])
    torch.testing.assert_close(logits_of(net, inputs_of(prepared, context.support.images)), found[2])


def test_fine_tuning_learns_its_pictures_and_ends_with_their_statistics(prepared: PreparedBase) -> None:
    context, _, _ = make_context(prepared)
    net = network(prepared, 1)
    x, labels = inputs_of(prepared, context.support.images), torch.from_numpy(context.support.labels)
    loss = float(cross_entropy(logits_of(net, x), labels))
    finetune(net, x, labels, list(net.parameters()), SCHEDULE, seed=0)
    assert float(cross_entropy(logits_of(net, x), labels)) < 0.8 * loss
    assert not any(module.training for module in net.modules())
    with torch.no_grad():
        own = minimise_entropy(net, x, lr=0, epochs=0, seed=0)
    torch.testing.assert_close(logits_of(net, x), own, rtol=0.02, atol=0.02)


def test_fine_tuning_repeats_itself(prepared: PreparedBase) -> None:
    context, unseen, _ = make_context(prepared)
    how = FineTuning(schedule=SCHEDULE)
    one, other = (trained(context, how, bn=16).predict(unseen) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_surgery_touches_one_part(prepared: PreparedBase, share: float) -> None:
    context, _, _ = make_context(prepared)
    net = network(prepared, 0)
    before = {name: value.clone() for name, value in net.named_parameters()}
    x, labels = inputs_of(prepared, context.support.images), torch.from_numpy(context.support.labels)
    finetune(net, x, labels, part_of(net, share), SCHEDULE, seed=0)
    changed = {name.split(".")[0] for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {{0.0: "stem", 0.5: "stages", 1.0: "head"}[share]}


def test_parts_run_from_input_to_output(prepared: PreparedBase, prepared_ln: PreparedBase) -> None:
    assert [name for name, _ in blocks_of(network(prepared, 0))] == ["stem", "stages.0", "stages.1", "head"]
    names = [name for name, _ in blocks_of(network(prepared_ln, 0))]
    assert names[0] == "patch_embed"
    assert names[-1] == "head"
    assert {"blocks.0", "blocks.1"} < set(names)


def test_augmentation_moves_mirrors_and_invents_nothing() -> None:
    x = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    seen = [augmented(x, generator) for _ in range(40)]
    assert all(set(moved[i].flatten().tolist()) <= set(x[i].flatten().tolist()) for moved in seen for i in range(2))
    assert any(torch.equal(moved[0, :, :, 8:12].diff(dim=2), torch.full((3, 16, 3), -1.0)) for moved in seen)
    assert any(torch.equal(moved[0, :, :, 8:12].diff(dim=2), torch.full((3, 16, 3), 1.0)) for moved in seen)
    flat = torch.ones(3, 3, 16, 16)
    assert torch.equal(augmented(flat, generator), flat)


def entropy(logits: torch.Tensor) -> float:
    logs = logits.log_softmax(dim=1)
    return float(-(logs.exp() * logs).sum(dim=1).mean())


@pytest.mark.parametrize("kind", ["prepared", "prepared_ln"])
def test_entropy_falls_and_only_normalisation_moves(kind: str, request: pytest.FixtureRequest) -> None:
    prepared: PreparedBase = request.getfixturevalue(kind)
    context, _, _ = make_context(prepared)
    net = network(prepared, 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = inputs_of(prepared, context.support.images)
    with torch.no_grad():
        first = minimise_entropy(net, x, lr=0.01, epochs=0, seed=0)
    last = minimise_entropy(net, x, lr=0.01, epochs=10, seed=0)
    assert entropy(last) < entropy(first)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    affine = {id(parameter) for parameter in affines_of(net)}
    assert moved
    assert moved <= {name for name, parameter in net.named_parameters() if id(parameter) in affine}


def test_batches_answer_in_their_order_and_with_their_own_statistics(prepared: PreparedBase) -> None:
    context, _, _ = make_context(prepared)
    net = network(prepared, 0)
    x = inputs_of(prepared, context.support.images)
    with torch.no_grad():
        found = minimise_entropy(net, x, lr=0.01, epochs=0, seed=0)
        net.train()
        expected = net(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learns_on", ["support", "unseen"])
def test_tent_forgets_between_two_answers(prepared: PreparedBase, learns_on: str) -> None:
    context, unseen, _ = make_context(prepared)
    how = Tent.model_validate({"learns_on": learns_on, "lr": 0.01, "epochs": 2})
    answer = entropy_minimised(context, how, bn=16)
    first, second = answer.predict(unseen), answer.predict(unseen)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert answer.passes == (3 if learns_on == "unseen" else 1)


def test_a_refitted_layer_fits_better_where_it_is_taken(prepared: PreparedBase) -> None:
    context, _, data = make_context(prepared, n=60)
    own, fitted = (adapted(context, bn=None, refit=refit) for refit in (None, Refit(min_images=0)))
    assert own.coefficients == fitted.coefficients
    losses = [
        float(
            cross_entropy(answer.predict(Unseen(data.images[:60], torch.empty(0))), torch.from_numpy(data.labels[:60]))
        )
        for answer in (own, fitted)
    ]
    assert losses[1] < losses[0]
    kept = adapted(context, bn=None, refit=Refit(min_images=61))
    assert (kept.forwards, fitted.forwards) == (4 * 60, 5 * 60)


def test_without_batchnorm_there_is_nothing_to_recalibrate(prepared_ln: PreparedBase) -> None:
    context, unseen, _ = make_context(prepared_ln)
    answers = {name: RIVALS[name](context) for name in RIVALS}
    picked, same = answers["picked"].predict(unseen), answers["picked_bn"].predict(unseen)
    torch.testing.assert_close(picked, same)
    assert all(answer.predict(unseen).shape == (30, 3) for answer in answers.values())


def test_what_is_served_is_the_candidate_or_the_default_soup(prepared: PreparedBase) -> None:
    methods = methods_of(prepared.manifest)
    default = tuple(default_soup(prepared.manifest).vector(prepared.manifest))
    for n in (6, 60):
        context, unseen, _ = make_context(prepared, n)
        candidate, served = methods["ladder"](context), methods["ladder_served"](context)
        assert candidate.evidence is not None
        assert candidate.evidence == served.evidence
        if candidate.evidence.is_promoted:
            assert torch.equal(candidate.predict(unseen), served.predict(unseen))
        else:
            assert served.coefficients == default


def test_work_in_common_is_done_once_and_charged_to_all() -> None:
    shared, calls = Shared(), []

    def work() -> int:
        calls.append(1)
        time.sleep(0.02)
        return 7

    assert (shared.get("a", work), shared.borrowed) == (7, 0)
    assert shared.get("a", work) == 7
    assert shared.borrowed >= 0.02
    shared.borrowed = 0
    assert shared.get("b", lambda: shared.get("a", work) + 1) == 8
    once = shared.borrowed
    assert shared.get("b", lambda: 0) == 8
    assert shared.borrowed >= 2 * once
    assert len(calls) == 1


def trials() -> Trials:
    tried = [
        Trial(n=20, options={"prior_images": 1}, accuracy={"fog": 0.9, "contrast": 0.1, "sketch": 0.3}),
        Trial(n=20, options={"prior_images": 2}, accuracy={"fog": 0.1, "contrast": 0.5, "sketch": 0.4}),
        Trial(n=1000, options={"prior_images": 3}, accuracy={"fog": 0.0, "contrast": 0.0, "sketch": 0.0}),
    ]
    return Trials(command="", n_test=1, methods={"picked_bn": tuple(tried)})


@pytest.mark.parametrize(
    ("n", "family", "prior"), [(20, "weather", 2), (20, "digital", 1), (20, "noise", 1), (300, "noise", 3)]
)
def test_choices_are_made_on_other_families(n: int, family: str, prior: int) -> None:
    assert trials().best("picked_bn", n, family).options == {"prior_images": prior}


def test_a_method_takes_the_choice_for_its_family(prepared: PreparedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _, _ = make_context(prepared)
    monkeypatch.setattr(tuned, "trials_for", lambda base_set, large: trials())
    assert chosen(context, "picked_bn", Recalibration).prior_images == 1


def test_what_is_committed_covers_the_grid() -> None:
    known = tuned.read_trials()
    assert tuned.FALLBACK in known
    for base_set, found in known.items():
        grid = PHOTO_GRID if found.families else GRID
        whole = set(grid) - (set() if "picked_bn" in found.methods else {"picked_bn"})
        assert set(found.methods) == whole or (found.families and set(found.methods) < whole)  # entered in parts
        counts = {trial.n for tried in found.methods.values() for trial in tried}
        assert counts == set(tuning.TUNED_N) or base_set != tuned.FALLBACK
        for name, tried in found.methods.items():
            assert [(trial.n, trial.options) for trial in tried] == [
                (n, options.model_dump(mode="json"))
                for n, several in sorted(grid[name].items())
                if n in counts
                for options in several
            ]
            assert found.families or all(set(trial.accuracy) == set(SHIFTS) for trial in tried)
        assert "| 20 |" in describe(found)
    assert len({SUITE[name].family for name in SHIFTS}) == len(SHIFTS)


def make_cells(shifts: int, draws: int, pictures: int) -> list[Cell]:
    return [
        Cell(f"s{shift}", draw, np.arange(pictures, dtype=np.int64)) for shift in range(shifts) for draw in range(draws)
    ]


def test_a_constant_difference_is_certain() -> None:
    cells = make_cells(4, 3, 50)
    groups = ["noise" if cell.shift in ("s0", "s1") else "blur" for cell in cells]
    found = Resampler.of(cells).compare([np.full(50, float(group == "noise")) for group in groups], groups)
    assert found["noise"].mean == 1
    assert found["noise"].interval == pytest.approx((1, 1))
    assert found["noise"].p_value < 0.01
    assert found["noise"].p_not_below(-0.003) == 1
    assert found["blur"].p_value == 1


def test_samples_spread_as_pictures_and_draws_do() -> None:
    generator = np.random.default_rng(1)
    cells = make_cells(3, 5, 400)
    by_draw, by_picture = generator.normal(0, 1, 5), generator.normal(0, 20, 400)
    found = Resampler.of(cells).compare([by_draw[cell.draw] + by_picture for cell in cells], ["all"] * len(cells))
    expected = np.sqrt(by_draw.var() / 5 + by_picture.var() / 400)
    assert found["all"].samples.std() == pytest.approx(expected, rel=0.06)
    assert found["all"].interval[0] < found["all"].mean < found["all"].interval[1]


def test_draws_may_have_different_pictures() -> None:
    cells = [Cell("fog", 0, np.asarray([3, 5, 9])), Cell("fog", 1, np.asarray([5, 20, 21]))]
    found = Resampler.of(cells).compare([np.ones(3), np.zeros(3)], ["all", "all"])
    assert found["all"].mean == 0.5
    assert (found["all"].samples >= 0).all()
    assert (found["all"].samples <= 1).all()


def test_hits_survive_their_packing() -> None:
    right = np.random.default_rng(0).random(43) < 0.5
    record = Found(accuracy=0, forwards=0, seconds=0, passes=1, coefficients=None, hits=packed(right))
    assert np.array_equal(record.right(43), right)


SMALL_GRID = {
    "picked_bn": {4: [Recalibration(prior_images=prior) for prior in (1, 1e9)]},
    "picked_head": {4: [Refit(min_images=0)]},
    "finetune": {6: [FineTuning(schedule=Schedule(lr=0.001, steps=2))]},
}


def test_tuning_tries_everything_and_is_kept(
    prepared: PreparedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, data = make_context(prepared)
    monkeypatch.setattr(tuning, "GRID", SMALL_GRID)
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    shifts = ["fog", "contrast"]
    found = tuning.tune(prepared, Sources(data, {}), command="x", shifts=shifts, counts=[4, 6], n_test=20, seed=0)
    assert [(trial.n, set(trial.accuracy)) for trial in found.methods["picked_bn"]] == [(4, {"fog", "contrast"})] * 2
    assert found.methods["finetune"][0].options["schedule"]["steps"] == 2
    tuned.write_trials("tiny", found)
    assert tuned.read_trials() == {"tiny": found}
    assert describe(found).count("\n") == 4


def test_priors_of_the_ladder_are_compared_and_then_as_before(prepared: PreparedBase) -> None:
    _, _, data = make_context(prepared)
    found = tuning.tune_profile(prepared, Sources(data, {}), shifts=["fog"], n=(12,), n_test=20, seed=0)
    assert set(found) >= set(tuning.PROFILES)
    assert all(0 <= by_n[12]["fog"] <= 1 for by_n in found.values())
    own = [Recalibrator(prepared.model("raw"))._strengths, prepared.recalibrator._strengths]
    assert own[0] == own[1]


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1, 1]
    assert holm([]) == []
