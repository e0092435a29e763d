"""BatchNorm, folded per ingredient before mixing: no statistics are left to go wrong when coefficients extrapolate.

A soup of folded weights is not the folded soup of raw weights, so the choice is made here, once, and not by an
exporter. Folded weights are written in the *raw* layout (every key and shape stays), so that one exported graph serves
both modes.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapt.networks.batchnorm import batchnorms, has_batchnorm
from training.bases import BaseSet, StateDict
from training.models import Classifier

logger = logging.getLogger(__name__)

PROBE_IMAGES = 4
# Rounding moves logits by about 1e-6 of their spread over images; a wrong fold by far more than this share of it.
RELATIVE_TOLERANCE = 1e-3


class FoldError(ValueError):
    """A network whose logits change when its BatchNorm is folded."""


@dataclass(frozen=True)
class Folded:
    """A base set with BatchNorm folded.

    `pairs` maps the name of each BatchNorm that was folded into a convolution to the name of that convolution;
    `state_dicts` has one folded state dict per ingredient, in the layout of the originals.
    """

    pairs: dict[str, str]
    state_dicts: dict[str, StateDict]


def probe_images(classifier: Classifier, height: int, width: int) -> Tensor:
    """Return seeded random images (4, 3, height, width) in [0, 1] on the classifier's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(PROBE_IMAGES, 3, height, width, generator=generator).to(classifier.mean.device)


def fold_base(base: BaseSet) -> Folded:
    """Fold BatchNorm in every ingredient and check, on a probe batch, that no logit moved.

    A BatchNorm right behind a convolution goes into its weights; any other is reduced to its affine map. A network
    without BatchNorm comes back as it is.

    Raises:
        FoldError: logits differ, which says that this network uses its BatchNorm in a way not foreseen here.
    """
    classifier = base.model()
    if not has_batchnorm(classifier.net):
        return Folded({}, base.state_dicts)
    probe = probe_images(classifier, base.manifest.input.height, base.manifest.input.width)
    pairs = find_bn_pairs(classifier, probe)
    try:
        return _fold_checked(base, classifier, pairs, probe)
    except FoldError as error:
        logger.warning("%s; folding no BatchNorm into a convolution, only reducing each to its affine map", error)
        return _fold_checked(base, classifier, {}, probe)


def folded_state_dicts(base: BaseSet) -> dict[str, StateDict]:
    """Return each ingredient's weights with BatchNorm folded, in the layout of the originals (see `fold_base`)."""
    return fold_base(base).state_dicts


def _fold_checked(base: BaseSet, classifier: Classifier, pairs: dict[str, str], probe: Tensor) -> Folded:
    folded = {}
    for name, state_dict in base.state_dicts.items():
        folded[name] = fold(classifier.net, state_dict, pairs)
        classifier.net.load_state_dict(state_dict)
        expected = _logits(classifier, probe)
        classifier.net.load_state_dict(folded[name])
        check_same_logits(expected, _logits(classifier, probe), f"ingredient {name!r} with BatchNorm folded")
    return Folded(pairs, folded)


@torch.no_grad()
def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = classifier(images)
    return logits


def check_same_logits(expected: Tensor, found: Tensor, what: str) -> None:
    """Raise FoldError unless two logit batches (B, K) agree up to rounding, relative to their spread over images."""
    spread = (expected - expected.mean(dim=0)).abs().max()
    allowed = RELATIVE_TOLERANCE * spread + 1e-5 * expected.abs().max()
    difference = (expected - found).abs().max()
    if not difference <= allowed:
        raise FoldError(f"{what}: logits moved by {difference:.3g}, expected at most {allowed:.3g}")


