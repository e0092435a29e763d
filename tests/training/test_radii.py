"""Radii that a recipe leaves out follow the input size; norms that it leaves out are not attacked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.test_train import PHASES, tiny_recipe
from training.cli import run
from training.commands import COMMANDS
from training.compute import Compute
from training.listing import table
from training.recipe import Recipe, load_recipe
from training.train import train

LARGE = {"height": 160, "width": 160, "mean": [0.5] * 3, "std": [0.5] * 3}


def raw_recipe(**changes: Any) -> dict[str, Any]:
    return tiny_recipe().model_dump(mode="json") | changes


def radii(recipe: Recipe) -> dict[str, float]:
    return {threat.norm: threat.eps for threat in recipe.evaluation.threat_models}


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (16, {"Linf": 8 / 255, "L2": 0.5, "L1": 12}),
        (160, {"Linf": 4 / 255, "L2": 2 * 160 / 224, "L1": 255 * (160 / 224) ** 2}),
        (224, {"Linf": 4 / 255, "L2": 2, "L1": 255}),
    ],
)
@pytest.mark.parametrize("evaluation", [None, {}, {"n": 20}])
def test_an_evaluation_without_threat_models_has_all_at_the_usual_radii(
    side: int, expected: dict[str, float], evaluation: dict[str, int] | None
) -> None:
    raw = raw_recipe(input=LARGE | {"height": side, "width": side})
    raw.pop("evaluation")
    recipe = Recipe.model_validate(raw if evaluation is None else raw | {"evaluation": evaluation})
    assert radii(recipe) == pytest.approx(expected)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_threat_model_without_a_radius_has_the_usual_one() -> None:
    l2 = {"name": "l2", "objective": "adversarial", "threat_models": [{"norm": "L2"}], "parent": "linf"}
    l2 |= {"attack": {"kind": "apgd", "num_steps": 2}, "epochs": 1, "lr": 0.1}
    linf = PHASES[0] | {"threat_models": [{"norm": "Linf", "eps": "1/255"}]}
    evaluation = {"threat_models": [{"norm": "Linf"}, {"norm": "L2", "eps": 1}]}
    recipe = Recipe.model_validate(raw_recipe(input=LARGE, ingredients=[linf, l2], evaluation=evaluation))
    assert radii(recipe) == pytest.approx({"Linf": 4 / 255, "L2": 1})
    trained = [spec.threat_models[0].eps for spec in recipe.ingredients]
    assert trained == pytest.approx([1 / 255, 2 * 160 / 224])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"threat_models": [{"norm": "linf"}]}},
            "evaluation.threat_models.0.norm: expected one of Linf, L2, L1, got 'linf'",
        ),
        ({"evaluation": {"threat_models": []}}, "evaluation.threat_models: Tuple should have at least 1 item"),
        ({"evaluation": {"threat_models": ["Linf"]}}, "evaluation.threat_models.0: "),
        ({"evaluation": None}, "evaluation: "),
        ({"input": {"height": "tall"}}, "input.height: "),
        ({"input": {"height": 0}}, "input.height: "),
        ({"input": None}, "input: "),
        ({"ingredients": ["linf"]}, "ingredients.0: "),
    ],
)
def test_what_is_no_recipe_stays_an_error_that_names_the_field(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(json.dumps(raw_recipe(**changes)))
    with pytest.raises(ValueError, match=re.escape(f"bad.yaml: {message}")):
        load_recipe(tmp_path / "bad.yaml")


def test_a_norm_that_the_recipe_omits_is_attacked_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"n": 20, "num_steps": 2, "threat_models": [{"norm": "L2", "eps": 1}]}
    quick = [PHASES[0] | {"epochs": 0.2}, PHASES[1] | {"epochs": 0.2}]
    recipe = tiny_recipe(ingredients=quick, evaluation=evaluation)
    manifest = train(recipe, tmp_path / "tiny", compute=Compute(device="cpu"))
    assert manifest is not None
    for ingredient in manifest.ingredients:
        assert set(ingredient.metrics) == {"clean", "L2", "union"}
        assert ingredient.metrics["union"].attack == "worst case over L2"
        assert ingredient.metrics["union"].value == ingredient.metrics["L2"].value
    assert table([manifest]).splitlines()[1].split()[4:] == [
        f"{manifest.ingredients[0].metrics['clean'].value:.3f}",
        "-",
        f"{manifest.ingredients[0].metrics['L2'].value:.3f}",
        "-",
        f"{manifest.ingredients[0].metrics['union'].value:.3f}",
        "20",
    ]
    args = ["evaluate", str(tmp_path / "tiny"), "--n", "20", "--steps", "2"]
    assert run(COMMANDS, prog="training", description="", args=args) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["ingredient", "clean", "L2", "1", "union"]
