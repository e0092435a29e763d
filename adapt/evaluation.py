"""Many soups on the same images: the base set is prepared once, then a candidate costs one product and its forwards."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.bn import Folded, check_same_logits, fold_base, fuse, fused_state_dict, has_batchnorm, probe_images
from adapt.mixing import FlatModel
from adapt.score import TEMPERATURES, Scores
from adapt.soup import BnMode
from training.bases import BaseSet
from training.images import to_input
from training.manifest import Manifest

logger = logging.getLogger(__name__)

BLOCK_BYTES = 256 * 2**20  # float32 inputs kept ready at a time; the candidates' loop runs once per block
# Pixels per batch. On a CPU, 32x32 nets are fastest at 50 to 100 images: activations stay in the cache of a core, from
# about 200 images on they do not and the rate drops by 40 %.
BATCH_PIXELS = {"cpu": 64 * 32 * 32, "cuda": 4096 * 32 * 32}
MIN_BATCH = 8


class Cancelled(RuntimeError):
    """The caller asked a search to stop."""


class PreparedBase:
    """A base set made ready for searching: BatchNorm folded, weights flat, on a device. Not safe for two threads.

    Costs a second or so and M times the network's size; keep it between searches. Each BatchNorm mode is prepared when
    first used.
    """

    def __init__(self, base: BaseSet, *, device: torch.device | str = "cpu") -> None:
        self.base = base
        self.device = torch.device(device)
        self._models: dict[BnMode, FlatModel] = {}
        self._classifier = base.model()
        self._has_batchnorm = has_batchnorm(self._classifier.net)

    @property
    def manifest(self) -> Manifest:
        """The base set's manifest."""
        return self.base.manifest

    def canonical(self, bn_mode: BnMode) -> BnMode:
        """Return the mode; always "folded" for a network without BatchNorm, where both are the same."""
        return bn_mode if self._has_batchnorm else "folded"

    def model(self, bn_mode: BnMode) -> FlatModel:
        """Return the network whose `set` takes coefficients in ingredient order; input: see `normalise`."""
        mode = self.canonical(bn_mode)
        if mode not in self._models:
            self._models[mode] = self._folded() if mode == "folded" else self._raw()
        return self._models[mode]

    def _raw(self) -> FlatModel:
        return FlatModel(self._classifier.net, list(self.base.state_dicts.values()), device=self.device)

    def _folded(self) -> FlatModel:
        folded = fold_base(self.base)
        rows = [fused_state_dict(state_dict, folded.pairs) for state_dict in folded.state_dicts.values()]
        model = FlatModel(fuse(self._classifier.net, folded.pairs), rows, device=self.device)
        self._check_fused(folded, model)
        return model

    @torch.inference_mode()
    def _check_fused(self, folded: Folded, model: FlatModel) -> None:
        spec = self.manifest.input
        probe = probe_images(self._classifier, spec.height, spec.width)
        for position, state_dict in enumerate(folded.state_dicts.values()):
            self._classifier.net.load_state_dict(state_dict)
            model.set([float(position == other) for other in range(len(folded.state_dicts))])
            with exact_convolutions():
                found = model.net(self.normalise(probe.to(self.device))).cpu()
            check_same_logits(self._classifier(probe), found, "the network with its BatchNorm layers taken out")

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as the inner network wants them: normalised, channels last."""
        mean, std = self._classifier.mean.to(images.device), self._classifier.std.to(images.device)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is CUDA where there is one.

    Raises:
        ValueError: not a device, or "cuda" where there is none: it never falls back silently.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"expected device cpu, cuda or auto, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device")
    return torch.device(name)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Keep CUDA convolutions in float32: TensorFloat-32 would make the search see other logits than the service."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def thread_count(num_threads: int | None) -> Iterator[None]:
    """Run torch on this many CPU threads; None leaves it alone."""
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate_soups(
    prepared: PreparedBase,
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    *,
    bn_mode: BnMode = "folded",
    temperatures: Sequence[float] = TEMPERATURES,
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Scores:
    """Return every soup's losses and hits on every image.

    A soup whose logits are not finite, or whose mixed running variances come out negative (`raw` mode, outside the
    simplex), has infinite losses and no hit.

    Args:
        prepared: the base set.
        coefficients: (C, M), in ingredient order.
        images: uint8 (n, H, W, 3) at the network's input size.
        labels: (n,) class indices.
        bn_mode: how BatchNorm is mixed.
        temperatures: T numbers > 0 that divide the logits.
        batch_size: images per forward; None chooses by image size and device.
        progress: called with the fraction done, after each soup.
        should_stop: asked before each soup.

    Raises:
        Cancelled: `should_stop` said so.
    """
    num_soups, n = len(coefficients), len(images)
    losses = torch.full((num_soups, len(temperatures), n), math.inf, device=prepared.device)
    correct = torch.zeros((num_soups, n), dtype=torch.bool, device=prepared.device)
    targets = torch.from_numpy(labels).to(prepared.device)
    scale = torch.tensor(temperatures, dtype=torch.float32, device=prepared.device).view(-1, 1, 1)

    def judge(soup: int, span: slice, logits: Tensor) -> None:
        losses[soup, :, span], correct[soup, span] = _judge(logits, targets[span], scale)

    _pass(prepared, coefficients, images, bn_mode, judge, batch_size, progress, should_stop)
    return Scores(losses.cpu().numpy(), correct.cpu().numpy())


def soup_logits(
    prepared: PreparedBase,
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    *,
    bn_mode: BnMode = "folded",
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Return every soup's logits on every image, float32 (C, n, K) on the CPU; NaN for a soup that is not usable.

    Arguments and errors as for `evaluate_soups`.
    """
    shape = (len(coefficients), len(images), len(prepared.manifest.class_names))
    kept = torch.full(shape, math.nan, device=prepared.device)

    def keep(soup: int, span: slice, logits: Tensor) -> None:
        kept[soup, span] = logits

    _pass(prepared, coefficients, images, bn_mode, keep, None, progress, should_stop)
    return kept.cpu()


