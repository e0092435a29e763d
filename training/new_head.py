"""A last layer for other classes: logistic regression on what the backbone says of the training images."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from training.attacks import eval_mode
from training.data import ImageFiles, Images, ImageSet
from training.documents import Frozen
from training.images import to_input
from training.models import Classifier
from training.splits import Splits

BATCH = 64
# Weight of the images against the penalty ||W||^2 / 2, weak first; the features have a root mean square of 1.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
MAX_STEPS = 200  # of L-BFGS; it starts at the solution for the strength before
SAME_LOGITS = 1e-3  # the network's logits are those of its last layer within this share of the largest


class HeadFit(Frozen):
    """How a new last layer was fitted."""

    strength: float = Field(description="weight of each image against the penalty, chosen on the validation images")
    n: int = Field(ge=1, description="training images it was fitted to")
    n_validation: int = Field(ge=1, description="validation images")
    validation_accuracy: float = Field(ge=0, le=1, description="of the fitted layer")


def fit_head(classifier: Classifier, splits: Splits, *, device: str = "cpu") -> HeadFit:
    """Fit the last layer of a classifier to the training images; the backbone stays as it is.

    Of several penalties the one with the lowest cross-entropy on the validation images stays. Images are not augmented.

    Args:
        classifier: with a layer for each class of `splits`; its last layer is changed in place. Moved to `device`.
        splits: training and validation images; those for tests are not used.
        device: torch device.

    Raises:
        ValueError: the network's last layer is not a single linear one, or logits are not what it returns.
    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import and needed only here
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    classifier.to(device)
    layer = _last_layer(classifier)
    features, labels = _features(classifier, layer, splits.train, device), splits.train.labels
    held_out, answers = _features(classifier, layer, splits.validation, device), splits.validation.labels
    centre = features.mean(axis=0)
    scale = np.float32(max(1e-12, float(np.sqrt(np.square(features - centre).mean()))))
    features, standardised = (features - centre) / scale, (held_out - centre) / scale
    classes = np.arange(len(splits.train.class_names))
    best, loss = None, np.inf
    model = LogisticRegression(warm_start=True, max_iter=MAX_STEPS)
    for strength in STRENGTHS:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a solution to three digits is enough
            model.fit(features, labels)
        probabilities = model.predict_proba(standardised)
        if (found := log_loss(answers, probabilities, labels=classes)) < loss:
            accuracy = float((probabilities.argmax(axis=1) == answers).mean())
            best, loss = (strength, model.coef_.copy(), model.intercept_.copy(), accuracy), found
    if best is None:
        raise ValueError("expected finite features of the training images, got NaN or infinity: the weights are broken")
    strength, weight, bias, accuracy = best
    if len(classes) == 2:  # scikit-learn has one row there: the second class against the first
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    weight = weight / scale
    _write(layer, torch.from_numpy(weight), torch.from_numpy(bias - weight @ centre))
    _check_logits(classifier, layer, splits.validation, held_out, device)
    return HeadFit(
        strength=strength, n=len(splits.train), n_validation=len(splits.validation), validation_accuracy=accuracy
    )


def _last_layer(classifier: Classifier) -> nn.Linear | nn.Conv2d:
    get = getattr(classifier.net, "get_classifier", None)
    layer = get() if callable(get) else None
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.bias is None:
        raise ValueError(
            "--new-head: expected a network whose last layer is a single linear one with a bias, this one's is "
            f"{type(layer).__name__}; train it with a recipe instead, `start: {{weights: FILE, head: new}}`"
        )
    return layer


@torch.no_grad()
def _features(classifier: Classifier, layer: nn.Module, data: Images, device: str) -> np.ndarray:
    """Return what the last layer is given for each image, float32 (N, D)."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0].flatten(1).float().cpu()))
    try:
        with eval_mode(classifier), tqdm(total=len(data), desc="features", unit="image", disable=None) as bar:
            for images in _batches(data):
                classifier(torch.from_numpy(to_input(images.images)).to(device))
                bar.update(len(images))
    finally:
        handle.remove()
    return torch.cat(found).numpy()


def _batches(data: Images) -> Iterator[ImageSet]:
    for start in range(0, len(data), BATCH):
        some = data.subset(range(start, min(start + BATCH, len(data))))
        yield some.load() if isinstance(some, ImageFiles) else some


@torch.no_grad()
def _write(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    if weight.numel() != layer.weight.numel():
        raise ValueError(
            f"--new-head: expected a last layer that sees {layer.weight[0].numel()} features of an image, it sees "
            f"{weight.shape[1]}; train it with a recipe instead, `start: {{weights: FILE, head: new}}`"
        )
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias)


@torch.no_grad()
def _check_logits(
    classifier: Classifier, layer: nn.Linear | nn.Conv2d, data: ImageSet, features: np.ndarray, device: str
) -> None:
    """Raise ValueError where the network does something to what its last layer returns: it was fitted without that."""
    some = data.subset(range(min(BATCH, len(data))))
    assert layer.bias is not None
    expected = torch.from_numpy(features[: len(some)]) @ layer.weight.flatten(1).cpu().T + layer.bias.cpu()
    with eval_mode(classifier):
        logits = classifier(torch.from_numpy(to_input(some.images)).to(device)).cpu()
    if not (logits - expected).abs().max() <= SAME_LOGITS * expected.abs().max():
        raise ValueError(
            "--new-head: the network's logits are not those of its last layer; train it with a recipe instead, "
            "`start: {weights: FILE, head: new}`"
        )
