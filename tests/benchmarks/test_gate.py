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
from benchmarks.gate import __main__ as command
from benchmarks.gate import measure, nulls, real, spread
from benchmarks.gate.__main__ import Gate
from benchmarks.gate.draws import read_draws, write_draws
from benchmarks.gate.records import Key, Origin, Records
from benchmarks.gate.report import markdown
from benchmarks.gate.simulated import Retrained, SimulatedNetwork
from benchmarks.gate.summary import claims, summary
from benchmarks.shifts.sources import find_sources
from training.bases import load_base_set
from training.cli import EXIT_BAD_INPUT, EXIT_DONE, run

ORIGIN = Origin("cifar10-small", 0)


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


@pytest.mark.parametrize("num_unlabelled", [0, 200])
def test_fair_labels_hardly_ever_find_frequencies_where_none_changed(num_unlabelled: int):
    """Folds that are dealt out at random refuse what chance alone says; the few that are taken promote nothing."""
    taken, promoted, gains = [], [], []
    for turn in range(12):
        some = SimulatedNetwork(4, 1050 + num_unlabelled, correlation=0.9, seed=(7, turn))
        config = SearchConfig(rungs=("frequencies",), draw="fair", strategy="grid", grid="simplex", step=1.0, seed=turn)
        stream = some.images[1050:] if num_unlabelled else None
        current = default_soup(some.manifest)
        found = search(some, some.support(np.arange(50)), config, current=current, unlabelled=stream)
        drawn = nulls.drawn(some, found, current, np.arange(50, 1050))
        taken.append("frequencies" in found.choice.rungs)
        promoted.append(found.outcome.state == "promoted")
        gains.append(drawn.truth - drawn.truth_current)
    assert np.mean(taken) < 0.6
    assert np.sum(promoted) <= 1
    assert np.mean(gains) > -0.01


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
    config = SearchConfig(effort="full", rungs=("statistics", "head", Retrained.name))
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
    Records(path, ORIGIN).add([(Key("null", nulls.CASES[0].name, 20, turn), {"a": turn}) for turn in range(3)])
    again = Records(path, ORIGIN)
    assert again.of("null") == {(nulls.CASES[0].name, 20): [{"a": 0}, {"a": 1}, {"a": 2}]}
    plan = measure.Plan((20,), 5, 0, (), (), 0, (), ())
    first = next(measure.wanted(plan, again, ["null"]))
    assert (first.case, first.turns) == (nulls.CASES[0].name, (3, 4))


def test_a_line_that_a_killed_run_did_not_finish_is_drawn_again(tmp_path: Path):
    path = tmp_path / "full.jsonl"
    Records(path, ORIGIN).add([(Key("null", "a", 20, turn), {"a": turn}) for turn in range(3)])
    path.write_bytes(path.read_bytes()[:-5])
    again = Records(path, ORIGIN)
    assert again.of("null") == {("a", 20): [{"a": 0}, {"a": 1}]}
    again.add([(Key("null", "a", 20, 2), {"a": 2})])
    assert len(Records(path, ORIGIN)) == 3
    path.write_bytes(path.read_bytes()[:10])
    assert len(Records(path, ORIGIN)) == 0


@pytest.mark.parametrize("content", ['{"base": "cifar10-small", "seed": 1}', '{"key": ["null", "a", 20, 0]}', "[]"])
def test_draws_of_another_origin_are_not_added_to(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "full.jsonl").write_text(content + "\n")
    args = ["--parts", "null", "--work", str(tmp_path)]
    assert run([Gate], prog="gate", description="", args=args) == EXIT_BAD_INPUT
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "full.jsonl").read_text() == content + "\n"


def test_nothing_is_claimed_of_what_was_not_drawn(tmp_path: Path):
    assert claims(summary(Records(tmp_path / "none.jsonl", ORIGIN))) == {}
    named = claims(summary(drawn(tmp_path / "full.jsonl", promoted=0, draws=80)))
    assert [name.partition(":")[0] for name in named] == ["false promotions", "bias of the reported accuracy"]


def null_row(p_value: float, **values: float) -> dict[str, float]:
    same = dict.fromkeys(("reported", "reported_current", "truth", "truth_current"), 0.7)
    return {"is_new": True, "p_value": p_value} | same | values


def drawn(path: Path, *, promoted: int, draws: int) -> Records:
    records = Records(path, ORIGIN)
    rows = [null_row(1e-9 if turn < promoted else 0.5) for turn in range(draws)]
    records.add([(Key("null", nulls.CASES[0].name, 20, turn), row) for turn, row in enumerate(rows)])
    return records


