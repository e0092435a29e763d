"""From a folder of labelled images to a better soup and its pictures, one step at a time, without a server.

Read it from top to bottom, or run the cells (`# %%`) in an editor; `python -m examples.walkthrough` runs all of it in
about two minutes. It trains the small digits base set and photographs digits on a dull day; with a base set and folders
of your own only the two calls that make them change:

    python -m examples.walkthrough --base bases/cifar10 --labelled mine/labelled --unseen mine/unseen
"""

# %% What is needed
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnxruntime as ort
from pydantic import Field

from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.images.support import check_disjoint, from_folder
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.reporting.plots import plot_report
from adapt.reporting.report import UnseenAccuracy, make_report, table, write
from adapt.search.config import RUNGS, SearchConfig
from adapt.search.search import search
from deploy.export import export
from service.demo.camera import DEMO_CAMERA
from service.demo.digits import photograph_digits, train_digits
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.data import ImageSet, load_folder
from training.devices import thread_count
from training.images import to_input

logger = logging.getLogger("walkthrough")

LADDERS: Mapping[str, tuple[str, ...]] = {
    "coefficients": (),
    "coefficients, channel statistics": ("statistics",),
    "all of the ladder": RUNGS,
}


# %% Step 1: images. Any folder with one folder per class will do; here we make two.
def photograph(folder: Path, *, seed: int) -> tuple[Path, Path]:
    """Write 100 labelled digits and 500 others, as a camera sees them on a dull day; return the two folders."""
    pictures = photograph_digits(DEMO_CAMERA, seed=seed)
    for name, positions in (("labelled", pictures.support), ("unseen", pictures.test[:500])):
        for position, label in zip(positions, pictures.labels(positions), strict=True):
            file = folder / name / label / f"{position:04}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pictures.files[position])
    return folder / "labelled", folder / "unseen"


# %% Step 2: how good is a soup on images that nobody chose it on?
def accuracy(prepared: PreparedBase, soup: Soup, images: ImageSet) -> float:
    """Return the share of images a soup gets right, its patch included."""
    return float((served_logits(prepared, soup, images.images).argmax(dim=1).numpy() == images.labels).mean())


class Walkthrough(Command):
    """Adapt to a folder of labelled images, look at the evidence, export the model.

    Exit code 1 if what was found is no better on the unseen images than what there was.

    Example: python -m examples.walkthrough --out runs/walkthrough
    """

    name: ClassVar[str] = "walkthrough"
    base: Path | None = Field(default=None, description="base set; the digits are trained if not given")
    labelled: Path | None = Field(default=None, description="folder with one folder of images per class")
    unseen: Path | None = Field(default=None, description="the same with other images, to see whether it is true")
    out: Path = Field(default=Path("runs/walkthrough"), description="folder for all that is written; must be new")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Walk."""
        if (self.labelled is None) != (self.unseen is None):
            raise ValueError("expected both --labelled and --unseen, or neither, got one")
        if self.out.exists() and any(self.out.iterdir()):
            raise FileExistsError(f"{self.out}: already exists; choose another --out or remove it")

        # %% Step 1: the base set, the labelled images, and others that take no part in any choice.
        base_folder = self.base or train_digits(self.out / "bases" / "digits", seed=self.seed)
        if self.labelled is None or self.unseen is None:
            labelled, unseen = photograph(self.out, seed=self.seed)
        else:
            labelled, unseen = self.labelled, self.unseen
        base = load_base_set(base_folder)
        support = from_folder(labelled, base.manifest)
        images = load_folder(unseen, base.manifest.input, base.manifest.class_names)
        check_disjoint(support, images.hashes)  # the same photograph in both folders would prove nothing

        with thread_count(self.threads):
            # %% Step 2: what is served now?
            prepared = PreparedBase(base)
            current = default_soup(base.manifest)
            before = accuracy(prepared, current, images)
            logger.info("the default soup gets %.3f of %d unseen images right", before, len(images))

            # %% Step 3: search, rung by rung. The last search is the one to keep.
            gains = {}
            for ladder, rungs in LADDERS.items():
                found = search(prepared, support, SearchConfig(rungs=rungs, seed=self.seed), current=current)
                gains[ladder] = accuracy(prepared, found.soup, images)
            after = gains["all of the ladder"]

            # %% Step 4: the evidence. What `search` says it knows comes from the labelled images alone.
            names = base.manifest.ingredient_names
            alone = {name: make_soup(base.manifest, {other: float(other == name) for other in names}) for name in names}
            tested = UnseenAccuracy(
                n=len(images),
                current=before,
                candidate=after,
                ingredients={name: accuracy(prepared, soup, images) for name, soup in alone.items()},
            )
            report = make_report(found, current, duplicates=support.duplicates, test=tested)
            write(self.out / "search", report, found.soup)  # report.json, soup.json and the tensors beside it
            plot_report(report, self.out / "search" / "report.png")

            # %% Step 5: one self-contained model for any ONNX runtime.
            model = self.out / "soup.onnx"
            export(base, found.soup, model)
            session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
            logits = session.run(None, {"images": to_input(images.images)})[0]
            exported = float((logits.argmax(axis=1) == images.labels).mean())

        data = {
            "state": found.outcome.state,
            "before": before,
            "after": after,
            "exported": exported,
            "ladders": gains,
            "n_support": len(support),
            "n_test": len(images),
            "out": str(self.out),
        }
        lines = [table(report), "", f"on {len(images)} unseen images:", f"  {before:.3f}  default soup"]
        lines += [f"  {share:.3f}  {ladder}" for ladder, share in gains.items()]
        lines += [f"  {exported:.3f}  soup.onnx, in ONNX Runtime", "", f"written: {self.out}"]
        lines += ["", "To serve it instead, post the same images to a running service:"]
        lines += [f"  tar -C {labelled} -c . | curl -F archive=@- 'http://127.0.0.1:3000/adapt?wait=30'"]
        return Result(data, "\n".join(lines), EXIT_DONE if after > before else EXIT_CLAIM_FAILED)


# %% All of it
if __name__ == "__main__":
    sys.exit(
        run(
            [Walkthrough],
            prog="python -m examples.walkthrough",
            description="From a folder of images to a better soup.",
        )
    )
