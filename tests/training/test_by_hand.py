"""What the objectives and the loop around them compute, held against numbers worked out by hand."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import LAYERNORM_NET
from tests.training.test_objectives import make_net, make_step
from tests.training.test_train import PHASES, tiny_recipe
from training.ascent import Rules, _adapt_sparsity, _begin, _check_progress, _State
from training.attacks import apgd
from training.augmentation import Augmentation, Part, seeded
from training.compute import Compute
from training.fit import Fit, Place
from training.manifest import ThreatModel
from training.models import create_classifier
from training.objectives import OBJECTIVES, AttackSpec, Step
from training.split_norm import SplitNorm, split_norms
from training.splits import load_splits
from training.threat import STEEPEST

LINF, L1 = ThreatModel(norm="Linf", eps=0.1), ThreatModel(norm="L1", eps=10)
LABELS = torch.arange(4)
IMAGES = torch.zeros(4, 3, 2, 2)


class Fixed(Step):
    """An attack that adds 1 to every pixel; notes what it was asked for."""

    asked: ClassVar[list[dict[str, Any]]] = []
    weights: ClassVar[list[list[float]]] = []
    choice: ClassVar[int] = 0

    def attacked(self, number: int = 0, *, aim: Tensor | None = None) -> Tensor:
        pairs = [module for module in self.model.modules() if isinstance(module, SplitNorm)]
        self.asked.append({"number": number, "aim": aim, "auxiliary": [pair.uses_auxiliary for pair in pairs]})
        return self.images + 1

    def choose(self, weights: Sequence[float]) -> int:
        self.weights.append(list(weights))
        return self.choice


@pytest.fixture(autouse=True)
def forget() -> None:
    Fixed.asked.clear()
    Fixed.weights.clear()
    Fixed.choice = 0


def two_answers(clean: Sequence[float], attacked: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A model with these probabilities for black images, and those for attacked ones."""

    def forward(x: Tensor) -> Tensor:
        row = torch.tensor(clean if float(x.max()) < 0.5 else attacked).log()
        return row.expand(len(x), -1).clone().requires_grad_()

    return forward


def fixed(forward: Callable[[Tensor], Tensor], threats: list[ThreatModel], **changes: Any) -> Fixed:
    return Fixed(**vars(make_step(nn.Identity(), IMAGES, LABELS * 0, threats, forward=forward, **changes)))


def value(name: str, step: Step, **options: Any) -> float:
    return float(OBJECTIVES[name].function(step, **options).detach())


def test_trades_is_clean_loss_and_the_divergence_from_clean_to_attacked() -> None:
    forward = two_answers([0.5, 0.5], [0.9, 0.1])
    divergence = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)  # 0.51; the other way round 0.37
    found = value("trades", fixed(forward, [LINF]), beta=3.0)
    assert found == pytest.approx(math.log(2) + 3 * divergence, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "threats", "expected"),
    [
        ("nominal", [], lambda clean, attacked: clean),
        ("adversarial", [LINF], lambda clean, attacked: attacked),
        ("sat", [LINF, L1], lambda clean, attacked: attacked),
        ("avg", [LINF, L1], lambda clean, attacked: attacked),
        ("eat", [LINF, L1], lambda clean, attacked: attacked),
        ("trades", [LINF], lambda clean, attacked: clean),  # with beta 0
    ],
)
def test_labels_are_smoothed(name: str, threats: list[ThreatModel], expected: Callable[[float, float], float]) -> None:
    # A share of 0.2 goes evenly to both classes: 0.9 of the loss of the label, 0.1 of that of the other class.
    clean = -0.9 * math.log(0.7) - 0.1 * math.log(0.3)
    attacked = -0.9 * math.log(0.4) - 0.1 * math.log(0.6)
    step = fixed(two_answers([0.7, 0.3], [0.4, 0.6]), threats, label_smoothing=0.2)
    options = {"beta": 0.0} if name == "trades" else {}
    assert value(name, step, **options) == pytest.approx(expected(clean, attacked), rel=1e-5)


