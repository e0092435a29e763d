"""The ImageNet family: validation, ReaL, V2, A, R, Sketch, C and cue conflicts, with their class subsets.

| set | classes scored | source |
|---|---|---|
| ImageNet | all | Russakovsky et al. 2015 (arXiv:1409.0575) |
| ReaL | all; several labels may be right | Beyer et al. 2020 (arXiv:2006.07159), section 3 |
| V2 | all | Recht et al. 2019 (arXiv:1902.10811) |
| Sketch | all | Wang et al. 2019 (arXiv:1905.13549) |
| C | all | Hendrycks and Dietterich 2019 (arXiv:1903.12261) |
| A, R | the 200 of the set | Hendrycks et al. 2021 (arXiv:1907.07174, arXiv:2006.16241) |
| cue conflict | 16 groups | Geirhos et al. 2019 (arXiv:1811.12231), appendix A |

Which output of a network stands for which class is fixed by the WordNet ids: outputs follow them in sorted order. The
sets name their folders by these ids, so no list of classes is kept here.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from training.data import SUFFIXES, ImageFiles, find_files
from training.manifest import InputSpec

logger = logging.getLogger(__name__)

NUM_CLASSES, SUBSET_CLASSES = 1000, 200  # of ImageNet; of A and of R
VALIDATION_NAME = re.compile(r"_val_(\d{8})$")  # of a file, less its suffix: counted from 1
CONFLICT_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")  # shape and texture, with the numbers of their pictures

Aggregate = Literal["mean", "sum", "max"]
AGGREGATE: Mapping[Aggregate, Callable[..., npt.NDArray[np.float64]]] = {"mean": np.mean, "sum": np.sum, "max": np.max}

Indices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ImageNetSet:
    """Image files, and how a network's outputs answer for them.

    Attributes:
        files: decoded when needed; their labels index the classes of this set.
        outputs: for each class of this set the outputs of the network that stand for it.
        accepted: for each image the classes that are right, where several may be; else None.
        textures: for each image of a cue conflict the class of its texture; else None.
    """

    files: ImageFiles
    outputs: tuple[Indices, ...]
    accepted: tuple[frozenset[int], ...] | None = None
    textures: Indices | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def subset(self, indices: Sequence[int] | Indices) -> "ImageNetSet":
        """Return the images at these positions, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=self.files.subset(index),
            accepted=None if self.accepted is None else tuple(self.accepted[i] for i in index),
            textures=None if self.textures is None else self.textures[index],
        )

    def answers(self, logits: Logits, *, aggregate: Aggregate = "mean") -> Indices:
        """Return the class of this set that the network chooses for each image, (N,); others are left out.

        Args:
            logits: (N, C) of a network for all classes.
            aggregate: how the probabilities of several outputs become that of their group. The mean does not favour
                groups of many outputs; it is what the code published with the cue conflicts does.
        """
        if logits.ndim != 2 or logits.shape[1] <= max(int(group.max()) for group in self.outputs):
            needed = 1 + max(int(group.max()) for group in self.outputs)
            raise ValueError(f"expected logits (N, C) of at least {needed} classes, got {logits.shape}")
        if all(len(group) == 1 for group in self.outputs):
            return np.asarray(logits[:, np.concatenate(self.outputs)].argmax(axis=1), dtype=np.int64)
        probabilities = softmax(logits.astype(np.float64), axis=1)
        scores = [AGGREGATE[aggregate](probabilities[:, group], axis=1) for group in self.outputs]
        return np.asarray(np.stack(scores, axis=1).argmax(axis=1), dtype=np.int64)

    def correct(self, logits: Logits, *, aggregate: Aggregate = "mean") -> npt.NDArray[np.bool_]:
        """Say for each image whether the answer is right: (N,). For cue conflicts the shape is what counts."""
        if len(logits) != len(self):
            raise ValueError(f"expected logits of {len(self)} images, got {len(logits)}")
        answers = self.answers(logits, aggregate=aggregate)
        if self.accepted is None:
            return np.asarray(answers == self.files.labels)
        return np.asarray([int(answer) in right for answer, right in zip(answers, self.accepted, strict=True)])


