import pytest
import torch

from training.compute import Compute
from training.devices import exact_floats, pick_device, seconds_of


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_devices_are_picked_by_name(name: str, expected: str) -> None:
    assert pick_device(name) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "CUDA"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected device cpu, cuda or auto.*got") as caught:
        pick_device(name)
    assert repr(name) in str(caught.value)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda:2 was asked for, but torch finds only 2"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_cuda_is_never_replaced_by_the_cpu() -> None:
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"{name} was asked for, but torch finds no CUDA device"):
            pick_device(name)
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        Compute(device="cuda").accelerator()


def allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_tensorfloat_is_off_and_comes_back() -> None:
    before = allowed()
    with pytest.raises(KeyError), exact_floats():  # noqa: PT012 (both are about the context)
        assert allowed() == (False, False)
        raise KeyError
    assert allowed() == before
    assert before[0]  # or nothing was tested


def test_a_gpu_is_waited_for_before_and_after_timed_work(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait for {device}"))
    assert seconds_of(lambda: events.append("work"), torch.device("cuda:1")) >= 0
    assert events == ["wait for cuda:1", "work", "wait for cuda:1"]
    events.clear()
    seconds_of(lambda: events.append("work"), torch.device("cpu"))
    assert events == ["work"]