@torch.no_grad()
def find_bn_pairs(classifier: Classifier, probe: Tensor) -> dict[str, str]:
    """Return {BatchNorm name: convolution name} for every BatchNorm whose scale may move into a convolution.

    Found by running the probe: the BatchNorm's input must *be* the convolution's output tensor, nothing else may read
    that tensor (a shortcut taken before the BatchNorm would), and both must run exactly once. Names are relative to
    `classifier.net`.

    Args:
        classifier: in eval mode.
        probe: images (B, 3, H, W) in [0, 1].
    """
    produced: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is given out twice
    consumed: list[tuple[str, int]] = []
    calls: Counter[str] = Counter()
    net = classifier.net

    def after_conv(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] += 1
            produced[id(output)] = (name, output)

        return hook

    def before_bn(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            consumed.append((name, id(args[0])))

        return hook

    foldable = _foldable(net)
    handles = [foldable[name].register_forward_pre_hook(before_bn(name)) for name in foldable]
    for name, module in net.named_modules():
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
            handles.append(module.register_forward_hook(after_conv(name)))
    try:
        with _ReadCounter() as counter:
            classifier(probe)
    finally:
        for handle in handles:
            handle.remove()
    pairs = {}
    for bn, tensor_id in consumed:
        if tensor_id in produced and counter.reads[tensor_id] == 1 and calls[bn] == 1:
            conv = produced[tensor_id][0]
            if calls[conv] == 1:
                pairs[bn] = conv
    return pairs


def _foldable(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that have weights to fold their statistics into."""
    return {name: layer for name, layer in batchnorms(net).items() if layer.affine}


class _ReadCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base class untyped
    """Counts how many operations read each tensor, by the tensor's id. Holds the tensors, so that ids stay unique."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[int] = Counter()
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        self._alive.extend(tensors)
        self.reads.update({id(tensor) for tensor in tensors})
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fold(net: nn.Module, state_dict: Mapping[str, Tensor], pairs: Mapping[str, str]) -> StateDict:
    """Return the weights with every BatchNorm folded, same keys, shapes and dtypes.

    With s = gamma / sqrt(var + eps), a BatchNorm behind a convolution becomes gamma 1, beta + (b - mean) s, mean 0,
    var 1 - eps, and the convolution w s with bias 0. Any other becomes gamma s, beta - mean s, mean 0, var 1 - eps.
    Computed in float64.

    Args:
        net: the network, for the layers' names and eps; its own weights are not used.
        state_dict: the weights to fold.
        pairs: from `find_bn_pairs`.
    """
    folded = {key: tensor.clone() for key, tensor in state_dict.items()}
    for bn, module in _foldable(net).items():
        gamma, beta, mean, var = (
            folded[f"{bn}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / (var + module.eps).sqrt()
        if conv := pairs.get(bn):
            weight = folded[f"{conv}.weight"]
            weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)))
            if (bias := folded.get(f"{conv}.bias")) is not None:
                mean = mean - bias.double()
                bias.zero_()
        folded[f"{bn}.weight"].copy_(torch.ones_like(scale) if conv else scale)
        folded[f"{bn}.bias"].copy_(beta - mean * scale)
        folded[f"{bn}.running_mean"].zero_()
        folded[f"{bn}.running_var"].fill_(1 - module.eps)
    return folded


def fuse(net: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    """Return a copy of the network without the BatchNorms of `pairs`; their convolutions have a bias instead.

    The layout in which a search evaluates its candidates: nothing of a folded BatchNorm is left to compute. timm's
    BatchNormAct2d leaves its activation behind. Load it with `fused_state_dict`.
    """
    fused = copy.deepcopy(net)
    for bn, conv in pairs.items():
        layer = fused.get_submodule(conv)
        layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]), requires_grad=False)  # type: ignore[index,arg-type]
        fused.set_submodule(bn, getattr(fused.get_submodule(bn), "act", None) or nn.Identity())
    return fused.eval()


def fused_state_dict(folded: Mapping[str, Tensor], pairs: Mapping[str, str]) -> StateDict:
    """Return folded weights under the keys of the fused network: each pair's beta becomes the convolution's bias."""
    gone = tuple(f"{bn}." for bn in pairs)
    fused = {key: tensor for key, tensor in folded.items() if not key.startswith(gone)} if gone else dict(folded)
    return fused | {f"{conv}.bias": folded[f"{bn}.bias"] for bn, conv in pairs.items()}
