"""A training run: one ingredient after the other, resumable, ending in a base set."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from training.bases import BaseSet, StateDict, load_base_set, save_base_set
from training.checkpoint import save_atomically
from training.compute import Compute
from training.data import Images
from training.files import replace_file
from training.fit import CHECKPOINT, LOG, Fit, Place
from training.manifest import Manifest
from training.measure import measure, moments_of
from training.models import create_classifier
from training.recipe import Recipe
from training.splits import Splits, load_splits
from training.start import load_start, start_record
from training.trial import check_network

logger = logging.getLogger(__name__)

MARKER = "run.json"


def train(
    recipe: Recipe,
    out: Path,
    *,
    seed: int = 0,
    data_path: Path | None = None,
    start: Path | None = None,
    weights: Path | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> Manifest | None:
    """Train every ingredient of a recipe and write the base set to `out`.

    Work in progress stands in a hidden folder beside `out`; a run that was interrupted continues at its last
    checkpoint and draws what an uninterrupted run draws. The default coefficients written here are those of the
    ingredient with the best clean validation accuracy; `saucier adapt default` replaces them by the best soup.

    Args:
        recipe: what to train.
        out: folder of the base set; must not exist or be empty.
        seed: of initialisation, order, augmentation and attacks.
        data_path: overrides the recipe's data folder.
        start: a base set whose ingredients come first in the new one, and may be parents.
        weights: overrides the file of the recipe's `start`.
        compute: device, precision, memory.

    Returns:
        The manifest of the base set written; None in all but the main process.

    Raises:
        ValueError: data, `start` or `weights` do not fit the recipe, `out` has the unfinished run of another recipe, or
            the network cannot be trained or served.
        FileExistsError: `out` already holds something.
        FloatingPointError: the loss became NaN or infinite.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: already exists; choose another --out or remove it")
    file = recipe.start_file(weights)
    begin = None if recipe.start is None else start_record(recipe.start, file)
    splits = load_splits(recipe.data, recipe.input, data_path)
    base = _load_base(recipe, start, splits)
    accelerator = compute.accelerator()
    check_network(recipe.architecture, recipe.input, len(splits.train.class_names))
    is_main = accelerator.is_main_process
    work = _open_work_folder(recipe, seed, out, splits.train, base, begin, is_main=is_main)
    if compute.tracker is not None:
        accelerator.init_trackers(recipe.name, config={"seed": seed})
    logger.info(
        "training %s on %d images, device %s, seed %d", recipe.name, len(splits.train), accelerator.device, seed
    )
    state_dicts: dict[str, StateDict] = dict(base.state_dicts) if base is not None else {}
    for position, spec in enumerate(recipe.ingredients):
        finished = work / f"{spec.name}.safetensors"
        if not finished.exists():
            torch.manual_seed(seed + position)
            classifier = create_classifier(recipe.architecture, recipe.input, len(splits.train.class_names))
            if spec.parent is not None:
                classifier.net.load_state_dict(state_dicts[spec.parent])
            elif recipe.start is not None:
                load_start(recipe.start, classifier, recipe.architecture, recipe.input, file=file)
            place = Place(accelerator, compute, work)
            fit = Fit(spec, classifier, splits, recipe.augmentation, seed=seed + 1000 * position, place=place)
            trained = fit.fit()
            if accelerator.is_main_process:
                save_atomically(trained, finished)
                (work / CHECKPOINT).unlink(missing_ok=True)
            accelerator.wait_for_everyone()
            accelerator.free_memory()
        state_dicts[spec.name] = safetensors.torch.load_file(finished)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    device = str(accelerator.device)
    manifest = measure(
        recipe, splits, state_dicts, base=base, begin=begin, seed=seed, seconds=_logged_seconds(work), device=device
    )
    moments = None
    if (found := moments_of(manifest, state_dicts, splits.validation, seed=seed, device=device)) is not None:
        moments, described = found
        manifest = manifest.model_copy(update={"moments": described})
    written = save_base_set(out, manifest, state_dicts, moments=moments)
    shutil.copy(work / LOG, out / LOG)
    shutil.rmtree(work)
    logger.info("wrote %s", out)
    return written


def _load_base(recipe: Recipe, start: Path | None, splits: Splits) -> BaseSet | None:
    """Load the base set to start from and compare it with the recipe."""
    if start is None:
        if recipe.inherits:
            raise ValueError(f"the recipe starts from the ingredients {list(recipe.inherits)}: give their base set")
        return None
    base = load_base_set(start)
    manifest = base.manifest
    for what, theirs, ours in (
        ("architecture", manifest.architecture, recipe.architecture),
        ("input", manifest.input, recipe.input),
        ("class names", manifest.class_names, splits.train.class_names),
    ):
        if theirs != ours:
            raise ValueError(f"{start}: its {what} differs from the recipe's: {_short(theirs)} and {_short(ours)}")
    _check_split(start, manifest, recipe)
    if missing := sorted(set(recipe.inherits) - set(manifest.ingredient_names)):
        raise ValueError(f"{start}: expected the ingredients {list(recipe.inherits)}, it lacks {missing}")
    if both := sorted({spec.name for spec in recipe.ingredients} & set(manifest.ingredient_names)):
        raise ValueError(f"{start}: already has ingredients named {both}; rename those of the recipe")
    return base


def _check_split(start: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Refuse to split data otherwise than the base set's own recipe did: its training images would be tested."""
    before = manifest.provenance.recipe.get("data")
    if not isinstance(before, dict) or not before.get("test_fraction"):
        return
    for field, ours in (("test_fraction", recipe.data.test_fraction), ("split_seed", recipe.data.split_seed)):
        if ours != before.get(field):
            raise ValueError(
                f"data.{field}: expected {before.get(field)}, as {start} was trained on the rest of these images, got "
                f"{ours}"
            )


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _open_work_folder(
    recipe: Recipe,
    seed: int,
    out: Path,
    data: Images,
    base: BaseSet | None,
    begin: dict[str, Any] | None,
    *,
    is_main: bool,
) -> Path:
    """Return the folder of the unfinished run. Every process compares it with the run, the main one marks it."""
    work = out.parent / f".{out.name}.partial"
    identity = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "data": data.digest,
        "from": None if base is None else base.manifest.digest,
        "start": begin,
    }
    marker = work / MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != identity:
        raise ValueError(
            f"{work}: holds the unfinished run of another recipe, seed or data; remove it or choose another --out"
        )
    work.mkdir(parents=True, exist_ok=True)
    if is_main:
        replace_file(marker, lambda partial: partial.write_text(json.dumps(identity), encoding="utf-8"))
    return work


def _logged_seconds(work: Path) -> float:
    """Return the epochs' own time, which counts what was trained before a resume."""
    rows = (work / LOG).read_text(encoding="utf-8").splitlines()
    return round(sum(float(json.loads(row)["seconds"]) for row in rows), 1)