def test_eat_draws_by_the_running_errors() -> None:
    memory = {"robust error 0": 0.9, "robust error 1": 0.1}
    value("eat", fixed(two_answers([1.0, 0.0], [0.6, 0.4]), [LINF, L1], memory=memory))
    assert Fixed.weights == [pytest.approx([0.9, 0.1], abs=1e-5)]
    value("eat", fixed(two_answers([1.0, 0.0], [0.6, 0.4]), [LINF, L1], memory={"robust error 1": 0.1}))
    assert Fixed.weights[1] == [1.0, 1.0]  # until both were seen


@pytest.mark.parametrize(("probabilities", "error"), [([0.6, 0.4], 0.0), ([0.4, 0.6], 1.0)])
def test_eat_remembers_errors_with_its_decay(probabilities: list[float], error: float) -> None:
    memory = {"robust error 0": 0.5, "robust error 1": 0.25}
    Fixed.choice = 1
    value("eat", fixed(two_answers([1.0, 0.0], probabilities), [LINF, L1], memory=memory), decay=0.8)
    assert memory == {"robust error 0": 0.5, "robust error 1": pytest.approx(0.8 * 0.25 + 0.2 * error)}
    assert [call["number"] for call in Fixed.asked] == [1]


def test_eat_tells_two_radii_of_one_norm_apart() -> None:
    memory: dict[str, float] = {}
    threats = [ThreatModel(norm="Linf", eps=0.1), ThreatModel(norm="Linf", eps=0.01)]
    for choice, probabilities in ((0, [0.4, 0.6]), (1, [0.6, 0.4])):
        Fixed.choice = choice
        value("eat", fixed(two_answers([1.0, 0.0], probabilities), threats, memory=memory))
    value("eat", fixed(two_answers([1.0, 0.0], [0.6, 0.4]), threats, memory=memory))
    assert Fixed.weights[-1] == pytest.approx([1.0, 0.0], abs=1e-5)


def test_advprop_aims_at_other_classes_through_the_auxiliary_norms() -> None:
    net = split_norms(make_net()).train()
    pairs = [module for module in net.modules() if isinstance(module, SplitNorm)]
    used: list[list[bool]] = []

    def forward(x: Tensor) -> Tensor:
        used.append([pair.uses_auxiliary for pair in pairs])
        return net(x)

    images, labels = torch.rand(64, 3, 16, 16, generator=seeded(3)), torch.arange(64) % 10
    value("advprop", Fixed(**vars(make_step(net, images, labels, [LINF], forward=forward))))
    (call,) = Fixed.asked
    assert call["auxiliary"] == [True] * len(pairs)
    assert used == [[False] * len(pairs), [True] * len(pairs)]
    aim = call["aim"]
    assert aim is not None
    assert (aim != labels).all()
    assert sorted(set(aim.tolist())) == list(range(10))


def test_an_aimed_attack_makes_its_class_likelier() -> None:
    net = make_net().eval()
    images, labels = torch.rand(16, 3, 16, 16, generator=seeded(3)), torch.arange(16) % 10
    aim = (labels + 3) % 10
    step = make_step(net, images, labels, [LINF])
    with torch.no_grad():
        before, after = (net(x).softmax(1)[torch.arange(16), aim] for x in (images, step.attacked(aim=aim)))
    assert (after > before).all()


def test_kl_attacks_start_from_noise_and_pull_away_from_the_clean_prediction() -> None:
    net = make_net().eval()
    images, labels = torch.rand(8, 3, 16, 16, generator=seeded(3)), torch.arange(8)
    step = make_step(net, images, labels, [LINF], attack=AttackSpec(kind="apgd", num_steps=3, loss="kl"))
    expected = apgd(net, images, labels, LINF, num_steps=3, loss="kl", mode="train", generator=seeded(1))
    assert torch.equal(step.attacked(), expected)


