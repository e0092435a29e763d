"""Where networks run: devices, threads, exact arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
