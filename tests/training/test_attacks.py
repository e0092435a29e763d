import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import Trained, with_digits
from training.ascent import Rules, _begin, _checkpoints, _move
from training.attack_losses import LOSSES, LossName, cross_entropy, dlr, dlr_targeted, kl, margin, references
from training.attacks import apgd, check_images, fgsm, pgd
from training.models import Classifier
from training.threat import NORMS, PROJECT, RANDOM_START, STEEPEST, Norm, ThreatModel, norm_of

THREATS = {threat.norm: threat for threat in (
    ThreatModel(norm="Linf", eps=0.12), ThreatModel(norm="L2", eps=2.0), ThreatModel(norm="L1", eps=8)
)}  # fmt: skip
Attack = Callable[..., Tensor]
ATTACKS: dict[str, tuple[Attack, Norm]] = {
    "fgsm": (fgsm, "Linf"),
    **{f"pgd-{norm}": (partial(pgd, num_steps=4), norm) for norm in NORMS},
    **{f"apgd-{norm}": (partial(apgd, num_steps=6), norm) for norm in NORMS},
    **{f"training-{norm}": (partial(apgd, num_steps=4, mode="train"), norm) for norm in NORMS},
    "kl": (partial(apgd, num_steps=3, mode="train", loss="kl"), "L2"),
    "targeted": (partial(apgd, num_steps=3, loss="dlr-targeted"), "Linf"),
    "restarts": (partial(apgd, num_steps=5, loss="dlr", num_restarts=2), "L1"),
}
every_attack = pytest.mark.parametrize(("attack", "norm"), ATTACKS.values(), ids=ATTACKS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def losses_at(model: nn.Module, x: Tensor, labels: Tensor, loss: LossName = "ce") -> Tensor:
    with torch.no_grad():
        return LOSSES[loss](model(x), labels, labels)


def stand(trained: Trained, x: Tensor) -> Tensor:
    with torch.no_grad():
        return trained.model(x).argmax(1) == trained.labels


@every_attack
def test_attacks_stay_inside_ball_and_box(trained: Trained, attack: Attack, norm: Norm) -> None:
    x_adv = attack(trained.model, trained.images, trained.labels, THREATS[norm], generator=seeded())
    length = norm_of(x_adv.double() - trained.images.double(), norm)
    assert length.max() <= THREATS[norm].eps * (1 + 1e-6)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert length.max() > 0.5 * THREATS[norm].eps, "the attack did nothing"


@every_attack
def test_a_tiny_radius_changes_next_to_nothing(trained: Trained, attack: Attack, norm: Norm) -> None:
    x_adv = attack(trained.model, trained.images, trained.labels, ThreatModel(norm=norm, eps=1e-6), generator=seeded())
    torch.testing.assert_close(x_adv, trained.images, rtol=0, atol=1.1e-6)


@every_attack
def test_attacks_leave_everything_as_they_found_it(trained: Trained, attack: Attack, norm: Norm) -> None:
    model, images = trained.model, trained.images.clone()
    parts = list(model.modules())
    parameters = list(model.parameters())
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        model.train()
        parts[-1].eval()
        parameters[0].grad = torch.full_like(parameters[0], 3.0)
        parameters[1].requires_grad_(False)
        modes = [part.training for part in parts]
        x_adv = attack(model, images, trained.labels, THREATS[norm], generator=seeded())
        assert [part.training for part in parts] == modes
        assert torch.equal(parameters[0].grad, torch.full_like(parameters[0], 3.0))
        assert all(parameter.grad is None for parameter in parameters[1:])
        assert [parameter.requires_grad for parameter in parameters] == [True, False] + [True] * (len(parameters) - 2)
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(images, trained.images)
        assert not x_adv.requires_grad
        assert x_adv.data_ptr() != images.data_ptr()
    finally:
        parameters[0].grad = None
        parameters[1].requires_grad_(True)
        model.eval()


@every_attack
def test_the_generator_decides_everything(trained: Trained, attack: Attack, norm: Norm) -> None:
    once, again = (
        attack(trained.model, trained.images, trained.labels, THREATS[norm], generator=seeded(5)) for _ in range(2)
    )
    assert torch.equal(once, again)


@pytest.mark.parametrize("attack", [fgsm, partial(apgd, num_steps=2), partial(pgd, num_steps=2)])
def test_attacks_work_where_gradients_are_switched_off(trained: Trained, attack: Attack) -> None:
    expected = attack(trained.model, trained.images, trained.labels, THREATS["Linf"], generator=seeded())
    with torch.no_grad():
        found = attack(trained.model, trained.images, trained.labels, THREATS["Linf"], generator=seeded())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [apgd, pgd])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("random_start", [True, False])
