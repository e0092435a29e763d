"""The searches of the adapter. Imports torch; imported by the adapter alone."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, Protocol

from adapt.documents.landscape import Landscape
from adapt.documents.soup import Outcome, Soup, Strategy
from adapt.evidence.draws import Draw
from adapt.evidence.policies import Promote
from adapt.images.support import Reference, Support
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.search.comparison import Comparison, compare
from adapt.search.config import SearchConfig
from adapt.search.search import search
from adapt.search.selection import TOO_SLOW
from adapt.search.survey import seen, survey
from adapt.search.unlabelled import recalibrate
from deploy.runtime import Bundle
from service.prediction.catalog import Base
from service.settings import Settings
from service.store.material import Material
from training.bases import load_base_set
from training.devices import pick_device

logger = logging.getLogger(__name__)

__all__ = ["Cancelled", "Searcher", "Survey"]

MAX_PREPARED = 2  # base sets kept ready for searching


class Survey(Protocol):
    """Looks around a finished search."""

    def __call__(self, *, should_stop: Callable[[], bool]) -> Landscape:
        """Return its landscape; Cancelled if `should_stop` said so."""


class Found(NamedTuple):
    """The best soup for the images of a job and its evidence, and with labels also the others."""

    soup: Soup
    outcome: Outcome
    landscape: Landscape | None = None
    survey: Survey | None = None  # completes the landscape

    @property
    def is_more_to_try(self) -> bool:
        """Rungs that train weights were left out of a quick search, and could have been tried."""
        return TOO_SLOW in self.outcome.not_tried.values()


class Searcher:
    """Searches for soups. For one thread."""

    def __init__(self, settings: Settings, catalog: Mapping[str, Base]) -> None:
        self._settings, self._catalog = settings, catalog
        self._prepared: dict[str, PreparedBase] = {}
        self._num_threads = settings.threads or max(1, (os.cpu_count() or 1) - 1)

    def warm_up(self) -> None:
        """Make as many base sets as are kept ready for searching, so that the first job does not wait for that."""
        for name in list(self._catalog)[:MAX_PREPARED]:
            self._base(name).warm_up()

    def find(
        self,
        base_set: str,
        material: Material,
        *,
        current: Soup,
        strategy: Strategy,
        promote: Promote,
        attempt: int | None,
        earlier: tuple[int, ...],
        balance: bool,
        is_quick: bool,
        draw: Draw,
        reference: Reference | None,
        progress: Callable[[float, str], None],
        should_stop: Callable[[], bool],
    ) -> Found:
        """Return the best soup for the images, and what its evidence says.

        Without labels the current soup gets new statistics and there is no evidence: nothing but `promote` "always"
        promotes that.

        Args:
            base_set: its name.
            material: the images.
            current: the soup to beat, with its held-out answers.
            strategy: of the search.
            promote: what decides.
            attempt: number of this comparison with the current version; None if it is not counted.
            earlier: sizes of earlier attempts, see `SearchConfig.earlier`.
            balance: let every class count alike.
            is_quick: leave out the rungs that train weights.
            draw: how the labelled images were drawn.
            reference: trusted images on which the candidate must reach a floor.
            progress: called with the fraction done and what is being done.
            should_stop: asked again and again.

        Raises:
            Cancelled: `should_stop` said so.
            ValueError: the base set is not there, the soup belongs to another one, or nothing usable was found.
        """
        base = self._base(base_set)
        num_threads = self._num_threads
        if material.support is not None:
            found = search(
                base,
                material.support,
                self._config(
                    strategy=strategy,
                    promote=promote,
                    attempt=attempt or 1,
                    earlier=earlier,
                    balance=balance,
                    effort="quick" if is_quick else "full",
                    draw=draw,
                ),
                current=current,
                unlabelled=material.unlabelled,
                reference=reference,
                progress=progress,
                should_stop=should_stop,
            )
            if found.outcome.state == "promoted":
                self._expect(base_set, found.soup)
            look = partial(survey, base, material.support, found, current=current, num_threads=num_threads)
            landscape = seen(base, material.support, found, current=current)
            return _counted(Found(found.soup, found.outcome, landscape, look), attempt)
        if material.unlabelled is None:
            raise ValueError("expected images, got none")
        soup, outcome = recalibrate(
            base,
            material.unlabelled,
            current=current,
            device=self._settings.device,
            num_threads=num_threads,
            progress=progress,
            should_stop=should_stop,
        )
        if promote != "always":
            return Found(soup, outcome)
        self._expect(base_set, soup)
        reason = f"promote=always: promoted without evidence ({outcome.reason})"
        outcome = outcome.model_copy(update={"state": "promoted", "reason": reason})
        return Found(soup.model_copy(update={"evidence": outcome}), outcome)

    def _config(
        self,
        *,
        strategy: Strategy,
        promote: Promote,
        attempt: int,
        earlier: tuple[int, ...],
        balance: bool,
        effort: Literal["quick", "full"],
        draw: Draw,
    ) -> SearchConfig:
        settings = self._settings
        return SearchConfig(
            strategy=strategy,
            effort=effort,
            balance=balance,
            draw=draw,
            promote=promote,
            attempt=attempt,
            earlier=earlier,
            false_promotions=settings.promote_p,
            harm=settings.harm,
            device=settings.device,
            threads=self._num_threads,
        )

    def compare(self, base_set: str, images: Support, *, soup: Soup, current: Soup) -> Comparison:
        """Compare two soups on labelled images that neither was chosen on: see `adapt.search.comparison`.

        Raises:
            ValueError: the base set is not there.
        """
        return compare(self._base(base_set), soup, current, images, num_threads=self._num_threads)

    def _expect(self, base_set: str, soup: Soup) -> None:
        """Have what the workers of this machine compare their new sessions with: no swap waits for it then."""
        folder = self._catalog[base_set].bundle(self._settings.home)
        if folder is None:
            return
        patch = None if soup.patch is None else soup.patch.tensors()
        try:
            Bundle.open(folder).expected_logits(soup.coefficients, bn_mode=soup.bn_mode, patch=patch)
        except ValueError as error:
            logger.warning("cannot say beforehand what a soup of %s answers: %s", base_set, error)

    def _base(self, name: str) -> PreparedBase:
        if name not in self._catalog:
            raise ValueError(f"expected the base set {name!r}, found {sorted(self._catalog)}")
        if name not in self._prepared:
            while len(self._prepared) >= MAX_PREPARED:
                del self._prepared[next(iter(self._prepared))]
            base = load_base_set(self._catalog[name].folder)
            self._prepared[name] = PreparedBase(base, device=pick_device(self._settings.device))
        return self._prepared[name]


def _counted(found: Found, attempt: int | None) -> Found:
    """Return what was found; without the number and level of an attempt if it is not counted as one."""
    if attempt is not None:
        return found
    outcome = found.outcome.model_copy(update={"attempt": None, "level": None})
    return found._replace(soup=found.soup.model_copy(update={"evidence": outcome}), outcome=outcome)
