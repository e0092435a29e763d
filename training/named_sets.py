"""Sets of images that have a name: CIFAR-10 and the embedded digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from training.data import ImageSet, balanced_indices, from_arrays
from training.images import prepare
from training.manifest import InputSpec

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS_SIZE = 16
DIGITS_TEST = 600


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
    import torchvision.datasets  # slow to import and needed only here

    parts = {}
    for part in ("train", "test"):
        try:
            dataset = torchvision.datasets.CIFAR10(str(root), train=part == "train", download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{root}: holds no train/ and test/ folders, and CIFAR-10 cannot be downloaded: {reason}"
            ) from None
        images, labels = np.asarray(dataset.data, dtype=np.uint8), np.asarray(dataset.targets, dtype=np.int64)
        parts[part] = from_arrays(images, labels, CIFAR10_CLASSES)
    return parts


def at_size(data: ImageSet, spec: InputSpec) -> ImageSet:
    """Return the pictures at the network's size; their hashes stay."""
    if data.images.shape[1:3] == (spec.height, spec.width):
        return data
    return replace(data, images=np.stack([prepare(image, spec) for image in data.images]))
