"""The `import` command: a checkpoint made elsewhere becomes a base set of one ingredient, or a further one of a set."""

import logging
from pathlib import Path
from typing import ClassVar

from pydantic import Field, TypeAdapter

from training import import_options
from training.bases import save_base_set
from training.cli import Result
from training.data import Images, balanced_indices, find_files, find_test_folder
from training.devices import pick_device
from training.documents import Frozen
from training.foreign import load_weights
from training.import_options import ImportedFile, ImportOptions
from training.joining import import_into
from training.manifest import Architecture, BaseSetName, Manifest
from training.models import Classifier, create_classifier
from training.new_head import HeadFit, fit_head
from training.provenance import provenance
from training.recipe import EvaluationSpec
from training.splits import TEST_FRACTION, VALIDATION_FRACTION, DataSpec, load_splits
from training.threat import default_threats

logger = logging.getLogger(__name__)


class ImportRecipe(Frozen):
    """Stands where the recipe of a trained base set stands."""

    imported: ImportedFile
    evaluation: EvaluationSpec
    data: DataSpec | None = Field(default=None, description="how the data was split; null where all of it is a test")
    new_head: HeadFit | None = Field(default=None, description="how the last layer was fitted; null: the checkpoint's")


class Import(ImportOptions):
    """Make a base set of one ingredient from a checkpoint, to train others from; or add it to a base set (--into).

    Example: saucier import linf.pt --arch saucier_resnet --name linf --threat-model Linf:8/255
    --input-size 32 --data .data/cifar10 --out bases/mine
    """

    name: ClassVar[str] = "import"

    def execute(self) -> Result:
        """Read, check, measure, write."""
        if self.into is not None:
            joined = import_into(self, self.into)
            text = (
                f"{joined.text()}\nwrote {self.into}; its digest is new: earlier soups and bundles no longer fit; "
                f"next: saucier adapt default {self.into}"
            )
            return Result(joined.manifest.model_dump(mode="json"), text)
        manifest = import_checkpoint(self)
        accuracies = ", ".join(
            f"{name} {metric.value:.3f} (n = {metric.n})" for name, metric in manifest.ingredients[0].metrics.items()
        )
        text = f"{self.ingredient}: {accuracies}\nwrote {self.out}; next: saucier train RECIPE --from {self.out}"
        return Result(manifest.model_dump(mode="json"), text)


def import_checkpoint(options: Import) -> Manifest:
    """Write a base set of one ingredient and return its manifest.

    Raises:
        ValueError: an option, the checkpoint or the data does not fit; nothing is written.
        FileExistsError: the folder already holds something.
    """
    arch, data, out = _needed(options)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: already exists; choose another --out or remove it")
    base_set = options.base_set or out.resolve().name
    import_options.check_name("--base-set", base_set, TypeAdapter(BaseSetName).validate_python)
    ingredient = import_options.described(options)
    device = str(pick_device(options.device))
    architecture = Architecture(name=arch, kwargs=import_options.parse_kwargs(options.arch_kwargs))
    plain = import_options.input_spec(options, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    class_names = import_options.class_names(options, data, plain)
    classifier = create_classifier(architecture, plain, len(class_names))
    fitted = load_weights(
        options.checkpoint, classifier.net, key=options.key, head="new" if options.new_head else "keep"
    )
    mean = import_options.channels(options, "mean", fitted.mean)
    std = import_options.channels(options, "std", fitted.std)
    spec = import_options.input_spec(options, mean, std)
    logger.info("weights from %r, mean %s, std %s", fitted.path, spec.mean, spec.std)
    classifier.net.load_state_dict(fitted.state_dict)
    classifier = Classifier(classifier.net, spec).eval()
    evaluation = import_options.evaluation_spec(options, default_threats(spec.height, spec.width))
    recipe = ImportRecipe(imported=import_options.imported_file(options, fitted), evaluation=evaluation)
    seen: Images
    if options.new_head:
        split = _split(data)
        seen, validation, test = splits = load_splits(split, spec, data)
        head = fit_head(classifier, splits, device=device)
        logger.info("new head: validation accuracy %.3f (n = %d)", head.validation_accuracy, len(validation))
        test = test.balanced(options.num_images or len(test), seed=options.seed)
        recipe = recipe.model_copy(update={"data": split, "new_head": head})
    else:
        files = find_files(find_test_folder(data) or data, spec, class_names)
        test = files.subset(balanced_indices(files.labels, options.num_images or len(files), seed=options.seed)).load()
        seen = test
    metrics = import_options.measured(options, classifier, test, evaluation, device=device)
    manifest = Manifest(
        name=base_set,
        architecture=architecture,
        input=spec,
        class_names=class_names,
        ingredients=(ingredient.model_copy(update={"metrics": metrics}),),
        default_coefficients={ingredient.name: 1.0},
        provenance=provenance(recipe, seen, seed=options.seed, seconds=0, device=device),
    )
    return save_base_set(out, manifest, {ingredient.name: classifier.net.state_dict()})


def _needed(options: Import) -> tuple[str, Path, Path]:
    """Return architecture, data and folder of a new base set."""
    for option, given, what in (
        ("--arch", options.arch, "the name of the network in timm's registry"),
        ("--input-size", options.input_size, "the height and width that it takes, in pixels"),
        ("--data", options.data, "a folder of images, one folder per class"),
        ("--out", options.out, "a folder for the new base set, or a base set to go --into"),
    ):
        if not given:
            raise ValueError(f"{option}: expected {what}, got nothing")
    assert options.arch is not None
    assert options.data is not None
    assert options.out is not None
    return options.arch, options.data, options.out


def _split(data: Path) -> DataSpec:
    """Return how data that a last layer is fitted to is split, as a recipe that goes on with it must say."""
    return DataSpec(
        source="folder",
        test_fraction=0 if find_test_folder(data) else TEST_FRACTION,
        validation_fraction=VALIDATION_FRACTION,
        in_memory=False,
    )
