"""`saucier adapt search`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from adapt.commands.common import BasesArgument, FolderArgument, alone, load_images, measure, progress_bar
from adapt.documents.soup import Soup, check_soup, default_soup, read_soup
from adapt.images import support as supports
from adapt.networks.prepared import PreparedBase
from adapt.reporting import report as reports
from adapt.reporting.plots import plot_report
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from training.bases import load_base_set
from training.cli import Command, Result
from training.data import ImageSet, balanced_indices
from training.devices import pick_device, thread_count
from training.manifest import Manifest


class SearchCommand(SearchConfig, Command):
    """Find the best soup for a few labelled images and say whether it beats the current one.

    Exit code 0 whether promoted or kept.

    Example: saucier adapt search bases/cifar10-small shifted/ --test unseen/ --out runs/shifted
    """

    name: ClassVar[str] = "search"
    sections: ClassVar[Mapping[str, Sequence[str]]] = {
        "Search": ("effort", "rungs", "strategy", "grid", "step", "bn_mode", "device", "threads"),
        "Evidence": (
            "promote",
            "balance",
            "draw",
            "reference",
            "floor",
            "attempt",
            "earlier",
            "false_promotions",
            "harm",
        ),
    }
    effort: Literal["quick", "full", "auto"] = Field(  # type: ignore[assignment]  # the service's three
        default="auto",
        description="quick leaves out rungs that train weights; auto is full here",
    )
    bases: BasesArgument = Field(description="base set, bases/<name>")
    folder: FolderArgument = Field(description="labelled images: a folder or archive with one folder per class")
    current: Path | None = Field(
        default=None, description="soup.json to beat; the base set's default soup if not given"
    )
    test: Path | None = Field(default=None, description="folder of other images to report accuracy on")
    n: int | None = Field(default=None, ge=1, description="use only N images, drawn evenly over the classes")
    unlabelled: Path | None = Field(default=None, description="folder of more images of the shift, without labels")
    reference: Path | None = Field(
        default=None, description="trusted labelled images; auto promotes nothing below --floor on them"
    )
    floor: float | None = Field(default=None, gt=0, le=1, description="least accuracy on the reference, a fraction")
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
        test = None if self.test is None else load_images(self.test, manifest)
        if test is not None:
            supports.check_disjoint(support, test.hashes)
        unlabelled = None
        if self.unlabelled is not None:
            unlabelled = supports.load_unlabelled(self.unlabelled, manifest, known=support.hashes)
        reference = self._reference(manifest, support)
        prepared = PreparedBase(base, device=pick_device(self.device))
        with progress_bar() as progress:
            found = search(
                prepared,
                support,
                self._config(),
                current=current,
                unlabelled=unlabelled,
                reference=reference,
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

    def _config(self) -> SearchConfig:
        options: dict[str, Any] = {name: getattr(self, name) for name in SearchConfig.model_fields}
        return SearchConfig(**options | {"effort": "quick" if self.effort == "quick" else "full"})

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
        soups = {name: alone(prepared.manifest, name) for name in names}
        with thread_count(self.threads):
            accuracy = {key: value[0] for key, value in measure(prepared, soups, test).items()}
            both = measure(prepared, {"current": current, "candidate": found.soup}, test)
        return reports.UnseenAccuracy(
            n=len(test), current=both["current"][0], candidate=both["candidate"][0], ingredients=accuracy
        )
