"""Methods on folders of pictures, and on corruptions of a base set's own held-out pictures."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.networks.prepared import PreparedBase
from adapt.rungs import early, head
from adapt.search.config import SearchConfig
from benchmarks.pictures import jpegs
from benchmarks.shifts import tuned
from benchmarks.shifts.__main__ import main
from benchmarks.shifts.domains import settings, tune
from benchmarks.shifts.domains.command import default_methods, photo_methods
from benchmarks.shifts.domains.pictures import Store, find_domains
from benchmarks.shifts.domains.plan import Plan, missing
from benchmarks.shifts.domains.processes import spread
from benchmarks.shifts.domains.report import markdown
from benchmarks.shifts.domains.study import CORRUPTIONS, Record, Study, draw_domain, family_of, most_labelled
from benchmarks.shifts.domains.values import MEAN, Values, contract
from benchmarks.shifts.domains.work import is_free
from benchmarks.shifts.grids import PHOTO_GRID, SAME, middle
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.options import Probing, Recalibration
from benchmarks.shifts.results import Found
from benchmarks.shifts.rivals.registry import RIVALS
from benchmarks.shifts.suite import STANDARD
from benchmarks.shifts.tuned import Trial, Trials
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.cli import EXIT_BAD_INPUT, EXIT_DONE
from training.data import ImageSet
from training.images import decode

pytestmark = pytest.mark.slow

PER_CLASS = 24
CHEAP = "ladder,fixed_nominal,fixed_linf,picked,probe,t3a,soup_uniform"


def make_domain(root: Path, per_class: int, *, seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write pictures with a colour cast for each class, so that there is something to tell apart."""
    for index, file in enumerate(jpegs(per_class * len(classes), 16, 16, seed=seed)):
        label, number = divmod(index, per_class)
        pixels = decode(file).copy()
        pixels[:, :, CLASSES.index(classes[label])] = 128 + pixels[:, :, CLASSES.index(classes[label])] // 2
        folder = root / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains; that called photo is the base set's own."""
    root = tmp_path_factory.mktemp("domains")
    for seed, name in enumerate(("photo", "drawing", "sketch")):
        make_domain(root / name, PER_CLASS, seed=seed)
    return root


