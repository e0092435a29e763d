import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.training.conftest import Trained
from training import objectives
from training.attacks import apgd
from training.augmentation import seeded
from training.manifest import Norm, ThreatModel
from training.multi_norm import msd
from training.objectives import OBJECTIVES, AttackSpec, Step
from training.pyramid import pyramid_attack
from training.split_norm import SplitNorm, auxiliary_norms, merge_norms, split_norms
from training.threat import norm_of

RADII: dict[Norm, float] = {"Linf": 0.1, "L2": 1.0, "L1": 10.0}
THREATS = [ThreatModel(norm=norm, eps=eps) for norm, eps in RADII.items()]
TAKEN = {"none": THREATS[:0], "one": THREATS[:1], "several": THREATS}
SMALL_IMAGES: dict[str, dict[str, Any]] = {"pyramid-at": {"scales": (8, 4, 1)}}

every_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )


def make_step(net: nn.Module, images: Tensor, labels: Tensor, threats: list[ThreatModel], **changes: Any) -> Step:
    fields: dict[str, Any] = {
        "model": net,
        "forward": net,
        "images": images,
        "labels": labels,
        "targets": labels,
        "threat_models": threats,
        "attack": AttackSpec(kind="apgd", num_steps=3),
        "noise": seeded(1),
        "draws": seeded(2),
        "memory": {},
    }
    return Step(**(fields | changes))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 3, 16, 16, generator=seeded(3)), torch.arange(8)


@every_objective
def test_an_objective_trains_parameters_and_nothing_else(name: str, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    objective = OBJECTIVES[name]
    net = objective.prepare(make_net()).train()
    passes = []
    forward: Callable[[Tensor], Tensor] = lambda x: passes.append(net.training) or net(x)  # noqa: E731
    before = images.clone()
    step = make_step(net, images, labels, TAKEN[objective.num_threats], forward=forward)
    loss = objective.function(step, **SMALL_IMAGES.get(name, {}))
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert passes
    assert all(passes)  # the update runs in train mode
    assert images.grad is None
    assert torch.equal(images, before)
    assert all(parameter.grad is not None for parameter in net.parameters())
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    # The update, not the attack, moved the statistics.
    assert sum(int(norm.num_batches_tracked) for norm in norms) == len(passes)


@every_objective
def test_seeds_decide_an_objective(name: str, batch: tuple[Tensor, Tensor]) -> None:
    objective = OBJECTIVES[name]
    values = []
    for _ in range(2):
        net = objective.prepare(make_net()).train()
        step = make_step(net, *batch, TAKEN[objective.num_threats])
        values.append(float(objective.function(step, **SMALL_IMAGES.get(name, {})).detach()))
    assert values[0] == values[1]


def attacked(trained: Trained, threat: ThreatModel) -> Tensor:
    return apgd(
        trained.model, trained.images, trained.labels, threat, num_steps=3, mode="train", random_start=False,
        generator=seeded(1),
    )  # fmt: skip


def test_one_norm_avg_and_max_see_the_attacks_they_are_named_for(trained: Trained) -> None:
    model, images, labels = trained
    step = make_step(model, images, labels, THREATS)
    points = [attacked(trained, threat) for threat in THREATS]
    with torch.no_grad():
        per_image = torch.stack([cross_entropy(model(point), labels, reduction="none") for point in points])
        found = {name: float(OBJECTIVES[name].function(step)) for name in ("avg", "max", "adversarial", "nominal")}
        clean = float(cross_entropy(model(images), labels))
    assert found["nominal"] == pytest.approx(clean, rel=1e-5)
    assert found["adversarial"] == pytest.approx(float(per_image[0].mean()), rel=1e-4)
    assert found["avg"] == pytest.approx(float(per_image.mean()), rel=1e-4)
    assert found["max"] == pytest.approx(float(per_image.amax(0).mean()), rel=1e-4)
    assert found["max"] > found["avg"] > found["nominal"]


class Watched(Step):
    """Notes which threat models are used."""

    seen: ClassVar[list[int]] = []

    def attacked(self, number: int = 0, *, aim: Tensor | None = None) -> Tensor:
        self.seen.append(number)
        return super().attacked(number, aim=aim)


def test_sat_draws_threat_models_evenly_and_eat_those_that_hurt_more(trained: Trained) -> None:
    images, labels = trained.images[:16], trained.labels[:16]
    draws, memory = seeded(0), dict[str, float]()
    shares = {}
    for name in ("sat", "eat"):
        Watched.seen.clear()
        for _ in range(60):
            step = make_step(trained.model, images, labels, [THREATS[0], THREATS[2]], draws=draws, memory=memory)
            with torch.no_grad():
                OBJECTIVES[name].function(Watched(**vars(step)))
        shares[name] = Watched.seen.count(0) / len(Watched.seen)
    errors = [memory["robust error 0"], memory["robust error 1"]]
    assert all(0 <= error <= 1 for error in errors)
    assert abs(shares["sat"] - 0.5) < 0.25  # four standard errors
    assert abs(shares["eat"] - errors[0] / sum(errors)) < 0.25


def test_trades_adds_nothing_where_the_attack_changes_nothing(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    net = make_net().eval()
    step = make_step(net, images, labels, [ThreatModel(norm="Linf", eps=1e-12)])
    expected = float(cross_entropy(net(images), labels).detach())
    assert float(OBJECTIVES["trades"].function(step, beta=50.0).detach()) == pytest.approx(expected, rel=1e-4)
    far = make_step(net, images, labels, [ThreatModel(norm="Linf", eps=0.3)])
    low, high = (float(OBJECTIVES["trades"].function(far, beta=beta).detach()) for beta in (1.0, 6.0))
    assert expected < low < high


@pytest.mark.parametrize("num_steps", [1, 5])
def test_msd_ends_in_one_of_the_balls_with_a_loss_above_that_of_single_norms(trained: Trained, num_steps: int) -> None:
    model, images, labels = trained
    x = msd(model, images, labels, THREATS, num_steps=num_steps)
    delta = x - images
    inside = torch.stack([norm_of(delta, threat.norm) <= threat.eps * (1 + 1e-5) for threat in THREATS])
    assert inside.any(0).all()
    assert 0 <= x.min() <= x.max() <= 1
    with torch.no_grad():
        union_loss = cross_entropy(model(x), labels)
        alone = [
            cross_entropy(model(msd(model, images, labels, [threat], num_steps=num_steps)), labels)
            for threat in THREATS
        ]
    # Greedy choices may lose to a single norm, but not to their average. With one step there is no greed.
    assert union_loss > (max(alone) * 0.999 if num_steps == 1 else sum(alone) / len(alone))


def test_a_split_net_starts_equal_and_merges_back_without_the_auxiliary_layers(batch: tuple[Tensor, Tensor]) -> None:
    images, _ = batch
    plain, split = make_net().eval(), split_norms(make_net()).eval()
    with torch.no_grad():
        for pair in (module for module in split.modules() if isinstance(module, SplitNorm)):
            torch.nn.init.constant_(pair.auxiliary.bias, 3.0)
        assert torch.equal(split(images), plain(images))
        with auxiliary_norms(split):
            assert not torch.equal(split(images), plain(images))
        assert torch.equal(split(images), plain(images))
    merged = merge_norms(split.state_dict())
    assert merged.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, merged[key]) for key, tensor in plain.state_dict().items())


