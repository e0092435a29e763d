"""Where a base set comes from: recipe, code, package versions, hardware, data."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from training.data import Images
from training.documents import Frozen
from training.manifest import Provenance
from training.version import VERSION

PACKAGES = ("torch", "timm", "numpy")


def provenance(recipe: Frozen, data: Images, *, seed: int, seconds: float, device: str) -> Provenance:
    """Describe a training run, or an import.

    Args:
        recipe: what was trained, or imported.
        data: the images it was done with; their digest is recorded.
        seed: of the run.
        seconds: wall-clock time of training.
        device: torch device it ran on.
    """
    status = _git("status", "--porcelain", "--untracked-files=no")
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return Provenance(
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=None if status is None else bool(status),
        versions={"saucier": VERSION, **{package: metadata.version(package) for package in PACKAGES}},
        hardware=f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}",
        data_hash=data.digest,
        seconds=seconds,
    )


def _git(*args: str) -> str | None:
    """Return what git prints about this checkout, or None outside of one."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
