"""Recipes: everything that decides a training run, as one checked YAML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from training.augmentation import Augmentation
from training.documents import Frozen, first_error
from training.manifest import Architecture, InputSpec, Name, ThreatModel
from training.objectives import OBJECTIVES, AttackSpec, Objective
from training.splits import DataSpec
from training.start import Start
from training.threat import default_threats

RECIPES = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0, le=1)]


class Selection(Frozen):
    """Which epoch's weights are kept: those that stand best against the ingredient's own threat models."""

    n: int = Field(default=500, ge=1, description="validation images, balanced over classes")
    num_steps: int = Field(default=10, ge=1, description="APGD steps, cross-entropy")


class IngredientSpec(Frozen):
    """How one ingredient is trained."""

    name: Name
    parent: str | None = Field(
        default=None, description="earlier ingredient to start from; null: the recipe's start, or random weights"
    )
    keep: bool = Field(
        default=True, description="false: a stage that others start from, and that is left out of the base set"
    )
    objective: str = Field(description=f"one of {', '.join(sorted(OBJECTIVES))}")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="of the objective, such as beta of trades")
    threat_models: tuple[ThreatModel, ...] = Field(
        default=(),
        max_length=16,
        description="what to train against; none for nominal, several for sat, avg, ...; an eps left out is the usual "
        "one for the input size",
    )
    attack: AttackSpec | None = None
    epochs: float = Field(gt=0, description="passes over the training images; may be a fraction")
    lr: float = Field(gt=0, description="peak learning rate")
    head_lr_factor: float = Field(
        default=1.0, gt=0, description="multiplies the learning rate of the last layer, for one that is new"
    )
    warmup_fraction: float = Field(default=0.2, ge=0, lt=1, description="share of the steps in which lr rises linearly")
    milestones: tuple[Share, ...] = Field(
        default=(), description="shares of the steps at which lr is divided by 10; none: half a cosine down to zero"
    )
    eps_ramp_fraction: float = Field(
        default=0.0, ge=0, le=1, description="share of the steps in which eps rises linearly from 0"
    )
    batch_size: int = Field(default=128, ge=2, description="images per step, over all processes")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum of sgd, first beta of adamw")
    second_moment: float = Field(default=0.95, ge=0, lt=1, description="second beta of adamw")
    weight_decay: float = Field(
        default=5e-4, ge=0, description="of matrices and kernels that the network does not exempt"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="per step, of the averaged weights that are kept")
    selection: Selection | None = Field(default=None, description="null: the last epoch's weights are kept")

    @model_validator(mode="after")
    def _check(self) -> "IngredientSpec":
        objective = OBJECTIVES.get(self.objective)
        if objective is None:
            raise ValueError(f"{self.name}: expected objective to be one of {sorted(OBJECTIVES)}, got {self.objective}")
        expected = {"none": (0, 0), "one": (1, 1), "several": (2, 16)}[objective.num_threats]
        if not expected[0] <= len(self.threat_models) <= expected[1]:
            wanted = {"none": "no", "one": "one", "several": "two or more"}[objective.num_threats]
            raise ValueError(
                f"{self.name}: objective {self.objective} takes {wanted} threat_models, got {len(self.threat_models)}"
            )
        if objective.needs_attack != (self.attack is not None):
            wanted = "needs an attack" if objective.needs_attack else "takes no attack"
            raise ValueError(f"{self.name}: objective {self.objective} {wanted}")
        self._check_attack(objective)
        self._check_unused(objective)
        self.objective_options()
        return self

    def _check_attack(self, objective: Objective) -> None:
        """Refuse norms, kinds of attack and losses that the objective would not use."""
        if self.attack is None:
            return
        taken: list[tuple[str, str, Sequence[str]]] = [
            ("attack.kind", self.attack.kind, objective.kinds),
            ("attack.loss", self.attack.loss, objective.losses),
            *(("threat_models with norm", threat.norm, objective.norms) for threat in self.threat_models),
        ]
        for field, given, expected in taken:
            if given not in expected:
                raise ValueError(
                    f"{self.name}: objective {self.objective} takes {field} {' or '.join(expected)}, got {given}"
                )
        for threat in self.threat_models:
            if self.attack.kind == "fgsm" and threat.norm != "Linf":
                raise ValueError(f"{self.name}: attack fgsm is for Linf, use apgd for {threat.norm}")
            self.attack.steps(threat.norm)

    def _check_unused(self, objective: Objective) -> None:
        """Refuse settings that nothing would read."""
        if self.eps_ramp_fraction > 0 and objective.num_threats == "none":
            raise ValueError(f"{self.name}: eps_ramp_fraction needs threat_models, objective {self.objective} has none")
        if self.optimizer == "sgd" and self.second_moment != type(self).model_fields["second_moment"].default:
            raise ValueError(f"{self.name}: second_moment is for adamw, got optimizer sgd")

    def objective_options(self) -> BaseModel:
        """Return the objective's options, checked.

        Raises:
            ValueError: an unknown one, or a value of another type.
        """
        try:
            return OBJECTIVES[self.objective].options.model_validate(self.options)
        except ValidationError as error:
            raise ValueError(f"{self.name}: options.{first_error(error)}") from None


class EvaluationSpec(Frozen):
    """Measurements on the test images after training, written into the manifest."""

    n: int = Field(default=500, ge=1, description="test images, balanced over classes")
    num_steps: int = Field(default=40, ge=1, description="APGD steps")
    threat_models: tuple[ThreatModel, ...] = Field(
        min_length=1,
        description="what is attacked with; an eps left out is the usual one for the input size, and so are all three "
        "where no norm is named",
    )


class Recipe(Frozen):
    """A base set to be made: data, network, ingredients."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    inherits: tuple[Name, ...] = Field(
        default=(), description="ingredients that the base set given with --from must have, to be parents here"
    )
    data: DataSpec
    architecture: Architecture
    input: InputSpec
    start: Start | None = Field(default=None, description="weights to start from; null: random ones")
    augmentation: Augmentation = Augmentation()
    ingredients: tuple[IngredientSpec, ...] = Field(min_length=1, max_length=64)
    evaluation: EvaluationSpec

    @model_validator(mode="before")
    @classmethod
    def _fill_radii(cls, raw: Any) -> Any:
        """Give threat models without `eps` the usual radius for the input size, and an evaluation without any all."""
        if not isinstance(raw, dict) or (usual := _usual_radii(raw.get("input"))) is None:
            return raw
        filled = dict(raw)
        evaluation = raw.get("evaluation", {})
        if isinstance(evaluation, dict):
            everything = [{"norm": norm, "eps": eps} for norm, eps in usual.items()]
            filled["evaluation"] = _with_radii({"threat_models": everything} | evaluation, usual)
        if isinstance(ingredients := raw.get("ingredients"), list):
            filled["ingredients"] = [_with_radii(ingredient, usual) for ingredient in ingredients]
        return filled

    @model_validator(mode="after")
    def _check_data(self) -> "Recipe":
        if self.augmentation.crop is not None and self.data.in_memory:
            raise ValueError("augmentation.crop needs the original files: set data.in_memory to false")
        for ingredient in self.ingredients:
            if self.augmentation.mixes and ingredient.attack is not None and ingredient.attack.loss != "kl":
                raise ValueError(f"{ingredient.name}: mixed images have no one label to attack, use attack loss kl")
        return self

    @model_validator(mode="after")
    def _check_parents(self) -> "Recipe":
        seen: set[str] = set(self.inherits)
        for ingredient in self.ingredients:
            if ingredient.name.casefold() in {name.casefold() for name in seen}:
                raise ValueError(f"ingredients: the name {ingredient.name!r} appears more than once")
            if ingredient.parent is not None and ingredient.parent not in seen:
                raise ValueError(f"{ingredient.name}: its parent {ingredient.parent!r} is not an earlier ingredient")
            seen.add(ingredient.name)
        if not any(ingredient.keep for ingredient in self.ingredients):
            raise ValueError("ingredients: all of them have keep: false, so there is nothing to write")
        if self.start is not None and all(ingredient.parent is not None for ingredient in self.ingredients):
            raise ValueError("start: every ingredient has a parent, so nothing starts from these weights")
        return self

    def start_file(self, override: Path | None = None) -> Path | None:
        """Return the file of the weights to start from; None for timm's own, or random ones.

        Args:
            override: a file to read instead of the one named here.

        Raises:
            ValueError: there is no such file, or nothing starts from the one given.
        """
        if self.start is not None:
            return self.start.file(override)
        if override is not None:
            raise ValueError("--weights: the recipe has no start, so nothing begins with these weights")
        return None

    @property
    def kept(self) -> tuple[IngredientSpec, ...]:
        """The ingredients that the base set has."""
        return tuple(ingredient for ingredient in self.ingredients if ingredient.keep)

    def kept_parent(self, spec: IngredientSpec) -> str | None:
        """Return the nearest ancestor that the base set has; None if there is none."""
        by_name = {ingredient.name: ingredient for ingredient in self.ingredients}
        name = spec.parent
        while name in by_name and not by_name[name].keep:
            name = by_name[name].parent
        return name


def _usual_radii(size: object) -> dict[str, float] | None:
    """Return the usual radius of each norm for an input, as it stands in the file; None where it has no size."""
    if isinstance(size, InputSpec):
        size = size.model_dump()
    if not isinstance(size, dict):
        return None
    height, width = size.get("height"), size.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        return None
    return {threat.norm: threat.eps for threat in default_threats(height, width)}


def _with_radii(section: Any, usual: Mapping[str, float]) -> Any:
    """Return a part of a recipe, as it stands in the file, with radii where its threat models have none."""
    if not isinstance(section, dict) or not isinstance(threats := section.get("threat_models"), list):
        return section
    filled = [
        {**threat, "eps": usual[threat["norm"]]}
        if isinstance(threat, dict) and "eps" not in threat and threat.get("norm") in usual
        else threat
        for threat in threats
    ]
    return {**section, "threat_models": filled}


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