def imagenet_ids() -> tuple[str, ...]:
    """Return the WordNet ids of the 1,000 classes in the order of a network's outputs, from timm's tables."""
    from timm.data.imagenet_info import ImageNetInfo  # slow to import and needed only here

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_label_name(index) for index in range(NUM_CLASSES))


def load_all_classes(folder: Path, input_spec: InputSpec, *, ids: Sequence[str]) -> ImageNetSet:
    """Find ImageNet's validation set, V2 or Sketch: `<WordNet id>/<file>`, scored among all classes.

    V2 is also given out with folders 0 to 999, which are positions in `ids`.

    Args:
        folder: one folder per class.
        input_spec: size and resize rule.
        ids: WordNet ids in the order of the network's outputs (`imagenet_ids`).

    Raises:
        ValueError: no such folder, a folder that is no class of the network.
    """
    files, outputs = _find(folder, input_spec, ids)
    labelled = ImageFiles(files.files, outputs[files.labels], tuple(ids), input_spec)
    return ImageNetSet(labelled, tuple(np.asarray([index]) for index in range(len(ids))))


def load_subset(folder: Path, input_spec: InputSpec, *, ids: Sequence[str]) -> ImageNetSet:
    """Find ImageNet-A or -R: `<WordNet id>/<file>`, scored among the classes that the folder has. See the above."""
    files, outputs = _find(folder, input_spec, ids)
    if len(outputs) != SUBSET_CLASSES:
        logger.warning(
            "%s: %d classes where ImageNet-A and -R have %d: accuracies are not comparable with published ones",
            folder,
            len(outputs),
            SUBSET_CLASSES,
        )
    return ImageNetSet(files, tuple(np.asarray([index]) for index in outputs))


def _find(folder: Path, input_spec: InputSpec, ids: Sequence[str]) -> tuple[ImageFiles, Indices]:
    """Return the files, with labels that index the folders, and each folder's output."""
    files = find_files(folder, input_spec)
    position = {name: index for index, name in enumerate(ids)} | {str(index): index for index in range(len(ids))}
    if unknown := [name for name in files.class_names if name not in position]:
        raise ValueError(
            f"{folder}: expected folders named by WordNet ids of the network's {len(ids)} classes, got {unknown[:5]}"
        )
    return files, np.asarray([position[name] for name in files.class_names], dtype=np.int64)


def with_real_labels(validation: ImageNetSet, labels: Path) -> ImageNetSet:
    """Return the validation set with its reassessed labels; images for which none fits are left out.

    Args:
        validation: files named `ILSVRC2012_val_00000001.JPEG` and so on.
        labels: real.json, a list with a list of classes for each validation image in the order of their numbers.

    Raises:
        ValueError: no such file, another content, an image without a number or beyond the list.
    """
    real = _read_real(labels, len(validation.outputs))
    accepted, kept = [], []
    for index, file in enumerate(validation.files.files):
        number = VALIDATION_NAME.search(file.stem)
        if number is None or not 1 <= int(number[1]) <= len(real):
            raise ValueError(f"{file}: expected a name ending in _val_00000001 to _val_{len(real):08d}")
        if right := real[int(number[1]) - 1]:
            accepted.append(right)
            kept.append(index)
    if not kept:
        raise ValueError(f"{labels}: no image of the validation set has a label")
    return replace(validation.subset(kept), accepted=tuple(accepted))


def _read_real(file: Path, num_classes: int) -> list[frozenset[int]]:
    if not file.is_file():
        raise ValueError(f"{file}: expected the reassessed labels (real.json), found no such file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON: {error}") from None
    if not isinstance(content, list) or not all(
        isinstance(row, list) and all(type(label) is int and 0 <= label < num_classes for label in row)
        for row in content
    ):
        raise ValueError(f"{file}: expected a list of lists of classes from 0 to {num_classes - 1}")
    return [frozenset(row) for row in content]


