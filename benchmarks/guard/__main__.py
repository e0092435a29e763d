"""`python -m benchmarks.guard`: wrong labels by accident and by intent, with and without a reference set."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from adapt.evidence.levels import attempt_level
from adapt.networks.prepared import PreparedBase
from adapt.reporting.plots import COLOURS
from benchmarks.guard.trials import (
    ALLOWED_LOSS,
    KINDS,
    N_HONEST,
    N_REFERENCE,
    SERVED,
    TRUSTED,
    Clean,
    Trial,
    split,
    trials,
)
from benchmarks.machine import commit, machine
from benchmarks.pictures import save_figure
from benchmarks.shifts.sets import as_support
from benchmarks.shifts.sources import Sources, find_sources
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.data import ImageSet
from training.devices import thread_count
from training.manifest import check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

LEVEL = attempt_level(1)  # every upload is the first comparison with the soup served

CLEAN = "clean"
POPULATIONS = (CLEAN, "gaussian_noise", "fog", "contrast", "jpeg_compression", "sketch")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
WORSE = -0.01  # a true gain below this; smaller ones are within the luck of the unseen pictures


class Guard(Command):
    """Upload labelled pictures some of whose labels are wrong, and see what is promoted.

    Example: python -m benchmarks.guard --data .data/cifar10 --out docs/results/guard --json
    """

    name: ClassVar[str] = "guard"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    populations: tuple[str, ...] = Field(default=POPULATIONS, description="clean, or shifts of benchmarks.shifts")
    n: int = Field(default=100, ge=20, description="labelled pictures of an upload")
    draws: int = Field(default=5, ge=1, description="of each population")
    n_unseen: int = Field(default=1000, ge=50, description="pictures that accuracy is measured on")
    work: Path = Field(default=Path("runs/guard"), description="folder that keeps finished draws")
    out: Path | None = Field(default=None, description="folder for REPORT.md and guard.png; none if not given")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure; the claim is that flipped labels promote what is worse no more often than the gate's level."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        size = N_HONEST + N_REFERENCE + self.n + self.n_unseen
        sources = find_sources(self.data, None, base.manifest, size=size + N_REFERENCE, seed=self.seed)
        with thread_count(self.threads):
            found = self._measure(PreparedBase(base), sources, size)
        data = summary(found) | {"machine": machine()}
        worst = max(row["free"]["worse"] for row in data["rows"] if row["kind"] == "flips")
        count = min(row["trials"] for row in data["rows"])
        bound = LEVEL + 2 * (LEVEL * (1 - LEVEL) / count) ** 0.5
        holds = worst <= bound
        text = markdown(data, self, base.manifest.name, worst=worst, bound=bound)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "REPORT.md").write_text(text, encoding="utf-8")
            plot(data, self.out / "guard.png")
        return Result(data | {"holds": holds}, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _measure(self, prepared: PreparedBase, sources: Sources, size: int) -> list[Trial]:
        trusted = np.arange(size, size + N_REFERENCE)  # the clean pictures behind all shifts; no population has these
        found: list[Trial] = []
        self.work.mkdir(parents=True, exist_ok=True)
        for name in self.populations:
            data = sources.clean if name == CLEAN else sources.load(name, seed=self.seed)
            part = data.subset(np.arange(size))
            for draw in range(self.seed, self.seed + self.draws):
                key = f"{prepared.manifest.digest[:12]}-{name}-{self.n}-{self.n_unseen}-{draw}"
                file = self.work / f"{key}.json"
                if not file.exists():
                    pictures = split(name, part, n=self.n, n_unseen=self.n_unseen, draw=draw)
                    clean = Clean(as_support(sources.clean.subset(trusted)), _same(sources.clean, pictures.unseen))
                    rows = [asdict(trial) for trial in trials(prepared, pictures, clean, SHARES, draw)]
                    file.write_text(json.dumps(rows), encoding="utf-8")
                found += [Trial(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
                logger.info("%s, draw %d", name, draw)
        return found


def _same(clean: ImageSet, shifted: ImageSet) -> ImageSet:
    """Return the clean pictures that these shifted ones were made of."""
    places = {digest: place for place, digest in enumerate(clean.hashes)}
    return clean.subset([places[digest] for digest in shifted.hashes])


def summary(found: Sequence[Trial]) -> dict[str, Any]:
    """Return rates and gains by what is served, kind and share: free, and with each reference set."""
    rows = []
    for served in SERVED:
        for kind in KINDS:
            for share in SHARES:
                some = [t for t in found if (t.served, t.kind, t.share) == (served, kind, share)]
                gains, clean = np.asarray([t.gain for t in some]), np.asarray([t.clean_gain for t in some])
                promoted = np.asarray([t.promoted for t in some])
                row: dict[str, Any] = {"served": served, "kind": kind, "share": share, "trials": len(some)}
                row["free"] = _rates(promoted, gains, clean)
                for trusted in TRUSTED:
                    passed = promoted & np.asarray([t.allowed[trusted] for t in some])
                    row[trusted] = _rates(passed, gains, clean)
                rows.append(row)
    return {"rows": rows}


def _rates(promoted: Any, gains: Any, clean: Any) -> dict[str, float]:
    return {
        "promoted": float(promoted.mean()),
        "worse": float((promoted & (gains < WORSE)).mean()),
        "gain": float(np.where(promoted, gains, 0).mean()),
        "worst_gain": float(np.where(promoted, gains, 0).min()),
        "clean_gain": float(np.where(promoted, clean, 0).mean()),
    }


REGIMES = {"free": "no reference set", "clean": "clean reference", "site": "reference of the site"}
HEADS = (
    "wrong",
    *(f"{title}: promoted / worse" for title in REGIMES.values()),
    *(f"{t}: gain" for t in REGIMES.values()),
)


def markdown(data: Mapping[str, Any], asked: Guard, base_set: str, *, worst: float, bound: float) -> str:
    """Return the report."""
    lines = [
        "# Wrong labels",
        "",
        f"Command: `python -m benchmarks.guard bases/{base_set} --n {asked.n} --draws {asked.draws} --n-unseen "
        f"{asked.n_unseen} --populations {' '.join(asked.populations)} --seed {asked.seed}`, at commit {commit()}.",
        "",
        f"Uploads of {asked.n} labelled pictures of {len(asked.populations)} populations, {asked.draws} draws of each. "
        "`flips`: a share of the labels is replaced by another class at random. `poison`: all pictures of a share of "
        "the classes are called by the name of the next class. The whole ladder is searched. Served is the default "
        f"soup, or what an honest upload of {N_HONEST} other pictures gave. Accuracy is measured on {asked.n_unseen} "
        f"unseen pictures; a promotion is worse if it loses more than {-100 * WORSE:.0f} point.",
        "",
        f"A reference set has {N_REFERENCE} trusted pictures, either not shifted (`clean`) or of the population itself "
        f"(`site`); the floor is {100 * ALLOWED_LOSS:.0f} points below the accuracy that the served soup has on them.",
        "",
        f"Machine: {data['machine']}",
        "",
        f"- {'Holds' if worst <= bound else '**Does not hold**'}: random flips promote what is worse in at most "
        f"{100 * bound:.1f} % of uploads (the gate's level, {100 * LEVEL:g} %, and two standard errors); "
        f"measured at most {100 * worst:.1f} %.",
        "- Poison is another matter: labels that are consistently wrong are evidence like any other. What they can do "
        "is bounded by a reference set alone, and only if that looks like what the deployment is asked.",
        "",
        "![what is promoted, and what it costs](guard.png)",
        "",
        "Percent of uploads; gains in points of accuracy, mean over all uploads, and the worst.",
        "",
    ]
    for served in SERVED:
        for kind in KINDS:
            rows = [row for row in data["rows"] if (row["served"], row["kind"]) == (served, kind)]
            lines += [f"**{kind}, {served} soup served** ({rows[0]['trials']} uploads a row)", ""]
            lines += [*table(HEADS, [_cells(row) for row in rows]), ""]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    rates = [f"{100 * row[regime]['promoted']:.0f} / {100 * row[regime]['worse']:.0f}" for regime in REGIMES]
    gains = [f"{100 * row[regime]['gain']:+.1f} ({100 * row[regime]['worst_gain']:+.1f})" for regime in REGIMES]
    return [f"{100 * row['share']:.0f} %", *rates, *gains]


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Draw promotions that are worse, and accuracy on clean pictures, against the share of wrong labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    styles = dict(zip(REGIMES, ("-", ":", "--"), strict=True))
    for axes, kind in zip(panels, KINDS, strict=True):
        for colour, served in zip(COLOURS, SERVED, strict=False):
            rows = [row for row in data["rows"] if (row["served"], row["kind"]) == (served, kind)]
            x = [100 * row["share"] for row in rows]
            for regime, title in REGIMES.items():
                y = [100 * row[regime]["worse"] for row in rows]
                label = f"{served} soup served, {title}"
                axes.plot(x, y, styles[regime], marker="o", markersize=4, color=colour, label=label)
        axes.axhline(100 * LEVEL, color="black", linewidth=0.8)
        axes.set_xlabel("wrong labels, %" if kind == "flips" else "classes called by another name, %")
        axes.set_title(kind)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("uploads that promote what is worse, %")
    panels[0].legend(fontsize=8)
    save_figure(figure, path, dpi=120)


if __name__ == "__main__":
    sys.exit(run([Guard], prog="python -m benchmarks.guard", description="What wrong labels can do."))
