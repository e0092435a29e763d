import contextlib
import math

import numpy as np
import pytest
import torch

import adapt.networks.forward
import adapt.networks.prepared
from adapt.evidence.scores import TEMPERATURES
from adapt.networks.folding import folded_state_dicts
from adapt.networks.forward import evaluate_soups
from adapt.networks.mixing import mix
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from training.bases import BaseSet
from training.devices import pick_device, thread_count
from training.images import to_input

SOUPS = np.asarray([[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.25] * 4, [1.25, -0.25, 0.25, -0.25]])


def pictures(n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    return generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), generator.integers(0, 3, n)


@pytest.mark.parametrize("mode", ["folded", "raw"])
@pytest.mark.parametrize("kind", ["base", "ln_base"])
def test_scores_are_those_of_the_mixed_classifier(kind: str, mode: str, request: pytest.FixtureRequest):
    base: BaseSet = request.getfixturevalue(kind)
    images, labels = pictures(30)
    soups = SOUPS[:3]
    scores = evaluate_soups(PreparedBase(base), soups, images, labels, bn_mode=mode)
    rows = folded_state_dicts(base) if mode == "folded" else base.state_dicts
    for position, soup in enumerate(soups):
        classifier = base.model()
        classifier.net.load_state_dict(mix(list(rows.values()), torch.from_numpy(soup)))
        with torch.no_grad():
            logits = classifier(torch.from_numpy(to_input(images)))
        assert scores.correct[position].tolist() == (logits.argmax(dim=1).numpy() == labels).tolist()
        for column, temperature in enumerate(TEMPERATURES):
            expected = torch.nn.functional.cross_entropy(
                logits / temperature, torch.from_numpy(labels), reduction="none"
            )
            assert np.allclose(scores.losses[position, column], expected.numpy(), atol=1e-4)


def test_batches_and_blocks_change_nothing(prepared: PreparedBase, monkeypatch: pytest.MonkeyPatch):
    images, labels = pictures(37)
    whole = evaluate_soups(prepared, SOUPS, images, labels)
    small = evaluate_soups(prepared, SOUPS, images, labels, batch_size=5)
    monkeypatch.setattr(adapt.networks.forward, "BLOCK_BYTES", 10 * 4 * 16 * 16 * 3)
    done: list[float] = []
    blocks = evaluate_soups(prepared, SOUPS, images, labels, progress=done.append)
    for other in (small, blocks):
        assert np.allclose(whole.losses, other.losses, atol=1e-5)
        assert np.array_equal(whole.correct, other.correct)
    assert done == sorted(done)
    assert done[-1] == 1
    assert len(done) == 4 * len(SOUPS)


def test_negative_variances_and_infinite_logits_make_a_soup_unusable(prepared: PreparedBase):
    images, labels = pictures(10)
    wild = np.asarray([[1.0, 0, 0, 0], [40.0, -39.0, 0, 0]])
    raw = evaluate_soups(prepared, wild, images, labels, bn_mode="raw")
    assert np.isfinite(raw.losses[0]).all()
    assert np.isinf(raw.losses[1]).all()
    assert not raw.correct[1].any()
    huge = evaluate_soups(prepared, np.asarray([[1e38, 1.0, 0, 0]]), images, labels)
    assert np.isinf(huge.losses).all()
    assert not huge.correct.any()


def test_a_stop_is_obeyed_at_once(prepared: PreparedBase):
    images, labels = pictures(5)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        evaluate_soups(prepared, SOUPS, images, labels, should_stop=stop)
    assert len(asked) == 3


def test_a_net_without_batchnorm_has_one_mode(ln_base: BaseSet, base: BaseSet):
    assert PreparedBase(ln_base).canonical("raw") == "folded"
    assert PreparedBase(base).canonical("raw") == "raw"
    prepared = PreparedBase(ln_base)
    assert prepared.model("raw") is prepared.model("folded")


def test_nothing_is_folded_twice(base: BaseSet, monkeypatch: pytest.MonkeyPatch):
    prepared = PreparedBase(base)
    model = prepared.model("folded")
    monkeypatch.setattr(adapt.networks.prepared, "fold_base", lambda base: pytest.fail("folded again"))
    assert prepared.model("folded") is model


def test_a_searchs_own_work_is_small_beside_the_forwards(prepared: PreparedBase, monkeypatch: pytest.MonkeyPatch):
    """One forward per soup and batch, no more: what else there is, is counted in microseconds (benchmarks)."""
    images, labels = pictures(50)
    model = prepared.model("folded")
    calls: list[int] = []
    handle = model.net.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    try:
        evaluate_soups(prepared, SOUPS, images, labels)
    finally:
        handle.remove()
    assert sum(calls) == len(SOUPS) * 50


def test_devices_are_checked():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="cpu, cuda or auto"):
        pick_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without CUDA")
def test_cuda_is_never_replaced_silently():
    with pytest.raises(ValueError, match="finds no CUDA device"):
        pick_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["folded", "raw"])
def test_cuda_sees_what_the_cpu_sees(base: BaseSet, mode: str):
    images, labels = pictures(64)
    ours = evaluate_soups(PreparedBase(base, device="cuda"), SOUPS[:3], images, labels, bn_mode=mode)
    theirs = evaluate_soups(PreparedBase(base), SOUPS[:3], images, labels, bn_mode=mode)
    assert np.allclose(ours.losses, theirs.losses, atol=1e-4)
    assert (ours.correct != theirs.correct).sum() <= 1


def test_the_thread_count_is_put_back():
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with thread_count(None):
        assert torch.get_num_threads() == before


def test_the_loss_at_temperature_one_is_the_log_loss(prepared: PreparedBase):
    images, labels = pictures(20)
    one = evaluate_soups(prepared, SOUPS, images, labels, temperatures=[1.0])
    assert math.isclose(TEMPERATURES[3], 1.0)
    assert np.allclose(one.losses[:, 0], evaluate_soups(prepared, SOUPS, images, labels).losses[:, 3], atol=1e-6)
