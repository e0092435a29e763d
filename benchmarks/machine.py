"""What a measurement was made on."""

import os
import platform
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """Return processor, cores and package versions in one line."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime-gpu", "bentoml"))
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
