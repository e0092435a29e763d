"""Labelled images of a job that kept what is served may say that the version before it is better."""

from typing import TYPE_CHECKING

import numpy as np

from adapt.documents.soup import Soup
from adapt.evidence.levels import attempt_chance
from adapt.images.support import Support
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.tables import Deployment, Job
from service.store.watches import Rollback, Watches

if TYPE_CHECKING:
    from service.adapter.searching import Searcher


class Doubts:
    """Judges the current versions of watched deployments by labelled images."""

    def __init__(self, registry: Registry, samples: Samples, watches: Watches, *, total: float) -> None:
        """Remember where things are.

        Args:
            registry: of deployments and versions.
            samples: knows when images came.
            watches: of the deployments.
            total: chance of any false rollback while a version is current.
        """
        self._registry, self._samples, self._watches, self._total = registry, samples, watches, total

    def look(self, searcher: "Searcher", job: Job, deployment: Deployment, support: Support) -> Rollback | None:
        """Say if the version before the current one of a watched deployment does better on a job's labelled images.

        Only those count that came after the version became current and that neither version was made from: an image
        that was deleted and sent again looks new. The level is the chance that the job's attempt adds: so the chance of
        any false rollback, too, stays below the total, however many jobs there are.
        """
        suspect = self._watches.suspect(job.deployment)
        if suspect is None or suspect.version != job.base_version or job.attempt is None:
            return None
        current, before = (
            self._registry.soup(job.deployment, version, held_out=True)
            for version in (suspect.version, suspect.against)
        )
        fresh = self._samples.arrived(job.deployment, support.hashes, since=suspect.since)
        fresh -= _made_from(current) | _made_from(before)
        images = np.flatnonzero([digest in fresh for digest in support.hashes])
        if len(images) == 0:
            return None
        level = attempt_chance(job.attempt, total=self._total)
        found = searcher.compare(deployment.base_set, support.subset(images), soup=before, current=current)
        if found.objection is not None or not found.p_value < level:
            return None
        return Rollback(
            suspect,
            f"on {found.n} labelled images that came after version {suspect.version}, version {suspect.against} before "
            f"it has accuracy {found.soup:.3f} against {found.current:.3f}, p = {found.p_value:.3g}, below "
            f"{level:.3g}",
        )


def _made_from(soup: Soup) -> set[str]:
    """Return the hashes of the images that a soup was made from."""
    return set() if soup.held_out is None else set(soup.held_out.answers().hashes)