def test_merging_touches_only_keys_that_were_split() -> None:
    value = torch.zeros(1)
    state_dict = {"main.weight": value, "a.main.weight": value, "b.main.bias": value, "b.auxiliary.bias": value}
    assert set(merge_norms(state_dict)) == {"main.weight", "a.main.weight", "b.bias"}


def test_advprop_refuses_a_net_without_normalisation() -> None:
    with pytest.raises(ValueError, match="needs a network with normalisation layers"):
        split_norms(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_a_pyramid_perturbation_is_constant_on_squares_and_within_its_weight(trained: Trained) -> None:
    model, images, labels = trained
    grey = torch.full_like(images, 0.5)  # far from the box, so that nothing is cut
    threat = ThreatModel(norm="Linf", eps=0.01)
    for scales, multipliers, bound in (((8,), (10.0,), 0.1), ((16, 4, 1), (20.0, 10.0, 1.0), 0.31)):
        x = pyramid_attack(
            model, grey, labels, threat, num_steps=3, scales=scales, multipliers=multipliers, generator=seeded(0)
        )
        delta = x - grey
        assert delta.abs().max() <= bound + 1e-6
        assert delta.abs().max() > 0.5 * bound
        side = min(scales)
        blocks = delta.unfold(2, side, side).unfold(3, side, side).flatten(4)
        assert torch.equal(blocks.amax(-1), blocks.amin(-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (64,), "multipliers": (1.0,)}, "from 1 to the image's side, 16"),
        ({"scales": (8, 1), "multipliers": (1.0,)}, "one multiplier > 0 per scale"),
        ({"threat": ThreatModel(norm="L2", eps=1)}, "expected a Linf threat model"),
    ],
)
def test_bad_levels_of_a_pyramid_are_refused(trained: Trained, changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"threat": THREATS[0], "scales": (8, 1), "multipliers": (2.0, 1.0)}
    settings |= changes
    with pytest.raises(ValueError, match=message):
        pyramid_attack(
            trained.model, trained.images, trained.labels, settings.pop("threat"), num_steps=1,
            generator=seeded(0), **settings,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("num_steps", "norm", "expected"), [(3, "L1", 3), ({"Linf": 2, "L1": 20}, "L1", 20), ({"Linf": 2}, "Linf", 2)]
)
def test_steps_may_differ_by_norm(num_steps: int | dict[Norm, int], norm: Norm, expected: int) -> None:
    assert AttackSpec(kind="apgd", num_steps=num_steps).steps(norm) == expected


def test_the_objective_that_the_how_to_page_shows_trains(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "write-an-objective.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(OBJECTIVES))
    exec(compile(code, str(page), "exec"), vars(objectives) | {"OBJECTIVES": objectives.OBJECTIVES})
    shown = objectives.OBJECTIVES["smooth"]
    assert shown.options(amount=0.2).model_dump() == {"amount": 0.2}
    images, labels = batch
    net = make_net().train()
    step = make_step(net, images, labels, TAKEN[shown.num_threats])
    plain, smooth = (shown.function(step, amount=amount) for amount in (0.0, 0.2))
    smooth.backward()
    assert torch.isfinite(smooth)
    assert plain != smooth
