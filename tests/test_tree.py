"""What git tracks stays small enough to clone, copy and upload in seconds."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 60e6
MOST_BYTES_WITHOUT_PHOTOS = 45e6
MOST_PICTURE_BYTES = 110_000


def tracked() -> dict[str, int]:
    """Return the bytes of every tracked file that is there."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the tree is no git repository")
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    return {name: (ROOT / name).stat().st_size for name in done.stdout.split("\0") if (ROOT / name).is_file()}


def test_tracked_files_are_at_most_60_mb_and_45_without_the_photographs_base_set() -> None:
    sizes = tracked()
    assert "README.md" in sizes
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:5]
    assert sum(sizes.values()) <= MOST_BYTES, f"{sum(sizes.values()) / 1e6:.1f} MB; the largest: {largest}"
    others = sum(size for name, size in sizes.items() if not name.startswith("bases/photos/"))
    assert others <= MOST_BYTES_WITHOUT_PHOTOS, f"{others / 1e6:.1f} MB without bases/photos; the largest: {largest}"


def test_no_serving_bundle_is_tracked() -> None:
    assert [name for name in tracked() if name.startswith("bases/") and "/bundle/" in name] == []


def test_pictures_are_compressed() -> None:
    """Write figures with `benchmarks.pictures.save_figure`."""
    large = {name: size for name, size in tracked().items() if name.endswith(".png") and size > MOST_PICTURE_BYTES}
    assert large == {}