# The loop around them.


def make_fit(folder: Path, *, architecture: Any = None, seed: int = 0, **changes: Any) -> Fit:
    settings = {"ingredients": [PHASES[0] | {"epochs": 10 / 31} | changes]}
    recipe = tiny_recipe(**settings, **({"architecture": architecture} if architecture else {}))
    splits = load_splits(recipe.data, recipe.input)
    torch.manual_seed(0)
    classifier = create_classifier(recipe.architecture, recipe.input, 10)
    compute = Compute(device="cpu")
    place = Place(compute.accelerator(), compute, folder)
    return Fit(recipe.ingredients[0], classifier, splits, Augmentation(), seed=seed, place=place)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(32, 3, 16, 16, generator=seeded(3)), torch.arange(32) % 10


def test_eps_rises_evenly_over_its_share_of_the_steps(tmp_path: Path) -> None:
    fit = make_fit(tmp_path, eps_ramp_fraction=0.5)
    assert fit.num_steps == 10
    seen: list[float] = []
    function = fit.objective.function

    def note(step: Step) -> Tensor:
        seen.append(step.threat_models[0].eps)
        return function(step)

    fit.objective = fit.objective._replace(function=note)
    for step in range(10):
        fit.progress.step = step
        fit.update(*batch())
    assert seen == pytest.approx([16 / 255 * share for share in (0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1)])


def test_the_loop_hands_over_what_the_recipe_says(tmp_path: Path) -> None:
    fit = make_fit(tmp_path, label_smoothing=0.3, attack={"kind": "apgd", "num_steps": 2}, lr=0.2, warmup_fraction=0)
    steps: list[Step] = []
    function = fit.objective.function
    fit.objective = fit.objective._replace(function=lambda step: steps.append(step) or function(step))  # type: ignore[func-returns-value]
    fit.progress.step = 5
    fit.update(*batch())
    (step,) = steps
    assert (step.label_smoothing, step.attack, step.memory) == (0.3, fit.spec.attack, fit.progress.memory)
    assert step.memory is fit.progress.memory
    assert all(group["lr"] == pytest.approx(0.1) for group in fit.optimizer.param_groups)  # half of the cosine


