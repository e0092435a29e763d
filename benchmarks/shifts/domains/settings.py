"""`python -m benchmarks.shifts settings BASE --domains ...`: the ladder's own settings, changed one at a time."""

import importlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from adapt.documents.soup import default_soup
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import PRIOR_IMAGES
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.shifts.domains.command import prepare, setup_of
from benchmarks.shifts.domains.processes import spread
from benchmarks.shifts.domains.work import Setup, given, prepared_base
from benchmarks.shifts.lines import Keyed, Lines
from benchmarks.shifts.tuning import accuracy_of
from benchmarks.shifts.words import counts_of, known_names, split_words
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import Command, Result
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.manifest import check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

AS_IT_IS = "as it is"
HEAD, EARLY = "adapt.rungs.head", "adapt.rungs.early"
# Settings of `adapt`: a constant of a module, the prior of channel statistics, or a field of the search's config.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    AS_IT_IS: {},
    "statistics of training count as 1 to 8 images": {"prior_images": (1.0, 8.0)},
    "statistics of training count as 4 to 128 images": {"prior_images": (4.0, 128.0)},
    "statistics of training count as 16 to 16 images": {"prior_images": (16.0, 16.0)},
    "no statistics": {"rungs": ("head", "early")},
    "last layer pulled a tenth as strongly": {f"{HEAD}.PENALTIES": (30.0, 10.0, 3.0, 1.0)},
    "last layer pulled a hundredth as strongly": {f"{HEAD}.PENALTIES": (3.0, 1.0, 0.3, 0.1)},
    "last layer from 20 images on": {f"{HEAD}.MIN_IMAGES": 20, f"{HEAD}.MIN_IMAGES_LARGE": 20},
    "nothing trained": {"effort": "quick"},
    "all layers trained": {f"{EARLY}.SHARE": 1.0, f"{EARLY}.MAX_WEIGHTS": 2**26},
    "last layer from 50 images on": {f"{HEAD}.MIN_IMAGES": 50, f"{HEAD}.MIN_IMAGES_LARGE": 50},
}


class Piece(NamedTuple):
    """One setting on one draw of a domain."""

    setting: str
    domain: str
    n: int
    draw: int


class SettingRecord(Keyed):
    """What the candidate of a search got right on unseen pictures."""

    setting: str
    domain: str
    n: int
    draw: int
    accuracy: float
    cross_fitted: float | None
    rungs: tuple[str, ...]
    seconds: float
    commit: str
    machine: str

    @property
    def key(self) -> Piece:
        """Which setting, where."""
        return Piece(self.setting, self.domain, self.n, self.draw)


class CompareSettings(Command):
    """Search with each of several settings of the ladder on domains, and compare the candidates on unseen pictures.

    What is found may be taken over for a base set's kind; report it on other domains than these. A run that was
    interrupted goes on where it stopped.

    Example: python -m benchmarks.shifts settings bases/photos --folders .data/pacs --domains art_painting,fog --n 100
    """

    name: ClassVar[str] = "settings"
    base: Annotated[Path, Positional] = Field(default=Path("bases/photos"), description="base set")
    domains: tuple[str, ...] = Field(description="with commas: folders, corruptions, or names of corruptions")
    data: Path | None = Field(default=None, description="the base set's own pictures; where its recipe says by default")
    folders: Path | None = Field(default=None, description="what names of domains are relative to")
    only: tuple[str, ...] | None = Field(
        default=None,
        description="with commas, all if not given: "
        + "; ".join(f"{number} {name}" for number, name in enumerate(SETTINGS)),
    )
    n: tuple[str, ...] = Field(default=("20", "100"), description="labelled pictures, with commas")
    draws: int = Field(default=1, ge=1, description="draws, from --seed on")
    n_test: int = Field(default=500, ge=1, description="unseen pictures of each")
    out: Path | None = Field(default=None, description="folder of the results, below runs/ if not given")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")
    jobs: int = Field(default=1, ge=1, description="processes")
    minutes: float | None = Field(default=None, gt=0, description="begin nothing after this time")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)

    def execute(self) -> Result:
        """Search where results are missing, and compare."""
        deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        manifest = load_base_set(self.base).manifest
        check_mixable(manifest)
        out = self.out or Path(f"runs/settings-{manifest.name}")
        numbered = {str(number): name for number, name in enumerate(SETTINGS)}
        wanted = known_names("only", self.only, tuple(numbered)) if self.only else tuple(numbered)
        domains, _, _, most = prepare(
            manifest,
            out,
            words=tuple(split_words(self.domains)),
            folders=self.folders,
            data=self.data,
            n_test=self.n_test,
            seed=self.seed,
            needs_clean=False,
        )
        records = Lines(out / "settings.jsonl", SettingRecord)
        setup = setup_of(self.base, out, self.n_test, seed=self.seed, device=self.device, threads=self.threads)
        pieces = [
            piece
            for draw in range(self.seed, self.seed + self.draws)
            for n in counts_of("n", self.n)
            for domain in domains
            for number in wanted
            if n <= most[domain.name]
            and (piece := Piece(numbered[number], domain.name, n, draw)) not in records.records
        ]
        for number, found in enumerate(spread(pieces, try_setting, setup, jobs=self.jobs, deadline=deadline), 1):
            records.add(found)
            where = f"{found.domain}, n = {found.n}, {found.setting}"
            logger.info("%s: %.1f in %.0f s, %d of %d", where, 100 * found.accuracy, found.seconds, number, len(pieces))
        if not records.records:
            raise ValueError(f"{out}: nothing was measured in the time given; give more --minutes")
        found_all = list(records.records.values())
        return Result({"settings": [record.model_dump(mode="json") for record in found_all]}, compared(found_all))


