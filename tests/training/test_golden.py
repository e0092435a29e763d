"""Ten losses of every kind of training, and the size of the averaged weights after them, as they were recorded.

A refactor must give the same. A change that moves them on purpose records them again, and says so:
`python -m tests.training.test_golden`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_train import PHASES, tiny_recipe
from training.augmentation import Augmentation
from training.compute import Compute
from training.fit import Fit, Place
from training.models import create_classifier
from training.splits import load_splits

GOLDEN = Path(__file__).parents[1] / "golden" / "training.json"
NUM_STEPS = 10
LINF, L1 = {"norm": "Linf", "eps": 0.1}, {"norm": "L1", "eps": 10}
VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}}
CASES: dict[str, dict[str, Any]] = {
    "fgsm with a ramp": {"eps_ramp_fraction": 0.5},
    "eat": {"objective": "eat", "threat_models": [LINF, L1]},
    "max": {"objective": "max", "threat_models": [LINF, L1]},
    "msd": {"objective": "msd", "threat_models": [LINF, L1]},
    "trades": {"objective": "trades", "attack": {"kind": "apgd", "num_steps": 2, "loss": "kl"}},
    "advprop": {"objective": "advprop"},
    "pyramid": {"objective": "pyramid-at", "options": {"scales": [8, 4, 1]}},
    "adamw": {
        "objective": "nominal", "threat_models": [], "attack": None, "optimizer": "adamw", "lr": 0.002,
        "label_smoothing": 0.1, "weight_decay": 0.05,
    },
}  # fmt: skip


def measured(case: str) -> dict[str, Any]:
    """Train for ten steps and return the losses and the sum of the absolute averaged weights."""
    attack = {} if case == "fgsm with a ramp" else {"attack": {"kind": "apgd", "num_steps": 2}}
    settings = PHASES[0] | {"batch_size": 32, "epochs": NUM_STEPS / 31} | attack | CASES[case]
    changes = {"architecture": VIT} if case == "adamw" else {}
    recipe = tiny_recipe(ingredients=[settings], **changes)
    compute = Compute(device="cpu")
    splits = load_splits(recipe.data, recipe.input)
    torch.manual_seed(0)
    classifier = create_classifier(recipe.architecture, recipe.input, 10)
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(compute.accelerator(), compute, Path(folder))
        fit = Fit(recipe.ingredients[0], classifier, splits, Augmentation(pad=1), seed=0, place=place)
        update = fit.update
        fit.update = lambda *batch: losses.append(update(*batch)) or losses[-1]  # type: ignore[method-assign, func-returns-value]
        average = fit.fit()
    size = sum(float(tensor.abs().sum()) for tensor in average.values() if tensor.is_floating_point())
    return {"losses": losses, "average": size}


@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_recorded_losses(case: str) -> None:
    expected = json.loads(GOLDEN.read_text())[case]
    found = measured(case)
    assert len(found["losses"]) == NUM_STEPS
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["average"] == pytest.approx(expected["average"], rel=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({case: measured(case) for case in CASES}, indent=1) + "\n")
    sys.stdout.write(f"wrote {GOLDEN}\n")
