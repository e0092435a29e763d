"""What a measurement was made on, and with."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "bentoml")  # a machine that only trains may lack the last ones


def machine() -> str:
    """Return processor, cores and the versions of installed packages in one line."""
    packages = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)) is not None)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}"


def commit() -> str:
    """Return the checkout's commit, marked if files differ from it."""
    try:
        git = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        done = subprocess.run(git, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