def run(capsys: pytest.CaptureFixture[str], base: Path, folders: Path, out: Path, *more: str) -> tuple[int, str, str]:
    options = ["--folders", str(folders), "--data", str(folders / "photo"), "--out", str(out), "--n-test", "40"]
    code = main([str(base), *options, *more])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def finished(tiny_base_set: Path, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run. Read only."""
    out = tmp_path_factory.mktemp("run") / "out"
    args = [str(tiny_base_set), "--folders", str(folders), "--data", str(folders / "photo"), "--out", str(out)]
    args += ["--n-test", "40", "--n", "4,12,50", "--draws", "2", "--domains", "drawing,sketch,fog,contrast"]
    assert main([*args, "--methods", f"{CHEAP},eata,finetune_nominal", "--costly-n", "12", "--costly-seeds", "1"]) == 0
    return out


def records_of(out: Path) -> list[Record]:
    return list(Lines(out / "records.jsonl", Record).records.values())


def test_a_run_measures_domains_and_prints_the_agreed_object(
    tiny_base_set: Path, folders: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(finished), "--json"]) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((finished / "results.json").read_text())
    assert set(found["shifts"]) == {"drawing", "sketch", "fog", "contrast", CORRUPTIONS}
    assert (found["seeds"], found["n_test"], found["averaged"]) == (2, 40, ["drawing", "sketch"])
    for method in CHEAP.split(","):
        assert set(found["mean"][method]) == {"4", "12"}  # 72 pictures leave no room for 50
        for n, mean in found["mean"][method].items():
            parts = [found["shifts"][name][method][n] for name in ("drawing", "sketch")]
            assert mean == pytest.approx(np.mean(parts), abs=2e-6)
    assert set(found["mean"]["finetune_nominal"]) == {"12"}
    assert set(found["mean"]["eata"]) == {"4", "12"}
    assert found["standard_error"]["mean"]["picked"]["12"] >= 0
    assert "finetune_nominal" not in found["standard_error"]["mean"]  # one draw tells no spread
    both = [found["shifts"][name]["picked"]["4"] for name in ("fog", "contrast")]
    assert found["shifts"][CORRUPTIONS]["picked"]["4"] == pytest.approx(np.mean(both), abs=2e-6)


def test_the_report_has_tables_costs_and_pictures(finished: Path) -> None:
    text = (finished / "REPORT.md").read_text()
    for title in ("Mean of drawing, sketch", "drawing, accuracy", "sketch, accuracy", "corruptions, mean of 2"):
        assert f"## {title}" in text
    assert "## Points by which ladder is above, on drawing, sketch, paired by draw" in text
    assert "; up to 2 draws from seed 0 on" in text
    cost = text.partition("## Cost of adapting")[2].partition("##")[0]
    rows = dict(line.strip("| ").split(" | ", 1) for line in cost.splitlines() if line.startswith("| "))
    assert re.search(r"^\d+ \| - \| [\d.]+ s, [\d,]+$", rows["finetune_nominal"])
    assert "## Accuracy in percent by corruption, n = 50" not in text
    assert "Machine: " in text
    assert "--domains FOLDERS/drawing,FOLDERS/sketch,fog,contrast" in text
    assert "Nothing was tuned for `tiny`" in text
    for name in ("accuracy.png", "pictures.jpg"):
        with Image.open(finished / name) as picture:
            assert picture.width > 400


def test_methods_without_labels_run_once_for_every_n(finished: Path) -> None:
    found = [record for record in records_of(finished) if record.method == "eata"]
    assert {record.draw for record in found} == {0}
    for domain in ("drawing", "fog"):
        assert len({record.found for record in found if record.domain == domain}) == 1
    assert is_free("fixed_linf")
    assert not is_free("tent")


def test_an_interrupted_run_goes_on_and_ends_the_same(
    tiny_base_set: Path, folders: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_bytes((finished / "study.json").read_bytes())
    lines = (finished / "records.jsonl").read_text().splitlines(keepends=True)
    done = len(lines) - 25
    (tmp_path / "records.jsonl").write_text("".join(lines[:done]) + lines[done][:50])
    more = ["--n", "4,12", "--draws", "2", "--domains", "drawing,sketch,fog,contrast", "--methods", CHEAP]
    code, out, _ = run(capsys, tiny_base_set, folders, tmp_path, *more, "--json")
    assert code == EXIT_DONE
    assert (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)[:done] == lines[:done]
    whole = json.loads((finished / "results.json").read_text())["mean"]
    assert {name: json.loads(out)["mean"][name] for name in CHEAP.split(",")} == {
        name: whole[name] for name in CHEAP.split(",")
    }


def test_what_is_there_is_not_measured_again_and_more_may_be_added(
    tiny_base_set: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--domains", "sketch", "--n", "4", "--draws", "1", "--methods", "picked"]
    assert run(capsys, tiny_base_set, folders, tmp_path, *small)[0] == EXIT_DONE
    before = (tmp_path / "records.jsonl").read_bytes()
    assert run(capsys, tiny_base_set, folders, tmp_path, *small)[0] == EXIT_DONE
    assert (tmp_path / "records.jsonl").read_bytes() == before
    for options in (["--n", "12"], ["--draws", "2"], ["--methods", "probe"], ["--domains", "drawing"]):
        changed = list(small)
        changed[changed.index(options[0]) + 1] = options[1]
        assert run(capsys, tiny_base_set, folders, tmp_path, *changed)[0] == EXIT_DONE
    assert {record.key for record in records_of(tmp_path)} == {
        ("sketch", 4, 0, "picked"),
        ("sketch", 12, 0, "picked"),
        ("sketch", 4, 1, "picked"),
        ("sketch", 4, 0, "probe"),
        ("drawing", 4, 0, "picked"),
    }
    assert run(capsys, tiny_base_set, folders, tmp_path, *small, "--redo", "picked")[0] == EXIT_DONE
    assert {record.method for record in records_of(tmp_path)} == {"probe", "picked"}
    assert len(records_of(tmp_path)) == 2


def test_nothing_begins_when_the_time_is_over(
    tiny_base_set: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--domains", "sketch", "--n", "4", "--methods", "picked", "--minutes", "1e-6"]
    code, _, err = run(capsys, tiny_base_set, folders, tmp_path, *options)
    assert code == EXIT_BAD_INPUT
    assert "nothing was measured in the time given" in err
    begun = list(spread(range(5), lambda unit, setup: unit, None, jobs=1, deadline=time.monotonic() - 1))
    assert begun == []


@pytest.mark.slow
def test_two_processes_find_what_one_does(
    tiny_base_set: Path, folders: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--n", "4,12", "--draws", "1", "--domains", "sketch,fog", "--methods", CHEAP, "--jobs", "2"]
    assert run(capsys, tiny_base_set, folders, tmp_path, *more)[0] == EXIT_DONE
    known = {record.key: record.found.hits for record in records_of(finished)}
    found = {record.key: record.found.hits for record in records_of(tmp_path)}
    assert len(found) == 2 * 2 * len(CHEAP.split(","))
    assert found == {key: known[key] for key in found}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--domains", "nowhere"], "nowhere: expected a folder of pictures, 'corruptions', or one of gaussian_noise"),
        (["--domains", "sketch,sketch"], "domains: expected different names, got 'sketch' twice"),
        (["--domains", "sketch", "--quick"], "expected only without --domains"),
        (["--domains", "sketch", "--methods", "soup_grid"], "methods: expected some of"),
        (["--domains", "sketch", "--n", "0"], "n: expected whole numbers from 1"),
        (["--domains", "sketch", "--n", "50"], "n: expected at most 20, as unseen pictures must be left, got (50,)"),
        (["--domains", "sketch", "--device", "tpu"], "expected device cpu, cuda or auto"),
        (["--jobs", "2"], "expected only together with --domains"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    named: str,
    tiny_base_set: Path,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, tiny_base_set, folders, tmp_path, *options)
    assert (code, out) == (EXIT_BAD_INPUT, "")
    said = [line for line in err.strip().splitlines() if not line.startswith("INFO")]
    assert len(said) == 1
    assert named in said[0]


def test_other_pictures_and_other_settings_are_refused(
    tiny_base_set: Path, folders: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.json").write_bytes((finished / "study.json").read_bytes())
    code, _, err = run(capsys, tiny_base_set, folders, tmp_path, "--domains", "sketch", "--n-test", "30")
    assert code == EXIT_BAD_INPUT
    assert "has results with n_test 40, got 30; choose another folder" in err
    make_domain(tmp_path / "new" / "sketch", PER_CLASS, seed=9)
    options = ["--domains", str(tmp_path / "new" / "sketch"), "--methods", "picked", "--n", "4"]
    args = [str(tiny_base_set), "--out", str(tmp_path), "--n-test", "40", *options]
    assert main(args) == EXIT_BAD_INPUT
    assert "has results of other pictures of sketch" in capsys.readouterr().err


def test_a_folder_of_domains_stands_for_all_but_the_base_sets_own(folders: Path, tmp_path: Path) -> None:
    found = find_domains(["."], folders, CLASSES, own=folders / "photo")
    assert [domain.name for domain in found] == ["drawing", "sketch"]
    found = find_domains(["sketch", CORRUPTIONS], folders, CLASSES, own=None)
    assert [domain.name for domain in found] == ["sketch", *STANDARD]
    assert [family_of(domain.name) for domain in found] == ["sketch", *[CORRUPTIONS] * 15]
    make_domain(tmp_path / "fog", 1, seed=0)
    with pytest.raises(ValueError, match="a folder cannot be called 'fog'"):
        find_domains([str(tmp_path / "fog")], None, CLASSES, own=None)


def test_domains_may_lack_classes_but_have_no_others(
    tiny_base_set: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_domain(tmp_path / "some", 40, seed=5, classes=("cat", "ship"))
    out = tmp_path / "out"
    args = [str(tiny_base_set), "--out", str(out), "--n-test", "40", "--n", "4", "--draws", "1"]
    assert main([*args, "--domains", str(tmp_path / "some"), "--methods", "picked,probe"]) == EXIT_DONE
    capsys.readouterr()
    (tmp_path / "some" / "tree").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "some" / "tree" / "0.png")
    assert main([*args, "--domains", str(tmp_path / "some")]) == EXIT_BAD_INPUT
    assert "tree: expected a class folder named one of" in capsys.readouterr().err


def test_draws_are_disjoint_nested_in_nothing_and_shared_by_corruptions(finished: Path) -> None:
    store = Store(finished / "pictures")
    clean, fog = store.load("clean"), store.load("fog")
    assert clean.hashes == fog.hashes
    assert not np.array_equal(clean.images, fog.images)
    for seed in range(3):
        draw = draw_domain("fog", fog.labels, fog.hashes, n_test=40, seed=seed)
        assert not {fog.hashes[i] for i in draw.pool} & {fog.hashes[i] for i in draw.test}
        assert (len(draw.pool), len(draw.test)) == (32, 40)
        for n in (4, 12):
            assert set(draw.support(fog.labels, n, seed=seed)) <= set(draw.pool)
            assert len(draw.support(fog.labels, n, seed=seed)) == n


@pytest.mark.parametrize("seed", range(3))
def test_rare_classes_are_labelled_and_unseen_in_their_share(seed: int) -> None:
    labels = np.repeat(np.arange(3), [900, 960, 40])
    hashes = [str(index) for index in range(len(labels))]
    draw = draw_domain("sketch", labels, hashes, n_test=1000, seed=seed)
    assert np.bincount(labels[draw.test]).tolist() == pytest.approx([900 * 9 / 19, 960 * 9 / 19, 40 * 9 / 19], abs=1)
    assert np.bincount(labels[draw.support(labels, 60, seed=seed)]).tolist() == [20, 20, 20]
    assert not set(draw.test) & set(draw.pool)
    other = draw_domain("sketch", labels, hashes, n_test=1000, seed=seed + 1)
    assert set(draw.test) != set(other.test)


@pytest.mark.parametrize(
    ("there", "n_test", "most"), [(333, 1000, 100), (1964, 1000, 1000), (72, 40, 20), (70, 20, 50)]
)
def test_a_domain_gives_as_many_labels_as_leave_enough(there: int, n_test: int, most: int) -> None:
    labels, hashes = np.arange(there) % 3, [str(index) for index in range(there)]
    assert most_labelled("x", labels, hashes, n_test=n_test) == most


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="x: expected at least 60 different pictures, got 50"):
        most_labelled("x", np.arange(50) % 3, [str(index) for index in range(50)], n_test=40)


def test_pictures_are_decoded_once(
    tiny_base_set: Path,
    folders: Path,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--domains", "sketch", "--n", "4", "--draws", "1", "--methods", "picked"]
    assert run(capsys, tiny_base_set, folders, tmp_path, *options)[0] == EXIT_DONE
    monkeypatch.setattr("benchmarks.shifts.domains.pictures.load_folder_set", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("benchmarks.shifts.domains.pictures.tabulate", lambda *_, **__: pytest.fail("run again"))
    assert run(capsys, tiny_base_set, folders, tmp_path, *options, "--redo", "picked")[0] == EXIT_DONE


def test_the_base_sets_own_training_pictures_are_not_corrupted(tmp_path: Path, tiny_base_set: Path) -> None:
    """A recipe that split a folder itself: only the part that it held out comes back."""
    from training.evaluate import load_images
    from training.splits import DataSpec, load_splits

    manifest = load_base_set(tiny_base_set).manifest
    folder = make_domain(tmp_path / "own", 20, seed=3)
    spec = DataSpec(source="folder", path=str(folder), test_fraction=0.25, validation_fraction=0.2, in_memory=False)
    splits = load_splits(spec, manifest.input, folder)
    provenance = manifest.provenance.model_copy(
        update={"recipe": {"data": spec.model_dump(mode="json")}, "data_hash": splits.train.digest}
    )
    found = load_images(manifest.model_copy(update={"provenance": provenance}), folder)
    assert found.hashes == splits.test.hashes
    assert len(found) == 15


def found_of(accuracy: float) -> Found:
    return Found(accuracy=accuracy, forwards=1, seconds=2, cpu_seconds=1, passes=1, coefficients=None)


def make_record(domain: str, n: int, draw: int, method: str, accuracy: float) -> Record:
    return Record(
        domain=domain,
        n=n,
        draw=draw,
        method=method,
        unseen=10,
        found=found_of(accuracy),
        commit="x",
        machine="y",
    )


def test_accuracies_of_all_devices_count_but_only_times_of_cpus() -> None:
    here = make_record("art", 20, 0, "a", 0.5)
    there = make_record("art", 20, 1, "a", 0.7).model_copy(update={"device": "cuda"})
    values = Values([here, there, make_record("art", 20, 0, "b", 0.1).model_copy(update={"device": "cuda"})])
    estimate = values.estimate("art", "a", 20)
    assert estimate is not None
    assert (estimate.mean, estimate.draws) == (pytest.approx(0.6), 2)
    assert (values.timed("a", 20), values.timed("b", 20), values.num_elsewhere()) == ([here], [], 2)
    assert contract(values, 10)["seconds"] == {"a": {"20": 1.0}, "b": {}}
    study = Study(base_set="tiny", base_digest="0", seed=0, n_test=10, data={})
    text = markdown(study, values, [here, there])
    assert "2 results were made on a GPU" in text
    assert "| b | - | - |" in text.partition("## Cost of adapting")[2]


def test_corruptions_count_as_one_domain_and_errors_are_over_draws() -> None:
    rows = [("art", 0.5, 0.7), ("sketch", 0.3, 0.5), ("fog", 0.2, 0.2), ("snow", 0.4, 0.6)]
    records = [make_record(name, 20, draw, "a", row[draw]) for name, *row in rows for draw in (0, 1)]
    values = Values([*records, make_record("art", 20, 0, "b", 0.1)])
    assert values.families == ("art", "sketch", CORRUPTIONS)
    mean = values.estimate(MEAN, "a", 20)
    assert mean is not None
    assert mean.mean == pytest.approx(0.5)
    assert mean.error == pytest.approx(0.1)
    assert values.by_draw(CORRUPTIONS, "a", 20) == pytest.approx({0: 0.3, 1: 0.4})
    assert values.estimate(MEAN, "b", 20) is None  # sketch is missing
    difference = values.difference("art", "a", "b", 20)
    assert difference is not None
    assert (difference.mean, difference.error, difference.draws) == (pytest.approx(0.4), None, 1)


def test_the_plan_goes_draw_by_draw_and_keeps_training_to_fewer(tmp_path: Path) -> None:
    records = Lines(tmp_path / "records.jsonl", Record)
    plan = Plan(("art", "fog"), ("picked", "lp_ft", "eata", "fixed_linf"), (20, 100, 300), (0, 1), (100,), (0,))
    units = list(missing(plan, records, {"art": 1000, "fog": 100}))
    assert [unit.draw for unit in units] == sorted(unit.draw for unit in units)
    trained = [(unit.domain, unit.draw, unit.n) for unit in units if unit.methods == ("lp_ft",)]
    assert trained == [("art", 0, (100,)), ("fog", 0, (100,))]
    free = [(unit.domain, unit.draw, unit.n) for unit in units if unit.methods == ("eata",)]
    assert free == [("art", 0, (20, 100, 300)), ("fog", 0, (20, 100))]
    assert {unit.n for unit in units if unit.domain == "fog"} == {(20,), (100,), (20, 100)}
    for unit in units:
        for method in unit.methods:
            for n in unit.n:
                records.add(make_record(unit.domain, n, unit.draw, method, 0.5))
    assert list(missing(plan, records, {"art": 1000, "fog": 100})) == []


def test_a_ladder_with_a_stream_is_run_where_half_of_the_stream_is_there(tmp_path: Path) -> None:
    records = Lines(tmp_path / "records.jsonl", Record)
    methods = ("ladder", "ladder_stream", "ladder_stream_1000")
    pools = {"large": 700, "small": 250, "tiny": 110}
    plan = Plan(tuple(pools), methods, (20, 100), (0,), (), (), pools)
    found = [(unit.domain, unit.n, unit.methods) for unit in missing(plan, records, dict.fromkeys(pools, 100))]
    assert {domain for domain, _, names in found if names == ("ladder",)} == set(pools)
    assert [(domain, n) for domain, n, names in found if names == ("ladder_stream_1000",)] == [
        ("large", (20,)),
        ("large", (100,)),
    ]
    streams = [(domain, n) for domain, n, names in found if names == ("ladder_stream",)]
    assert streams == [("large", (20,)), ("large", (100,)), ("small", (20,)), ("small", (100,))]


# Choosing hyper-parameters on the other domains.


def test_what_suits_a_domain_is_chosen_on_the_others_and_corruptions_are_one() -> None:
    one = {"art": 0.9, "sketch": 0.1, "fog": 0.1, "snow": 0.1, "frost": 0.1}
    other = {"art": 0.2, "sketch": 0.4, "fog": 0.5, "snow": 0.5, "frost": 0.5}
    trials = Trials(
        command="",
        n_test=1,
        methods={
            "probe": (
                Trial(n=100, options={"penalty": 1}, accuracy=one),
                Trial(n=100, options={"penalty": 2}, accuracy=other),
            )
        },
        families={name: family_of(name) for name in one},
    )
    # On sketch: (0.9 + 0.1) / 2 against (0.2 + 0.5) / 2; three corruptions do not outvote art.
    assert trials.best("probe", 100, "sketch").options == {"penalty": 1}
    assert trials.best("probe", 100, "art").options == {"penalty": 2}
    assert trials.best("probe", 100, CORRUPTIONS).options == {"penalty": 1}
    with pytest.raises(ValueError, match="no shift of another family than a was tried"):
        Trials(
            command="", n_test=1, methods={"probe": (Trial(n=1, options={}, accuracy={"a": 1}),)}, families={"a": "a"}
        ).best("probe", 1, "a")


def test_tuning_tries_everything_is_resumed_and_is_chosen_from(
    tiny_base_set: Path,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = {
        "probe": {4: [Probing(penalty=penalty) for penalty in (0.001, 10)], 50: [Probing(penalty=1)]},
        "picked_bn": {12: [Recalibration(prior_images=4)]},
    }
    monkeypatch.setattr(tune, "grid_for", lambda manifest: grid)
    monkeypatch.setattr("benchmarks.shifts.tune_command.grid_for", lambda manifest: grid)
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    args = ["tune", str(tiny_base_set), "--folders", str(folders), "--data", str(folders / "photo"), "--n-test", "40"]
    args += ["--out", str(tmp_path / "out")]
    assert main([*args, "--domains", "sketch"]) == EXIT_BAD_INPUT
    assert "domains: expected two or more, got sketch" in capsys.readouterr().err
    whole = [*args, "--domains", "drawing,sketch,fog,contrast", "--json"]
    assert main([*whole, "--minutes", "1e-6"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["methods"] == {}
    assert not (tmp_path / "tuned.json").exists()
    assert main([*whole, "--methods", "picked_bn"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["methods"].keys() == tuned.read_trials()["tiny"].methods.keys()
    assert tuned.read_trials()["tiny"].methods.keys() == {"picked_bn"}
    assert main([*whole, "--methods", "probe", "--n", "4"]) == EXIT_DONE
    assert tuned.read_trials()["tiny"].methods.keys() == {"picked_bn", "probe"}  # what was entered before stays
    capsys.readouterr()
    assert main(whole) == EXIT_DONE
    lines = (tmp_path / "out" / "trials.jsonl").read_text()
    assert len(lines.splitlines()) == 4 * 3  # none at n = 50, for which there is no room
    known = tuned.read_trials()["tiny"]
    assert json.loads(capsys.readouterr().out)["methods"].keys() == known.methods.keys() == grid.keys()
    assert known.families["fog"] == CORRUPTIONS
    assert [(trial.n, len(trial.accuracy)) for trial in known.methods["probe"]] == [(4, 4), (4, 4)]
    assert main(whole) == EXIT_DONE
    assert (tmp_path / "out" / "trials.jsonl").read_text() == lines


def test_settings_of_the_ladder_are_compared_and_then_as_before(
    folders: Path, tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["settings", str(tiny_base_set), "--folders", str(folders), "--domains", "sketch,drawing"]
    args += ["--n", "12,20", "--n-test", "30", "--out", str(tmp_path), "--json"]
    before = head.PENALTIES, head.MIN_IMAGES, early.SHARE
    assert main([*args, "--only", "0,3"]) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)["settings"]
    assert {(row["setting"], row["domain"], row["n"]) for row in found} == {
        (list(settings.SETTINGS)[number], domain, n)
        for number in (0, 3)
        for domain in ("sketch", "drawing")
        for n in (12, 20)
    }
    assert main([*args, "--only", "0,7"]) == EXIT_DONE
    rows = {(row["setting"], row["n"]): row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert len(rows) == 6
    assert "head" not in rows[settings.AS_IT_IS, 20]["rungs"]
    assert "head" in {rung for (name, n), row in rows.items() if "from 20" in name and n == 20 for rung in row["rungs"]}
    assert before == (head.PENALTIES, head.MIN_IMAGES, early.SHARE)
    assert main([*args[:-1], "--minutes", "1e-9"]) == EXIT_DONE
    assert re.search(r"\| last layer from 20 images on \| [+-][\d.]+ \|", capsys.readouterr().out)


def test_every_setting_names_what_there_is(tiny_base_set: Path) -> None:
    prepared = PreparedBase(load_base_set(tiny_base_set))
    own = prepared.recalibrator._strengths
    for values in settings.SETTINGS.values():
        with settings.changed(values, prepared) as options:
            SearchConfig(**options)
            assert ("prior_images" in values) == (prepared.recalibrator._strengths != own)
        assert prepared.recalibrator._strengths == own


def test_untuned_rivals_take_the_middle_of_what_would_be_tried() -> None:
    assert middle("probe", 100) == Probing(penalty=1e-2)
    assert middle("finetune", 90) == middle("finetune_nominal", 100)
    assert set(RIVALS) - {"picked", "picked_bn_head"} == set(PHOTO_GRID) | set(SAME)


def test_default_methods_need_no_grid(tiny_base_set: Path) -> None:
    manifest = load_base_set(tiny_base_set).manifest
    default, known = set(default_methods(manifest)), set(photo_methods(manifest))
    assert not known & {"soup_grid", "soup_single", "soup_oracle"}
    assert known - default == {"ladder_quick", "ladder_full", "ladder_single"}
    assert {"ladder", "ladder_served", "probe", "lp_ft", "eata", "roid", "sar", "t3a", "finetune_nominal"} <= default


def test_a_study_grows_by_domains() -> None:
    study = Study(base_set="a", base_digest="b", seed=0, n_test=10, data={"art": "1"})
    more = study.model_copy(update={"data": {"sketch": "2"}})
    assert more.together(study).data == {"art": "1", "sketch": "2"}
    with pytest.raises(ValueError, match="has results of other pictures of art"):
        study.model_copy(update={"data": {"art": "3"}}).together(study)


def test_kept_pictures_are_those_that_were_given(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    data = ImageSet(images, np.arange(4) % 2, ("a", "b"), ("h0", "h1", "h2", "h3"))
    store = Store(tmp_path / "pictures")
    assert not store.has("x")
    store.keep("x", data, "digest")
    found = store.load("x")
    assert (store.digest("x"), found.hashes, found.class_names) == ("digest", data.hashes, data.class_names)
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, data.labels)
