"""The whole idea in one program: train, serve, shift, adapt, all on this machine.

Trains the four digits ingredients, serves them with `bentoml serve` and two workers, looks at the digits through a
camera on a dull, hazy day, posts 100 labelled pictures to `/adapt` while clients keep asking `/predict`, and measures
500 other pictures before and after, over HTTP. `python -m service.demo` or `make demo`.
"""

import logging
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from adapt.commands.default import DefaultCommand
from service.demo.camera import CAMERAS, DEMO_CAMERA
from service.demo.performance import perform
from service.demo.story import Pictures
from training.cli import Command, Result
from training.data import balanced_indices
from training.devices import thread_count
from training.named_sets import load_digits
from training.recipe import load_recipe
from training.train import train

logger = logging.getLogger("demo")

NUM_SUPPORT = 100


class Demo(Command):
    """Train four digit classifiers, serve them, shift the pictures, adapt, and show what it did.

    Takes about a minute on two cores. Exit code 1 if accuracy did not rise or a request failed.

    Example: saucier demo --seed 3 --out runs/demo-3
    """

    name: ClassVar[str] = "demo"
    out: Path = Field(default=Path("runs/demo"), description="folder for demo.png and demo.json")
    base: Path | None = Field(default=None, description="digits base set to serve instead of training one")
    clients: int = Field(default=3, ge=1, description="clients that keep asking /predict while the service adapts")

    def execute(self) -> Result:
        """Train, serve, adapt, show."""
        return perform(
            photograph_digits(DEMO_CAMERA, seed=self.seed),
            lambda folder: self.base or train_digits(folder / "bases" / "digits", seed=self.seed),
            out=self.out,
            title="Unseen digits, as a camera sees them on a dull, hazy day, and what the service answers",
            clients=self.clients,
        )


def train_digits(folder: Path, *, recipe: str = "digits", seed: int) -> Path:
    """Train a recipe on digits and choose its default soup; returns the folder."""
    logger.info("training the digits ingredients, as `saucier train %s` does", recipe)
    # The network is so small that a second thread gains little, and beside other load costs much.
    with thread_count(1):
        train(load_recipe(Path(recipe)), folder, seed=seed)
        chosen = DefaultCommand(bases=folder).execute()
    logger.info("default soup, as `saucier adapt default` chooses it: %s", chosen.text.replace("\n", "; "))
    return folder


def photograph_digits(camera: str, *, seed: int) -> Pictures:
    """Return the digits' test images as a camera of `CAMERAS` sees them, 100 for support, the rest for the test."""
    _, scenes = load_digits()
    support = balanced_indices(scenes.labels, NUM_SUPPORT, seed=seed)
    test = np.setdiff1d(np.arange(len(scenes)), support)
    files = CAMERAS[camera].photograph(scenes.images, seed=seed)
    return Pictures(scenes.class_names, scenes.labels, files, support, test, scenes.images)
