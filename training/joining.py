"""A network made elsewhere joins a base set as a further ingredient."""

from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from training import import_options
from training.bases import BaseSet, StateDict, add_ingredient, load_base_set
from training.data import ImageSet
from training.devices import pick_device
from training.evaluate import evaluation_threats, load_images
from training.foreign import Channels, load_weights
from training.import_options import ImportOptions, agree
from training.manifest import Ingredient, Manifest
from training.measure import accuracy_of, moments_of
from training.models import create_classifier

LOW_SHARE = 0.5  # of another ingredient's accuracy: below, the classes are probably in another order
MIXING_LOSS = 0.1  # accuracy that half of both may have less than the worse one, if they come from one start


class Joined(NamedTuple):
    """A base set with one ingredient more, and what was measured of it.

    Attributes:
        manifest: of the base set as written.
        added: the new ingredient.
        other: the ingredient with the largest default coefficient.
        alone: clean accuracy of that one.
        halfway: clean accuracy of the mean of both ingredients' weights.
    """

    manifest: Manifest
    added: Ingredient
    other: str
    alone: float
    halfway: float

    def text(self) -> str:
        """Return the accuracies, with an explanation if they are low."""
        metrics = self.added.metrics
        said = ", ".join(f"{name} {metric.value:.3f} (n = {metric.n})" for name, metric in metrics.items())
        lines = [
            f"{self.added.name}: {said}",
            f"{self.other}: clean {self.alone:.3f}; half {self.added.name}, half {self.other}: {self.halfway:.3f}",
        ]
        clean = metrics["clean"].value
        if clean < LOW_SHARE * self.alone:
            lines.append(
                f"warning: {self.added.name} is much worse than {self.other}: are its classes in the order of the base "
                f"set, {list(self.manifest.class_names)[:5]}...?"
            )
        elif self.halfway < min(clean, self.alone) - MIXING_LOSS:
            lines.append(
                f"warning: half of both is much worse than either: {self.added.name} was probably not fine-tuned from "
                "the same weights, and its mixtures will be poor"
            )
        return "\n".join(lines)


def import_into(options: ImportOptions, folder: Path) -> Joined:
    """Measure a network of the base set's kind and add it, with a default coefficient of 0.

    The base set is whole at every moment. Moments, where it has some, are measured again, of all ingredients.

    Raises:
        ValueError: an option, the checkpoint or the data does not fit the base set; nothing is written.
        OSError: the folder cannot be written; the base set is as before.
    """
    for option, given in (("--out", options.out), ("--base-set", options.base_set), ("--new-head", options.new_head)):
        if given:
            raise ValueError(f"{option}: expected none with --into, the network joins {folder} as it is")
    added = import_options.described(options)
    device = str(pick_device(options.device))
    base = load_base_set(folder)
    manifest = base.manifest
    _check_name(added.name, base)
    _check_options(options, manifest)
    classifier = create_classifier(manifest.architecture, manifest.input, len(manifest.class_names))
    fitted = load_weights(options.checkpoint, classifier.net, key=options.key)
    _check_channels(f"{options.checkpoint}: ", fitted.mean, fitted.std, manifest)
    weights = fitted.state_dict
    classifier.net.load_state_dict(weights)
    evaluation = import_options.evaluation_spec(options, evaluation_threats(manifest))
    test = load_images(manifest, options.data)
    test = test.balanced(options.num_images or len(test), seed=options.seed)
    metrics = import_options.measured(options, classifier, test, evaluation, device=device)
    added = added.model_copy(update={"metrics": metrics})
    other, alone, halfway = _beside(base, weights, test, device)
    larger = _larger(manifest, added, import_options.imported_file(options, fitted).model_dump(mode="json"))
    moments = None
    if manifest.moments is not None:
        images = load_images(manifest, options.data, part="validation")
        moments = moments_of(
            larger, {**base.state_dicts, added.name: weights}, images, seed=options.seed, device=device
        )
    return Joined(add_ingredient(base, larger, weights, moments), added, other, alone, halfway)


def _check_name(name: str, base: BaseSet) -> None:
    names = base.manifest.ingredient_names
    if name.casefold() in {other.casefold() for other in names}:
        raise ValueError(f"--name: {base.path} already has an ingredient {name!r}, expected none of {list(names)}")


def _check_options(options: ImportOptions, manifest: Manifest) -> None:
    """Compare what the options say of the network with the base set."""
    spec = manifest.input
    pairs: list[tuple[str, object, object]] = [
        ("--arch", options.arch, manifest.architecture.name),
        ("--resize", options.resize, spec.resize),
        ("--classes", list(import_options.named_classes(options)) or None, list(manifest.class_names)),
    ]
    if options.arch_kwargs is not None:
        pairs.append(("--arch-kwargs", import_options.parse_kwargs(options.arch_kwargs), manifest.architecture.kwargs))
    if options.input_size:
        size = import_options.input_spec(options, spec.mean, spec.std)
        pairs.append(("--input-size", [size.height, size.width], [spec.height, spec.width]))
    for option, given, ours in pairs:
        if given is not None and given != ours:
            raise ValueError(f"{option}: expected that of {manifest.name!r}, {_short(ours)}, got {_short(given)}")
    _check_channels("--", options.mean, options.std, manifest)


def _check_channels(where: str, mean: Channels | None, std: Channels | None, manifest: Manifest) -> None:
    for which, given, ours in (("mean", mean, manifest.input.mean), ("std", std, manifest.input.std)):
        if given is not None and not agree(given, ours):
            raise ValueError(f"{where}{which}: expected that of {manifest.name!r}, {list(ours)}, got {list(given)}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _larger(manifest: Manifest, added: Ingredient, record: dict[str, JsonValue]) -> Manifest:
    """Return the manifest with one ingredient more, and in its provenance where that comes from."""
    recipe = manifest.provenance.recipe
    earlier = recipe.get("added")
    records: list[JsonValue] = [*(earlier if isinstance(earlier, list) else []), {"ingredient": added.name, **record}]
    return manifest.model_copy(
        update={
            "ingredients": (*manifest.ingredients, added),
            "default_coefficients": {**manifest.default_coefficients, added.name: 0.0},
            "provenance": manifest.provenance.model_copy(update={"recipe": recipe | {"added": records}}),
        }
    )


def _beside(base: BaseSet, weights: StateDict, test: ImageSet, device: str) -> tuple[str, float, float]:
    """Return the ingredient that leads the default soup, its accuracy, and that of the mean of it and the weights."""
    coefficients = base.manifest.default_coefficients
    other = max(coefficients, key=lambda name: coefficients[name])
    classifier = base.model(other)
    alone = accuracy_of(classifier, test, device=device)
    classifier.net.load_state_dict(_halfway(base.state_dicts[other], weights))
    return other, alone, accuracy_of(classifier, test, device=device)


def _halfway(one: StateDict, other: StateDict) -> StateDict:
    """Return the mean of two state dicts; integer counters come from the first."""
    return {key: (tensor + other[key]) / 2 if tensor.is_floating_point() else tensor for key, tensor in one.items()}