def test_training_attacks_end_no_lower_than_they_start(
    trained: Trained, norm: Norm, attack: Attack, num_steps: int, random_start: bool
) -> None:
    model, images, labels = trained
    start = RANDOM_START[norm](images, THREATS[norm].eps, seeded(1)) if random_start else images
    x_adv = attack(
        model, images, labels, THREATS[norm], num_steps=num_steps, mode="train", random_start=random_start,
        generator=seeded(1),
    )  # fmt: skip
    gain = losses_at(model, x_adv, labels) - losses_at(model, start, labels)
    assert gain.min() >= -1e-5
    assert gain.mean() > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_evaluation_breaks_images_or_raises_their_loss(trained: Trained, norm: Norm, loss: LossName) -> None:
    x_adv = apgd(trained.model, trained.images, trained.labels, THREATS[norm], num_steps=8, loss=loss)
    gain = losses_at(trained.model, x_adv, trained.labels, loss) - losses_at(
        trained.model, trained.images, trained.labels, loss
    )
    standing = stand(trained, x_adv)
    assert gain[standing].min() >= -1e-5
    assert standing.sum() < stand(trained, trained.images).sum()


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_is_at_least_as_strong_as_pgd_with_as_many_steps(trained: Trained, norm: Norm) -> None:
    model, images, labels = trained
    results = {}
    for name, attack in (("apgd", apgd), ("pgd", pgd)):
        x_adv = attack(model, images, labels, THREATS[norm], num_steps=20, generator=seeded())
        highest = attack(model, images, labels, THREATS[norm], num_steps=20, mode="train", generator=seeded())
        results[name] = (int(stand(trained, x_adv).sum()), float(losses_at(model, highest, labels).mean()))
    assert results["apgd"][0] <= results["pgd"][0] < int(stand(trained, images).sum())
    assert results["apgd"][1] >= results["pgd"][1]


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_restarts_and_targets_only_help(trained: Trained, norm: Norm) -> None:
    def survivors(**settings: object) -> int:
        x_adv = apgd(trained.model, trained.images, trained.labels, THREATS[norm], generator=seeded(), **settings)
        return int(stand(trained, x_adv).sum())

    weak, strong = survivors(num_steps=3, loss="dlr"), survivors(num_steps=20, loss="dlr")
    assert strong <= weak
    assert survivors(num_steps=20, loss="dlr", num_restarts=3) <= strong
    assert survivors(num_steps=20, loss="dlr-targeted") <= strong


def test_clipping_after_an_l1_projection_makes_a_weaker_attack(
    digits_net: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = with_digits(digits_net, 80)  # the difference is a few images

    def survivors() -> int:
        x_adv = apgd(trained.model, trained.images, trained.labels, THREATS["L1"], num_steps=20, generator=seeded())
        return int(stand(trained, x_adv).sum())

    exact = survivors()
    project = PROJECT["L1"]

    def clipped(x: Tensor, images: Tensor, eps: float) -> Tensor:
        middle = torch.full_like(images, 0.5)  # where the box is far away
        return (images + 1e3 * (project(middle + (x - images) / 1e3, middle, eps / 1e3) - middle)).clamp(0, 1)

    monkeypatch.setitem(PROJECT, "L1", clipped)
    assert exact < survivors()


def test_only_standing_images_are_attacked(trained: Trained) -> None:
    sizes: list[int] = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return trained.model(x)

    x_adv = apgd(model, trained.images, trained.labels, THREATS["L2"], num_steps=10, generator=seeded())
    right = stand(trained, trained.images)
    assert torch.equal(x_adv[~right], trained.images[~right])
    assert sizes[:2] == [len(right), int(right.sum())]
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert sizes[-1] < sizes[1]


def test_a_step_costs_one_gradient_and_the_last_point_one_forward_pass(trained: Trained) -> None:
    with_gradient: list[bool] = []

    def model(x: Tensor) -> Tensor:
        with_gradient.append(x.requires_grad)
        return trained.model(x)

    apgd(model, trained.images, trained.labels, THREATS["L2"], num_steps=3, mode="train")
    assert with_gradient == [True] * 3 + [False]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [apgd, partial(pgd, step_size=20.0)])
