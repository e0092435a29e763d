"""What adaptation needs and prediction does not: a predictor may be installed by `deploy/predictor.txt`, without."""

import logging
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from service.prediction.catalog import Base

logger = logging.getLogger(__name__)

NEEDED = ("torch", "timm", "jaxtyping", "onnx", "onnx_ir", "onnxscript", "scipy")  # modules


def missing_packages() -> list[str]:
    """Return the modules that are not installed; imports none."""
    return [name for name in NEEDED if find_spec(name) is None]


def tell_what_is_left_out(missing: Sequence[str], without_bundle: Iterable[Base]) -> None:
    """Log what a service without these modules does not do.

    Args:
        missing: the modules.
        without_bundle: base sets that have no serving bundle.
    """
    logger.warning(
        "not installed: %s. This service classifies; it leaves adaptations to an adapter elsewhere that has the same "
        "registry, and builds no serving bundles. `pip install saucier` installs what that takes",
        ", ".join(missing),
    )
    for base in without_bundle:
        logger.error(
            "%s: expected a serving bundle, found none: where all is installed, run `saucier bundle %s`, and "
            "copy the folder bundle/ that it makes",
            base.manifest.name,
            base.folder,
        )
