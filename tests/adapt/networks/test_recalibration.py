import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapt.networks.forward import run_soups, soup_logits
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator, project_to_simplex
from training.bases import BaseSet


def pictures(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def inputs(prepared: PreparedBase, images: np.ndarray) -> torch.Tensor:
    return prepared.normalise(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)))


@given(vector=st.lists(st.floats(-2, 2), min_size=1, max_size=6))
@settings(max_examples=80)
def test_the_projection_is_the_nearest_point_of_the_simplex(vector: list[float]) -> None:
    found = project_to_simplex(np.asarray(vector))
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    others = np.random.default_rng(0).dirichlet(np.ones(len(vector)), 50)
    assert ((found - vector) ** 2).sum() <= ((others - np.asarray(vector)) ** 2).sum(axis=1).min() + 1e-9


def test_with_hardly_any_prior_it_is_a_network_in_train_mode(prepared: PreparedBase) -> None:
    row, images = [0.25, 0.25, 0.25, 0.25], pictures(40)
    model = prepared.model("raw")
    found = Recalibrator(model, prior_images=(1e-6, 1e-6)).run(row, [inputs(prepared, images)], len(images))
    assert found is not None
    model.set(row)
    with torch.no_grad():
        model.net.train()
        expected = model.net(inputs(prepared, images))
        model.net.eval()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_with_a_heavy_prior_nothing_changes(prepared: PreparedBase) -> None:
    row, images = np.asarray([[0.5, 0.5, 0.0, 0.0]]), pictures(20)
    found = Recalibrator(prepared.model("raw"), prior_images=(1e12, 1e12)).run(
        row[0].tolist(), [inputs(prepared, images)], len(images)
    )
    assert found is not None
    torch.testing.assert_close(
        found.clone(), soup_logits(prepared, row, images, bn_mode="raw")[0], rtol=1e-3, atol=1e-4
    )


def test_the_logits_are_those_of_a_soup_that_carries_the_statistics(prepared: PreparedBase) -> None:
    """Outside the simplex too, where raw statistics could not be mixed."""
    rows, images = np.asarray([[1.25, -0.25, 0.25, -0.25], [0, 1, 0, 0]]), pictures(50)
    run = run_soups(prepared, rows, images, recalibrate=True, unlabelled=pictures(30, seed=1))
    assert run.image_forwards == 2 * 80
    for position, row in enumerate(rows):
        statistics = run.statistics[position]
        assert statistics is not None
        again = soup_logits(prepared, row[None], images, bn_mode="raw", patch=statistics)[0]
        torch.testing.assert_close(run.logits[position], again, rtol=1e-4, atol=1e-4)


def test_several_batches_give_the_statistics_of_one_in_the_first_layer(
    prepared: PreparedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, images = np.asarray([[0.25, 0.25, 0.25, 0.25]]), pictures(48)
    whole = run_soups(prepared, row, images, recalibrate=True)
    monkeypatch.setattr("adapt.networks.forward.RECALIBRATION_PIXELS", 12 * 16 * 16)
    parts = run_soups(prepared, row, images, recalibrate=True)
    assert parts.image_forwards == 2 * 48
    assert whole.statistics[0] is not None
    assert parts.statistics[0] is not None
    first = next(iter(whole.statistics[0]))
    np.testing.assert_allclose(parts.statistics[0][first], whole.statistics[0][first], rtol=1e-4, atol=1e-5)
    # Deeper layers see each batch through its own statistics: close, not the same.
    for key, array in whole.statistics[0].items():
        np.testing.assert_allclose(parts.statistics[0][key], array, rtol=0.5, atol=0.5)
    again = soup_logits(prepared, row, images, bn_mode="raw", patch=parts.statistics[0])[0]
    torch.testing.assert_close(parts.logits[0], again, rtol=1e-4, atol=1e-4)


def test_labels_and_order_do_not_matter_and_hooks_are_gone(prepared: PreparedBase) -> None:
    row, images = np.asarray([[0.0, 1.0, 0.0, 0.0]]), pictures(30)
    one = run_soups(prepared, row, images, recalibrate=True).statistics[0]
    other = run_soups(prepared, row, images[::-1], recalibrate=True).statistics[0]
    assert one is not None
    assert other is not None
    for key, array in one.items():
        np.testing.assert_allclose(other[key], array, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in prepared.model("raw").net.modules())


def test_a_stop_or_an_error_leaves_no_hooks_behind(prepared: PreparedBase) -> None:
    with pytest.raises(RuntimeError):
        prepared.recalibrator.run([1.0, 0.0, 0.0, 0.0], [torch.zeros(2, 5, 16, 16)], 2)
    assert not any(module._forward_pre_hooks for module in prepared.model("raw").net.modules())


def test_networks_without_batchnorm_and_bad_priors_are_refused(ln_base: BaseSet, prepared: PreparedBase) -> None:
    with pytest.raises(ValueError, match="no BatchNorm"):
        _ = PreparedBase(ln_base).recalibrator
    with pytest.raises(ValueError, match="positive"):
        Recalibrator(prepared.model("raw"), prior_images=(0.0, 1.0))
    assert isinstance(prepared.model("raw").net, nn.Module)


SOUPS = np.asarray([[0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.25, -0.25, 0.25, -0.25]])


def test_images_that_moments_were_measured_on_change_hardly_anything(prepared_moments: PreparedBase) -> None:
    rows, images = SOUPS[:1], pictures(300, seed=5)
    plain = soup_logits(prepared_moments, rows, images)[0]
    anew = run_soups(prepared_moments, rows, images, recalibrate=True).logits[0]
    torch.testing.assert_close(anew, plain, rtol=0.02, atol=0.02)


def test_a_change_of_contrast_and_brightness_is_undone_without_batchnorm(prepared_moments: PreparedBase) -> None:
    """The first layer sees them as a scale and a shift, which is what it can take back."""
    images = pictures(300, seed=5)
    dim = (images // 4 + 20).astype(np.uint8)
    for row in SOUPS:
        right = soup_logits(prepared_moments, row[None], images)[0]
        wrong = soup_logits(prepared_moments, row[None], dim)[0]
        anew = run_soups(prepared_moments, row[None], dim, recalibrate=True).logits[0]
        assert (anew - right).abs().mean() < 0.3 * (wrong - right).abs().mean()


def test_weights_and_biases_carry_what_the_logits_were_made_with(prepared_moments: PreparedBase) -> None:
    images = pictures(50)
    run = run_soups(prepared_moments, SOUPS, images, recalibrate=True, unlabelled=pictures(30, seed=1))
    assert run.image_forwards == 3 * 80
    for position, row in enumerate(SOUPS):
        patch = run.statistics[position]
        assert patch is not None
        assert all(key.endswith((".weight", ".bias")) for key in patch)
        again = soup_logits(prepared_moments, row[None], images, bn_mode="raw", patch=patch)[0]
        torch.testing.assert_close(run.logits[position], again, rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in prepared_moments.model("raw").net.modules())


def test_without_batchnorm_several_batches_come_close_to_one(
    prepared_moments: PreparedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (pictures(96) // 2).astype(np.uint8)
    whole = run_soups(prepared_moments, SOUPS[:1], images, recalibrate=True)
    monkeypatch.setattr("adapt.networks.forward.RECALIBRATION_PIXELS", 48 * 16 * 16)
    parts = run_soups(prepared_moments, SOUPS[:1], images, recalibrate=True)
    assert parts.image_forwards == 2 * 96
    torch.testing.assert_close(parts.logits[0], whole.logits[0], rtol=0.05, atol=0.05)
