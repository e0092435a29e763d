"""The contents of a folder of images: classes, counts, sizes, parts, and obstacles to training."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from training.data import SUFFIXES, ImageFiles
from training.documents import one_line
from training.folders import is_ignored
from training.manifest import InputSpec
from training.splits import find_parts

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
SHOWN = 5  # files named in a message
CLASSES_SHOWN = 20

_ANY_INPUT = InputSpec(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1))


@dataclass(frozen=True)
class Contents:
    """The contents of a folder.

    Attributes:
        root: the folder.
        parts: image files by part: "train", and "test" or "validation" where they have folders; readable ones only.
        sizes: height and width in pixels, upright, of each readable file of all parts.
        unreadable: why a file cannot be read, by its path within the folder.
        unchecked: files of which only the header was read.
        passed_over: how many files are no images by their suffix, by suffix.
    """

    root: Path
    parts: Mapping[str, ImageFiles]
    sizes: tuple[tuple[int, int], ...]
    unreadable: Mapping[str, str]
    unchecked: int
    passed_over: Mapping[str, int]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return self.parts["train"].class_names

    def counts(self, part: str = "train") -> dict[str, int]:
        """Return the number of readable images by class; none if there is no such part."""
        if part not in self.parts:
            return dict.fromkeys(self.class_names, 0)
        numbers = np.bincount(self.parts[part].labels, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, numbers, strict=True))

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return round(median(min(size) for size in self.sizes))

    @property
    def long_side(self) -> int:
        """Median of the longer sides, in pixels."""
        return round(median(max(size) for size in self.sizes))

    @property
    def aspect(self) -> float:
        """Median of longer over shorter side."""
        return float(median(max(size) / min(size) for size in self.sizes))

    @property
    def megapixels(self) -> float:
        """Median of the numbers of pixels, in millions."""
        return float(median(height * width / 1e6 for height, width in self.sizes))

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        numbers = self.counts().values()
        return max(numbers) / max(1, min(numbers))

    def text(self) -> str:
        """Return a description of some lines."""
        parts = ", ".join(f"{name} {len(files):,}" for name, files in self.parts.items())
        layout = f"parts: {parts}" if len(self.parts) > 1 else "no test part"
        total = sum(map(len, self.parts.values()))
        smallest, largest = min(self.sizes, key=np.prod), max(self.sizes, key=np.prod)
        lines = [
            f"{self.root}: {total:,} images of {len(self.class_names)} classes, {layout}",
            f"  training images by class: {_listed(self.counts())}",
            f"  median {self.long_side} x {self.short_side} pixels, {self.megapixels:.2f} megapixels; from "
            f"{smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]}",
        ]
        if self.imbalance >= 3:
            lines.append(
                f"  the largest class has {self.imbalance:.1f} times the images of the smallest: accuracy counts it as "
                "many times"
            )
        if self.unreadable:
            named = "; ".join(f"{name} ({reason})" for name, reason in list(self.unreadable.items())[:SHOWN])
            more = f"; and {len(self.unreadable) - SHOWN} more (see --json)" if len(self.unreadable) > SHOWN else ""
            lines.append(f"  {len(self.unreadable)} unreadable, move them away before training: {named}{more}")
        if self.passed_over:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in self.passed_over.items())
            lines.append(f"  passed over, no images by their names: {kinds}")
        if self.unchecked:
            lines.append(f"  {self.unchecked:,} images were not decoded, only their headers read (--check)")
        return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    """Name all classes, or of many the smallest and the largest."""
    if len(counts) <= CLASSES_SHOWN:
        return ", ".join(f"{name} {count}" for name, count in counts.items())
    ordered = sorted(counts, key=lambda name: counts[name])
    return ", ".join(f"{name} {counts[name]}" for name in ordered[:3]) + (
        f", ..., {', '.join(f'{name} {counts[name]}' for name in ordered[-3:])}"
    )


def look_at(root: Path, *, check: int) -> Contents:
    """Find the images of a folder, read their headers, and decode some to see whether they can be.

    Args:
        root: one folder per class, or train/ with such folders, and perhaps test/, val/ or validation/.
        check: number of images to decode, evenly over the files; all if there are fewer.

    Raises:
        ValueError: no such folder, no class, a class without images, parts with different classes.
    """
    parts = find_parts(root, _ANY_INPUT, needs_test=False)
    total = sum(map(len, parts.values()))
    step = max(1, -(-total // max(1, check)))
    found: dict[str, list[tuple[int, int] | str]] = {}
    with ThreadPoolExecutor(4) as pool, tqdm(total=total, desc="looking", unit="image", disable=None) as bar:
        for name, files in parts.items():
            found[name] = []
            for answer in pool.map(partial(_look, files, step), range(len(files))):
                found[name].append(answer)
                bar.update()
    unreadable, sizes, readable = {}, [], {}
    for name, files in parts.items():
        good = []
        for index, answer in enumerate(found[name]):
            if isinstance(answer, str):
                unreadable[str(files.files[index].relative_to(root))] = answer
            else:
                good.append(index)
                sizes.append(answer)
        readable[name] = files.subset(good)
    num_checked = sum(-(-len(files) // step) for files in parts.values())
    return Contents(root, readable, tuple(sizes), unreadable, total - num_checked, _passed_over(root))


def _look(files: ImageFiles, step: int, index: int) -> tuple[int, int] | str:
    """Return height and width of an image, or why it cannot be read; every `step`-th one is decoded."""
    path = files.files[index]
    try:
        if index % step == 0:
            files.subset([index]).load()
        return _size(path)
    except (ValueError, OSError) as error:
        return one_line(error).removeprefix(f"{path}: ")


def _size(path: Path) -> tuple[int, int]:
    """Return height and width of an image, upright, by its header."""
    try:
        with Image.open(path) as image:
            return image.size if _is_sideways(image) else (image.height, image.width)
    except Exception as error:  # Pillow's readers raise whatever they stumble on; each means the same here
        raise ValueError(f"expected an image file: {one_line(error)}") from None


def _is_sideways(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    except Exception:  # a good image may carry a broken tag
        return False


def _passed_over(root: Path) -> dict[str, int]:
    files = (path for path in root.rglob("*") if path.is_file())
    shown = (path for path in files if not is_ignored(path.relative_to(root).as_posix()))
    counts = Counter(path.suffix.lower() for path in shown if path.suffix.lower() not in SUFFIXES)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
