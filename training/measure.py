"""The manifest's entries of a training run: accuracies, provenance, default coefficients, put into a manifest."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from training.attacks import eval_mode
from training.bases import BaseSet, StateDict
from training.data import ImageSet
from training.images import to_input
from training.manifest import Ingredient, Manifest, Metric, MomentsFile
from training.models import Classifier, create_classifier
from training.moments import NUM_IMAGES, LayerMoments, measure_moments, movable_layers
from training.provenance import provenance
from training.recipe import EvaluationSpec, Recipe
from training.robustness import APGD_LOSSES, as_input, evaluate_classifier
from training.splits import Splits

logger = logging.getLogger(__name__)

BATCH = 500


@torch.no_grad()
def accuracy_of(classifier: Classifier, data: ImageSet, *, device: str = "cpu") -> float:
    """Return the clean accuracy on `data`, a fraction.

    Args:
        classifier: changes nothing of it except the device.
        data: images at the classifier's input size.
        device: where to compute.
    """
    classifier.to(device)
    with eval_mode(classifier):
        correct = 0
        for start in range(0, len(data), BATCH):
            images = torch.from_numpy(to_input(data.images[start : start + BATCH])).to(device)
            labels = torch.from_numpy(data.labels[start : start + BATCH]).to(device)
            correct += int((classifier(images).argmax(1) == labels).sum())
    return correct / len(data)


def measure(
    recipe: Recipe,
    splits: Splits,
    state_dicts: Mapping[str, StateDict],
    *,
    base: BaseSet | None = None,
    begin: dict[str, Any] | None = None,
    seed: int,
    seconds: float,
    device: str,
) -> Manifest:
    """Return the manifest of trained ingredients, complete except for the digests that `save_base_set` fills in.

    Args:
        recipe: what was trained.
        splits: accuracy on `test` goes into the metrics; the best on `validation` becomes the default.
        state_dicts: one per ingredient, those of `base` first.
        base: the base set that the run added to; its ingredients keep the metrics they have.
        begin: the weights that the run started from, as provenance records them.
        seed: of the run.
        seconds: training time.
        device: torch device.
    """
    classifier = create_classifier(recipe.architecture, recipe.input, len(splits.train.class_names))
    validation: dict[str, float] = {}
    ingredients = list(base.manifest.ingredients) if base is not None else []
    for ingredient in ingredients:
        classifier.net.load_state_dict(state_dicts[ingredient.name])
        validation[ingredient.name] = accuracy_of(classifier, splits.validation, device=device)
    for spec in recipe.kept:
        classifier.net.load_state_dict(state_dicts[spec.name])
        validation[spec.name] = accuracy_of(classifier, splits.validation, device=device)
        ingredients.append(
            Ingredient(
                name=spec.name,
                file=f"{spec.name}.safetensors",
                sha256="0" * 64,
                threat_model=spec.threat_models[0] if len(spec.threat_models) == 1 else None,
                objective=spec.objective,
                parent=recipe.kept_parent(spec),
                metrics=metrics_of(classifier, recipe.evaluation, splits.test, seed=seed, device=device),
            )
        )
    best = max(validation, key=lambda name: validation[name])
    logger.info("clean validation accuracy: %s", validation)
    origin = provenance(recipe, splits.train, seed=seed, seconds=seconds, device=device)
    if base is not None:
        added = {"name": base.manifest.name, "provenance": base.manifest.provenance.model_dump(mode="json")}
        origin = origin.model_copy(update={"recipe": origin.recipe | {"from": added}})
    if begin is not None:
        origin = origin.model_copy(update={"recipe": origin.recipe | {"start": begin}})
    return Manifest(
        name=recipe.name,
        architecture=recipe.architecture,
        input=recipe.input,
        class_names=splits.train.class_names,
        ingredients=tuple(ingredients),
        default_coefficients={name: float(name == best) for name in validation},
        provenance=origin,
    )


def moments_of(
    manifest: Manifest, state_dicts: Mapping[str, StateDict], images: ImageSet, *, seed: int = 0, device: str = "cpu"
) -> tuple[dict[str, LayerMoments], MomentsFile] | None:
    """Return the moments of every ingredient, and the manifest's entry of them; None for networks with BatchNorm.

    Args:
        manifest: of the ingredients.
        state_dicts: one per ingredient.
        images: of the kind that the ingredients were trained on, at most `NUM_IMAGES` of them.
        seed: of the choice of images.
        device: torch device.
    """
    classifier = create_classifier(manifest.architecture, manifest.input, len(manifest.class_names)).eval()
    if not movable_layers(classifier.net):
        return None
    some = images.balanced(NUM_IMAGES, seed=seed)
    found: dict[str, LayerMoments] = {}
    for name in manifest.ingredient_names:
        classifier.net.load_state_dict(state_dicts[name])
        found[name] = measure_moments(classifier, some.images, device=device)
    return found, MomentsFile(sha256="0" * 64, n=len(some), data_hash=some.digest)


def metrics_of(
    classifier: Classifier, spec: EvaluationSpec, test: ImageSet, *, seed: int, device: str
) -> dict[str, Metric]:
    """Return clean accuracy on all test images, robust and union accuracy on `spec.n` of them."""
    some = test.balanced(spec.n, seed=seed)
    evaluation = evaluate_classifier(
        classifier, *as_input(some), spec.threat_models, num_steps=spec.num_steps, device=device, seed=seed
    )
    accuracies = evaluation.accuracies()
    metrics = {"clean": Metric(value=accuracy_of(classifier, test, device=device), n=len(test))}
    for threat in spec.threat_models:
        attack = f"APGD-{spec.num_steps}, {APGD_LOSSES[threat.norm]} loss, 1 restart"
        metrics[threat.norm] = Metric(value=accuracies[threat.norm], n=evaluation.n, threat_model=threat, attack=attack)
    norms = ", ".join(threat.norm for threat in spec.threat_models)
    metrics["union"] = Metric(value=accuracies["union"], n=evaluation.n, attack=f"worst case over {norms}")
    return metrics
