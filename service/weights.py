"""What a start does about deployments whose base set has new weights."""

import logging
import time
from collections.abc import Mapping

from adapt.documents.soup import default_soup
from service.prediction.catalog import Base
from service.settings import Settings
from service.store.database import Database
from service.store.rebasing import Move, listed, made_for_other_weights, rebase
from service.store.transactions import Conflict

logger = logging.getLogger(__name__)

COMMAND = "saucier db rebase"


def check_weights(database: Database, catalog: Mapping[str, Base], settings: Settings) -> None:
    """Tell which deployments were made for other weights, and move them if SAUCIER_REBASE_AT_START says so.

    Nothing moves without that: while a service is upgraded, processes with the old weights and with the new ones start
    in any order, and would move its deployments to and fro.
    """
    digests = {name: base.manifest.digest for name, base in catalog.items()}
    if not (found := made_for_other_weights(database, digests)):
        return
    if not settings.rebase_at_start:
        logger.warning(
            "the current versions of %s were made for other weights of their base sets than those in SAUCIER_BASES: "
            "this service does not serve them. Once no worker with the old weights runs, `%s` moves them to the new "
            "ones; SAUCIER_REBASE_AT_START=true does that at a start",
            listed(found),
            COMMAND,
        )
        return
    try:
        try:
            moves = rebase_all(database, catalog, settings)
        except Conflict:  # workers that were killed a moment ago count as alive for a while
            time.sleep(settings.stale_seconds)
            moves = rebase_all(database, catalog, settings)
    except Conflict as error:
        logger.warning("%s are not moved to the new weights of their base sets: %s", listed(found), error)
        return
    for moved in moves:
        logger.warning("%s", told(moved))


def rebase_all(database: Database, catalog: Mapping[str, Base], settings: Settings) -> list[Move]:
    """Move all deployments to the weights in the catalog: see `service.store.rebasing.rebase`."""
    defaults = {name: default_soup(base.manifest) for name, base in catalog.items()}
    return rebase(database, defaults, stale_seconds=settings.stale_seconds)


def told(moved: Move) -> str:
    """Return what happened to a deployment in words."""
    return (
        f"{moved.deployment}: version {moved.from_version} -> {moved.to_version}, the default soup of the new weights"
    )
