"""A base set made ready for searching: BatchNorm folded, weights flat, on a device."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.networks.batchnorm import has_batchnorm
from adapt.networks.folding import (
    Folded,
    check_same_logits,
    fold_base,
    fuse,
    fused_state_dict,
    probe_images,
)
from adapt.networks.forward import run_soups
from adapt.networks.last_layer import Head
from adapt.networks.mixing import FlatModel
from adapt.networks.network import Run
from adapt.networks.recalibration import PRIOR_IMAGES, Measure, Recalibrator
from training.bases import BaseSet
from training.devices import exact_floats
from training.images import to_input
from training.manifest import Manifest
from training.moments import channel_moments


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

    def warm_up(self) -> None:
        """Prepare now everything that a search would prepare when it first needs it."""
        self.model("folded")
        if self.can_recalibrate:
            _ = self.recalibrator

    @property
    def has_batchnorm(self) -> bool:
        """Whether there are BatchNorm statistics to fold or to recalibrate."""
        return self._has_batchnorm

    @property
    def can_recalibrate(self) -> bool:
        """Whether statistics of training are known: those of BatchNorm, or moments in the base set."""
        return self._has_batchnorm or self.base.moments is not None

    @cached_property
    def head_key(self) -> str | None:
        """The last layer's name in the state dict, if it is a linear layer on one vector per image, else None."""
        return find_head(self._classifier.net)

    def head(self, coefficients: Sequence[float], patch: Tensors | None = None) -> Head | None:
        """Return the last layer of a soup; None where it is not linear."""
        if self.head_key is None:
            return None
        parts = []
        for part in ("weight", "bias"):
            key = f"{self.head_key}.{part}"
            if patch is not None and key in patch:
                parts.append(torch.from_numpy(patch[key]).double())
            else:
                own = [state_dict[key].double() for state_dict in self.base.state_dicts.values()]
                parts.append(torch.einsum("m,m...->...", torch.tensor(list(coefficients)).double(), torch.stack(own)))
        return Head(*parts)

    @cached_property
    def recalibrator(self) -> Recalibrator:
        """The recalibration that gives the network of `model("raw")` the statistics of images.

        Raises:
            ValueError: not `can_recalibrate`.
        """
        return self.recalibrator_with()

    def recalibrator_with(
        self, prior_images: tuple[float, float] = PRIOR_IMAGES, *, measure: Measure = channel_moments
    ) -> Recalibrator:
        """Return one with other prior strengths, or another way to measure channels; otherwise as `recalibrator`."""
        moments = None if self.base.moments is None else list(self.base.moments.values())
        return Recalibrator(self.model("raw"), moments=moments, prior_images=prior_images, measure=measure)

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
            with exact_floats():
                found = model.net(self.normalise(probe.to(self.device))).cpu()
            check_same_logits(self._classifier(probe), found, "the network with its BatchNorm layers taken out")

    def usable(self, coefficients: npt.NDArray[np.float64], bn_mode: BnMode) -> npt.NDArray[np.bool_]:
        """Say for each soup (C, M) whether its running variances stay positive, (C,)."""
        return np.asarray(self.model(bn_mode).usable(torch.from_numpy(coefficients)))

    def run(
        self,
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
        """Return logits, last layer's inputs and new statistics of every soup: see `adapt.networks.forward`."""
        return run_soups(
            self,
            coefficients,
            images,
            bn_mode=bn_mode,
            patch=patch,
            recalibrate=recalibrate,
            unlabelled=unlabelled,
            progress=progress,
            should_stop=should_stop,
        )

    def inputs(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return images uint8 (B, H, W, 3) as the inner network wants them, on the device."""
        return self.normalise(torch.from_numpy(to_input(images)).to(self.device))

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as the inner network wants them: normalised, channels last."""
        mean, std = self._classifier.mean.to(images.device), self._classifier.std.to(images.device)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def find_head(net: nn.Module) -> str | None:
    """Return the name of a timm network's last layer if it is linear with a bias, else None."""
    get = getattr(net, "get_classifier", None)
    layer = get() if callable(get) else None
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return None
    names = [name for name, module in net.named_modules() if module is layer]
    return names[0] if names else None
