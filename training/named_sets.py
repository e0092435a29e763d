"""Sets of images that have a name: CIFAR-10 and the embedded digits."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.data import ImageSet, balanced_indices, from_arrays
from training.images import prepare
from training.manifest import InputSpec

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ARCHIVE, CIFAR10_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"  # torchvision's download
DIGITS_SIZE = 16
DIGITS_TEST = 600


class Unavailable(ValueError):
    """A data set that is not there, or damaged, and cannot be downloaded. Says why, in one line."""


def load_digits() -> tuple[ImageSet, ImageSet]:
    """Return scikit-learn's 1,797 handwritten digits as (train, test) with 1,197 and 600 images.

    The 8x8 scans are enlarged to 16x16 RGB, white ink on black. The split is fixed.
    """
    import sklearn.datasets  # slow to import and needed only here

    data = sklearn.datasets.load_digits()
    spec = InputSpec(height=DIGITS_SIZE, width=DIGITS_SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    grey = np.round(np.asarray(data.images) * (255 / 16)).astype(np.uint8)
    images = np.stack([prepare(np.repeat(image[:, :, None], 3, axis=2), spec) for image in grey])
    everything = from_arrays(images, np.asarray(data.target, dtype=np.int64), [str(digit) for digit in range(10)])
    test = balanced_indices(everything.labels, DIGITS_TEST, seed=0)
    rest = np.setdiff1d(np.arange(len(everything)), test)
    return everything.subset(rest), everything.subset(test)


def load_cifar10(root: Path) -> dict[str, ImageSet]:
    """Return the parts train and test of CIFAR-10, from torchvision's download in a folder, or downloaded into it.

    Raises:
        ValueError: it is not there and cannot be downloaded.
    """
    is_new = not root.exists()
    try:
        return read_cifar10(root, may_download=True)
    except Unavailable as error:
        if is_new:
            shutil.rmtree(root, ignore_errors=True)
        raise ValueError(
            f"{root}: expected train/ and test/ with one folder of images per class, or torchvision's download of "
            f"CIFAR-10, found neither, and it cannot be downloaded: {error}. Where there is a network, "
            f"`saucier data cifar10 --out {root}` makes the folders"
        ) from None


def is_cifar10_archive(file: Path) -> bool:
    """Say if a file is torchvision's archive of CIFAR-10, by its MD5 sum."""
    import torchvision.datasets  # slow to import and needed only here

    found: bool = torchvision.datasets.utils.check_integrity(str(file), torchvision.datasets.CIFAR10.tgz_md5)
    return found


def read_cifar10(root: Path, *, may_download: bool) -> dict[str, ImageSet]:
    """Return the parts train and test of CIFAR-10 from torchvision's download, checked by torchvision's digests.

    Args:
        root: folder of the download: `cifar-10-batches-py/`, and where it may be downloaded the archive is enough.
        may_download: download into the folder what is not there.

    Raises:
        Unavailable: it is not there, or damaged, or it cannot be downloaded.
    """
    import torchvision.datasets  # slow to import and needed only here

    parts = {}
    for part in ("train", "test"):
        try:
            dataset = torchvision.datasets.CIFAR10(str(root), train=part == "train", download=may_download)
        except (OSError, RuntimeError) as error:
            raise Unavailable(" ".join(str(error).split())) from None
        images, labels = np.asarray(dataset.data, dtype=np.uint8), np.asarray(dataset.targets, dtype=np.int64)
        parts[part] = from_arrays(images, labels, CIFAR10_CLASSES)
    return parts


def at_size(data: ImageSet, spec: InputSpec) -> ImageSet:
    """Return the pictures at the network's size; their hashes stay."""
    if data.images.shape[1:3] == (spec.height, spec.width):
        return data
    return replace(data, images=np.stack([prepare(image, spec) for image in data.images]))
