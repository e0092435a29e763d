"""Builds the serving bundles that predictors wait for. Imports torch, but nothing that only searches need.

The adapter's loop imports it where a bundle is missing.
"""

import logging
import time
from pathlib import Path

import torch

from deploy.bundle import build_bundle
from service.prediction.catalog import Base

logger = logging.getLogger(__name__)


def build(base: Base, home: Path) -> None:
    """Build the serving bundle of a base set in the home folder, and log how long that took.

    Works in the calling thread alone: threads that torch started here would keep its priority.

    Raises:
        ValueError: it cannot be built; one line that says why.
    """
    logger.info("building the serving bundle of %s, once for its weights", base.manifest.name)
    start = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build_bundle(base.folder, home / "bundles")
    finally:
        torch.set_num_threads(before)
    logger.info("the serving bundle of %s is there after %.1f s", base.manifest.name, time.perf_counter() - start)
