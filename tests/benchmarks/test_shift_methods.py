import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapt.documents.soup import default_soup
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.pictures import jpegs
from benchmarks.shifts.__main__ import main
from benchmarks.shifts.command import FULL, QUICK
from benchmarks.shifts.context import STREAM, STREAMS, Context, Shared, Unseen
from benchmarks.shifts.harness import draw_pictures, known_methods
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.methods import Landscape, fit_mixture, methods_of, soup_oracle, soup_single
from benchmarks.shifts.results import LandscapeRow, Row, Settings
from benchmarks.shifts.sets import as_support, clean_images, others
from benchmarks.shifts.sources import find_sources
from benchmarks.shifts.suite import FAMILIES, SUITE, find_shift
from benchmarks.shifts.table import Table, soups_of, tabulate
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.cli import EXIT_BAD_INPUT, EXIT_DONE
from training.data import ImageSet
from training.devices import thread_count
from training.images import decode

pytestmark = pytest.mark.slow

PER_CLASS = 24
SHIFTS = "gaussian_noise,fog,contrast"
SMALL = ["--n", "4,12", "--seeds", "2", "--n-test", "40", "--threads", "1", "--costly-n", "12", "--costly-seeds", "1"]
FIXED = {"fixed_linf", "fixed_nominal", "fixed_l2", "fixed_l1"}
SOUPS = {"soup_grid", "soup_auto", "soup_uniform", "picked"} | FIXED  # of folded weights, without a patch
OURS = {
    *("ladder", "ladder_served", "ladder_quick", "ladder_stream", "ladder_stream_1000", "ladder_single"),
    *("soup_grid", "soup_auto", "soup_single", "soup_uniform", "soup_oracle"),
}
TRAINED = {"finetune", "surgical", "tent"}
LATER = {"ladder_full", "probe", "finetune_nominal", "lp_ft", "eata", "sar", "roid", "t3a"}  # here on request
RIVALS = {"picked", "picked_bn", "picked_head", "picked_bn_head", "ensemble", "ensemble_weighted"} | FIXED | TRAINED


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 pictures in test/<class>/<file>, a colour cast for each class so that there is something to tell apart."""
    root = tmp_path_factory.mktemp("pictures")
    for index, file in enumerate(jpegs(PER_CLASS * len(CLASSES), 16, 16, seed=3)):
        label, number = divmod(index, PER_CLASS)
        pixels = decode(file).copy()
        pixels[:, :, label] = 128 + pixels[:, :, label] // 2
        folder = root / "test" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def prepared(tiny_base_set: Path) -> PreparedBase:
    return PreparedBase(load_base_set(tiny_base_set))


@pytest.fixture(scope="module")
def shifted(data_folder: Path, prepared: PreparedBase) -> ImageSet:
    return find_shift("fog").of(clean_images(data_folder, prepared.manifest.input), seed=0)


@pytest.fixture(scope="module")
def table(prepared: PreparedBase, shifted: ImageSet) -> Table:
    with thread_count(1):
        return tabulate(prepared, soups_of(prepared.manifest), shifted)


def make_settings(**changes: object) -> Settings:
    values = {
        "base_set": "tiny",
        "base_digest": "0",
        "data": {"clean": "0"},
        "n": (4, 12),
        "seed": 0,
        "seeds": 2,
        "shifts": ("fog",),
        "methods": ("picked",),
        "n_test": 40,
        "ingredients": ("linf", "nominal", "l2", "l1"),
        "costly_n": (12,),
        "costly_seeds": 1,
    }
    return Settings.model_validate(values | changes)


def run_small(
    capsys: pytest.CaptureFixture[str], base: Path, data: Path, out: Path, *more: str
) -> tuple[int, str, str]:
    shifts = [] if "--shifts" in more else ["--shifts", SHIFTS]
    code = main([str(base), "--data", str(data), "--out", str(out), *SMALL, *shifts, *more])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def finished(tiny_base_set: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Read only."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main([str(tiny_base_set), "--data", str(data_folder), "--out", str(out), *SMALL, "--shifts", SHIFTS]) == 0
    return out


def test_a_run_needs_no_subcommand_and_prints_the_agreed_object(
    tiny_base_set: Path, data_folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_small(capsys, tiny_base_set, data_folder, finished, "--json")
    assert code == EXIT_DONE
    data = json.loads(out)
    assert set(data) == {"mean", "shifts", "seeds", "n_test"}
    assert (data["seeds"], data["n_test"]) == (2, 40)
    assert set(data["shifts"]) == set(SHIFTS.split(","))
    for methods in (data["mean"], *data["shifts"].values()):
        assert set(methods) == OURS | RIVALS
        assert all(set(by_n) == ({"12"} if name in TRAINED else {"4", "12"}) for name, by_n in methods.items())
    for method, by_n in data["mean"].items():
        for n, mean in by_n.items():
            assert mean == pytest.approx(np.mean([shift[method][n] for shift in data["shifts"].values()]), abs=2e-6)


def test_preview_and_list_stay_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == EXIT_DONE
    assert len(json.loads(capsys.readouterr().out)["shifts"]) == len(SUITE)


def test_the_quick_plan_has_two_shifts_of_every_computed_family() -> None:
    families = [find_shift(name).family for name in QUICK.shifts]
    assert all(families.count(family) == 2 for family in FAMILIES if family != "natural")
    assert set(QUICK.n) <= set(FULL.n)


def test_the_report_has_every_method_and_a_picture(finished: Path) -> None:
    text = (finished / "REPORT.md").read_text()
    assert all(f"| {method} |" in text for method in OURS | RIVALS)
    assert "+-" in text
    gains = text.partition("## Points by which ladder is above, paired")[2].partition("##")[0]
    assert all(f"| {method} |" in gains for method in (OURS | RIVALS) - {"ladder"})
    assert "| finetune | - |" in gains
    for name in ("accuracy.png", "composition.png", "landscapes.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 400


def test_no_choice_of_a_soup_beats_the_oracle_on_its_own_test_pictures(finished: Path) -> None:
    landscapes = {row.key: max(row.test) for row in Lines(finished / "landscapes.jsonl", LandscapeRow).records.values()}
    rows = Lines(finished / "results.jsonl", Row).records.values()
    soups = [(row, row.methods[name]) for row in rows for name in SOUPS]
    assert all(found.accuracy <= landscapes[row.shift, row.seed] + 1e-9 for row, found in soups)


def test_an_interrupted_run_goes_on_and_ends_the_same(
    tiny_base_set: Path, data_folder: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    results = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    landscapes = (finished / "landscapes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(results[:9]) + results[9][:50])
    (tmp_path / "landscapes.jsonl").write_text("".join(landscapes[:5]))
    code, out, _ = run_small(capsys, tiny_base_set, data_folder, tmp_path, "--json")
    assert code == EXIT_DONE
    kept = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    assert not (tmp_path / "tables").exists()
    assert kept[:9] == results[:9]
    assert len(kept) == len(results)
    assert len((tmp_path / "landscapes.jsonl").read_text().splitlines()) == len(landscapes)
    assert json.loads(out) == json.loads(run_small(capsys, tiny_base_set, data_folder, finished, "--json")[1])


@pytest.mark.parametrize(("num_lines", "seeds", "shifts"), [(4, 1, 2), (6, 1, 3), (9, 1, 3), (12, 2, 3)])
def test_what_is_finished_can_be_reported(
    num_lines: int, seeds: int, shifts: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kept in (("settings.json", None), ("results.jsonl", num_lines), ("landscapes.jsonl", num_lines // 2)):
        lines = (finished / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:kept]))
    assert main(["report", str(tmp_path), "--json"]) == EXIT_DONE
    data = json.loads(capsys.readouterr().out)
    assert (data["seeds"], len(data["shifts"])) == (seeds, shifts)
    assert f"--seeds {seeds} " in (tmp_path / "REPORT.md").read_text()


def test_chosen_soups_are_attacked_once_and_reported(
    tiny_base_set: Path, data_folder: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("settings.json", "results.jsonl", "landscapes.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    args = [
        "attack",
        str(tmp_path),
        "--base",
        str(tiny_base_set),
        "--data",
        str(data_folder),
        "--n",
        "6",
        "--steps",
        "2",
    ]
    assert main(args) == EXIT_DONE
    lines = [json.loads(line) for line in (tmp_path / "attacked.jsonl").read_text().splitlines()]
    methods = {"ladder", "soup_auto", *FIXED}
    assert {(line["shift"], line["method"]) for line in lines} == {(s, m) for s in SHIFTS.split(",") for m in methods}
    for line in lines:
        accuracy = line["accuracy"]
        assert accuracy["union"] <= min(accuracy["Linf"], accuracy["L2"], accuracy["L1"]) <= accuracy["clean"]
    report = (tmp_path / "REPORT.md").read_text()
    assert "under attack" in report
    assert (tmp_path / "fronts.png").exists()
    assert main(args) == EXIT_DONE
    assert len((tmp_path / "attacked.jsonl").read_text().splitlines()) == len(lines)
    capsys.readouterr()
    assert main(["attack", str(tmp_path), "--data", str(data_folder)]) == EXIT_BAD_INPUT
    assert "expected results of" in capsys.readouterr().err
    for line in lines:  # of a base set whose recipe does not attack in L1
        del line["accuracy"]["L1"]
    (tmp_path / "attacked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(tmp_path)]) == EXIT_DONE
    assert "| method | not attacked | Linf | L2 | union |" in (tmp_path / "REPORT.md").read_text()


def test_every_severity_is_measured_by_looking_answers_up(
    tiny_base_set: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(tiny_base_set), "--data", str(data_folder), "--out", str(tmp_path), "--n", "4", "--n-test", "20"]
    assert main([*args, "--seeds", "1", "--severities", "--shifts", "fog@1,fog@5,contrast@3", "--json"]) == EXIT_DONE
    data = json.loads(capsys.readouterr().out)
    assert set(data["shifts"]) == {"fog@1", "fog@5", "contrast@3"}
    assert set(data["mean"]) == {"soup_grid", "soup_single", "soup_oracle", "soup_uniform", "picked"} | FIXED | {
        "ensemble",
        "ensemble_weighted",
    }
    pictures = clean_images(data_folder, load_base_set(tiny_base_set).manifest.input)
    assert np.array_equal(find_shift("fog@5").of(pictures, seed=0).images, SUITE["fog"].of(pictures, 5, seed=0).images)
    assert find_shift("fog@1").family == "weather"
    with pytest.raises(ValueError, match="perhaps with @1"):
        find_shift("fog@6")


def test_a_report_of_nothing_is_one_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "found no settings.json" in capsys.readouterr().err
    (tmp_path / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "no shift is finished yet" in capsys.readouterr().err


def test_a_finished_run_is_not_repeated(
    tiny_base_set: Path, data_folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "results.jsonl").read_bytes()
    code, _, _ = run_small(capsys, tiny_base_set, data_folder, finished)
    assert code == EXIT_DONE
    assert (finished / "results.jsonl").read_bytes() == before


def test_methods_may_be_added_to_a_run(
    tiny_base_set: Path, data_folder: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods in ("picked,soup_oracle", "picked,soup_oracle,ensemble", "picked"):
        code, out, _ = run_small(capsys, tiny_base_set, data_folder, tmp_path, "--methods", methods, "--json")
        assert code == EXIT_DONE
        found = json.loads(out)["mean"]
        assert set(found) == set(methods.split(","))
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [list(row["methods"]) for row in rows] == [["picked"]] * 12 + [["ensemble"]] * 12
    whole = json.loads(run_small(capsys, tiny_base_set, data_folder, finished, "--json")[1])["mean"]
    assert found["picked"] == whole["picked"]


def test_methods_can_be_measured_again(
    tiny_base_set: Path,
    data_folder: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.shifts.harness.tabulate", lambda *_: pytest.fail("nothing needs a table"))
    for name in ("settings.json", "results.jsonl", "landscapes.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    before = Lines(tmp_path / "results.jsonl", Row).records
    code, _, _ = run_small(capsys, tiny_base_set, data_folder, tmp_path, "--redo", "ladder,ladder_served")
    assert code == EXIT_DONE
    lines = [json.loads(line)["methods"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [set(methods) == {"ladder", "ladder_served"} for methods in lines] == [False] * 12 + [True] * 12
    assert not any("ladder" in methods for methods in lines[:12])
    after = Lines(tmp_path / "results.jsonl", Row).records
    for key, row in before.items():
        assert after[key].methods["ladder"].accuracy == row.methods["ladder"].accuracy
        assert after[key].methods["picked"] == row.methods["picked"]


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--seeds", "3"], "seeds 2, got 3"), (["--n", "4,8"], r"n \[4, 12\], got"), (["--seed", "1"], "seed 0, got 1")],
)
def test_other_settings_are_refused_in_one_line(
    options: list[str],
    named: str,
    tiny_base_set: Path,
    data_folder: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run_small(capsys, tiny_base_set, data_folder, finished, *options)
    assert (code, out) == (EXIT_BAD_INPUT, "")
    line = err.strip().splitlines()
    assert len(line) == 1
    assert re.search(named, line[0])
    assert "choose another folder" in line[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--n", "0,20"], "n: expected whole numbers from 1"),
        (["--n", "many"], "n: expected whole numbers from 1"),
        (["--seeds", "0"], "greater than or equal to 1"),
        (["--shifts", "fog,rain"], "shifts: expected some of"),
        (["--methods", "magic"], "methods: expected some of"),
        (["--n-test", "1000"], "expected 1012 pictures"),
        (["--data", "/nowhere"], "no such folder"),
        (["--threads", "none"], "none"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    named: str,
    tiny_base_set: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run_small(capsys, tiny_base_set, data_folder, tmp_path, *options)
    assert (code, out) == (EXIT_BAD_INPUT, "")
    assert len(err.strip().splitlines()) == 1
    assert named in err


def test_real_sets_join_the_shifts(
    tiny_base_set: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("natural4", 30), ("tinyimagenet7", 5)):
        for label in ("cat", "dog"):
            folder = tmp_path / name / "test" / label
            folder.mkdir(parents=True)
            for index, file in enumerate(jpegs(count, 20, 20, seed=ord(label[0]) + count)):
                (folder / f"{index}.jpg").write_bytes(file)
    more = ["--folders", str(tmp_path), "--quick", "--methods", "soup_single,picked", "--json"]
    more += ["--shifts", "fog,contrast,natural4"]
    code, out, _ = run_small(capsys, tiny_base_set, data_folder, tmp_path / "out", *more)
    assert code == EXIT_DONE
    assert set(json.loads(out)["shifts"]) == {"fog", "contrast", "natural4"}
    refused = run_small(capsys, tiny_base_set, data_folder, tmp_path / "out", *more[:-1], "natural4,tinyimagenet7")
    assert refused[0] == EXIT_BAD_INPUT
    assert "got ['tinyimagenet7']" in refused[2]
    empty = run_small(capsys, tiny_base_set, data_folder, tmp_path / "out", "--folders", str(data_folder))
    assert empty[0] == EXIT_BAD_INPUT
    assert "expected one of the folders" in empty[2]


def test_a_damaged_line_is_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"shift": "fog"}\n')
    with pytest.raises(ValueError, match="line 1"):
        Lines(tmp_path / "results.jsonl", Row)


def test_labelled_and_unseen_pictures_share_none(data_folder: Path, prepared: PreparedBase) -> None:
    clean = clean_images(data_folder, prepared.manifest.input)
    for seed in range(4):
        draw = draw_pictures(clean, make_settings(), seed)
        assert not {clean.hashes[i] for i in draw.pool} & {clean.hashes[i] for i in draw.test}
        assert all(len(positions) == n for n, positions in draw.support.items())
        assert all(set(positions) <= set(draw.pool) for positions in draw.support.values())
        assert len(draw.test) == 40


def test_too_few_different_pictures_are_refused(data_folder: Path, prepared: PreparedBase) -> None:
    clean = clean_images(data_folder, prepared.manifest.input)
    with pytest.raises(ValueError, match="expected 1012 different pictures"):
        draw_pictures(clean, make_settings(n_test=1000), 0)


def context_at(prepared: PreparedBase, shifted: ImageSet, table: Table, n: int, seed: int) -> Context:
    positions = draw_pictures(shifted, make_settings(n=(n,)), seed).support[n]
    return Context(prepared, as_support(shifted.subset(positions)), "weather", seed, table.at(positions))


@pytest.mark.parametrize(("n", "seed"), [(4, 0), (20, 1), (30, 2)])
def test_looked_up_soups_are_those_of_a_real_search(
    n: int, seed: int, prepared: PreparedBase, shifted: ImageSet, table: Table
) -> None:
    context = context_at(prepared, shifted, table, n, seed)
    methods = methods_of(prepared.manifest)
    for name, strategy in (("soup_auto", "auto"), ("soup_grid", "grid")):
        current = default_soup(prepared.manifest)
        found = search(prepared, context.support, SearchConfig(strategy=strategy, rungs=(), seed=seed), current=current)
        answer = methods[name](context)
        assert answer.coefficients == pytest.approx(found.soup.vector(prepared.manifest))
        # A real search of a grid runs the few soups that it and its folds choose once more.
        again = found.outcome.search.image_forwards - answer.forwards
        assert 0 <= again <= (6 * n if strategy == "grid" else 0)


def test_every_method_answers_with_logits_of_its_own_soup(
    prepared: PreparedBase, shifted: ImageSet, table: Table
) -> None:
    context = context_at(prepared, shifted, table, 12, 0)
    unseen = Unseen(shifted.images, table.logits)
    for name, method in methods_of(prepared.manifest).items():
        answer = method(context)
        logits = answer.predict(unseen)
        assert logits.shape == (len(shifted), len(CLASSES))
        passes = {"tent": {1, 3}, "eata": {3}, "sar": {6}, "roid": {6}}
        assert answer.passes in passes.get(name, {4 if name.startswith("ensemble") else 1})
        assert not logits.requires_grad
        assert logits.isfinite().all()
        if name in SOUPS:
            assert answer.coefficients is not None
            position = table.soups.position(answer.coefficients)
            assert torch.equal(logits, table.logits[position])
    assert set(known_methods(prepared)) == OURS | RIVALS | LATER


def test_the_stream_is_what_neither_was_labelled_nor_is_tested(
    prepared: PreparedBase, shifted: ImageSet, table: Table
) -> None:
    bare = context_at(prepared, shifted, table, 12, 0)
    stream = shifted.images[-20:]
    methods = methods_of(prepared.manifest)
    assert methods["ladder_stream"](bare).forwards == methods["ladder"](bare).forwards
    with_stream = methods["ladder_stream"](replace(bare, shared=Shared(), stream=stream))
    assert with_stream.forwards > methods["ladder"](bare).forwards
    assert with_stream.evidence is not None
    assert with_stream.evidence.unlabelled == 20
    single = methods["ladder_single"](bare)
    assert single.coefficients is not None
    assert sorted(single.coefficients) == [0, 0, 0, 1]


@pytest.mark.parametrize(("method", "most"), STREAMS.items())
def test_each_ladder_with_a_stream_is_given_no_more_than_its_number(
    prepared: PreparedBase, shifted: ImageSet, table: Table, method: str, most: int
) -> None:
    bare = context_at(prepared, shifted, table, 12, 0)
    stream = np.tile(shifted.images, (20, 1, 1, 1))
    answer = methods_of(prepared.manifest)[method](replace(bare, shared=Shared(), stream=stream))
    assert answer.evidence is not None
    assert answer.evidence.unlabelled == most


def test_spare_pictures_are_none_of_those_that_are_labelled_or_tested(data_folder: Path, tiny_base_set: Path) -> None:
    manifest = load_base_set(tiny_base_set).manifest
    bare = find_sources(data_folder, None, manifest, size=50, seed=0)
    sources = find_sources(data_folder, None, manifest, size=50, seed=0, spare=1000)
    assert sources.digests(["fog"]) == bare.digests(["fog"])
    assert bare.load_spare("fog", seed=0) is None
    spare = sources.load_spare("fog", seed=0)
    assert spare is not None
    assert len(spare) == PER_CLASS * len(CLASSES) - 50
    assert not set(spare.hashes) & set(sources.clean.hashes)
    assert np.array_equal(spare.images, find_shift("fog").of(sources.spare["clean"], seed=0).images)


@given(labelled=st.integers(1, 40))
@settings(max_examples=10)
def test_unlabelled_pictures_come_from_the_rest_of_the_pool(labelled: int) -> None:
    pool = np.random.default_rng(1).permutation(300)[:40]
    rest = others(pool, pool[:labelled], most=STREAM, seed=0)
    assert set(rest.tolist()) == set(pool[labelled:].tolist())
    more = others(np.arange(1000), pool[:1], most=500, seed=0)
    assert more[:200].tolist() == others(np.arange(1000), pool[:1], most=200, seed=0).tolist()


def test_the_weighted_ensemble_is_no_worse_than_any_other_on_its_labels() -> None:
    generator = np.random.default_rng(0)
    logs = np.log(generator.dirichlet(np.ones(3), (4, 30))[:, :, 0])

    def log_likelihood(weights: np.ndarray) -> float:
        return float(np.log(weights @ np.exp(logs)).sum())

    best = fit_mixture(logs)
    assert best.sum() == pytest.approx(1)
    assert (best >= 0).all()
    for other in (*np.eye(4), np.full(4, 0.25), *generator.dirichlet(np.ones(4), 200)):
        assert log_likelihood(best) >= log_likelihood(other) - 1e-5


def test_the_single_soup_is_chosen_on_other_families() -> None:
    noise = Landscape("noise", np.asarray([1.0, 0.0]), np.asarray([0.9, 0.2]))
    blur = Landscape("blur", np.asarray([0.0, 1.0]), np.asarray([0.1, 0.7]))
    assert soup_single(noise, [noise, blur]) == 0.2
    assert soup_single(noise, [noise, noise]) is None
    assert soup_oracle(noise, [noise, blur]) == 0.9


def test_a_grid_too_large_for_many_ingredients_becomes_coarser(
    base_set_factory: Callable[..., Path], tmp_path: Path
) -> None:
    names = tuple(f"i{number}" for number in range(7))
    base = load_base_set(base_set_factory(tmp_path / "seven", names=names))
    soups = soups_of(base.manifest)
    assert soups.num_searched <= len(soups.coefficients) < 2100
    assert soups.find(np.full(7, 1 / 7)) == soups.uniform()