def test_a_few_draws_are_reported_and_do_not_contradict_a_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    work, out = tmp_path / "work", tmp_path / "out"
    args = ["--quick", "--parts", "null", "--minutes", "0.03", "--work", str(work), "--out", str(out), "--json"]
    assert run([Gate], prog="gate", description="", args=args) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert {"null", "bias", "looks", "power"} <= set(found)
    cells = [cell for case in found["null"].values() for cell in case.values()]
    assert cells
    assert all(0 <= cell["low"] <= cell["rate"] <= cell["high"] <= 1 for cell in cells)
    assert any(cell["high"] > 0.05 for cell in cells)
    assert found["bound"] == "lower"
    assert "false promotions: lower 95 % bound at most 5 % in every cell" in found["claims"]
    assert json.loads((out / "results.json").read_text())["null"].keys() == found["null"].keys()
    report = (out / "REPORT.md").read_text()
    assert "False promotions" in report
    assert "by the lower 95 % bound" in report
    assert not (out / "draws.jsonl.xz").exists()
    with Image.open(out / "gate.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize(("promoted", "failing"), [(2, {"upper"}), (10, {"upper", "lower"}), (0, set())])
def test_a_claim_fails_where_its_bound_is_above_5_percent(tmp_path: Path, promoted: int, failing: set[str]):
    records = drawn(tmp_path / "full.jsonl", promoted=promoted, draws=80)
    for bound in ("upper", "lower"):
        data = summary(records, bound=bound)
        fails = [name for name, holds in claims(data).items() if not holds]
        assert fails == (
            [f"false promotions: {bound} 95 % bound at most 5 % in every cell"] if bound in failing else []
        )
        assert ("**Does not hold**: false promotions" in markdown(data, "command")) == (bound in failing)


def test_a_full_run_starts_from_the_committed_draws_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    committed = tmp_path / "committed" / "draws.jsonl.xz"
    committed.parent.mkdir()
    records = drawn(tmp_path / "before.jsonl", promoted=1, draws=7)
    write_draws(committed, records, Origin("cifar10-small", 0))
    monkeypatch.setattr(command, "DRAWS", committed)

    def draws(*options: str) -> int:
        args = ["--parts", "null", "--minutes", "1e-9", "--json", *options]
        run([Gate], prog="gate", description="", args=args)
        return sum(
            cell["draws"] for case in json.loads(capsys.readouterr().out)["null"].values() for cell in case.values()
        )

    assert draws("--work", str(tmp_path / "new"), "--out", str(tmp_path / "out")) == 7
    assert len(Records(tmp_path / "new" / "full.jsonl", ORIGIN)) == 7
    assert (tmp_path / "out" / "draws.jsonl.xz").read_bytes() == committed.read_bytes()
    assert draws("--work", str(tmp_path / "other-seed"), "--seed", "1") == 0
    assert draws("--work", str(tmp_path / "quick"), "--quick") == 0
    drawn(tmp_path / "own" / "full.jsonl", promoted=0, draws=3)
    assert draws("--work", str(tmp_path / "own")) == 3
    committed.write_bytes(committed.read_bytes()[:-20])
    options = ["--work", str(tmp_path / "damaged"), "--parts", "null"]
    assert run([Gate], prog="gate", description="", args=options) == EXIT_BAD_INPUT
    assert "expected draws that --out wrote" in capsys.readouterr().err


def test_draws_that_are_packed_give_the_same_report_and_the_same_bytes_in_any_order(tmp_path: Path):
    name = f"{nulls.PLANS[0].name}: {nulls.CASES[0].name}"
    found = [
        (Key("null", nulls.CASES[0].name, 300, 1), null_row(0.0123456789, truth=2 / 3)),
        (
            Key("looks", name, 20, 0),
            {"looks": [[True, 0.123456, []], [True, 0.5, [2.0] * 40], [True, 0.5, [2.0] * 40]]},
        ),
        (Key("looks", name, 20, 1), {"looks": [[False, 0.9, []], [True, 0.4, [-1.0] * 40], [True, 0.4, [-1.0] * 40]]}),
        (Key("looks", name, 20, 2), {"looks": [[False, 0.9], [True, 0.4]]}),
    ]
    origin, packed = Origin("base", 3), []
    for number, rows in enumerate((found, found[::-1])):
        records = Records(tmp_path / f"{number}.jsonl", ORIGIN)
        records.add(rows)
        write_draws(tmp_path / f"{number}.xz", records, origin)
        packed.append((tmp_path / f"{number}.xz").read_bytes())
    assert packed[0] == packed[1]
    again = Records(tmp_path / "again.jsonl", ORIGIN)
    again.add(read_draws(tmp_path / "0.xz", origin))
    assert again.of("null")[nulls.CASES[0].name, 300][0] == null_row(0.01235, truth=0.6667)
    assert [row.get("is_bet_won") for row in again.of("looks")[name, 20]] == [True, False, None]
    assert summary(again)["looks"] == summary(records)["looks"]
    write_draws(tmp_path / "again.xz", again, origin)
    assert (tmp_path / "again.xz").read_bytes() == packed[0]


def test_the_draws_of_the_full_run_stay_below_a_megabyte_and_a_half(tmp_path: Path):
    generator, share = np.random.default_rng(0), 25  # a part of the full run, of random numbers
    records = Records(tmp_path / "full.jsonl", ORIGIN)
    found = []
    for number in range(120_000 // share):
        n = (20, 50, 100, 300, 1000)[number % 5]
        reported, before = (generator.binomial(n, 0.7, size=2) / n).tolist()
        truth, true_before = (generator.binomial(1000, 0.7, size=2) / 1000).tolist()
        row = null_row(
            generator.uniform(), reported=reported, reported_current=before, truth=truth, truth_current=true_before
        )
        found.append((Key("null", nulls.CASES[number % 12].name, n, number // 60), row))
    for plan in nulls.PLANS:
        for number in range(5_400 // share):
            looks = [
                [True, generator.uniform(), generator.normal(size=plan.portion).tolist()] for _ in range(plan.looks)
            ]
            name = f"{plan.name}: {nulls.CASES[number % 9].name}"
            found.append((Key("looks", name, plan.portion, number // 9), {"looks": looks}))
    records.add(found)
    write_draws(tmp_path / "draws.xz", records, Origin("base", 0))
    assert (tmp_path / "draws.xz").stat().st_size * share < 1_500_000


@pytest.mark.slow
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
