import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.documents.soup import default_soup, make_soup
from adapt.evidence.levels import attempt_level, p_threshold
from adapt.networks.network import Network
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.gate import measure, nulls, real, spread
from benchmarks.gate.__main__ import Gate
from benchmarks.gate.records import Key, Records
from benchmarks.gate.report import claims, markdown, summary
from benchmarks.gate.simulated import Retrained, SimulatedNetwork
from benchmarks.shifts.sources import find_sources
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, run


@pytest.fixture(scope="module")
def network() -> SimulatedNetwork:
    return SimulatedNetwork(4, 20_000, correlation=0.5, seed=(3,))


def accuracy(network: SimulatedNetwork, row: list[float], **options: bool) -> float:
    said = network.run(np.asarray([row]), network.images, **options).logits[0].argmax(dim=1).numpy()
    return float((said == network.labels).mean())


def test_simulated_soups_are_equally_good_whatever_they_are_made_of(network: SimulatedNetwork):
    rows = ([1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [-0.25, 1.25, 0, 0])
    found = [accuracy(network, row, recalibrate=estimated) for row in rows for estimated in (False, True)]
    assert np.ptp(found) < 0.02
    assert 0.6 < np.mean(found) < 0.8


def test_an_advantage_makes_the_second_ingredient_better():
    better = SimulatedNetwork(4, 20_000, correlation=0.9, seed=(3,), advantage=nulls.BETTER.advantage)
    assert 0.03 < accuracy(better, [0.0, 1, 0, 0]) - accuracy(better, [1.0, 0, 0, 0]) < 0.07


def test_different_soups_err_on_different_images_as_often_as_the_correlation_says():
    agreement = []
    for correlation in (0.1, 0.9):
        some = SimulatedNetwork(2, 5000, correlation=correlation, seed=(1,))
        logits = some.run(np.eye(2), some.images).logits
        agreement.append(float((logits[0].argmax(1) == logits[1].argmax(1)).double().mean()))
    assert agreement[0] < agreement[1] < 1


def test_a_search_takes_the_simulation_for_a_network(network: SimulatedNetwork):
    assert isinstance(network, Network)
    support = network.support(np.arange(100))
    config = SearchConfig(rungs=("statistics", "head", Retrained.name))
    found = search(network, support, config, current=default_soup(network.manifest))
    assert found.outcome.support.n == 100
    assert set(found.outcome.not_tried) <= {"statistics"}
    patch = None if found.soup.patch is None else found.soup.patch.tensors()
    served = network.run(
        np.asarray([found.soup.vector(network.manifest)]), support.images, bn_mode=found.soup.bn_mode, patch=patch
    )
    expected = found.choice.logits(np.ones(100, dtype=np.bool_)) * found.choice.temperature
    torch.testing.assert_close(served.logits[0].double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_a_second_adaptation_is_judged_by_old_and_new_images(monkeypatch: pytest.MonkeyPatch):
    case = next(case for case in nulls.CASES if case.is_second)
    seen = []

    def spy(*args, **options):  # type: ignore[no-untyped-def]
        seen.append(search(*args, **options))
        return seen[-1]

    monkeypatch.setattr(nulls, "search", spy)
    nulls.draw(case, 40, 0, seed=0)
    judged = seen[1].outcome.accuracy.judged
    assert (judged.fresh, judged.held_out, judged.left_out) == (20, 20, 0)


def test_looks_are_promoted_at_the_level_of_their_attempt():
    at = p_threshold(attempt_level(2, [20, 40]), 40)
    looks = [nulls.Look(True, 0.9, ()), nulls.Look(True, at * 0.99, ())]
    assert nulls.is_promoted(looks, nulls.OURS, portion=20)
    assert not nulls.is_promoted([looks[0], nulls.Look(True, at * 1.01, ())], nulls.OURS, portion=20)
    assert not nulls.is_promoted([looks[0], nulls.Look(False, 0.0, ())], nulls.OURS, portion=20)
    assert nulls.is_promoted([looks[0], nulls.Look(True, at * 1.01, ())], "total / 2 each time", portion=20)


def test_bets_are_won_on_gains_and_not_on_noise():
    generator = np.random.default_rng(0)

    def won(mean: float) -> float:
        series = [
            [nulls.Look(True, 1.0, tuple((mean + generator.choice([-1.0, 1.0], size=50)).tolist())) for _ in range(8)]
            for _ in range(200)
        ]
        return float(np.mean([nulls.is_bet_won(looks) for looks in series]))

    assert won(0.0) <= 0.05
    assert won(0.4) > 0.9


def test_records_are_kept_and_go_on_where_they_stopped(tmp_path: Path):
    path = tmp_path / "work" / "full.jsonl"
    Records(path).add([(Key("null", nulls.CASES[0].name, 20, turn), {"a": turn}) for turn in range(3)])
    again = Records(path)
    assert again.of("null") == {(nulls.CASES[0].name, 20): [{"a": 0}, {"a": 1}, {"a": 2}]}
    plan = measure.Plan((20,), 5, 0, (), (), 0, (), ())
    first = next(measure.wanted(plan, again, ["null"]))
    assert (first.case, first.turns) == (nulls.CASES[0].name, (3, 4))


def test_the_command_draws_reports_and_says_what_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work, out = tmp_path / "work", tmp_path / "out"
    args = ["--quick", "--parts", "null", "--minutes", "0.03", "--work", str(work), "--out", str(out), "--json"]
    code = run([Gate], prog="gate", description="", args=args)
    found = json.loads(capsys.readouterr().out)
    assert {"null", "bias", "looks", "power"} <= set(found)
    cells = [cell for case in found["null"].values() for cell in case.values()]
    assert cells
    assert all(0 <= cell["rate"] <= cell["high"] <= 1 for cell in cells)
    assert code == (EXIT_DONE if all(found["claims"].values()) else EXIT_CLAIM_FAILED)
    assert json.loads((out / "results.json").read_text())["null"].keys() == found["null"].keys()
    assert "False promotions" in (out / "REPORT.md").read_text()
    with Image.open(out / "gate.png") as picture:
        assert picture.width > 500


def test_a_claim_fails_where_too_many_are_promoted(tmp_path: Path):
    records = Records(tmp_path / "full.jsonl")
    row = {
        "is_new": True,
        "p_value": 1e-9,
        "reported": 0.7,
        "reported_current": 0.7,
        "truth": 0.7,
        "truth_current": 0.7,
    }
    fine = row | {"p_value": 0.5}
    records.add([(Key("null", "a", 20, turn), row if turn < 10 else fine) for turn in range(100)])
    checked = claims(summary(records))
    assert [name for name, holds in checked.items() if not holds] == [next(iter(checked))]
    assert "**Does not hold**: false promotions" in markdown(summary(records), "command")


def test_real_adaptations_keep_labelled_and_unseen_pictures_apart(
    tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(real, "NUM_PICTURES", 150)
    monkeypatch.setattr(real, "NUM_UNSEEN", 40)
    generator = np.random.default_rng(0)
    for number in range(150):
        folder = tmp_path / "test" / ("cat", "dog", "ship")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    base = load_base_set(tiny_base_set)
    prepared, sources = PreparedBase(base), find_sources(tmp_path, None, base.manifest, size=150, seed=0)
    rows = real.adapt_twice(prepared, sources, "fog", 20, 0)
    assert set(rows) == {"first", "second"}
    assert rows["second"]["current"] == rows["first"]["candidate"]
    series = real.adapt_in_portions(prepared, sources, "fog", 20, 0, drifts=True)
    assert len(series["served"]) == real.PORTIONS
    assert series["attempts"][0] == 1
    assert all(
        later in (1, earlier + 1) for earlier, later in zip(series["attempts"], series["attempts"][1:], strict=False)
    )


def test_a_soup_by_hand_has_the_accuracy_of_its_soup(network: SimulatedNetwork):
    names = network.manifest.ingredient_names
    soup = make_soup(network.manifest, dict(zip(names, (0.0, 1.0, 0.0, 0.0), strict=True)))
    positions = np.arange(2000)
    assert nulls._accuracy(network, soup, positions) == pytest.approx(accuracy(network, [0, 1, 0, 0]), abs=0.04)


def test_the_spread_of_the_paired_test_is_counted_by_factor(capsys: pytest.CaptureFixture[str]):
    assert run([spread.Spread], prog="spread", description="", args=["--draws", "40", "--json"]) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert len(found["cases"]) == len(spread.CASES)
    for shares in found["cases"].values():
        alone, ours, constant = (shares[name] for name in spread.FACTORS)
        assert all(later <= earlier for earlier, later in zip(alone, ours, strict=True))
        assert alone == sorted(alone, reverse=True)
        assert all(0 <= share <= 0.5 for share in constant)
