"""ONNX Runtime comes as two packages with one module; where both are installed, one has overwritten the other."""

import logging
from importlib.metadata import PackageNotFoundError, distribution

logger = logging.getLogger(__name__)

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def check_runtimes() -> None:
    """Log what to do if both are installed: which of them works is then a matter of chance."""
    if len(found := installed_runtimes()) > 1:
        names = " and ".join(found)
        logger.warning(
            "%s are both installed, and hold the same module: `pip uninstall %s`, then install the one you want",
            names,
            " ".join(found),
        )


def installed_runtimes() -> list[str]:
    """Return the packages of ONNX Runtime that are installed."""
    found = []
    for name in RUNTIMES:
        try:
            found.append(distribution(name).metadata["Name"])
        except PackageNotFoundError:
            continue
    return found
