"""The `init` command: look at a folder of photographs and write a recipe for it, with the reasons."""

import json
import os
import re
from pathlib import Path
from string import Template
from typing import Annotated, ClassVar

import yaml
from pydantic import Field

from training.choosing import ARCH, Plan, choose, spelled
from training.cli import Command, Result
from training.contents import Contents, look_at
from training.files import replace_file
from training.manifest import Norm
from training.parameters import Positional
from training.recipe import Recipe
from training.splits import VALIDATION_FRACTION
from training.start import PRETRAINED

MAX_TESTED = 100  # images that are attacked after training

_RECIPE = Template("""\
# Four ingredients, drafted by `saucier init`. All of it may be changed.
#
# The chain: `pretraining` learns the classes and is not kept; `linf` is fine-tuned from it against an attacker, with a
# learning rate that rises slowly and decays fast; `l2` and `l1` are fine-tuned from `linf`. `nominal` goes on without
# an attacker for as many epochs as `linf` and `l2` have together: no ingredient is trained longer than another.
#
# `saucier train FILE --dry-run` measures how long this takes here. To save time: fewer epochs (a run with
# `--epochs-scale 0.5`), fewer steps of the attack of `l1`, or a smaller input, with the radii for it.
name: $name
data:
  source: folder
  path: $path
$split  in_memory: $in_memory
architecture: {name: $arch}
# The shorter sides of the images have a median of $short_side pixels.
input: {height: $side, width: $side, mean: $mean, std: $std, resize: $resize}
# $weights_are. The last layer is new, for $num_classes classes.
start: {weights: $weights, head: new}
augmentation: {$change, flip: true}  # flip: false where left and right differ, as in writing
# $num_train training images: $steps steps of $batch_size an epoch.
ingredients:
$ingredients\
# A quick look after training; `saucier evaluate` measures more thoroughly. The radii, here and above, are
# half the usual ones for the input size: smaller radii cost less accuracy on clean images.
evaluation:
  n: $num_tested
  num_steps: 10
  threat_models: [$threats]
""")
_INGREDIENT = Template("""\
  - name: $name$own
    epochs: $epochs
    lr: $lr
    warmup_fraction: $warmup
    batch_size: $batch_size
    optimizer: adamw
    weight_decay: 0.02
    ema_decay: 0.98
""")
# By ingredient: what only it has, its peak learning rate, and the share of its steps in which that rises.
_INGREDIENTS = {
    "pretraining": (("keep: false", "objective: nominal", "head_lr_factor: 10"), 0.0005, 0.2),
    "nominal": (("parent: pretraining", "objective: nominal"), 0.0005, 0.6),
    "linf": (("parent: pretraining", "$Linf", "attack: {kind: apgd, num_steps: 2}"), 0.0005, 0.6),
    "l2": (("parent: linf", "$L2", "attack: {kind: apgd, num_steps: 3}"), 0.0003, 0.4),
    "l1": (("parent: linf", "$L1", "attack: {kind: apgd, num_steps: 20}"), 0.0003, 0.4),
}


