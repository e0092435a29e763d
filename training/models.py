"""Networks: any timm model by name, ours registered beside them, normalisation as the first layer."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import register_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training import wide_resnet  # noqa: F401 (registers itself with timm)
from training.manifest import Architecture, InputSpec


class Classifier(nn.Module):
    """A timm network behind its input normalisation: images in [0, 1] in, logits out.

    Attack, soup and ONNX file thus all see the same input space. `net.state_dict()` has timm's own keys; mean and std
    are not part of it (they stand in the manifest).
    """

    def __init__(self, net: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return logits (B, K) of float32 RGB images in [0, 1]."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits


def create_classifier(architecture: Architecture, spec: InputSpec, num_classes: int) -> Classifier:
    """Return a randomly initialised classifier in eval mode.

    Args:
        architecture: a name in timm's registry and its keyword arguments.
        spec: input size and normalisation.
        num_classes: width of the last layer.

    Raises:
        ValueError: timm knows no such model, refuses the arguments, or the network does not fit the input, or gives
            something else than logits.
    """
    if not timm.is_model(architecture.name):
        close = timm.list_models(f"*{architecture.name.split('.')[0][:6]}*")[:5]
        raise ValueError(f"architecture.name: timm knows no model {architecture.name!r}; similar: {close}")
    try:
        net = timm.create_model(
            architecture.name, pretrained=False, num_classes=num_classes, **timm_arguments(architecture, spec)
        )
        _forget_biases(net)
        classifier = Classifier(net, spec).eval()
        with torch.no_grad():
            logits = classifier(torch.zeros(1, 3, spec.height, spec.width))
    except Exception as error:  # timm's constructors and forwards raise whatever they run into
        raise ValueError(f"{describe(architecture, spec)}: {_first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{describe(architecture, spec)}: expected logits (1, {num_classes}), got {got}")
    return classifier


def _forget_biases(net: nn.Module) -> None:
    """Have attention layers look up their position biases in every forward.

    LeViT and its kin (EfficientFormer, EfficientViT, TinyViT) keep what they looked up as long as they are in eval
    mode. Soups change weights in eval mode: they would be judged, exported and served with biases of other weights.
    """
    for module in net.modules():
        if hasattr(module, "attention_bias_cache"):
            module.get_attention_biases = MethodType(_present_biases, module)  # type: ignore[assignment]


def _present_biases(module: Any, device: torch.device) -> Tensor:
    biases: Tensor = module.attention_biases[:, module.attention_bias_idxs]
    return biases


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return every BatchNorm layer of a network by its name, those without weights or running statistics too."""
    return {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}


def head_keys(net: nn.Module) -> set[str]:
    """Return the state-dict keys of the last layer (or layers), as timm names it; none where it does not say."""
    get_classifier: Callable[[], object] = getattr(net, "get_classifier", lambda: None)
    head = get_classifier()
    heads = head if isinstance(head, tuple) else (head,)
    return {
        f"{name}.{key}"
        for name, module in net.named_modules()
        if any(module is one for one in heads)
        for key in module.state_dict()
    }


def timm_arguments(architecture: Architecture, spec: InputSpec) -> dict[str, Any]:
    """Return the arguments of timm.create_model.

    Networks that fix their grid of positions or windows at creation are told the input size, unless the recipe did.
    timm's configuration says which these are.

    Raises:
        RuntimeError: a pretrained tag that timm does not know.
    """
    kwargs: dict[str, Any] = dict(architecture.kwargs)
    config = timm.get_pretrained_cfg(architecture.name)
    if config is not None and config.fixed_input_size:
        kwargs.setdefault("img_size", (spec.height, spec.width))
    return kwargs


def describe(architecture: Architecture, spec: InputSpec) -> str:
    """Return a name of the network for errors, with its input size, and timm's own size where that is another."""
    text = f"architecture {architecture.name!r} with {architecture.kwargs} at {spec.height}x{spec.width} pixels"
    config = timm.get_pretrained_cfg(architecture.name.partition(".")[0])
    own = None if config is None else tuple(config.input_size[1:])
    return text if own in (None, (spec.height, spec.width)) else f"{text} (timm's own size is {own[0]}x{own[1]})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by BatchNorm, and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SaucierResNet(nn.Module):
    """A residual network for small images: a strided stem instead of full-resolution stages keeps it cheap on CPUs.

    With the default widths and a 32x32 input: 0.31 M parameters, 12.5 M multiply-accumulates per image.
    """

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths or min(*widths, *depths, stem_stride) < 1:
            raise ValueError(
                f"expected one width and one depth >= 1 per stage, got widths {widths} and depths {depths}"
            )
        self.num_classes = num_classes
        kernel = 2 * stem_stride if stem_stride > 1 else 3
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], kernel, stride=stem_stride, padding=(kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.stages = nn.Sequential()
        in_width = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = nn.Sequential()
            for block in range(depth):
                blocks.append(ResidualBlock(in_width, width, stride=2 if stage > 0 and block == 0 else 1))
                in_width = width
            self.stages.append(blocks)
        self.head = nn.Linear(in_width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map (B, C, h, w)."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        logits: Tensor = self.head(self.forward_features(x).mean(dim=(2, 3)))
        return logits

    def get_classifier(self) -> nn.Linear:
        """Return the last layer (timm's name for it)."""
        return self.head


@register_model
def saucier_resnet(pretrained: bool = False, **kwargs: Any) -> SaucierResNet:
    """Build a `SaucierResNet`; timm passes `pretrained` and its config, neither of which exists for it."""
    if pretrained:
        raise ValueError("saucier_resnet has no pretrained weights")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    return SaucierResNet(**kwargs)
