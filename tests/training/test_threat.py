import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from training.threat import DEFAULT_THREATS, NORMS, PROJECT, RANDOM_START, STEEPEST, Norm, norm_of, union

RADII: dict[Norm, tuple[float, ...]] = {"Linf": (1e-3, 8 / 255, 0.3), "L2": (1e-2, 0.5, 5.0), "L1": (0.5, 12.0, 60.0)}
CASES = [(norm, eps) for norm in NORMS for eps in RADII[norm]]


def some_images(count: int = 6, size: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images in which half of the pixels are black or white, where the box matters most."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 3, size, size, generator=generator, dtype=dtype) - 0.5).clamp(0, 1)


def some_points(images: Tensor, *, seed: int = 1) -> Tensor:
    """Points around the images at distances from tiny to far, one scale per image, sparse in every other image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    scale = torch.logspace(-3, 1, len(images), dtype=images.dtype)[:, None, None, None]
    sparse = torch.rand(images.shape, generator=generator, dtype=images.dtype) < 0.05
    return images + scale * torch.where(torch.arange(len(images))[:, None, None, None] % 2 == 0, noise, noise * sparse)


@pytest.mark.parametrize(("norm", "eps"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_land_inside_ball_and_box(norm: Norm, eps: float, dtype: torch.dtype) -> None:
    images = some_images(dtype=dtype)
    projected = PROJECT[norm](some_points(images), images, eps)
    assert norm_of((projected.double() - images.double()), norm).max() <= eps * (1 + 1e-6)
    assert projected.min() >= 0
    assert projected.max() <= 1


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_projections_use_the_whole_radius(norm: Norm, eps: float) -> None:
    images = some_images(dtype=torch.float64)
    far = images + (images < 0.5).double() * 20 - 10  # beyond the box in every direction
    length = norm_of(PROJECT[norm](far, images, eps) - images, norm)
    farthest = norm_of(far.clamp(0, 1) - images, norm)
    torch.testing.assert_close(length, farthest.clamp(max=eps), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_projections_leave_points_inside_where_they_are(norm: Norm, eps: float) -> None:
    images = some_images(dtype=torch.float64)
    inside = PROJECT[norm](some_points(images), images, 0.5 * eps)
    torch.testing.assert_close(PROJECT[norm](inside, images, eps), inside, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("norm", "eps"), [case for case in CASES if case[0] != "Linf"])
def test_no_feasible_point_is_nearer_than_the_projection(norm: Norm, eps: float) -> None:
    # P is the projection of x onto a convex set exactly if <x - P, y - P> <= 0 for every y of the set.
    images = some_images(dtype=torch.float64)
    x = some_points(images)
    projected = PROJECT[norm](x, images, eps)
    corner = (x > images).double()  # of the box, in x's direction
    toward_corner = PROJECT[norm](images + 1e3 * (corner - images), images, eps)
    for y in (images, toward_corner, *(PROJECT[norm](some_points(images, seed=s), images, eps) for s in range(2, 20))):
        angle = ((x - projected) * (y - projected)).sum((1, 2, 3))
        assert (angle <= 1e-8 * (1 + norm_of(x - projected, "L2"))).all()


def by_sorting(x: np.ndarray, image: np.ndarray, eps: float) -> np.ndarray:
    """The L1-box projection of one image by its definition: try the pieces between sorted breakpoints."""
    delta = x - image
    room = np.where(delta > 0, 1 - image, image)
    size = np.abs(delta)

    def norm(threshold: float) -> float:
        return float(np.clip(size - threshold, 0, room).sum())

    if norm(0) <= eps:
        return image + np.sign(delta) * np.clip(size, 0, room)
    breaks = np.unique(np.concatenate([np.zeros(1), size.ravel(), np.clip(size - room, 0, None).ravel()]))
    low, high = 0, len(breaks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if norm(breaks[middle]) > eps else (low, middle)
    at_low, at_high = norm(breaks[low]), norm(breaks[high])
    threshold = breaks[low] + (at_low - eps) / (at_low - at_high) * (breaks[high] - breaks[low])
    return image + np.sign(delta) * np.clip(size - threshold, 0, room)


@pytest.mark.parametrize("eps", RADII["L1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l1_projection_equals_the_one_by_sorting(eps: float, dtype: torch.dtype) -> None:
    images = some_images(6, 32, dtype=dtype)
    x = some_points(images)
    ours = PROJECT["L1"](x, images, eps)
    for mine, point, image in zip(ours, x.double().numpy(), images.double().numpy(), strict=True):
        slack = image.size * torch.finfo(dtype).eps / 2  # the radius is one float per coordinate smaller
        reference = by_sorting(point, image, eps - slack)
        # The norm is right to a few floats; in the worst case one coordinate bears all of the difference.
        tolerance = 1e-6 + 20 * torch.finfo(dtype).eps * eps
        np.testing.assert_allclose(mine.double().numpy(), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("seed", range(4))
def test_projections_solve_the_quadratic_programme(norm: Norm, seed: int) -> None:
    images = some_images(1, 2, seed=seed, dtype=torch.float64)
    eps = 1.0 if norm == "L1" else 0.6
    x = images + 1.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype)
    image, point = images.numpy().ravel(), x.numpy().ravel()
    d = len(image)  # variables: the positive and the negative part of the perturbation
    parts = np.concatenate([np.eye(d), -np.eye(d)], axis=1)
    if norm == "L1":
        radius = {"fun": lambda v: eps - v.sum(), "jac": lambda v: -np.ones(2 * d)}
    else:
        radius = {"fun": lambda v: eps**2 - ((parts @ v) ** 2).sum(), "jac": lambda v: -2 * parts.T @ (parts @ v)}
    solved = scipy.optimize.minimize(
        lambda v: ((image + parts @ v - point) ** 2).sum(),
        np.full(2 * d, 1e-3),
        jac=lambda v: 2 * parts.T @ (image + parts @ v - point),
        bounds=[(0, 1)] * (2 * d),
        constraints=[
            {"type": "ineq", "fun": lambda v: image + parts @ v, "jac": lambda v: parts},
            {"type": "ineq", "fun": lambda v: 1 - image - parts @ v, "jac": lambda v: -parts},
            {"type": "ineq", **radius},
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solved.success
    ours = PROJECT[norm](x, images, eps).numpy().ravel()
    np.testing.assert_allclose(ours, image + parts @ solved.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_memory_layout_does_not_matter(norm: Norm) -> None:
    images = some_images()
    x, eps = some_points(images), RADII[norm][1]
    plain = PROJECT[norm](x, images, eps)
    swapped = PROJECT[norm](x.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last), eps)
    assert swapped.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(swapped, plain, rtol=0, atol=2e-6)


def test_images_are_projected_independently() -> None:
    images = some_images()
    x = some_points(images)
    for norm in NORMS:
        together = PROJECT[norm](x, images, RADII[norm][1])
        alone = torch.cat([PROJECT[norm](x[i : i + 1], images[i : i + 1], RADII[norm][1]) for i in range(len(x))])
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_steps_have_length_one_and_ascend(norm: Norm) -> None:
    gradient = 1e-12 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step = STEEPEST[norm](gradient, torch.tensor([1, 2, 10, 100, 192]))
    torch.testing.assert_close(norm_of(step, norm), torch.ones(5))
    assert ((step * gradient).sum((1, 2, 3)) > 0).all()


def test_l1_steps_move_the_largest_entries_only() -> None:
    gradient = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    num_entries = torch.tensor([1, 7, 50])
    moved = STEEPEST["L1"](gradient, num_entries) != 0
    assert moved.flatten(1).sum(1).tolist() == num_entries.tolist()
    for size, chosen in zip(gradient.abs(), moved, strict=True):
        assert size[chosen].min() > size[~chosen].max()


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm: Norm) -> None:
    step = STEEPEST[norm](torch.zeros(2, 3, 4, 4), torch.tensor([3, 48]))
    assert torch.equal(step, torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_random_starts_are_feasible_repeatable_and_differ(norm: Norm, eps: float) -> None:
    images = some_images()
    first, again = (RANDOM_START[norm](images, eps, torch.Generator().manual_seed(3)) for _ in range(2))
    other = RANDOM_START[norm](images, eps, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert norm_of((first - images).double(), norm).max() <= eps * (1 + 1e-6)
    assert 0 <= first.min() <= first.max() <= 1


def test_union_is_the_worst_case_per_image() -> None:
    survived = [torch.tensor([True, True, False]), torch.tensor([True, False, True])]
    assert union(survived).tolist() == [True, False, False]


def test_the_usual_threat_models_cover_every_norm() -> None:
    assert {threat.norm: threat.eps for threat in DEFAULT_THREATS} == {"Linf": 8 / 255, "L2": 0.5, "L1": 12}


def test_random_starts_go_both_ways_and_fill_the_ball() -> None:
    images = torch.full((20, 3, 16, 16), 0.5)
    deltas = {
        norm: RANDOM_START[norm](images, RADII[norm][1], torch.Generator().manual_seed(3)) - 0.5 for norm in NORMS
    }
    for norm, delta in deltas.items():
        assert 0.4 < (delta[delta != 0] > 0).float().mean() < 0.6, norm
    eps = RADII["Linf"][1]
    assert deltas["Linf"].std() == pytest.approx(eps / 3**0.5, rel=0.05)  # uniform on [-eps, eps]
    assert norm_of(deltas["L2"], "L2").tolist() == pytest.approx([RADII["L2"][1]] * 20, rel=1e-4)  # on the sphere
    assert norm_of(deltas["L1"], "L1").tolist() == pytest.approx([RADII["L1"][1]] * 20, rel=1e-3)
