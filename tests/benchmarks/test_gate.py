import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.networks.forward import score_logits
from benchmarks.gate.__main__ import Gate
from benchmarks.gate.draws import SCENARIOS, TESTS, Outcome, adapt, draw
from benchmarks.gate.measure import Plan, Row, claims, power_by_gain, rates
from benchmarks.gate.population import Population
from benchmarks.pictures import jpegs
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, run
from training.images import decode

CLASSES = ("cat", "dog", "ship")


@pytest.fixture(scope="module")
def population() -> Population:
    """Twelve soups on 400 pictures of four classes; the first is the worst, the last the best."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 4
    noise = generator.standard_normal((1, 400, 4)) + 0.5 * generator.standard_normal((12, 400, 4))
    margins = np.linspace(0.5, 1.5, 12)[:, None, None] * (np.arange(4) == labels[:, None])
    logits = torch.from_numpy(noise + margins).half()
    return Population("made up", labels, logits, score_logits(logits.float(), labels))


def test_scores_under_right_labels_are_the_truth_and_wrong_ones_change_only_their_pictures(population: Population):
    positions = np.asarray([5, 5, 17, 80])
    labels = population.labels[positions]
    right = population.scores(positions, labels)
    assert np.array_equal(right.losses, population.truth.losses[:, :, positions])
    wrong = population.scores(positions, np.where(np.arange(4) == 2, (labels + 1) % 4, labels))
    direct = score_logits(population.logits[:, [17]].float(), (labels[[2]] + 1) % 4)
    assert np.allclose(wrong.losses[:, :, [2]], direct.losses)
    assert np.array_equal(wrong.losses[:, :, [0, 1, 3]], right.losses[:, :, [0, 1, 3]])


def test_the_current_soup_comes_first_and_is_what_the_scenario_says(population: Population):
    accuracy = population.truth.accuracy
    for scenario in SCENARIOS:
        drawn = draw(population, 50, scenario, np.random.default_rng(1))
        assert drawn.scores.correct.shape == (12, 50)
        if scenario == "default":
            assert np.array_equal(drawn.truth, accuracy)
        elif scenario == "oracle":
            assert drawn.truth[0] == accuracy.max()
        elif scenario == "tied":
            assert np.ptp(drawn.truth) == 0
    again = draw(population, 50, "earlier", np.random.default_rng(1))
    assert np.array_equal(again.scores.losses, draw(population, 50, "earlier", np.random.default_rng(1)).scores.losses)


def test_tied_soups_are_as_good_as_their_mean(population: Population):
    draws = [draw(population, 400, "tied", np.random.default_rng(seed)) for seed in range(20)]
    found = np.mean([drawn.scores.accuracy for drawn in draws], axis=0)
    assert found == pytest.approx(np.full(12, population.truth.accuracy.mean()), abs=0.02)


def test_a_great_gain_is_promoted_and_the_best_soup_is_never_beaten(population: Population):
    better = [adapt(draw(population, 300, "default", np.random.default_rng(seed)), seed=seed) for seed in range(5)]
    assert all(outcome.gain > 0.1 and outcome.p_values["evidence"] < 0.05 for outcome in better)
    best = [adapt(draw(population, 300, "oracle", np.random.default_rng(seed)), seed=seed) for seed in range(5)]
    assert all(outcome.gain <= 0 for outcome in best)


def row(gain: float, p_value: float, *, changed: bool = True) -> Row:
    return Row("fog", Outcome(changed, gain, 0.6, 0.6, 0.0, 0.0, True, 100.0, dict.fromkeys(TESTS, p_value)))


def test_rates_count_promotions_of_what_changed_and_tell_false_from_harmful():
    rows = [row(0.02, 0.01), row(0.0, 0.01), row(-0.02, 0.01), row(0.0, 0.01, changed=False)]
    found = rates(rows)["tests"]["evidence"]
    assert (found["promoted"], found["false"], found["harmful"]) == (0.75, 0.5, 0.25)
    assert [cell["draws"] for cell in power_by_gain(rows)] == [3, 1]


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    for index, file in enumerate(jpegs(60, 16, 16, seed=3)):
        folder = tmp_path / "pictures" / "test" / CLASSES[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(decode(file)).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def test_one_command_computes_logits_once_and_writes_the_report(
    tiny_base_set: Path,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    small = Plan(n=(20, 30), draws=2, side_draws=1, shifts=("clean", "fog"))
    monkeypatch.setattr("benchmarks.gate.__main__.QUICK", small)
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = [str(tiny_base_set), "--quick", "--pictures", "60", "--data", str(data_folder), "--work", str(work)]
    codes = []
    for extra in (["--out", str(out)], []):
        codes.append(run([Gate], prog="gate", description="", args=[*arguments, "--json", *extra]))
    printed = capsys.readouterr()
    assert printed.out, printed.err
    first, second = (json.loads(line) for line in printed.out.splitlines())
    assert first == second
    assert codes[0] == codes[1] == (EXIT_DONE if all(first["claims"].values()) else EXIT_CLAIM_FAILED)
    assert len(list(work.rglob("*.npz"))) == 2
    assert (out / "gate.png").stat().st_size > 10_000
    report = (out / "REPORT.md").read_text()
    assert "python -m benchmarks.gate bases/tiny --quick --pictures 60 --draws 2 --seed 0" in report
    assert [claim.holds for claim in claims(_with_whole_numbers(first), small)] == list(first["claims"].values())


def _with_whole_numbers(data: dict) -> dict:
    """Undo what JSON does to keys."""

    def mend(value: object) -> object:
        if isinstance(value, dict):
            return {int(key) if key.isdigit() else key: mend(part) for key, part in value.items()}
        return value

    return {key: mend(value) for key, value in data.items()}