def try_setting(piece: Piece, setup: Setup) -> SettingRecord:
    """Return what a search with a setting finds."""
    context, unseen, test = given(piece.domain, piece.draw, piece.n, (), setup)
    prepared = prepared_base(setup.base, setup.device, setup.threads)
    started = time.perf_counter()
    with changed(SETTINGS[piece.setting], prepared) as options:
        config = SearchConfig(**{"effort": "full", "seed": piece.draw, **options})
        found = search(prepared, context.support, config, current=default_soup(prepared.manifest))
    seconds = time.perf_counter() - started
    outcome = found.outcome
    return SettingRecord(
        **piece._asdict(),
        accuracy=accuracy_of(served_logits(prepared, found.soup, unseen.images), test.labels),
        cross_fitted=None if outcome.accuracy is None else outcome.accuracy.candidate,
        rungs=() if outcome.patch is None else tuple(outcome.patch.rungs),
        seconds=round(seconds, 2),
        commit=setup.commit,
        machine=setup.machine,
    )


@contextmanager
def changed(values: Mapping[str, Any], prepared: PreparedBase) -> Iterator[dict[str, Any]]:
    """Change constants and priors for a while; yields what the search's config must be given."""
    constants = {name: value for name, value in values.items() if "." in name}
    before = {}
    try:
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            before[name] = getattr(importlib.import_module(module), constant)
            setattr(importlib.import_module(module), constant, value)
        prepared.recalibrator = prepared.recalibrator_with(values.get("prior_images", PRIOR_IMAGES))
        yield {name: value for name, value in values.items() if name not in (*constants, "prior_images")}
    finally:
        for name, value in before.items():
            module, _, constant = name.rpartition(".")
            setattr(importlib.import_module(module), constant, value)
        prepared.recalibrator = prepared.recalibrator_with(PRIOR_IMAGES)


def compared(records: Sequence[SettingRecord]) -> str:
    """Return the differences to the settings as they are, in points, on the draws that both have."""
    own = {record.key[1:]: record for record in records if record.setting == AS_IT_IS}
    counts = sorted({record.n for record in records})
    heads = [f"{domain}, n = {n}" for n in counts for domain in sorted({r.domain for r in records if r.n == n})]
    rows = []
    for setting in SETTINGS:
        found = [record for record in records if record.setting == setting]
        cells = []
        for head in heads:
            here = [record for record in found if f"{record.domain}, n = {record.n}" == head]
            if setting == AS_IT_IS:
                cells.append(f"{100 * np.mean([record.accuracy for record in here]):.1f}" if here else "")
                continue
            gains = [record.accuracy - own[record.key[1:]].accuracy for record in here if record.key[1:] in own]
            cells.append(f"{100 * np.mean(gains):+.1f}" if gains else "")
        seconds = [record.seconds for record in found if record.n == counts[-1]]
        if found:
            rows.append([setting, *cells, f"{np.mean(seconds):.0f}" if seconds else ""])
    return "\n".join(table(["setting", *heads, f"seconds, n = {counts[-1]}"], rows))
