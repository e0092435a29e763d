"""Recipes: everything that decides a training run, as one checked YAML file."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from training.data import Augmentation, DataSpec
from training.manifest import Architecture, Frozen, InputSpec, Name, ThreatModel, first_error

RECIPES = Path(__file__).parent / "recipes"


class AttackSpec(Frozen):
    """The attack inside adversarial training."""

    kind: Literal["fgsm", "apgd"] = Field(
        description="fgsm: one step from uniform noise (Linf only); apgd: several steps"
    )
    num_steps: int = Field(default=1, ge=1, le=200, description="gradient steps per batch")


class IngredientSpec(Frozen):
    """How one ingredient is trained."""

    name: Name
    parent: str | None = Field(
        default=None, description="earlier ingredient to start from; null: random initialisation"
    )
    objective: Literal["nominal", "adversarial"]
    threat_model: ThreatModel | None = Field(default=None, description="what to train against; null for nominal")
    attack: AttackSpec | None = None
    epochs: float = Field(gt=0, description="passes over the training images; may be a fraction")
    lr: float = Field(gt=0, description="peak learning rate of SGD")
    warmup_fraction: float = Field(default=0.2, ge=0, lt=1, description="share of the steps in which lr rises linearly")
    eps_ramp_fraction: float = Field(
        default=0.0, ge=0, le=1, description="share of the steps in which eps rises linearly from 0"
    )
    batch_size: int = Field(default=128, ge=2)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum")
    weight_decay: float = Field(default=5e-4, ge=0, description="of weights; biases and norm layers have none")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="per step, of the averaged weights that are kept")

    @model_validator(mode="after")
    def _check(self) -> "IngredientSpec":
        if self.objective == "nominal" and (self.threat_model or self.attack):
            raise ValueError(f"{self.name}: a nominal ingredient has neither threat_model nor attack")
        if self.objective == "adversarial":
            if self.threat_model is None or self.attack is None:
                raise ValueError(f"{self.name}: an adversarial ingredient needs threat_model and attack")
            if self.attack.kind == "fgsm" and self.threat_model.norm != "Linf":
                raise ValueError(f"{self.name}: attack fgsm is for Linf, use apgd for {self.threat_model.norm}")
        return self


class EvaluationSpec(Frozen):
    """What is measured on the test images after training and written into the manifest."""

    n: int = Field(default=500, ge=1, description="test images, balanced over classes")
    num_steps: int = Field(default=40, ge=1, description="APGD steps")
    threat_models: tuple[ThreatModel, ...] = Field(min_length=1)


class Recipe(Frozen):
    """A base set to be made: data, network, ingredients."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    data: DataSpec
    architecture: Architecture
    input: InputSpec
    augmentation: Augmentation = Augmentation()
    ingredients: tuple[IngredientSpec, ...] = Field(min_length=2, max_length=64)
    evaluation: EvaluationSpec

    @model_validator(mode="after")
    def _check_parents(self) -> "Recipe":
        seen: set[str] = set()
        for ingredient in self.ingredients:
            if ingredient.name in seen:
                raise ValueError(f"ingredients: the name {ingredient.name!r} appears more than once")
            if ingredient.parent is not None and ingredient.parent not in seen:
                raise ValueError(f"{ingredient.name}: its parent {ingredient.parent!r} is not an earlier ingredient")
            seen.add(ingredient.name)
        return self


def load_recipe(source: Path) -> Recipe:
    """Read a recipe from a YAML file, or by the name of a bundled one ("digits", "cifar10-small").

    Raises:
        ValueError: no such file, not YAML, or a field that is unknown or out of range (named).
    """
    path = source
    if not path.exists():
        path = RECIPES / f"{source.name.removesuffix('.yaml')}.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"{source}: no such recipe file, and no bundled recipe has this name: {names}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a YAML recipe: {' '.join(str(error).split())}") from None
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from None
