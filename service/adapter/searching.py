"""What the adapter does with torch: the one module of the service that imports it, imported by the adapter alone."""

import logging
import os
from collections.abc import Callable, Mapping

from adapt.evaluation import Cancelled
from adapt.prepared import PreparedBase, pick_device
from adapt.search import find_soup
from adapt.soup import Outcome, Promote, Soup, Strategy
from adapt.unlabelled import recalibrate
from deploy.bundle import build_bundle
from service.prediction.catalog import Base
from service.settings import Settings
from service.store.samples import Material
from training.bases import load_base_set

__all__ = ["Cancelled", "Searcher"]

logger = logging.getLogger(__name__)

MAX_PREPARED = 2  # base sets kept ready for searching


class Searcher:
    """Builds serving bundles and searches for soups. For one thread."""

    def __init__(self, settings: Settings, catalog: Mapping[str, Base]) -> None:
        self._settings, self._catalog = settings, catalog
        self._prepared: dict[str, PreparedBase] = {}

    def build_missing_bundles(self) -> None:
        """Build the serving bundle of every base set that has none."""
        for base in self._catalog.values():
            if base.bundle(self._settings.home) is None:
                logger.info("building the serving bundle of %s", base.manifest.name)
                build_bundle(base.folder, self._settings.home / "bundles")

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
        progress: Callable[[float, str], None],
        should_stop: Callable[[], bool],
    ) -> tuple[Soup, Outcome]:
        """Return the best soup for the images, and what its evidence says.

        Without labels the current soup gets new statistics and there is no evidence: nothing but `promote` "always"
        promotes that.

        Raises:
            Cancelled: `should_stop` said so.
            ValueError: the base set is not there, the soup belongs to another one, or nothing usable was found.
        """
        base = self._base(base_set)
        num_threads = self._settings.threads or max(1, (os.cpu_count() or 1) - 1)
        if material.support is not None:
            return find_soup(
                base,
                material.support,
                unlabelled=material.unlabelled,
                current=current,
                strategy=strategy,
                promote=promote,
                p_threshold=self._settings.promote_p,
                device=self._settings.device,
                num_threads=num_threads,
                progress=progress,
                should_stop=should_stop,
            )
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
            return soup, outcome
        reason = f"promote=always: promoted without evidence ({outcome.reason})"
        outcome = outcome.model_copy(update={"state": "promoted", "reason": reason})
        return soup.model_copy(update={"evidence": outcome}), outcome

    def _base(self, name: str) -> PreparedBase:
        if name not in self._catalog:
            raise ValueError(f"expected the base set {name!r}, found {sorted(self._catalog)}")
        if name not in self._prepared:
            while len(self._prepared) >= MAX_PREPARED:
                del self._prepared[next(iter(self._prepared))]
            base = load_base_set(self._catalog[name].folder)
            self._prepared[name] = PreparedBase(base, device=pick_device(self._settings.device))
        return self._prepared[name]
