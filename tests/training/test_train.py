import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.bases import load_base_set
from training.cli import run
from training.fit import Fit
from training.recipe import RECIPES, Recipe, load_recipe
from training.train import train

PHASES = [
    {
        "name": "linf",
        "objective": "adversarial",
        "threat_models": [{"norm": "Linf", "eps": "16/255"}],
        "attack": {"kind": "fgsm"},
        "epochs": 2,
        "lr": 0.1,
        "batch_size": 32,
    },
    {"name": "nominal", "parent": "linf", "objective": "nominal", "epochs": 1.5, "lr": 0.05},
]

TWO = [{"norm": "Linf", "eps": 0.1}, {"norm": "L2", "eps": 1}]
CE = {"kind": "apgd", "num_steps": 2}
KL = CE | {"loss": "kl"}


def tiny_recipe(**changes: object) -> Recipe:
    raw = load_recipe(Path("digits")).model_dump(mode="json")
    raw |= {
        "name": "tiny",
        "architecture": {"name": "saucier_resnet", "kwargs": {"widths": [8, 16], "depths": [1, 1], "stem_stride": 2}},
        "ingredients": PHASES,
        "evaluation": {"n": 20, "num_steps": 3, "threat_models": [{"norm": "Linf", "eps": 0.1}]},
    }
    return Recipe.model_validate(raw | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    train(tiny_recipe(), folder, seed=3)
    return folder


def test_a_run_ends_in_a_verified_base_set(trained: Path) -> None:
    base = load_base_set(trained)
    manifest = base.manifest
    assert manifest.ingredient_names == ("linf", "nominal")
    assert [ingredient.parent for ingredient in manifest.ingredients] == [None, "linf"]
    assert sorted(manifest.default_coefficients.values()) == [0.0, 1.0]
    metrics = manifest.ingredients[0].metrics
    assert set(metrics) == {"clean", "Linf", "union"}
    assert (metrics["clean"].n, metrics["Linf"].n) == (600, 20)
    assert metrics["clean"].value > 0.25  # after four epochs; chance is 0.1
    assert manifest.provenance.seed == 3
    assert not list(trained.parent.glob(".*.partial"))


def test_the_log_has_a_line_per_epoch(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["ingredient"], row["epoch"]) for row in rows] == [
        ("linf", 1), ("linf", 2), ("nominal", 1), ("nominal", 2)
    ]  # fmt: skip
    assert rows[1]["loss"] < rows[0]["loss"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained: Path, tmp_path: Path) -> None:
    train(tiny_recipe(), tmp_path / "again", seed=3)
    train(tiny_recipe(), tmp_path / "other", seed=4)
    expected, again, other = (load_base_set(f).state_dicts for f in (trained, tmp_path / "again", tmp_path / "other"))
    for name, state_dict in expected.items():
        for key, tensor in state_dict.items():
            torch.testing.assert_close(again[name][key], tensor)
    assert not torch.allclose(other["linf"]["head.weight"], expected["linf"]["head.weight"])


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls, handler = Fit.update, [], signal.getsignal(signal.SIGINT)

    def update_then_interrupt(fit: Fit, *batch: torch.Tensor) -> float:
        loss = update(fit, *batch)
        calls.append(loss)
        if len(calls) in (5, 31, 62, 68):  # within an epoch, at the end of one, of an ingredient, within the next
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Fit, "update", update_then_interrupt)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe(), tmp_path / "tiny", seed=3)
    train(tiny_recipe(), tmp_path / "tiny", seed=3)
    found = load_base_set(tmp_path / "tiny").state_dicts
    for name, state_dict in load_base_set(trained).state_dicts.items():
        for key, tensor in state_dict.items():
            assert torch.equal(found[name][key], tensor)
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "tiny", trained)
    )
    assert [row | {"seconds": 0} for row in ours] == [row | {"seconds": 0} for row in theirs]
    assert signal.getsignal(signal.SIGINT) is handler  # which ignores it where the tests run in the background


def test_another_recipe_does_not_continue_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "tiny")
    changed = [PHASES[0] | {"lr": 0.2}, PHASES[1]]
    with pytest.raises(ValueError, match="unfinished run of another recipe"):
        train(tiny_recipe(ingredients=changed), tmp_path / "tiny")
    with pytest.raises(ValueError, match="unfinished run of another recipe, seed"):
        train(tiny_recipe(), tmp_path / "tiny", seed=1)


def test_a_finished_base_set_is_never_overwritten(trained: Path) -> None:
    with pytest.raises(FileExistsError, match="already exists"):
        train(tiny_recipe(), trained, seed=3)