def test_training_returns_the_highest_point_that_was_visited(trained: Trained, norm: Norm, attack: Attack) -> None:
    visited: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        logits = trained.model(x)
        visited.append(cross_entropy(logits, trained.labels, trained.labels).detach())
        return logits

    x_adv = attack(model, trained.images, trained.labels, THREATS[norm], num_steps=9, mode="train")
    highest = torch.stack(visited).amax(0)
    torch.testing.assert_close(losses_at(trained.model, x_adv, trained.labels), highest, rtol=1e-3, atol=1e-4)
    assert (visited[-1] < highest - 1e-3).any(), "the last point was the highest for every image: nothing was tested"


def test_apgd_moves_with_momentum() -> None:
    generator = seeded()
    images = torch.full((2, 3, 4, 4), 0.5)
    rules = Rules("ce", "L2", 100.0, 5, 0.01, is_adaptive=True, stops=False)
    state = _begin(images, torch.zeros(2).long(), images, images, rules, torch.ones(2).long())
    before, now, state.gradient = (0.5 + 0.01 * torch.randn(images.shape, generator=generator) for _ in range(3))
    state.x_before, state.x = before, now
    _move(state, rules, has_momentum=True)
    step = 0.01 * state.gradient / norm_of(state.gradient, "L2")[:, None, None, None]
    torch.testing.assert_close(state.x, now + 0.75 * step + 0.25 * (now - before))
    assert state.x_before is now


