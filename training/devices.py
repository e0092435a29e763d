"""The device that work runs on: chosen by name, exact where results are compared, waited for where time is taken."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.device_names import check_device_name


def pick_device(name: str) -> torch.device:
    """Return the device called "cpu", "cuda" or "cuda:1"; "auto" is CUDA where there is a CUDA device, else the CPU.

    Raises:
        ValueError: another name, or a CUDA device that torch does not find. CUDA is never replaced by the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = check_device_name(name).partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but torch finds no CUDA device: use cpu or auto")
    if number and int(number) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device {name} was asked for, but torch finds only {count}, from cuda:0 on")
    return torch.device(name)


@contextmanager
def exact_floats() -> Iterator[None]:
    """Keep CUDA convolutions and matrix products in float32 while the context lasts.

    In TensorFloat-32 the logits would differ from those of the service in the third digit.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


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


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return how long some work takes on a device. A GPU only queues work: it is waited for before and after."""
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
