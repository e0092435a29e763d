"""Many soups on the same images: a candidate costs one product and its forwards."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode, Soup
from adapt.evidence.scores import TEMPERATURES, Scores
from adapt.networks.network import Network, Run, check_stop
from training.devices import exact_floats

if TYPE_CHECKING:
    from adapt.networks.prepared import PreparedBase


BLOCK_BYTES = 256 * 2**20  # float32 inputs kept ready at a time; the candidates' loop runs once per block
# Pixels per batch. On a CPU, 32x32 nets are fastest at 50 to 100 images: activations stay in the cache of a core, from
# about 200 images on they do not and the rate drops by 40 %.
BATCH_PIXELS = {"cpu": 64 * 32 * 32, "cuda": 4096 * 32 * 32}
FLOAT_BYTES = 4
MIN_BATCH = 8
# Pixels per batch of a recalibration. Statistics of one batch are exact, so it is as large as memory allows.
RECALIBRATION_PIXELS = 2048 * 32 * 32


Visit = Callable[[int, slice, Tensor, Tensor | None], None]  # soup, images, logits, features


def evaluate_soups(
    prepared: "PreparedBase",
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

    def judge(soup: int, span: slice, logits: Tensor, _: Tensor | None) -> None:
        losses[soup, :, span], correct[soup, span] = _judge(logits, targets[span], scale)

    _pass(
        prepared,
        coefficients,
        images,
        bn_mode,
        judge,
        batch_size=batch_size,
        progress=progress,
        should_stop=should_stop,
    )
    return Scores(losses.cpu().numpy(), correct.cpu().numpy())


def soup_logits(
    prepared: "PreparedBase",
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    *,
    bn_mode: BnMode = "folded",
    patch: Tensors | None = None,
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Tensor:
    """Return every soup's logits on every image, float32 (C, n, K) on the CPU; NaN for a soup that is not usable.

    Arguments and errors as for `evaluate_soups`; `patch` has tensors that take the place of every soup's mixed ones.
    """
    shape = (len(coefficients), len(images), len(prepared.manifest.class_names))
    kept = torch.full(shape, math.nan, device=prepared.device)

    def keep(soup: int, span: slice, logits: Tensor, _: Tensor | None) -> None:
        kept[soup, span] = logits

    _pass(prepared, coefficients, images, bn_mode, keep, patch=patch, progress=progress, should_stop=should_stop)
    return kept.cpu()


def served_logits(network: Network, soup: Soup, images: npt.NDArray[np.uint8]) -> Tensor:
    """Return what a soup, its patch included, says about images: float32 (n, K), not divided by its temperature.

    Raises:
        PatchError: a patch for another network.
    """
    patch = None if soup.patch is None else soup.patch.tensors()
    row = np.asarray([soup.vector(network.manifest)])
    return network.run(row, images, bn_mode=soup.bn_mode, patch=patch).logits[0]


def run_soups(
    prepared: "PreparedBase",
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    *,
    bn_mode: BnMode = "folded",
    patch: Tensors | None = None,
    recalibrate: bool = False,
    unlabelled: npt.NDArray[np.uint8] | None = None,
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Return the logits, the last layer's inputs and, where asked for, the new statistics of every soup.

    Args:
        prepared: the base set.
        coefficients: (C, M), in ingredient order.
        images: uint8 (n, H, W, 3) at the network's input size.
        bn_mode: how BatchNorm is mixed; recalibration always mixes it raw.
        patch: tensors that take the place of every soup's mixed ones; with `recalibrate`, its BatchNorm statistics are
            the prior.
        recalibrate: estimate each soup's channel statistics on the images and the unlabelled ones.
        unlabelled: uint8 (m, H, W, 3) more images to recalibrate on.
        progress: called with the fraction done, after each soup.
        should_stop: asked before each soup.

    Raises:
        Cancelled: `should_stop` said so.
        ValueError: recalibration of a base set with neither BatchNorm nor moments.
    """
    num_soups, n = len(coefficients), len(images)
    logits = torch.full((num_soups, n, len(prepared.manifest.class_names)), math.nan)
    features: list[Tensor | None] = [None] * num_soups
    statistics: list[Tensors | None] = [None] * num_soups

    def keep(soup: int, span: slice, found: Tensor, seen: Tensor | None) -> None:
        logits[soup, span] = found.cpu()
        if seen is not None:
            room = features[soup]
            if room is None:
                room = features[soup] = torch.zeros(n, seen.shape[1])
            room[span] = seen.cpu()

    tap = _Tap(prepared, "raw" if recalibrate else bn_mode)
    with tap:
        if recalibrate:
            pool = images if unlabelled is None else np.concatenate([images, unlabelled])
            forwards = _recalibrated_pass(
                prepared, coefficients, pool, n, keep, statistics, tap, patch, progress, should_stop
            )
        else:
            _pass(
                prepared,
                coefficients,
                images,
                bn_mode,
                keep,
                patch=patch,
                tap=tap,
                progress=progress,
                should_stop=should_stop,
            )
            forwards = num_soups * n
    return Run(logits, tuple(features), tuple(statistics), forwards)