def find_c(root: Path) -> dict[str, dict[int, Path]]:
    """Return the folders of ImageNet-C by corruption and severity.

    They are `<corruption>/<severity>/<WordNet id>/<file>`, possibly below folders for the groups of corruptions.

    Raises:
        ValueError: no such folder, nothing of this form in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected ImageNet-C, <corruption>/<severity>/<class>/<file>, found no such folder")
    found: dict[str, dict[int, Path]] = {}
    for folder in sorted([*root.glob("*/[1-5]"), *root.glob("*/*/[1-5]")]):
        if folder.is_dir() and any(inside.is_dir() for inside in folder.iterdir()):
            found.setdefault(folder.parent.name, {})[int(folder.name)] = folder
    if not found:
        raise ValueError(f"{root}: expected ImageNet-C, <corruption>/<severity>/<class>/<file>, found none")
    return found


def load_c(root: Path, corruption: str, severity: int, input_spec: InputSpec, *, ids: Sequence[str]) -> ImageNetSet:
    """Find one corruption of ImageNet-C at one severity. See `find_c` and `load_all_classes`.

    Raises:
        ValueError: no such data.
    """
    found = find_c(root)
    if corruption not in found:
        raise ValueError(f"{root}: expected a corruption of {sorted(found)}, got {corruption!r}")
    if severity not in found[corruption]:
        raise ValueError(f"{root}: expected a severity of {sorted(found[corruption])} of {corruption}, got {severity}")
    return load_all_classes(found[corruption][severity], input_spec, ids=ids)


def load_conflict(folder: Path, input_spec: InputSpec, *, groups: Mapping[str, Indices] | None = None) -> ImageNetSet:
    """Find the cue-conflict stimuli: `cat4-elephant2.png` has the shape of a cat and the texture of an elephant.

    80 of the 1,280 have both of one class (`textures` says which); the shape bias is defined on the others.

    Args:
        folder: the files, in it or in folders below.
        input_spec: size and resize rule.
        groups: the classes and their outputs; default `conflict_groups`.

    Raises:
        ValueError: no such folder, no file, a file whose name tells no shape and texture of the groups.
    """
    groups = conflict_groups() if groups is None else groups
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected cue-conflict images such as cat4-elephant2.png, found no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not files:
        raise ValueError(f"{folder}: expected cue-conflict images such as cat4-elephant2.png, found none")
    names = tuple(groups)
    labels = np.empty((len(files), 2), dtype=np.int64)
    for row, file in enumerate(files):
        match = CONFLICT_NAME.fullmatch(file.stem)
        if match is None or not set(match.groups()) <= set(names):
            raise ValueError(f"{file}: expected a name such as cat4-elephant2 with two of the classes {list(names)}")
        labels[row] = [names.index(name) for name in match.groups()]
    return ImageNetSet(
        ImageFiles(tuple(files), labels[:, 0], names, input_spec), tuple(groups.values()), textures=labels[:, 1]
    )


def conflict_groups() -> dict[str, Indices]:
    """Return the 16 classes of the cue conflicts, and the outputs of a network of 1,000 classes that count as each."""
    return {name: _spans(text) for name, text in _CONFLICT_OUTPUTS.items()}


def _spans(text: str) -> Indices:
    """Read "8 10-12" as 8, 10, 11, 12."""
    ends = [[int(end) for end in span.split("-")] for span in text.split()]
    return np.concatenate([np.arange(span[0], span[-1] + 1) for span in ends])


# From helper/human_categories.py of github.com/rgeirhos/texture-vs-shape, commit 6468a0e.
_CONFLICT_OUTPUTS: Mapping[str, str] = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
