"""The model of a rung that trains weights: what it starts from, and what it answers."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.evidence.scores import Bools
from adapt.networks.prepared import PreparedBase
from adapt.rungs.model import Model
from adapt.rungs.pool import Library
from adapt.rungs.task import Task
from adapt.rungs.training import Start


def start_of(model: Model) -> Start:
    """Return what a training of the model starts from."""
    return Start(model.coefficients, model.bn_mode, model.tensors or None, model.temperature)


def trainable(task: Task) -> PreparedBase | None:
    """Return the network of a search where its weights are there to be trained; None where only its answers are."""
    return task.network if isinstance(task.network, PreparedBase) else None


def trained_model(library: Library, start: Model, tensors: Tensors, rung: str, num_images: int) -> Model:
    """Return a model with trained tensors.

    Args:
        library: of the search.
        start: what was trained.
        tensors: what takes the place of its mixed tensors, float32 by state-dict key.
        rung: name of the rung that trained.
        num_images: labelled images it was trained on.
    """
    task = library.task
    return Model(
        candidate=start.candidate,
        coefficients=start.coefficients,
        bn_mode=start.bn_mode,
        temperature=start.temperature,
        answer=_answering(library, start, tensors),
        features=None,
        layer=None,
        frequencies=start.frequencies,
        tensors=tensors,
        recalibrated=num_images + task.num_unlabelled if task.network.has_batchnorm else start.recalibrated,
        rungs=(*start.rungs, rung),
        below=start,
    )


def _answering(library: Library, start: Model, tensors: Tensors) -> Callable[[Bools], Tensor]:
    """Return what runs the network on some of the images, once on the same: models of several temperatures share it."""
    task, known = library.task, dict[bytes, Tensor]()

    def answer(images: Bools) -> Tensor:
        if (key := images.tobytes()) not in known:
            run = task.network.run(
                np.asarray([start.coefficients]),
                task.support.images[images],
                bn_mode=start.bn_mode,
                patch=tensors,
                should_stop=task.should_stop,
            )
            library.image_forwards += run.image_forwards
            known[key] = run.logits[0]
        return known[key]

    return answer
