"""The wide residual network of the CIFAR-10 robustness literature, registered with timm as `saucier_wide_resnet`."""

from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

BASE_WIDTHS = (16, 32, 64)


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice; the shortcut starts after the first ReLU where sizes change."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None  # the name that public checkpoints use
        if stride != 1 or in_width != width:
            self.convShortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width, H / stride, W / stride)."""
        active = torch.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out


class Group(nn.Module):
    """Blocks of one width; `layer` is the name that public checkpoints use."""

    def __init__(self, in_width: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [
            PreActivationBlock(in_width if number == 0 else width, width, stride if number == 0 else 1)
            for number in range(depth)
        ]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last block."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks. WRN-28-10: 36.5 M parameters, 5.2 G multiply-accumulates at 32x32.

    Keys of the state dict are those of most public CIFAR-10 checkpoints, so that these can be imported.

    Args:
        num_classes: width of the last layer.
        depth: layers, 6 n + 4.
        widen_factor: of the widths 16, 32 and 64.

    Source: Zagoruyko & Komodakis 2016 (arXiv:1605.07146).
    """

    def __init__(self, num_classes: int = 10, depth: int = 28, widen_factor: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
            raise ValueError(
                f"expected depth 6 n + 4 with n >= 1 and widen_factor >= 1, got depth {depth} and {widen_factor}"
            )
        self.num_classes = num_classes
        widths = [width * widen_factor for width in BASE_WIDTHS]
        per_group = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, BASE_WIDTHS[0], 3, padding=1, bias=False)
        self.block1 = Group(BASE_WIDTHS[0], widths[0], per_group, 1)
        self.block2 = Group(widths[0], widths[1], per_group, 2)
        self.block3 = Group(widths[1], widths[2], per_group, 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map (B, C, H / 4, W / 4)."""
        return torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        logits: Tensor = self.fc(self.forward_features(x).mean(dim=(2, 3)))
        return logits

    def get_classifier(self) -> nn.Linear:
        """Return the last layer (timm's name for it)."""
        return self.fc


@register_model
def saucier_wide_resnet(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Build a `WideResNet`; timm passes `pretrained` and its config, neither of which exists for it."""
    if pretrained:
        raise ValueError("saucier_wide_resnet has no pretrained weights")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    return WideResNet(**kwargs)
