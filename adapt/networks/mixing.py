"""Weight mixing: theta = sum_m c_m theta_m, once for a file and thousands of times for a search."""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapt.documents.patch import STATISTICS, Tensors, check_patch
from training.bases import StateDict, check_like

ALIGNMENT = 16  # float32 elements: every tensor starts on a 64-byte line


def mix(
    ingredients: Sequence[Mapping[str, Tensor]], coefficients: Float[Tensor, "M"], *, patch: Tensors | None = None
) -> StateDict:
    """Return the soup  theta = sum_m c_m * theta_m, with the tensors of the patch in the place of mixed ones.

    Accumulates in float64, returns each tensor in its own dtype. BatchNorm statistics mix like parameters; integer
    buffers (step counters) come from the first ingredient. One-hot coefficients give that ingredient bit for bit.

    Args:
        ingredients: M state dicts with the same keys, shapes and dtypes.
        coefficients: mixing numbers; need not be positive or sum to 1.
        patch: by state-dict key. Replaced tensors are not mixed at all, so its variances may stand where mixed ones
            would be negative.

    Raises:
        PatchError: the patch has a tensor that the network has not.
        StateDictMismatch: keys, shapes or dtypes differ (names the first five).
        ValueError: the counts differ, or a running variance came out negative, which coefficients outside [0, 1] can
            cause.

    Source: Wortsman et al. 2022 (arXiv:2203.05482); adversarially robust soups, Croce et al. 2023 (arXiv:2302.10164).
    """
    if len(ingredients) != len(coefficients):
        raise ValueError(
            f"expected one coefficient for each of {len(ingredients)} ingredients, got {len(coefficients)}"
        )
    first = ingredients[0]
    for other in ingredients[1:]:
        check_like(first, other)
    patch = patch or {}
    check_patch(patch, _shapes(first))
    numbers = [float(number) for number in coefficients]
    position = _one_hot(numbers)

    def mixed(key: str, tensor: Tensor) -> Tensor:
        if key in patch:
            return torch.from_numpy(patch[key]).to(tensor.dtype)
        if position is not None:
            return (ingredients[position][key] if tensor.is_floating_point() else tensor).clone()
        return _mix_tensor(key, [state_dict[key] for state_dict in ingredients], numbers)

    return {key: mixed(key, tensor) for key, tensor in first.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _mix_tensor(key: str, tensors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, coefficient in zip(tensors, coefficients, strict=True):
        total.add_(tensor.double(), alpha=coefficient)
    if key.endswith("running_var") and total.numel() and total.min() < 0:
        raise ValueError(
            f"{key}: a mixed running variance is {total.min():.3g}; fold BatchNorm instead of mixing it raw"
        )
    return total.to(tensors[0].dtype)


def _one_hot(coefficients: Sequence[float]) -> int | None:
    """Return the position of the 1 where all others are 0, else None."""
    if sum(number != 0 for number in coefficients) != 1 or 1.0 not in coefficients:
        return None
    return coefficients.index(1.0)


class FlatModel:
    """A network all of whose floating-point tensors are views of one flat vector, so that a soup is one product.

    `rows` (M, P) holds the ingredients in the same flat order: `set` writes `coefficients @ rows` into the vector. Four
    -dimensional weights lie in channels-last order, the one convolutions are fastest in. Not safe for two threads.
    """

    def __init__(
        self, net: nn.Module, state_dicts: Sequence[Mapping[str, Tensor]], *, device: torch.device | str = "cpu"
    ) -> None:
        """Copy the network and the ingredients' weights to the device.

        Args:
            net: the network; the caller's stays as it is.
            state_dicts: M state dicts for it; integer buffers come from the first.
            device: where candidates will be evaluated.

        Raises:
            StateDictMismatch: keys, shapes or dtypes differ (names the first five).
        """
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        for state_dict in state_dicts:
            check_like(self.net.state_dict(), state_dict)
        self.net.load_state_dict(state_dicts[0])
        self.net.to(device)
        offsets, size = _layout(state_dicts[0])
        self._offsets = offsets
        self.rows = torch.zeros(len(state_dicts), size)
        for row, state_dict in zip(self.rows, state_dicts, strict=True):
            for key, offset in offsets.items():
                _view(row, offset, state_dict[key]).copy_(state_dict[key])
        self._variances = _variance_mask(state_dicts[0], offsets, size)
        self.rows = self.rows.to(device)
        self.flat = self.rows[0].clone()
        tensors = dict(self.net.named_parameters(remove_duplicate=False)) | dict(
            self.net.named_buffers(remove_duplicate=False)
        )
        self._views = {key: _view(self.flat, offset, state_dicts[0][key]) for key, offset in offsets.items()}
        for key, view in self._views.items():
            tensors[key].data = view

    @torch.no_grad()
    def set(self, coefficients: Sequence[float], patch: Tensors | None = None) -> None:
        """Give the network the weights of this soup; those of an ingredient bit for bit where one-hot.

        Args:
            coefficients: M numbers.
            patch: tensors by state-dict key that take the place of mixed ones; a layout without one of them (folded
                and fused, where no statistics are left) refuses it.

        Raises:
            PatchError: a key or shape that the network does not have.
        """
        numbers = [float(number) for number in coefficients]
        if (position := _one_hot(numbers)) is not None:
            self.flat.copy_(self.rows[position])
        else:
            torch.mv(self.rows.T, torch.tensor(numbers, dtype=self.rows.dtype, device=self.rows.device), out=self.flat)
        if patch is not None:
            check_patch(patch, _shapes(self._views))
            for key, array in patch.items():
                self._views[key].copy_(torch.from_numpy(array))

    @torch.no_grad()
    def set_statistics(self, coefficients: Sequence[float]) -> None:
        """Give the network the running means and variances of this soup, and change nothing else."""
        numbers = torch.tensor([float(number) for number in coefficients], dtype=self.rows.dtype)
        for key, view in self._views.items():
            if key.endswith(STATISTICS):
                rows = [_view(row, self._offsets[key], view) for row in self.rows]
                view.copy_(torch.einsum("m,m...->...", numbers.to(view.device), torch.stack(rows)))

    @torch.no_grad()
    def usable(self, coefficients: Float[Tensor, "C M"]) -> list[bool]:
        """Say for each soup whether its running variances stay positive; always so without BatchNorm or folded."""
        if not self._variances.any():
            return [True] * len(coefficients)
        variances = self.rows[:, self._variances.to(self.rows.device)].double()
        mixed = coefficients.to(variances) @ variances
        usable: list[bool] = (mixed >= 0).all(dim=1).tolist()
        return usable


def _layout(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """Return the offset of each floating-point tensor in the flat vector, and the vector's length."""
    offsets, size = {}, 0
    for key, tensor in state_dict.items():
        if tensor.is_floating_point():
            offsets[key] = size
            size += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return offsets, size


def _view(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return the part of the flat vector with the shape of `like`; channels-last if it has four dimensions."""
    part = flat[offset : offset + like.numel()]
    if like.dim() != 4:
        return part.view(like.shape)
    out_channels, in_channels, height, width = like.shape
    return part.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)


def _variance_mask(state_dict: Mapping[str, Tensor], offsets: Mapping[str, int], size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for key, offset in offsets.items():
        if key.endswith("running_var"):
            mask[offset : offset + state_dict[key].numel()] = True
    return mask
