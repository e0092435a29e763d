"""What a folder of results is about, which draws there are of a domain, and what was found on each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from benchmarks.shifts.lines import Keyed
from benchmarks.shifts.results import Found
from benchmarks.shifts.sets import distinct, draw_stratified
from benchmarks.shifts.suite import STANDARD
from training.data import balanced_indices
from training.documents import Frozen, first_error

CORRUPTIONS = "corruptions"  # the family of all computed shifts: together they count as one domain
COUNTS = (20, 50, 100, 300, 1000)  # labelled pictures that a draw leaves room for, where its domain is large enough
FILE = "study.json"
LEAST_UNSEEN = 100  # pictures that a number of labelled ones must leave

Positions = npt.NDArray[np.int64]


def family_of(domain: str) -> str:
    """Return what a domain counts as where hyper-parameters are chosen on the others."""
    return CORRUPTIONS if domain in STANDARD else domain


class Study(Frozen):
    """What all results of a folder have in common; n, draws, domains and methods may be added to it."""

    base_set: str
    base_digest: str
    seed: int = Field(description="of the first draw")
    n_test: int = Field(description="unseen pictures of a draw, fewer where a domain has fewer")
    data: dict[str, str] = Field(description="digests of the pictures, by domain")

    def together(self, earlier: "Study") -> "Study":
        """Return this study with the domains of an earlier one.

        Raises:
            ValueError: they differ (says in what).
        """
        for name in ("base_set", "base_digest", "seed", "n_test"):
            if (was := getattr(earlier, name)) != (wanted := getattr(self, name)):
                raise ValueError(f"has results with {name} {was!r}, got {wanted!r}; choose another folder with --out")
        for domain in sorted(set(self.data) & set(earlier.data)):
            if self.data[domain] != earlier.data[domain]:
                raise ValueError(f"has results of other pictures of {domain}; choose another folder with --out")
        return self.model_copy(update={"data": {**earlier.data, **self.data}})


def open_study(folder: Path, study: Study) -> Study:
    """Return the study that a folder holds together with this one, which is written there.

    Raises:
        ValueError: the folder holds the results of something else.
    """
    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        earlier = read_study(folder)
        try:
            study = study.together(earlier)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    elif (folder / "settings.json").exists():
        raise ValueError(f"{folder}: has results of the suite; choose another folder with --out")
    file.write_text(study.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return study


def read_study(folder: Path) -> Study:
    """Return the study that a folder holds.

    Raises:
        ValueError: none.
    """
    file = folder / FILE
    try:
        return Study.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error)}") from None


class Draw(NamedTuple):
    """Positions of one draw's pictures in their domain."""

    pool: Positions  # those that may be labelled
    test: Positions

    def support(self, labels: Positions, n: int, *, seed: int) -> Positions:
        """Return the n labelled ones, as even over the classes as these allow; no other n changes them."""
        return self.pool[balanced_indices(labels[self.pool], n, seed=seed)]


def most_labelled(domain: str, labels: Positions, hashes: Sequence[str], *, n_test: int) -> int:
    """Return how many pictures of a domain may be labelled: the largest of `COUNTS` that leaves enough.

    Raises:
        ValueError: not even the smallest does.
    """
    there, least = len(distinct(labels, hashes)), min(n_test, LEAST_UNSEEN)
    room = [count for count in COUNTS if there - count >= least]
    if not room:
        raise ValueError(f"{domain}: expected at least {COUNTS[0] + least} different pictures, got {there}")
    return max(room)


def draw_domain(domain: str, labels: Positions, hashes: Sequence[str], *, n_test: int, seed: int) -> Draw:
    """Return disjoint pictures to label and to report; in the latter classes are as frequent as in the domain.

    Corruptions of the same clean pictures share their draws.
    """
    most = most_labelled(domain, labels, hashes, n_test=n_test)
    unseen = min(n_test, len(distinct(labels, hashes)) - most)
    return Draw(*draw_stratified(labels, hashes, n_test=unseen, seed=seed))


class Record(Keyed):
    """What one method found on one draw."""

    domain: str
    n: int
    draw: int = Field(description="its seed")
    method: str
    unseen: int = Field(description="pictures that were answered")
    found: Found
    commit: str
    machine: str
    device: str = Field(default="cpu", description="cpu or cuda: accuracies are compared across them, times are not")

    @property
    def key(self) -> tuple[str, int, int, str]:
        """Which method and draw."""
        return self.domain, self.n, self.draw, self.method