class _Tap:
    """Catches what the last layer is given."""

    def __init__(self, prepared: "PreparedBase", bn_mode: BnMode) -> None:
        key = prepared.head_key
        self._layer = None if key is None else prepared.model(bn_mode).net.get_submodule(key)
        self.features: Tensor | None = None

    def _catch(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0] if inputs[0].dim() == 2 else None

    def __enter__(self) -> "_Tap":
        self._handle = None if self._layer is None else self._layer.register_forward_pre_hook(self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self.features = None
        if self._handle is not None:
            self._handle.remove()


def _pass(
    prepared: "PreparedBase",
    coefficients: npt.NDArray[np.float64],
    images: npt.NDArray[np.uint8],
    bn_mode: BnMode,
    visit: Visit,
    *,
    patch: Tensors | None = None,
    tap: _Tap | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Run every usable soup on every image and show `visit` the soup's position, the images' and what came out."""
    model = prepared.model(bn_mode)
    # Statistics of a patch take the place of mixed ones, whatever these are.
    usable = [True] * len(coefficients) if patch else model.usable(torch.from_numpy(coefficients))
    blocks = _blocks(images)
    with torch.inference_mode(), exact_floats():
        for number, block in enumerate(blocks):
            batches = _batches(prepared, images, block, batch_size)
            for soup, row in enumerate(coefficients):
                check_stop(should_stop)
                if usable[soup]:
                    model.set(row.tolist(), patch)
                    for span, batch in batches:
                        logits = model.net(batch)
                        visit(soup, span, logits, None if tap is None else tap.features)
                if progress is not None:
                    progress((number * len(coefficients) + soup + 1) / (len(blocks) * len(coefficients)))


def _recalibrated_pass(
    prepared: "PreparedBase",
    coefficients: npt.NDArray[np.float64],
    pool: npt.NDArray[np.uint8],
    n: int,
    visit: Visit,
    statistics: list[Tensors | None],
    tap: _Tap,
    patch: Tensors | None,
    progress: Callable[[float], None] | None,
    should_stop: Callable[[], bool] | None,
) -> int:
    """Recalibrate every soup on the pool, show `visit` what comes out for its first n images; return the forwards.

    Where the pool is one batch, the pass that estimates the statistics has the final logits too.
    """
    batch_size = recalibration_batch(pool)
    recalibrator, model = prepared.recalibrator, prepared.model("raw")
    batches = _Inputs(prepared, pool, batch_size)
    parts = _batches(prepared, pool, slice(0, n), None) if n and len(batches) > 1 else []
    with torch.inference_mode(), exact_floats():
        for soup, row in enumerate(coefficients):
            check_stop(should_stop)
            logits = recalibrator.run(row.tolist(), batches, len(pool), patch=patch)
            if logits is not None and n:
                visit(soup, slice(0, n), logits[:n], None if tap.features is None else tap.features[:n])
            for span, batch in parts:
                visit(soup, span, model.net(batch), tap.features)
            statistics[soup] = recalibrator.statistics()
            if progress is not None:
                progress((soup + 1) / len(coefficients))
    return len(coefficients) * (len(pool) + (n if parts else 0))


class _Inputs(Sequence[Tensor]):
    """The network's inputs for images, batch by batch; kept as float32 only where they are few."""

    def __init__(self, prepared: "PreparedBase", images: npt.NDArray[np.uint8], batch_size: int) -> None:
        self._prepared = prepared
        self._parts = np.array_split(images, max(1, math.ceil(len(images) / batch_size)))
        self._kept: list[Tensor] | None = None
        if FLOAT_BYTES * images.size <= BLOCK_BYTES:
            self._kept = [self._inputs(part) for part in self._parts]

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._inputs(self._parts[index]) if self._kept is None else self._kept[index]

    def _inputs(self, part: npt.NDArray[np.uint8]) -> Tensor:
        return self._prepared.inputs(part)


def recalibration_batch(images: npt.NDArray[np.uint8]) -> int:
    """Return how many of these images a pass that estimates statistics takes at a time."""
    height, width = images.shape[1:3]
    return max(MIN_BATCH, RECALIBRATION_PIXELS // int(height * width))


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


def _judge(logits: Tensor, labels: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses (T, n), infinite where a logit is not finite, and hits (n,)."""
    scaled = logits / temperatures
    picked = scaled.gather(2, labels.view(1, -1, 1).expand(len(temperatures), -1, 1)).squeeze(2)
    losses = torch.logsumexp(scaled, dim=2) - picked
    finite = losses.isfinite()
    return losses.masked_fill(~finite, math.inf), (logits.argmax(dim=1) == labels) & finite.all(dim=0)


def _blocks(images: npt.NDArray[np.uint8]) -> list[slice]:
    """Return slices of images whose float32 inputs fit into `BLOCK_BYTES`, at least one image each."""
    per_image = FLOAT_BYTES * int(np.prod(images.shape[1:]))
    size = max(1, BLOCK_BYTES // per_image)
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def _batches(
    prepared: "PreparedBase", images: npt.NDArray[np.uint8], block: slice, batch_size: int | None
) -> list[tuple[slice, Tensor]]:
    """Return the network's inputs for a block of images in batches of nearly equal size, each with its position."""
    if batch_size is None:
        pixels = BATCH_PIXELS["cuda" if prepared.device.type == "cuda" else "cpu"]
        batch_size = max(MIN_BATCH, pixels // (images.shape[1] * images.shape[2]))
    inputs = prepared.inputs(images[block])
    batches, start = [], block.start
    for batch in inputs.tensor_split(math.ceil(len(inputs) / batch_size)):
        batches.append((slice(start, start + len(batch)), batch.contiguous(memory_format=torch.channels_last)))
        start += len(batch)
    return batches
