"""Reference pages of the service's settings and metrics, from the code that defines them."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo

from docs.tools.tables import filled, table
from service.metrics import Metrics
from service.settings import PACKAGE_ROOT, PREFIX, Settings

_SUFFIXES = {"counter": "_total"}


def settings_page() -> str:
    """Return the page of all settings, in the order of the code."""
    rows = [
        (f"`{PREFIX}{name.upper()}`", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return filled("settings.md", settings=table(("variable", "default", "meaning"), rows))


def metrics_page() -> str:
    """Return the page of all metrics, by name."""
    rows = sorted(_metric(found) for found in vars(Metrics(CollectorRegistry())).values() if hasattr(found, "describe"))
    return filled("metrics.md", metrics=table(("metric", "type", "labels", "meaning"), rows))


def _default(field: FieldInfo) -> str:
    default = field.default
    if default in (None, ()):
        return ""
    if isinstance(default, Path) and default.is_relative_to(PACKAGE_ROOT):
        return f"`{default.relative_to(PACKAGE_ROOT)}/` beside the code"
    return f"`{default}`"


def _metric(metric: Any) -> tuple[str, str, str, str]:
    (family,) = metric.describe()
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"`{family.name}{_SUFFIXES.get(family.type, '')}`", family.type, labels, family.documentation.rstrip(".")
