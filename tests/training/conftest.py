"""A small net trained on digits for a few seconds: attacks need a model worth attacking."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.conftest import CLASSES
from training.attacks import fgsm
from training.augmentation import Augmentation, batches, to_device
from training.images import to_input
from training.manifest import Architecture, InputSpec, ThreatModel
from training.models import Classifier, create_classifier
from training.named_sets import load_digits

DIGITS_NET = Architecture(name="saucier_resnet", kwargs={"widths": [16, 32], "depths": [1, 1], "stem_stride": 2})


class Trained(NamedTuple):
    """A classifier in eval mode and test images, float32 (N, 3, 16, 16), with their labels."""

    model: Classifier
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small gain nothing from a second thread, and lose a lot where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits_net() -> Classifier:
    """A net that gets most digits right, and a fair part of attacked ones. Do not change its weights."""
    torch.manual_seed(0)
    train, _ = load_digits()
    model = create_classifier(DIGITS_NET, InputSpec(height=16, width=16, mean=(0.3,) * 3, std=(0.35,) * 3), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(6):
        for batch in batches(train, 64, Augmentation(), seed=0, epoch=epoch):
            images, labels = to_device(*batch, "cpu")
            attacked = fgsm(model, images, labels, ThreatModel(norm="Linf", eps=0.1), generator=generator)
            model.train()
            loss = cross_entropy(model(attacked), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def with_digits(model: Classifier, count: int) -> Trained:
    """Return a net with so many test images."""
    chosen = load_digits()[1].balanced(count, seed=0)
    return Trained(model, torch.from_numpy(to_input(chosen.images)), torch.from_numpy(chosen.labels))


@pytest.fixture(scope="session")
def trained(digits_net: Classifier) -> Trained:
    """That net and 40 images."""
    return with_digits(digits_net, 40)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve random images of each class of the tiny base sets, as an image folder."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for index in range(12):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root
