"""What a start does about the deployment `default`: which base set it has, and whether that changes."""

import logging
import time
from collections.abc import Mapping

from adapt.documents.soup import default_soup
from service.prediction.catalog import Base, choose_default
from service.prediction.predictor import DEFAULT
from service.settings import Settings
from service.store.database import Database
from service.store.rebasing import change_base_set
from service.store.registry import Registry
from service.store.transactions import Conflict, UnknownDeployment
from training.manifest import BaseSetError

logger = logging.getLogger(__name__)

COMMAND = "saucier db rebase --base-set"


def settle_default(database: Database, catalog: Mapping[str, Base], settings: Settings) -> None:
    """Make the deployment `default` if there is none; else move it to SAUCIER_BASE_SET if that names another base set.

    It moves only while no worker is alive. Else replicas with different settings would move it to and fro, one at each
    of its starts; then it stays, and the log says what moves it. Replicas that start at the same moment see no worker
    of each other, so they must have the same setting.

    Raises:
        BaseSetError: the base set that it has, or is to have, is not here.
    """
    registry = Registry(database)
    try:
        served = registry.deployment(DEFAULT).base_set
    except UnknownDeployment:
        registry.ensure_deployment(DEFAULT, default_soup(choose_default(catalog, settings).manifest))
        served = registry.deployment(DEFAULT).base_set  # another process may have been first
    if settings.base_set not in (None, served):
        served = _move(database, choose_default(catalog, settings), served, settings)
    if served not in catalog:
        places = " or ".join(map(str, settings.bases_folders))
        raise BaseSetError(
            f"{places}: expected {served!r}, the base set of the deployment {DEFAULT!r}, found {sorted(catalog)}: "
            "bring it here, or say which one to serve from now on (--base-set NAME, or SAUCIER_BASE_SET)"
        )


def _move(database: Database, base: Base, served: str, settings: Settings) -> str:
    """Move `default` and return the base set that it has then."""
    wanted = default_soup(base.manifest)
    try:
        try:
            moved = change_base_set(database, DEFAULT, wanted, stale_seconds=settings.stale_seconds, is_alone=True)
        except Conflict:  # workers that were killed a moment ago count as alive for a while
            time.sleep(settings.stale_seconds)
            moved = change_base_set(database, DEFAULT, wanted, stale_seconds=settings.stale_seconds, is_alone=True)
    except Conflict as error:
        logger.warning(
            "%s still serves base set %s, not %s as SAUCIER_BASE_SET says: %s; `%s %s` moves it while they live",
            DEFAULT, served, base.manifest.name, error, COMMAND, base.manifest.name,
        )  # fmt: skip
        return served
    if moved is not None:
        versions = f"version {moved.from_version} -> {moved.to_version}"
        logger.warning("%s: %s, from base set %s to %s", DEFAULT, versions, served, base.manifest.name)
    return base.manifest.name
