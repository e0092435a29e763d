"""`python -m adapt search|evaluate|default|plot|fronts|attack`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro
from pydantic import Field
from tqdm import tqdm

from adapt.documents.soup import (
    RUNGS,
    BnMode,
    Promote,
    Rung,
    Soup,
    Strategy,
    check_soup,
    default_soup,
    make_soup,
    read_soup,
)
from adapt.evidence.score import P_THRESHOLD, TEMPERATURES, choose
from adapt.images import support as supports
from adapt.networks.forward import evaluate_soups, score_logits, served_logits
from adapt.networks.prepared import PreparedBase, pick_device, thread_count
from adapt.reporting import report as reports
from adapt.reporting.plots import plot_report
from adapt.robustness.attack import Attack
from adapt.robustness.fronts import FrontsCommand
from adapt.rungs.early import MIN_IMAGES, TRAIN_FROM
from adapt.search.grid import GridKind, finest, lattice
from adapt.search.search import Search, search
from training.bases import load_base_set, rewrite_manifest
from training.cli import Command, Result, run
from training.data import DataSpec, ImageSet, balanced_indices, load_folder, load_splits
from training.manifest import Manifest, check_mixable

Device = Literal["auto", "cpu", "cuda"]
BasesArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASES")]
FolderArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
ReportArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REPORT")]


class SearchCommand(Command):
    """Find the best soup for a few labelled images and say whether it beats the current one.

    FOLDER holds one folder of images per class; a .zip or .tar of it does too. Exit code 0 whether promoted or kept.

    Example: python -m adapt search bases/cifar10-small shifted/ --n 100 --test unseen/ --out runs/shifted
    """

    name: ClassVar[str] = "search"
    bases: BasesArgument = Field(description="base set, bases/<name>")
    folder: FolderArgument = Field(description="labelled images: a folder or archive with one folder per class")
    current: Path | None = Field(
        default=None, description="soup.json to beat; the base set's default soup if not given"
    )
    test: Path | None = Field(default=None, description="folder of other images to report accuracy on")
    n: int | None = Field(default=None, ge=1, description="use only N images, drawn evenly over the classes")
    strategy: Strategy = Field(
        default="auto", description="grid: every soup; surrogate: those a prediction calls best; auto: the cheaper"
    )
    rungs: tuple[Rung, ...] = Field(
        default=RUNGS,
        description="tried beside the coefficients: channel statistics of the images, a last layer (head) fitted to "
        "them, first layers trained on them (early); give none for coefficients alone",
    )
    train_from: int = Field(
        default=TRAIN_FROM,
        ge=MIN_IMAGES,
        description="train first layers from so many labelled images on; about ten times the time",
    )
    unlabelled: Path | None = Field(
        default=None, description="folder of more images of the shift, without labels, for the statistics"
    )
    grid: GridKind = Field(default="affine", description="affine extrapolates a little, simplex does not")
    step: float | None = Field(default=None, description="grid step; default 0.25 (affine), 0.1 (simplex)")
    bn_mode: BnMode = Field(default="folded", description="mix BatchNorm folded into the weights, or raw")
    balance: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="let every class count alike, however many images it has"
    )
    promote: Promote = Field(default="auto", description="auto follows the evidence, the others overrule it")
    p_threshold: float = Field(default=P_THRESHOLD, ge=0, le=1, description="auto promotes below this p-value")
    reference: Path | None = Field(
        default=None, description="trusted labelled images; auto keeps a candidate that is below the --floor on them"
    )
    floor: float | None = Field(default=None, gt=0, le=1, description="least accuracy on the reference, a fraction")
    device: Device = Field(default="cpu", description="where to evaluate")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")
    out: Path | None = Field(default=None, description="folder for soup.json, report.json and report.png")

    def execute(self) -> Result:
        """Search, report, write."""
        base = load_base_set(self.bases)
        manifest = base.manifest
        current = default_soup(manifest) if self.current is None else read_soup(self.current)
        check_soup(current, manifest)
        support = supports.load(self.folder, manifest)
        if self.n is not None:
            support = support.subset(balanced_indices(support.labels, self.n, seed=self.seed))
        test = None if self.test is None else _load_images(self.test, manifest)
        if test is not None:
            supports.check_disjoint(support, test.hashes)
        unlabelled = None
        if self.unlabelled is not None:
            unlabelled = supports.load_unlabelled(self.unlabelled, manifest, known=support.hashes)
        reference = self._reference(manifest, support)
        prepared = PreparedBase(base, device=pick_device(self.device))
        with _progress() as progress:
            found = search(
                prepared,
                support,
                current=current,
                unlabelled=unlabelled,
                strategy=self.strategy,
                rungs=self.rungs,
                train_from=self.train_from,
                grid=self.grid,
                step=self.step,
                bn_mode=self.bn_mode,
                balance=self.balance,
                promote=self.promote,
                p_threshold=self.p_threshold,
                reference=reference,
                seed=self.seed,
                num_threads=self.threads,
                progress=progress,
            )
        tested = None if test is None else self._test(prepared, found, current, test)
        report = reports.make_report(found, current, duplicates=support.duplicates, test=tested)
        if self.out is not None:
            reports.write(self.out, report, found.soup)
            plot_report(report, self.out / "report.png")
        data = reports.job_object(found.outcome)
        if tested is not None:
            data["test"] = tested.model_dump(mode="json")
        return Result(data, reports.table(report))

    def _reference(self, manifest: Manifest, support: supports.Support) -> supports.Reference | None:
        if (self.reference is None) != (self.floor is None):
            raise ValueError("--reference and --floor: expected both or none")
        if self.reference is None or self.floor is None:
            return None
        images = supports.load(self.reference, manifest)
        supports.check_disjoint(support, images.hashes)
        return supports.Reference(images, self.floor)

    def _test(self, prepared: PreparedBase, found: Search, current: Soup, test: ImageSet) -> reports.UnseenAccuracy:
        names = prepared.manifest.ingredient_names
        soups = {name: _alone(prepared.manifest, name) for name in names}
        with thread_count(self.threads):
            accuracy = {key: value[0] for key, value in _measure(prepared, soups, test).items()}
            both = _measure(prepared, {"current": current, "candidate": found.soup}, test)
        return reports.UnseenAccuracy(
            n=len(test), current=both["current"][0], candidate=both["candidate"][0], ingredients=accuracy
        )


class EvaluateCommand(Command):
    """Measure soups on labelled images: every ingredient, the uniform and the default soup, and those given.

    Example: python -m adapt evaluate bases/cifar10-small unseen/ --soups runs/shifted/soup.json
    """

    name: ClassVar[str] = "evaluate"
    bases: BasesArgument = Field(description="base set, bases/<name>")
    folder: FolderArgument = Field(description="labelled images, one folder per class")
    soups: tuple[Path, ...] = Field(default=(), description="soup.json files")
    n: int | None = Field(default=None, ge=1, description="use only N images, drawn evenly over the classes")
    device: Device = Field(default="cpu", description="where to evaluate")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")

    def execute(self) -> Result:
        """Evaluate and tabulate."""
        base = load_base_set(self.bases)
        manifest = base.manifest
        images = _load_images(self.folder, manifest)
        if self.n is not None:
            images = images.balanced(self.n, seed=self.seed)
        count = len(manifest.ingredients)
        soups = {name: _alone(manifest, name) for name in manifest.ingredient_names}
        soups["uniform"] = make_soup(manifest, dict.fromkeys(manifest.ingredient_names, 1 / count))
        soups["default"] = default_soup(manifest)
        for path in self.soups:
            soups[str(path)] = read_soup(path)
            check_soup(soups[str(path)], manifest)
        with thread_count(self.threads):
            found = _measure(PreparedBase(base, device=pick_device(self.device)), soups, images)
        data = {
            "n": len(images),
            "accuracy": {name: accuracy for name, (accuracy, _) in found.items()},
            "log_loss": {name: loss for name, (_, loss) in found.items()},
        }
        width = max(map(len, found))
        lines = [f"{f'{len(images)} images':<{width}}   accuracy   log-loss at the soup's temperature"]
        lines += [f"{name:<{width}}   {accuracy:8.4f}   {loss:8.4f}" for name, (accuracy, loss) in found.items()]
        return Result(data, "\n".join(lines))


class DefaultCommand(Command):
    """Make the best soup on clean validation images the base set's default, and write it into its manifest.

    The manifest's digest changes with it: soups and bundles made for the old one no longer fit.

    Example: python -m adapt default bases/cifar10-small --data ~/cifar10
    """

    name: ClassVar[str] = "default"
    bases: BasesArgument = Field(description="base set, bases/<name>; its manifest is rewritten")
    data: Path | None = Field(default=None, description="folder of the training data; default: where the recipe says")
    grid: GridKind = Field(default="affine", description="affine extrapolates a little, simplex does not")
    step: float | None = Field(default=None, description="grid step; default 0.25 (affine), 0.1 (simplex)")
    device: Device = Field(default="cpu", description="where to evaluate")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")

    def execute(self) -> Result:
        """Choose, compare, rewrite."""
        base = load_base_set(self.bases)
        manifest = base.manifest
        check_mixable(manifest)
        images = _validation_images(manifest, self.data)
        names = manifest.ingredient_names
        chosen = finest(self.grid, len(names)) if self.step is None else lattice(self.grid, self.step)
        rows = chosen.points(len(names))
        prepared = PreparedBase(base, device=pick_device(self.device))
        before = default_soup(manifest)
        with thread_count(self.threads), _progress() as progress:
            scores = evaluate_soups(
                prepared, rows, images.images, images.labels, progress=lambda done: progress(done, "evaluating soups")
            )
            choice = choose(scores.losses)
            after = make_soup(
                manifest,
                dict(zip(names, rows[choice.candidate].tolist(), strict=True)),
                temperature=TEMPERATURES[choice.temperature],
            )
            found = _measure(prepared, {"before": before, "after": after}, images)
        update = {"default_coefficients": after.coefficients, "default_temperature": after.temperature}
        written = rewrite_manifest(self.bases, manifest.model_copy(update=update))
        data: dict[str, Any] = {"n": len(images), "candidates": len(rows), "digest": written.digest}
        lines = [f"best of {len(rows)} soups on {len(images)} clean validation images"]
        for key, soup in (("before", before), ("after", after)):
            accuracy, loss = found[key]
            data[key] = {
                "coefficients": soup.coefficients,
                "temperature": soup.temperature,
                "accuracy": accuracy,
                "log_loss": loss,
            }
            mixture = ", ".join(f"{name} {value:g}" for name, value in soup.coefficients.items())
            lines.append(f"{key:<7} accuracy {accuracy:.4f}  log-loss {loss:.4f}  T {soup.temperature:.3g}  {mixture}")
        return Result(data, "\n".join(lines))


class PlotCommand(Command):
    """Draw a search again from its report.json.

    Example: python -m adapt plot runs/shifted/report.json --out shifted.png
    """

    name: ClassVar[str] = "plot"
    report: ReportArgument = Field(description="report.json of a search")
    out: Path | None = Field(default=None, description="picture to write; default: beside the report, .png")

    def execute(self) -> Result:
        """Read and draw."""
        path = self.out or self.report.with_suffix(".png")
        plot_report(reports.read_report(self.report), path)
        return Result({"plot": str(path)}, str(path))


def _alone(manifest: Manifest, ingredient: str) -> Soup:
    return make_soup(manifest, {name: float(name == ingredient) for name in manifest.ingredient_names})


def _load_images(folder: Path, manifest: Manifest) -> ImageSet:
    return load_folder(folder, manifest.input, manifest.class_names)


def _validation_images(manifest: Manifest, path: Path | None) -> ImageSet:
    recipe = manifest.provenance.recipe.get("data")
    if not isinstance(recipe, dict):
        raise ValueError(f"base set {manifest.name!r}: its recipe does not say what data it was trained on")
    splits = load_splits(DataSpec.model_validate(recipe), manifest.input, path)
    if splits.validation.class_names != manifest.class_names:
        raise ValueError(
            f"expected data with the classes {list(manifest.class_names)}, got {list(splits.validation.class_names)}"
        )
    return splits.validation


def _measure(prepared: PreparedBase, soups: dict[str, Soup], images: ImageSet) -> dict[str, tuple[float, float]]:
    """Return accuracy and log-loss at its temperature for each soup."""
    found = {}
    for name, soup in soups.items():
        logits = served_logits(prepared, soup, images.images)
        scores = score_logits(logits[None], images.labels, temperatures=[soup.temperature])
        found[name] = (float(scores.accuracy[0]), float(scores.losses.mean(dtype=np.float64)))
    return found


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """Yield a progress callback that moves a bar on stderr; quiet when piped."""
    with tqdm(total=1.0, disable=None, leave=False, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description(message, refresh=False)
            bar.update(fraction - bar.n)

        yield report


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own arguments); returns the exit code."""
    return run(
        [SearchCommand, EvaluateCommand, DefaultCommand, PlotCommand, FrontsCommand, Attack],
        prog="python -m adapt",
        description="Find the soup that suits a few labelled images.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