def test_every_step_moves_the_average(tmp_path: Path) -> None:
    fit = make_fit(tmp_path, ema_decay=0.15)
    key = "head.weight"
    expected = fit.classifier.net.state_dict()[key].double()
    for step, decay in enumerate((0.1, 0.15, 0.15)):
        fit.progress.step = step
        fit.update(*batch())
        weights = fit.classifier.net.state_dict()[key].double()
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(fit.average.state_dict()[key].double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(weights, expected, rtol=1e-3)


DROPS = {"name": LAYERNORM_NET.name, "kwargs": LAYERNORM_NET.kwargs | {"drop_path_rate": 0.5}}


def masks(folder: Path, monkeypatch: pytest.MonkeyPatch, *, rank: int = 0, step: int = 3, seed: int = 0) -> Tensor:
    """Return what the drop path of a net multiplies its images with, in one step of one process of two."""
    monkeypatch.setattr("training.fit.part_of", lambda accelerator: Part(rank, 2))
    fit = make_fit(folder, architecture=DROPS, seed=seed, attack={"kind": "apgd", "num_steps": 1})
    fit.progress.step = step
    torch.rand(rank + 7 * step)  # whatever else was drawn before
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            found.append((output.flatten(1).abs().sum(1) > 0).detach())

    for module in fit.classifier.modules():
        if type(module).__name__ == "DropPath":
            module.register_forward_hook(note)
    images, labels = batch()
    fit.update(images, labels)
    return torch.stack(found)


def test_dropped_paths_follow_from_seed_step_and_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = masks(tmp_path, monkeypatch)
    assert 0 < once.float().mean() < 1
    torch.rand(17)
    assert torch.equal(masks(tmp_path, monkeypatch), once)
    for other in ({"rank": 1}, {"step": 4}, {"seed": 1}):
        assert not torch.equal(masks(tmp_path, monkeypatch, **other), once), other


# Steps of attacks.


def state_of(rules: Rules, count: int, **changes: Tensor) -> _State:
    images = torch.full((count, 1, 2, 2), 0.5)
    labels = torch.zeros(count, dtype=torch.long)
    state = _begin(images, labels, labels, images, rules, torch.full((count,), 4))
    state.best_x, state.best_gradient, state.best_loss = images + 0.25, images + 2, torch.full((count,), 7.0)
    for name, tensor in changes.items():
        setattr(state, name, tensor)
    return state


def test_a_step_is_halved_where_less_than_three_quarters_of_the_steps_rose_or_nothing_was_gained() -> None:
    rules = Rules("ce", "Linf", 0.1, 100, 0.2, is_adaptive=True, stops=False)
    state = state_of(
        rules,
        5,
        #            rose too seldom | often enough | no gain since | no gain, but just halved | gain
        num_rising=torch.tensor([7, 8, 10, 10, 10]),
        was_reduced=torch.tensor([True, True, False, True, False]),
        checked_loss=torch.tensor([1.0, 1.0, 7.0, 7.0, 6.9]),
    )
    before = state.x
    _check_progress(state, rules, interval=10)
    halved = torch.tensor([True, False, True, False, False])
    assert torch.equal(state.step_size.flatten() == 0.1, halved)
    assert torch.equal(state.step_size.flatten() == 0.2, ~halved)
    assert torch.equal(state.was_reduced, halved)
    assert torch.equal(state.num_rising, torch.zeros(5, dtype=torch.long))
    assert torch.equal(state.checked_loss, torch.full((5,), 7.0))
    for found, best in ((state.x, state.best_x), (state.x_before, state.best_x), (state.gradient, state.best_gradient)):
        assert torch.equal(found[halved], best[halved])  # they go on from their best point ...
    assert torch.equal(state.x[~halved], before[~halved])  # ... and the others from where they are


def test_l1_steps_shrink_until_the_perturbation_gets_sparser() -> None:
    rules = Rules("ce", "L1", 12.0, 100, 12.0, is_adaptive=True, stops=False)
    images = torch.zeros(3, 1, 6, 10)
    best = images.clone()
    best[:, 0, :3] = 1.0  # 30 entries are changed: the next steps move 20
    labels = torch.zeros(3, dtype=torch.long)
    state = _begin(images, labels, labels, images, rules, torch.tensor([21, 22, 20]))
    state.best_x = best
    state.step_size = torch.tensor([6.0, 6.0, 1.3])[:, None, None, None]
    reset = _adapt_sparsity(state, rules)
    # 20 of 21 is not sparser by 5 %, 20 of 22 is; no step gets shorter than a tenth of the first.
    assert reset.tolist() == [False, True, False]
    assert state.step_size.flatten().tolist() == pytest.approx([4.0, 12.0, 1.2])
    assert state.num_entries.tolist() == [20, 20, 20]


def test_entries_without_gradient_take_no_part_in_an_l1_step() -> None:
    gradient = torch.zeros(3, 1, 2, 4)
    gradient[0, 0, 0, :2] = torch.tensor([3.0, -1.0])
    gradient[1, 0, 0] = torch.tensor([4.0, 3.0, -2.0, 1.0])
    step = STEEPEST["L1"](gradient, torch.tensor([6, 2, 5]))
    assert step[0, 0, 0].tolist() == [0.5, -0.5, 0, 0]  # two move, though six may
    assert step[1, 0, 0].tolist() == [0.5, 0.5, 0, 0]
    assert step[2].abs().sum() == 0
