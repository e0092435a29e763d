"""The per-image record of an evaluation: one line per model and image, as JSON lines or CSV."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data import ImageSet
from training.robustness import Evaluation

SUFFIXES = (".jsonl", ".csv")


def check_record(path: Path | None) -> None:
    """Raise ValueError unless a record can be written to this new file: to be asked before hours of work."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a record ending in {' or '.join(SUFFIXES)}")
    if path.exists():
        raise FileExistsError(f"{path}: already exists; choose another --record or remove it")


def write_record(
    path: Path,
    images: ImageSet,
    positions: npt.NDArray[np.int64] | Sequence[int],
    evaluations: Mapping[str, Evaluation],
) -> None:
    """Write the label, the prediction and the survived threat models of every image, for every model.

    Columns: model; index (position among all test images); hash (of the decoded pixels); label, predicted (class
    indices; unperturbed); clean, one for each norm, union (whether it is right, 0 or 1 in CSV).

    Args:
        path: ends in .jsonl or .csv.
        images: the images that were attacked.
        positions: where they stand among all test images.
        evaluations: by name of the model.
    """
    check_record(path)
    rows = list(_rows(images, positions, evaluations))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: int(value) if isinstance(value, bool) else value for key, value in row.items()} for row in rows
            )


def _rows(
    images: ImageSet, positions: npt.NDArray[np.int64] | Sequence[int], evaluations: Mapping[str, Evaluation]
) -> Iterator[dict[str, Any]]:
    for name, found in evaluations.items():
        columns = {**found.correct, "union": found.union}
        for row, position in enumerate(positions):
            yield {
                "model": name,
                "index": int(position),
                "hash": images.hashes[row],
                "label": int(images.labels[row]),
                "predicted": int(found.predicted[row]),
                **{column: bool(survived[row]) for column, survived in columns.items()},
            }
