"""What several commands share: arguments, images, measures, a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from adapt.documents.soup import Soup, make_soup
from adapt.networks.forward import score_logits, served_logits
from adapt.networks.prepared import PreparedBase
from training.data import ImageSet, load_folder
from training.manifest import Manifest
from training.parameters import Positional

BasesArgument = Annotated[Path, Positional]
FolderArgument = Annotated[Path, Positional]


def alone(manifest: Manifest, ingredient: str) -> Soup:
    """Return the soup that is one ingredient."""
    return make_soup(manifest, {name: float(name == ingredient) for name in manifest.ingredient_names})


def load_images(folder: Path, manifest: Manifest) -> ImageSet:
    """Return the labelled images of a folder at the base set's input size."""
    return load_folder(folder, manifest.input, manifest.class_names)


def measure(prepared: PreparedBase, soups: dict[str, Soup], images: ImageSet) -> dict[str, tuple[float, float]]:
    """Return accuracy and log-loss at its temperature for each soup."""
    found = {}
    for name, soup in soups.items():
        logits = served_logits(prepared, soup, images.images)
        scores = score_logits(logits[None], images.labels, temperatures=[soup.temperature])
        found[name] = (float(scores.accuracy[0]), float(scores.losses.mean(dtype=np.float64)))
    return found


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Yield a progress callback that moves a bar on stderr; quiet when piped."""
    with tqdm(total=1.0, disable=None, leave=False, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description(message, refresh=False)
            bar.update(fraction - bar.n)

        yield report