def test_l1_goes_on_as_sparse_as_it_was_in_the_larger_ball(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    steepest = STEEPEST["L1"]

    def recorded(gradient: Tensor, num_entries: Tensor) -> Tensor:
        asked.append(num_entries)
        return steepest(gradient, num_entries)

    monkeypatch.setitem(STEEPEST, "L1", recorded)
    apgd(trained.model, trained.images, trained.labels, THREATS["L1"], num_steps=20, generator=seeded())
    fifth_of_the_image = int(0.2 * trained.images[0].numel())
    assert (asked[0] == fifth_of_the_image).all()
    assert asked[6].float().mean() < 0.5 * fifth_of_the_image  # the first step in the ball of 2 eps
    assert asked[12].float().mean() < asked[6].float().mean()  # and in that of eps


def test_an_l1_evaluation_begins_in_balls_of_three_and_two_radii(trained: Trained) -> None:
    right = stand(trained, trained.images)
    images, labels = trained.images[right][:1], trained.labels[right][:1]
    lengths: list[float] = []

    def model(x: Tensor) -> Tensor:
        lengths.append(float(norm_of(x.detach() - images, "L1")))
        return torch.nn.functional.one_hot(labels, 10) + 0 * trained.model(x)  # never wrong: the attack goes to the end

    threat = ThreatModel(norm="L1", eps=8)
    apgd(model, images, labels, threat, num_steps=20, generator=seeded())
    assert len(lengths) == 1 + 7 + 7 + 9  # the clean image; 6, 6 and 8 steps, each with the point it starts from
    for radius, phase in ((24, lengths[1:8]), (16, lengths[8:15]), (8, lengths[15:])):
        assert max(phase) == pytest.approx(radius, rel=0.01)


def test_checkpoints_are_those_of_the_paper() -> None:
    rules = Rules("ce", "Linf", 0.1, 100, 0.2, is_adaptive=True, stops=True)
    assert _checkpoints(rules) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert list(_checkpoints(rules._replace(norm="L1"))) == list(range(4, 100, 4))
    assert _checkpoints(rules._replace(is_adaptive=False)) == {}


def test_fgsm_without_noise_is_one_signed_step(trained: Trained) -> None:
    threat = THREATS["Linf"]
    images = trained.images.clone().requires_grad_()
    cross_entropy(trained.model(images), trained.labels, trained.labels).sum().backward()
    assert images.grad is not None
    expected = (trained.images + threat.eps * images.grad.sign()).clamp(0, 1)
    trained.model.zero_grad(set_to_none=True)
    found = fgsm(trained.model, trained.images, trained.labels, threat, noise=0.0)
    assert (found - expected).abs().gt(1e-6).float().mean() < 1e-3  # the sign of a gradient near zero may differ


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_under_autocast_only_the_model_is_in_half_precision(trained: Trained, norm: Norm, loss: LossName) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def model(x: Tensor) -> Tensor:
        logits: Tensor = trained.model(x)
        seen.append((x.dtype, logits.dtype))
        return logits

    def attack() -> Tensor:
        return apgd(
            model, trained.images, trained.labels, THREATS[norm], num_steps=6, loss=loss, generator=seeded(),
        )  # fmt: skip

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = attack()
        standing = int(stand(trained, x_adv).sum())
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert x_adv.dtype == torch.float32
    assert norm_of(x_adv.double() - trained.images.double(), norm).max() <= THREATS[norm].eps * (1 + 1e-6)
    assert abs(standing - int(stand(trained, attack()).sum())) <= 6, "half precision made another attack of it"


def test_images_in_half_precision_are_attacked_in_float32(trained: Trained) -> None:
    images = trained.images.bfloat16()
    for attack in (fgsm, partial(apgd, num_steps=2), partial(pgd, num_steps=2)):
        x_adv = attack(trained.model, images, trained.labels, THREATS["Linf"], generator=seeded())
        assert x_adv.dtype == torch.float32
        assert (x_adv - images.float()).abs().max() <= THREATS["Linf"].eps * (1 + 1e-6)
        assert (x_adv != x_adv.bfloat16()).any()


def test_targets_one_by_one_are_all_targets(trained: Trained) -> None:
    def survivors(target: int | None) -> Tensor:
        x_adv = apgd(
            trained.model, trained.images, trained.labels, THREATS["L2"], num_steps=8, loss="dlr-targeted",
            random_start=False, target=target,
        )  # fmt: skip
        return stand(trained, x_adv)

    one_by_one = torch.stack([survivors(target) for target in range(9)])
    assert torch.equal(one_by_one.all(0), survivors(None))
    assert len({tuple(row.tolist()) for row in one_by_one}) > 1
    with pytest.raises(ValueError, match="expected a target from 0 to 8, got 9"):
        survivors(9)
    with pytest.raises(ValueError, match="a target needs a targeted loss, got ce"):
        apgd(trained.model, trained.images, trained.labels, THREATS["L2"], num_steps=1, target=0)


def random_logits(num_classes: int) -> tuple[Tensor, Tensor]:
    generator = seeded(7)
    return 3 * torch.randn(50, num_classes, generator=generator), torch.randint(num_classes, (50,), generator=generator)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
def test_margin_and_dlr_are_positive_exactly_where_the_model_is_wrong(num_classes: int) -> None:
    logits, labels = random_logits(num_classes)
    wrong = logits.argmax(1) != labels
    for loss in (margin, dlr):
        values = loss(logits, labels, labels)
        assert torch.equal(values > 0, wrong)
    runs = references("dlr-targeted", logits, labels, num_targets=9)
    assert len(runs) == num_classes - 1
    assert torch.equal(torch.stack([dlr_targeted(logits, labels, run) for run in runs]).amax(0) > 0, wrong)


def test_dlr_takes_the_values_of_its_definition() -> None:
    logits, label = torch.tensor([[5.0, 2.0, 4.0, -1.0, 1.0]]), torch.tensor([0])
    torch.testing.assert_close(dlr(logits, label, label), torch.tensor([-(5.0 - 4.0) / (5.0 - 2.0)]))
    target = torch.tensor([3])
    torch.testing.assert_close(dlr_targeted(logits, label, target), torch.tensor([-6.0 / (5.0 - 1.5)]))


def test_dlr_ignores_shift_and_scale_of_the_logits() -> None:
    logits, labels = random_logits(10)
    torch.testing.assert_close(
        dlr(1e-3 * logits - 7, labels, labels), dlr(logits, labels, labels), rtol=1e-2, atol=1e-3
    )


def test_targets_are_the_highest_other_classes() -> None:
    logits, labels = torch.tensor([[5.0, 2.0, 4.0, -1.0]]), torch.tensor([2])
    runs = references("dlr-targeted", logits, labels, num_targets=2)
    assert [run.tolist() for run in runs] == [[0], [1]]


def test_kl_is_the_divergence_from_the_clean_to_the_attacked_prediction() -> None:
    clean, attacked = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)  # 0.51; the other way round 0.37
    assert float(kl(attacked.log(), torch.zeros(1).long(), clean.log())) == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_at_the_clean_prediction_and_positive_elsewhere() -> None:
    logits, labels = random_logits(10)
    torch.testing.assert_close(kl(logits, labels, logits), torch.zeros(50), rtol=0, atol=1e-6)
    assert (kl(logits.roll(1, 0), labels, logits) > 0).all()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_attacked_all_the_same(num_classes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
    images = torch.rand(20, 3, 4, 4)
    labels = model(images).argmax(1)
    for loss in ("dlr", "dlr-targeted"):
        x_adv = apgd(model, images, labels, ThreatModel(norm="Linf", eps=0.5), num_steps=5, loss=loss)
        assert (model(x_adv).argmax(1) == labels).float().mean() < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "at least 1 step"),
        ({"num_steps": 2, "num_restarts": 0}, "at least 1 step and 1 restart"),
        ({"num_steps": 2, "loss": "kl", "random_start": False}, "kl needs a random start"),
        ({"num_steps": 2, "mode": "train", "loss": "dlr-targeted"}, "need mode evaluate"),
        ({"num_steps": 2, "mode": "train", "num_restarts": 2}, "need mode evaluate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(trained: Trained, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apgd(trained.model, trained.images, trained.labels, THREATS["Linf"], **settings)


def test_images_and_labels_are_checked(trained: Trained) -> None:
    model, images, labels = trained
    with pytest.raises(ValueError, match=r"expected images in \[0, 1\], got values from 0 to 255"):
        apgd(model, 255 * images, labels, THREATS["L2"], num_steps=1)
    with pytest.raises(ValueError, match=r"expected images in \[0, 1\], got NaN"):
        apgd(model, images / images, labels, THREATS["L2"], num_steps=1)
    spoiled = images.clone()
    spoiled[3, 1, 5, 2] = torch.nan
    with pytest.raises(ValueError, match="got NaN in some"):
        apgd(model, spoiled, labels, THREATS["L1"], num_steps=1)
    with pytest.raises(ValueError, match=r"values from 0 to 255 \(did you forget to divide by 255\?\)"):
        fgsm(model, 255 * images, labels, THREATS["Linf"])
    with pytest.raises(ValueError, match=r"values from -0.5 to 0.5$"):
        pgd(model, images - 0.5, labels, THREATS["Linf"], num_steps=1)
    with pytest.raises(ValueError, match=r"expected floating-point images .* got torch.uint8: divide uint8 by 255"):
        check_images((255 * images).byte(), labels)
    with pytest.raises(ValueError, match="one label for each, got 0 and 0"):
        pgd(model, images[:0], labels[:0], THREATS["L2"], num_steps=1)
    with pytest.raises(ValueError, match="fgsm is an attack for Linf, got L1"):
        fgsm(model, images, labels, THREATS["L1"])
