"""Weights made elsewhere: read from a checkpoint, unwrapped, fitted to a timm network. The only reader of pickle."""

import argparse
import codecs
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from training.bases import StateDict, StateDictMismatch, check_like
from training.models import head_keys

logger = logging.getLogger(__name__)

Channels = tuple[float, float, float]
Head = Literal["new", "keep"]
Match = Literal["name", "order"]

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar")
# What training scripts nest weights under, and what wrappers of a network put before its keys.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "net"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict"),
)
PREFIXES = {"module", "model", "timm_model", "net", "_orig_mod", "attacker", "0", "1"}
# What stands beside the weights and takes no part in the answers: class weights of a loss (Lightning keeps it in the
# module), and a block that TRADES' wide ResNet makes and never calls (a part of RobustBench's checkpoints has it).
UNUSED = {"criterion", "loss", "loss_fn", "loss_func", "sub_block1"}
MEANS, STDS = {"mean", "mu", "new_mean"}, {"std", "sigma", "new_std"}
COUNTERS = {"num_batches_tracked", "n_averaged"}
_numpy_scalar = np.float64(0).__reduce__()[0]
# Data that training scripts often save beside the weights. Unpickling these calls nothing but their constructors.
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    _numpy_scalar,
    codecs.encode,  # bytes of a scalar, in pickles of protocol 2
)
_CONVERT = "where you trust the file, load it there and write its tensors with safetensors.torch.save_file"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. One line that names the file and says what was expected."""


class Fitted(NamedTuple):
    """Weights for a network, and what else the checkpoint said.

    Attributes:
        state_dict: timm's own keys, floats as float32.
        mean: per-channel mean of a normalisation layer in the checkpoint, null if there is none.
        std: its standard deviation.
        path: where in the checkpoint the weights were, e.g. "model_ema/module.model.".
    """

    state_dict: StateDict
    mean: Channels | None
    std: Channels | None
    path: str


def load_weights(
    path: Path, net: nn.Module, *, key: str | None = None, match: Match = "name", head: Head = "keep"
) -> Fitted:
    """Read a checkpoint and fit its weights to a network.

    Args:
        path: `.safetensors`, or what `torch.save` writes (`.pt`, `.pth`, `.ckpt`, `.bin`, `.tar`).
        net: tells the keys, shapes and dtypes; its own weights are not used.
        key: dotted path to the weights inside, where the checkpoint has several ("model_ema").
        match: name: by timm's keys; order: the n-th tensor of the file is the n-th of the network, with any name. Two
            tensors of one shape that changed places go unnoticed, so measure the accuracy afterwards.
        head: new: the last layer is zeros, and the checkpoint's may have another number of classes.

    Raises:
        CheckpointError: not a checkpoint, truncated, with code in it, or of another network.
    """
    try:
        if match == "order" and path.suffix == ".safetensors":
            raise ValueError("safetensors files do not keep the order of their tensors: match by name")
        tensors, where = unwrap(_read(path), key)
        if match == "order":
            tensors = _renamed_in_order(tensors, net, head)
        return fit_weights(tensors, net, where, head=head)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None


def _read(path: Path) -> object:
    if not path.is_file():
        raise ValueError("expected a checkpoint, found no such file")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"expected a safetensors file, it is truncated or something else: {error}") from None
    if path.suffix not in PICKLED:
        raise ValueError(f"expected a checkpoint named *.safetensors or one of *{', *'.join(PICKLED)}")
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # torch's own, on the way to an error that says more
            torch.serialization.safe_globals([*HARMLESS]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"refers to {found[1]}" if found else "is of a kind that torch.save does not write"
        raise ValueError(f"refused: loading its pickle could run code (it {what}); {_CONVERT}") from None
    except Exception as error:  # on bytes that are no pickle, the unpickler raises any error that its machine meets
        if "TorchScript" in str(error):
            raise ValueError(f"refused: a TorchScript archive holds code; {_CONVERT}") from None
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0].partition(". ")[0]
        raise ValueError(f"not a checkpoint, or a truncated one ({type(error).__name__}: {reason})") from None


def unwrap(content: object, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Return the flat state dict inside a checkpoint's content, and the path of keys that led to it.

    Raises:
        ValueError: there is none, there are several and `key` is null, or `key` leads nowhere.
    """
    path: list[str] = []
    wanted = key.split(".") if key else []
    while isinstance(content, Mapping):
        inside = [name for name in WRAPPERS if isinstance(content.get(name), Mapping) and content[name]]
        if wanted:
            if not isinstance(content.get(wanted[0]), Mapping):
                raise ValueError(f"expected weights under {key!r}, found {_names(content)}")
            name = wanted.pop(0)
        elif len(inside) > 1:
            raise ValueError(f"holds weights under each of {inside}: choose with --key")
        elif inside:
            name = inside[0]
        else:
            break
        content = content[name]
        path.append(name)
    tensors = content if isinstance(content, Mapping) else {}
    tensors = {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(f"expected a state dict, found no weights but {_names(content)}")
    if sparse := [name for name, tensor in tensors.items() if tensor.layout is not torch.strided]:
        raise ValueError(f"expected dense tensors, {sparse[0]} is not")
    return tensors, "".join(f"{name}/" for name in path)


def _names(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {[str(name) for name in content][:5]}"


def _renamed_in_order(tensors: Mapping[str, Tensor], net: nn.Module, head: Head) -> dict[str, Tensor]:
    """Give the tensors the network's keys in the network's order; shapes must agree one to one.

    Step counters are left out on both sides: some files have them, some do not.
    """
    theirs = {name: tensor for name, tensor in tensors.items() if _last(name) not in COUNTERS}
    ours = {name: tensor for name, tensor in net.state_dict().items() if _last(name) not in COUNTERS}
    free = head_keys(net) if head == "new" else set()
    if len(theirs) != len(ours):
        raise ValueError(f"of another architecture: expected {len(ours)} tensors in order, found {len(theirs)}")
    problems = [
        f"{name} {list(tensor.shape)} stands where {own} {list(expected.shape)} is expected"
        for (name, tensor), (own, expected) in zip(theirs.items(), ours.items(), strict=True)
        if tensor.shape != expected.shape and own not in free
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"of another architecture, or in another order: {'; '.join(problems[:5])}{more}")
    return dict(zip(ours, theirs.values(), strict=True))


def fit_weights(tensors: Mapping[str, Tensor], net: nn.Module, where: str = "", *, head: Head = "keep") -> Fitted:
    """Give the tensors the network's own keys; take out the normalisation, repeats, counters and what is never used.

    Where the keys do not fit, timm's own filter for checkpoints of this network's family is tried: it knows the names
    that earlier versions and the authors used, and interpolates position embeddings made for another input size.

    Args:
        tensors: a flat state dict, perhaps with a prefix before every key.
        net: tells keys, shapes and dtypes.
        where: path of the state dict in its file.
        head: new: the last layer is zeros.

    Raises:
        ValueError: the weights of another network; names the first five keys that differ.
    """
    prefix = _best_prefix(tensors, net.state_dict())
    try:
        return _fit(tensors, net, prefix, where, head)
    except ValueError:
        converted = _converted(tensors, net, prefix, head)
        if converted is None:
            raise
    fitted = _fit(converted, net, prefix, where, head)
    logger.info("names and shapes of the weights were converted by timm, as for its own checkpoints")
    return fitted


def _converted(tensors: Mapping[str, Tensor], net: nn.Module, prefix: str, head: Head) -> dict[str, Tensor] | None:
    """Return the tensors as timm's filter for this family renames and reshapes them; None where names still lack."""
    convert: Any = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    try:
        inside = {name.removeprefix(prefix): floats.pop(name) for name in tensors if name.startswith(prefix)}
        found = {prefix + name: tensor for name, tensor in convert(inside, net).items()}
    except Exception:  # on names of another network, timm's filters stumble in whatever way
        return None
    free = head_keys(net) if head == "new" else set()
    needed = {prefix + name for name in net.state_dict().keys() - free if _last(name) not in COUNTERS}
    return floats | found if needed <= found.keys() else None


def _fit(tensors: Mapping[str, Tensor], net: nn.Module, prefix: str, where: str, head: Head) -> Fitted:
    expected = net.state_dict()
    weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    rest |= {prefix + name: weights.pop(name) for name in list(weights) if name not in expected}
    mean, std = _normalisation(rest, MEANS), _normalisation(rest, STDS)
    if (mean is None) != (std is None):
        raise ValueError(f"holds the {'std' if mean is None else 'mean'} of a normalisation, but not the other half")
    if unused := sorted({part for part in map(_unused_part, rest) if part}):
        logger.info("left out %s: no part of the network", ", ".join(unused))
    others = {name: tensor for name, tensor in rest.items() if not _may_go(name, tensor, weights)}
    weights |= {name.removeprefix(prefix): tensor for name, tensor in others.items()}
    weights |= {name: expected[name] for name in expected.keys() - weights.keys() if _last(name) in COUNTERS}
    if head == "new":
        weights |= {name: torch.zeros_like(expected[name]) for name in head_keys(net)}
    found = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    _check(found, expected, net)
    ordered = {name: found[name].detach().clone() for name in expected}
    return Fitted(ordered, mean, std, f"{where}{prefix}")


def _best_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return the prefix under which most of the expected keys stand; the shortest of several.

    If none matches, the one that most keys have: the error then names keys as the network would.
    """

    def rank(prefix: str) -> tuple[int, int, int]:
        matches = sum(prefix + name in tensors for name in expected)
        covered = sum(name.startswith(prefix) and _last(name) not in MEANS | STDS for name in tensors)
        return (matches, covered, -len(prefix) if matches else len(prefix))

    return max(sorted({prefix for name in tensors for prefix in _prefixes(name)}), key=rank)


def _prefixes(name: str) -> Iterator[str]:
    yield ""
    segments = list(takewhile(PREFIXES.__contains__, name.split(".")[:-1]))
    for count in range(1, len(segments) + 1):
        yield ".".join(segments[:count]) + "."


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _may_go(name: str, tensor: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Say if an entry is no weight of the network: normalisation, a counter, what is never used, or a repeat.

    The robustness library saves each network twice: alone, and inside its attacker, under another prefix.
    """
    if _is_normalisation(name, tensor, MEANS | STDS) or _last(name) in COUNTERS:
        return True
    if _unused_part(name):
        return True
    twins = [weights.get(name.removeprefix(prefix)) for prefix in _prefixes(name)]
    return any(twin is not None and torch.equal(twin, tensor) for twin in twins)


def _unused_part(name: str) -> str | None:
    """Return which of `UNUSED` an entry belongs to."""
    part = next((part for part in name.split(".") if part not in PREFIXES), "")
    return part if part in UNUSED else None


def _is_normalisation(name: str, tensor: Tensor, names: set[str]) -> bool:
    return _last(name) in names and tensor.is_floating_point() and tensor.numel() in (1, 3)


def _normalisation(rest: Mapping[str, Tensor], names: set[str]) -> Channels | None:
    """Return the values of the normalisation buffers called so; they must be the same wherever they stand."""
    found = {}
    for name, tensor in rest.items():
        if _is_normalisation(name, tensor, names):
            # The shortest decimal that gives this float32: 0.4914, not 0.49140000343322754.
            values = [float(str(value)) for value in tensor.detach().float().flatten().expand(3).numpy()]
            found[values[0], values[1], values[2]] = name
    if len(found) > 1:
        raise ValueError(f"holds two normalisations: {' and '.join(f'{key} {value}' for value, key in found.items())}")
    return next(iter(found), None)


def _check(found: StateDict, expected: Mapping[str, Tensor], net: nn.Module) -> None:
    try:
        check_like(expected, found)
    except StateDictMismatch as error:
        hidden = [name for name in found if name not in expected and name not in str(error)]
        beside = f"; it also has {', '.join(hidden[:3])}" if hidden else ""
        beside += f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
        head = head_keys(net)
        try:
            check_like(*({name: state[name] for name in state if name not in head} for state in (expected, found)))
        except StateDictMismatch:
            raise ValueError(f"of another architecture: {error}{beside}") from None
        raise ValueError(f"of another number of classes: {error}; name as many, or start with a new head") from None
    if bad := [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"expected finite weights, found NaN or infinity in {bad[0]}")