def test_a_diverging_run_stops_before_it_spoils_the_checkpoint(tmp_path: Path) -> None:
    hot = [
        {"name": "a", "objective": "nominal", "epochs": 2, "lr": 1e30, "warmup_fraction": 0},
        PHASES[0] | {"parent": "a"},
    ]
    with pytest.raises(FloatingPointError, match=r"a: the loss is (nan|inf) at step \d+"):
        train(tiny_recipe(ingredients=hot), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": {"crop": [0.1, 1]}}, "set data.in_memory to false"),
        ({"augmentation": {"mixup": 0.8}}, "linf: mixed images have no one label to attack"),
        ({"ingredients": [PHASES[1], PHASES[0]]}, "its parent 'linf' is not an earlier ingredient"),
        ({"ingredients": [PHASES[0], PHASES[0]]}, "appears more than once"),
        ({"ingredients": []}, "at least 1 item"),
        ({"ingredients": [PHASES[1] | {"objective": "madry"}]}, "one of ."),
        ({"ingredients": [PHASES[0] | {"options": {"beta": 6}}]}, "options.beta"),
        ({"ingredients": [PHASES[0] | {"objective": "sat"}]}, "sat takes two or more threat_models, got 1"),
        ({"ingredients": [PHASES[0] | {"attack": {"kind": "apgd", "num_steps": {"L2": 3}}}]}, "steps for Linf, got 0"),
        (
            {"ingredients": [PHASES[0], PHASES[1] | {"threat_models": [{"norm": "L2", "eps": 1}]}]},
            "takes no threat_models, got 1",
        ),
        (
            {"ingredients": [PHASES[0], PHASES[0] | {"name": "x", "attack": None}]},
            "objective adversarial needs an attack",
        ),
        ({"ingredients": [PHASES[0] | {"threat_models": [{"norm": "L2", "eps": 1}]}, PHASES[1]]}, "use apgd for L2"),
        (
            {"ingredients": [PHASES[0] | {"threat_models": [{"norm": "Linf", "eps": 8}]}, PHASES[1]]},
            "did you mean 8/255",
        ),
        ({"optimiser": "adam"}, "optimiser"),
        ({"ingredients": [PHASES[0] | {"name": "moments"}]}, "moments.safetensors of a base set is for its moments"),
        ({"ingredients": [PHASES[0] | {"name": "Moments-0123abcd"}]}, "choose another name"),
        ({"ingredients": [PHASES[0], PHASES[0] | {"name": "Linf"}]}, "'Linf' appears more than once"),
        ({"ingredients": [PHASES[0] | {"attack": {"kind": "fgsm", "loss": "kl"}}]}, "fgsm is one step on the loss ce"),
        ({"ingredients": [PHASES[0] | {"attack": {"kind": "fgsm", "num_steps": 2}}]}, "got num_steps 2 and loss ce"),
        (
            {"ingredients": [PHASES[0] | {"objective": "advprop"}]},
            "objective advprop takes attack.kind apgd, got fgsm",
        ),
        (
            {"ingredients": [PHASES[0] | {"objective": "advprop", "attack": KL}]},
            "objective advprop takes attack.loss ce, got kl",
        ),
        (
            {"ingredients": [PHASES[0] | {"objective": "pyramid-at", "attack": KL}]},
            "objective pyramid-at takes attack.loss ce, got kl",
        ),
        (
            {
                "augmentation": {"mixup": 0.8},
                "ingredients": [PHASES[0] | {"objective": "msd", "attack": KL, "threat_models": TWO}],
            },
            "objective msd takes attack.loss ce, got kl",
        ),
        (
            {"ingredients": [PHASES[0] | {"objective": "pyramid-at", "attack": CE, "threat_models": TWO[1:]}]},
            "objective pyramid-at takes threat_models with norm Linf, got L2",
        ),
        ({"ingredients": [PHASES[1] | {"parent": None, "eps_ramp_fraction": 0.3}]}, "eps_ramp_fraction needs threat"),
        ({"ingredients": [PHASES[0] | {"second_moment": 0.9}]}, "second_moment is for adamw, got optimizer sgd"),
    ],
)
def test_bad_recipes_name_the_field(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    raw = tiny_recipe().model_dump(mode="json") | changes
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_bundled_recipes_load_by_name(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == name
    kept = [*recipe.inherits, *(spec.name for spec in recipe.ingredients if spec.keep)]
    assert sorted(kept) == ["l1", "l2", "linf", "nominal"]


def call(capsys: pytest.CaptureFixture[str], commands: Callable[[], int]) -> tuple[int, str, str]:
    code = commands()
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["run", "nothing", "--out", "x"],
            "no bundled recipe has this name: ['cifar10', 'cifar10-short', 'cifar10-small', 'cifar10-small-ln', ",
        ),
        (["list", "nowhere"], "expected a folder of base sets"),
        (["evaluate", "nowhere"], "expected the manifest of a base set"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    from training.commands import COMMANDS

    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, lambda: run(COMMANDS, prog="training", description="", args=args))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_list_prints_one_json_object(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    from training.commands import COMMANDS

    args = ["list", str(trained.parent), "--json"]
    code, out, _ = call(capsys, lambda: run(COMMANDS, prog="training", description="", args=args))
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["bases"]] == ["tiny"]