def score_logits(
    logits: Tensor, labels: npt.NDArray[np.int64], *, temperatures: Sequence[float] = TEMPERATURES
) -> Scores:
    """Return the losses and hits of logits (C, n, K), as `evaluate_soups` does."""
    targets = torch.from_numpy(labels)
    scale = torch.tensor(temperatures, dtype=torch.float32).view(-1, 1, 1)
    judged = [_judge(rows, targets, scale) for rows in logits]
    return Scores(
        torch.stack([losses for losses, _ in judged]).numpy(), torch.stack([correct for _, correct in judged]).numpy()
    )


def _pass(
    prepared: PreparedBase,
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    bn_mode: BnMode,
    visit: Callable[[int, slice, Tensor], None],
    batch_size: int | None,
    progress: Callable[[float], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Run every usable soup on every image and show `visit` the soup's position, the images' and the logits."""
    model = prepared.model(bn_mode)
    usable = model.usable(torch.from_numpy(coefficients))
    blocks = _blocks(images)
    with torch.inference_mode(), exact_convolutions():
        for number, block in enumerate(blocks):
            batches = _batches(prepared, images, block, batch_size)
            for soup, row in enumerate(coefficients):
                if should_stop is not None and should_stop():
                    raise Cancelled("the search was stopped before it was done")
                if usable[soup]:
                    model.set(row.tolist())
                    for span, batch in batches:
                        visit(soup, span, model.net(batch))
                if progress is not None:
                    progress((number * len(coefficients) + soup + 1) / (len(blocks) * len(coefficients)))


def _judge(logits: Tensor, labels: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses (T, n), infinite where a logit is not finite, and hits (n,)."""
    scaled = logits / temperatures
    picked = scaled.gather(2, labels.view(1, -1, 1).expand(len(temperatures), -1, 1)).squeeze(2)
    losses = torch.logsumexp(scaled, dim=2) - picked
    finite = losses.isfinite()
    return losses.masked_fill(~finite, math.inf), (logits.argmax(dim=1) == labels) & finite.all(dim=0)


def _blocks(images: npt.NDArray[np.uint8]) -> list[slice]:
    """Return slices of images whose float32 inputs fit into `BLOCK_BYTES`, at least one image each."""
    per_image = 4 * int(np.prod(images.shape[1:]))
    size = max(1, BLOCK_BYTES // per_image)
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def _batches(
    prepared: PreparedBase, images: npt.NDArray[np.uint8], block: slice, batch_size: int | None
) -> list[tuple[slice, Tensor]]:
    """Return the network's inputs for a block of images in batches of nearly equal size, each with its position."""
    if batch_size is None:
        pixels = BATCH_PIXELS["cuda" if prepared.device.type == "cuda" else "cpu"]
        batch_size = max(MIN_BATCH, pixels // (images.shape[1] * images.shape[2]))
    inputs = prepared.normalise(torch.from_numpy(to_input(images[block])).to(prepared.device))
    batches, start = [], block.start
    for batch in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):
        batches.append((slice(start, start + len(batch)), batch.contiguous(memory_format=torch.channels_last)))
        start += len(batch)
    return batches