class Init(Command):
    """Look at a folder of photographs, one folder per class, and write a recipe for it.

    Prints what was found, what was chosen and why. Nothing is trained; edit the recipe, then try it by a dry run.

    Example: saucier init photographs --weights .data/efficientnet-lite0.safetensors
    """

    name: ClassVar[str] = "init"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    folder: Annotated[Path, Positional] = Field(
        description="one folder of images per class; or train/ with such folders, and test/ or val/"
    )
    out: Path | None = Field(default=None, description="the new recipe; default: the folder's name with .yaml")
    weights: Path | None = Field(
        default=None, description="file of the network's weights to start from; default: timm's, from its hub"
    )
    arch: str = Field(default=ARCH, description="network, by its name in timm's registry")
    size: int | None = Field(
        default=None, ge=16, le=1024, description="input height and width in pixels; default: by the images"
    )
    check: int = Field(
        default=10_000, ge=1, description="images to decode, to see whether they can be; all if there are fewer"
    )

    def execute(self) -> Result:
        """Look, choose, write."""
        name = _slug(self.folder)
        out = self.out or Path(f"{name}.yaml")
        if out.suffix not in (".yaml", ".yml"):
            raise ValueError(f"--out: expected a file ending in .yaml, got {out}")
        if out.exists():
            raise FileExistsError(f"{out}: already exists; choose another --out or remove it")
        contents = look_at(self.folder, check=self.check)
        plan = choose(contents, arch=self.arch, weights=self.weights, side=self.size)
        text = write_recipe(plan, contents, name=name, path=str(self.folder))
        recipe = Recipe.model_validate(yaml.safe_load(text))
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, lambda partial: partial.write_text(text, encoding="utf-8"), mode=0o644)
        data = {
            "recipe": recipe.model_dump(mode="json"),
            "file": str(out),
            "classes": contents.counts(),
            "parts": {part: len(files) for part, files in contents.parts.items()},
            "median_size": [contents.short_side, contents.long_side],
            "imbalance": round(contents.imbalance, 2),
            "unreadable": dict(contents.unreadable),
            "passed_over": dict(contents.passed_over),
            "chosen": {choice.what: {"value": choice.value, "why": choice.why} for choice in plan.choices},
        }
        width = max(len(choice.value) for choice in plan.choices)
        chosen = "\n".join(f"  {choice.what:9} {choice.value:{width}}  {choice.why}" for choice in plan.choices)
        next_step = f"wrote {out}; next: saucier train {out} --dry-run"
        return Result(data, f"{contents.text()}\nchosen:\n{chosen}\n{next_step}")


def write_recipe(plan: Plan, contents: Contents, *, name: str, path: str) -> str:
    """Return the recipe as commented YAML.

    Args:
        plan: what was chosen.
        contents: of the folder.
        name: of the base set.
        path: of the folder, as the recipe is to name it.
    """
    spec = plan.input_spec
    threats = {norm: f"{{norm: {norm}, eps: {spelled(norm, eps)}}}" for norm, eps in plan.radii.items()}
    split = f"  test_fraction: {plan.test_fraction:g}  # of every class, held out\n" if plan.test_fraction else ""
    if "validation" not in contents.parts:
        split += f"  validation_fraction: {VALIDATION_FRACTION:g}  # of every class's other images\n"
    hub = "The weights are timm's, from its hub; `--weights FILE` of a run reads them from a file instead"
    file = "The weights are in a file; `--weights FILE` of a run names another place"
    return _RECIPE.substitute(
        name=json.dumps(name),
        path=json.dumps(path, ensure_ascii=False),
        split=split,
        in_memory="true  # decoded once" if plan.is_in_memory else "false  # decoded for each random crop",
        arch=plan.arch,
        short_side=contents.short_side,
        side=spec.height,
        mean=list(spec.mean),
        std=list(spec.std),
        resize=spec.resize,
        weights_are=hub if plan.weights == PRETRAINED else file,
        num_classes=len(contents.class_names),
        weights=json.dumps(plan.weights, ensure_ascii=False),
        change=f"pad: {spec.height // 8}" if plan.is_in_memory else "crop: [0.35, 1]",
        num_train=f"{plan.num_train:,}",
        steps=max(1, plan.num_train // plan.batch_size),
        batch_size=plan.batch_size,
        ingredients="".join(_ingredient(plan, ingredient, threats) for ingredient in _INGREDIENTS),
        num_tested=min(MAX_TESTED, plan.num_test),
        threats=", ".join(threats.values()),
    )


def _ingredient(plan: Plan, name: str, threats: dict[Norm, str]) -> str:
    own, lr, warmup = _INGREDIENTS[name]
    against: dict[str, str] = {
        norm: f"objective: adversarial\n    threat_models: [{threat}]" for norm, threat in threats.items()
    }
    return _INGREDIENT.substitute(
        name=name,
        own="".join(f"\n    {Template(line).substitute(against)}" for line in own),
        epochs=f"{plan.epochs[name]:g}",
        lr=lr,
        warmup=warmup,
        batch_size=plan.batch_size,
    )


def _slug(folder: Path) -> str:
    """Return a name for a base set, made of the folder's as it was given: a link keeps its own."""
    name = Path(os.path.abspath(folder)).name.lower()  # noqa: PTH100 (resolve would follow the link)
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")[:63].strip("-") or "photographs"
