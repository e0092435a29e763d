import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import training.train
from training.bases import load_base_set
from training.cli import run
from training.objectives import OBJECTIVES, make_attack
from training.recipe import AttackSpec, Recipe, load_recipe
from training.train import train

PHASES = [
    {
        "name": "linf",
        "objective": "adversarial",
        "threat_model": {"norm": "Linf", "eps": "16/255"},
        "attack": {"kind": "fgsm"},
        "epochs": 2,
        "lr": 0.1,
        "batch_size": 32,
    },
    {"name": "nominal", "parent": "linf", "objective": "nominal", "epochs": 1.5, "lr": 0.05},
]


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
    save, calls = training.train.save_checkpoint, []

    def save_then_interrupt(*args: object) -> None:
        save(*args)
        calls.append(args)
        if len(calls) in (1, 3):  # after the first epoch of each ingredient
            raise KeyboardInterrupt

    monkeypatch.setattr(training.train, "save_checkpoint", save_then_interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe(), tmp_path / "tiny", seed=3)
    train(tiny_recipe(), tmp_path / "tiny", seed=3)
    found = load_base_set(tmp_path / "tiny").state_dicts
    for name, state_dict in load_base_set(trained).state_dicts.items():
        for key, tensor in state_dict.items():
            torch.testing.assert_close(found[name][key], tensor)


def test_another_recipe_does_not_continue_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.train, "save_checkpoint", interrupt)
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
        ({"ingredients": [PHASES[1], PHASES[0]]}, "its parent 'linf' is not an earlier ingredient"),
        ({"ingredients": [PHASES[0], PHASES[0]]}, "appears more than once"),
        ({"ingredients": [PHASES[0]]}, "at least 2 items"),
        ({"ingredients": [PHASES[0], PHASES[1] | {"threat_model": {"norm": "L2", "eps": 1}}]}, "neither threat_model"),
        ({"ingredients": [PHASES[0], PHASES[0] | {"name": "x", "attack": None}]}, "needs threat_model and attack"),
        ({"ingredients": [PHASES[0] | {"threat_model": {"norm": "L2", "eps": 1}}, PHASES[1]]}, "use apgd for L2"),
        ({"ingredients": [PHASES[0] | {"threat_model": {"norm": "Linf", "eps": 8}}, PHASES[1]]}, "did you mean 8/255"),
        ({"optimiser": "adam"}, "optimiser"),
    ],
)
def test_bad_recipes_name_the_field(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    raw = tiny_recipe().model_dump(mode="json") | changes
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "cifar10-small"])
def test_bundled_recipes_load_by_name(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == name
    assert [spec.name for spec in recipe.ingredients] == ["linf", "nominal", "l2", "l1"]


def test_attacks_of_a_recipe_scale_with_the_ramp() -> None:
    spec, threat = AttackSpec(kind="fgsm"), tiny_recipe().ingredients[0].threat_model
    assert threat is not None
    images, labels = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))
    for scale in (0.1, 1.0):
        attack = make_attack(spec, threat, scale=scale, generator=torch.Generator().manual_seed(0))
        assert attack is not None
        distance = (attack(model, images, labels) - images).abs().max()
        assert 0.9 * scale * threat.eps < distance <= scale * threat.eps + 1e-6
    assert make_attack(None, None, scale=1.0, generator=torch.Generator()) is None


def test_objectives_leave_gradients_on_parameters_only() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(768), torch.nn.Linear(768, 10))
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    spec, threat = AttackSpec(kind="apgd", num_steps=3), tiny_recipe().ingredients[0].threat_model
    attack = make_attack(spec, threat, scale=1.0, generator=torch.Generator().manual_seed(0))
    before = model[1].running_mean.clone()
    for name, objective in OBJECTIVES.items():
        loss = objective(model, images, labels, attack if name == "adversarial" else None, 0.0)
        assert model.training
        torch.autograd.backward(loss)
    assert images.grad is None
    assert model[2].weight.grad is not None
    assert not torch.equal(model[1].running_mean, before)  # the update, not the attack, moved the statistics
    assert int(model[1].num_batches_tracked) == len(OBJECTIVES)


def call(capsys: pytest.CaptureFixture[str], commands: Callable[[], int]) -> tuple[int, str, str]:
    code = commands()
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nothing", "--out", "x"], "no bundled recipe has this name: ['cifar10-small', 'digits']"),
        (["list", "nowhere"], "expected a folder of base sets"),
        (["evaluate", "nowhere"], "expected the manifest of a base set"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    from training.__main__ import COMMANDS

    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, lambda: run(COMMANDS, prog="training", description="", args=args))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_list_prints_one_json_object(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    from training.__main__ import COMMANDS

    args = ["list", str(trained.parent), "--json"]
    code, out, _ = call(capsys, lambda: run(COMMANDS, prog="training", description="", args=args))
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["bases"]] == ["tiny"]
