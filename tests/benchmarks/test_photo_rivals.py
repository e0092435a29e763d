"""The rivals that photographs brought: each does what its paper says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from adapt.networks.forward import soup_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.rungs import certainty
from benchmarks.shifts.context import Context, Unseen
from benchmarks.shifts.finetuning import estimate_statistics, inputs_of, logits_of, network
from benchmarks.shifts.nominal import features_of, nominal_features, nominal_head, nominal_of
from benchmarks.shifts.options import Eata, Roid, Sar
from benchmarks.shifts.rivals import eata, roid, sar
from benchmarks.shifts.rivals.lp_ft import probed
from benchmarks.shifts.rivals.online import most_entropy, stream
from benchmarks.shifts.rivals.probe import NEVER, fit_probe
from benchmarks.shifts.rivals.registry import RIVALS, TRAINED, WITHOUT_LABELS
from benchmarks.shifts.rivals.t3a import Prototypes
from benchmarks.shifts.sets import as_support
from benchmarks.shifts.table import soups_of, tabulate
from training.bases import load_base_set
from training.data import from_arrays


@pytest.fixture(scope="module")
def prepared(tiny_base_set: Path) -> PreparedBase:
    return PreparedBase(load_base_set(tiny_base_set))


@pytest.fixture(scope="module")
def given(prepared: PreparedBase) -> tuple[Context, Unseen]:
    generator = np.random.default_rng(5)
    labels = np.arange(60) % 3
    images = generator.integers(0, 120, (60, 16, 16, 3), dtype=np.uint8)
    images[np.arange(60), :, :, labels] += 100
    data = from_arrays(images, labels, list(prepared.manifest.class_names))
    table = tabulate(prepared, soups_of(prepared.manifest), data)
    part = np.arange(30)
    context = Context(prepared, as_support(data.subset(part)), "sketch", 0, table.at(part), source=images[:20])
    return context, Unseen(data.images[30:], table.logits[:, 30:])


class Answers(nn.Module):
    """A network without pictures: logits are inputs times a scale and a shift for each class."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(num_classes)), nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def learnable(self) -> list[nn.Parameter]:
        return [self.scale, self.shift]


def snapshot(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def is_unchanged(net: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(net.parameters(), before, strict=True))


def entropy(logits: Tensor) -> float:
    logs = logits.log_softmax(dim=1)
    return float(-(logs.exp() * logs).sum(dim=1).detach().mean())


SURE = torch.eye(3)[torch.tensor([0, 1, 2, 0])] * 3.0  # entropy 0.36, below 0.4 log 3 = 0.44
UNSURE = torch.tensor([[0.2, 0.0, 0.1], [0.0, 0.1, 0.2], [0.1, 0.0, 0.0]])


def test_all_start_from_nominal_and_forget(prepared: PreparedBase, given: tuple[Context, Unseen]) -> None:
    context, unseen = given
    assert prepared.manifest.ingredient_names[nominal_of(prepared.manifest)] == "nominal"
    own = soup_logits(prepared, np.eye(4)[[1]], unseen.images)[0]
    features = nominal_features(prepared, unseen.images)
    torch.testing.assert_close(nominal_head(prepared)(features).float(), own, rtol=1e-3, atol=1e-3)
    for name in (*WITHOUT_LABELS, "probe", "lp_ft", "finetune_nominal"):
        answer = RIVALS[name](context)
        first, second = answer.predict(unseen), answer.predict(unseen)
        assert torch.equal(first, second), name
        assert first.shape == (30, 3)
        assert first.isfinite().all()
        assert not first.requires_grad


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_without_labels_their_number_does_not_matter(name: str, given: tuple[Context, Unseen]) -> None:
    context, unseen = given
    few = replace(context, support=as_support(_first(context, 6)))
    assert torch.equal(RIVALS[name](few).predict(unseen), RIVALS[name](context).predict(unseen))
    assert name == "t3a" or name in TRAINED


def _first(context: Context, n: int):  # type: ignore[no-untyped-def]
    support = context.support
    return from_arrays(support.images[:n], support.labels[:n], support.class_names)


def test_kept_features_answer_like_new_ones(prepared: PreparedBase, given: tuple[Context, Unseen]) -> None:
    context, unseen = given
    table = replace(context.table, features=nominal_features(prepared, context.support.images))
    kept = unseen._replace(features=nominal_features(prepared, unseen.images))
    for name in ("probe", "t3a"):
        again = RIVALS[name](replace(context, table=table)).predict(kept)
        torch.testing.assert_close(again, RIVALS[name](context).predict(unseen))


# The probe.


def test_the_probe_reaches_the_optimum_of_logistic_regression() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    centres = np.asarray([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    x = centres[labels] + generator.normal(0, 0.3, (90, 4))  # separable
    head = fit_probe(torch.from_numpy(x).float(), labels, 3, penalty=0.01)
    assert (head(torch.from_numpy(x)).argmax(dim=1).numpy() == labels).all()
    scaled = (x - x.mean(axis=0)) / np.sqrt(np.square(x - x.mean(axis=0)).mean())
    known = LogisticRegression(C=1 / (0.01 * 90), tol=1e-10, max_iter=10_000).fit(scaled, labels)
    expected = torch.from_numpy(known.predict_log_proba(scaled))
    torch.testing.assert_close(head(torch.from_numpy(x)).log_softmax(dim=1), expected, rtol=1e-3, atol=1e-3)


def test_a_stronger_penalty_gives_a_smaller_probe_and_no_label_no_answer() -> None:
    x, labels = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), np.arange(40) % 2 * 2
    weak, strong = (fit_probe(x, labels, 4, penalty=penalty) for penalty in (1e-3, 1.0))
    assert strong.weight.norm() < weak.weight.norm()
    assert set(weak(x).argmax(dim=1).tolist()) <= {0, 2}
    assert weak.bias[1] == weak.bias[3] == NEVER


def test_lp_ft_starts_from_the_probe_under_the_statistics_of_the_pictures(
    prepared: PreparedBase, given: tuple[Context, Unseen]
) -> None:
    context, _ = given
    net, forwards = probed(context, penalty=0.01)
    x = inputs_of(prepared, context.support.images)
    plain = network(prepared, 1)
    estimate_statistics(plain, x)
    assert prepared.head_key is not None
    features = features_of(plain, prepared.head_key, x)
    head = fit_probe(features, context.support.labels, 3, penalty=0.01)
    torch.testing.assert_close(logits_of(net, x), head(features).float(), rtol=1e-3, atol=1e-3)
    assert forwards == 2 * len(x)


def test_statistics_of_many_batches_are_near_those_of_one(
    prepared: PreparedBase, given: tuple[Context, Unseen], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs_of(prepared, given[0].support.images)
    one, many = network(prepared, 1), network(prepared, 1)
    estimate_statistics(one, x)
    monkeypatch.setattr("benchmarks.shifts.finetuning.STATISTICS_PIXELS", 10 * 16 * 16)
    estimate_statistics(many, x)
    first = next(name for name, _ in one.named_buffers() if name.endswith("running_mean"))
    torch.testing.assert_close(many.get_buffer(first), one.get_buffer(first), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(many, x), logits_of(one, x), rtol=0.2, atol=0.2)


# The stream.


def test_a_stream_shows_every_picture_once_and_answers_in_order() -> None:
    x, seen = torch.arange(130.0).view(130, 1, 1, 1).expand(130, 3, 65, 65), []

    def learn(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch[:, :2, 0, 0]

    logits = stream(x, learn, torch.Generator().manual_seed(0))
    assert logits[:, 0].tolist() == list(range(130))
    assert sum(seen) == 130
    assert max(seen) <= 64


# EATA.


def eata_learner(net: Answers, fisher: list[Tensor] | None = None, **changes: float) -> eata.Learner:
    how = Eata.model_validate({"lr": 0.1, "similarity": 1.0, "anchor": 1.0, **changes})
    return eata.Learner(net, net.learnable(), how, fisher)


def test_eata_learns_from_sure_answers_only() -> None:
    net = Answers()
    learner, before = eata_learner(net), snapshot(net)
    assert torch.equal(learner(UNSURE), UNSURE)
    assert is_unchanged(net, before)
    first = entropy(learner(SURE))
    assert not is_unchanged(net, before)
    assert entropy(net(SURE)) < first


def test_eata_leaves_out_what_is_like_the_mean_answer() -> None:
    net = Answers()
    learner = eata_learner(net, similarity=0.9)
    same = SURE[:1].expand(4, 3)
    learner(same)  # the first batch has no mean before it
    before = snapshot(net)
    learner(same)
    assert is_unchanged(net, before)
    learner(SURE[1:3])
    assert not is_unchanged(net, before)


def test_eata_weighs_an_answer_by_how_sure_it_is() -> None:
    net = Answers()
    eata_learner(net, lr=1.0)(SURE[:1])
    x = SURE[:1].clone()
    scale = torch.ones(3, requires_grad=True)
    logs = (x * scale).log_softmax(dim=1)
    found = -(logs.exp() * logs).sum()
    (gradient,) = torch.autograd.grad(found, scale)
    weight = float(np.exp(most_entropy(x) - found.item()))
    torch.testing.assert_close(net.scale.detach(), 1 - weight * gradient)


def test_importance_holds_parameters_where_they_are() -> None:
    moves = []
    for anchor in (0.0, 50.0):
        net = Answers()
        fisher = [torch.ones(3), torch.ones(3)]
        learner = eata_learner(net, fisher, lr=0.01, anchor=anchor)
        for _ in range(50):
            learner(SURE)
        moves.append(float((net.scale.detach() - 1).norm()))
    assert moves[1] < moves[0]


def test_importance_is_the_mean_squared_gradient_of_the_networks_own_answers() -> None:
    net = Answers()
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eata, "batch_size", lambda x: 1)
        found = eata.importance(net, net.learnable(), x)
    error = x.softmax(dim=1) - torch.eye(3)[[0, 1]]
    torch.testing.assert_close(found[1], (error**2).mean(dim=0))
    torch.testing.assert_close(found[0], ((error * x) ** 2).mean(dim=0))


# SAR.


def test_sar_learns_from_sure_answers_only() -> None:
    net = Answers()
    learner, before = sar.Learner(net, net.learnable(), Sar(lr=0.1)), snapshot(net)
    learner(UNSURE)
    assert is_unchanged(net, before)
    first = entropy(learner(SURE))
    assert not is_unchanged(net, before)
    assert entropy(net(SURE)) < first


def test_sar_steps_down_the_gradient_of_the_worst_point_near() -> None:
    net = Answers()
    sar.Learner(net, net.learnable(), Sar(lr=1.0))(SURE)

    def gradients(scale: Tensor, shift: Tensor) -> list[Tensor]:
        logs = (SURE * scale + shift).log_softmax(dim=1)
        return list(torch.autograd.grad(-(logs.exp() * logs).sum(dim=1).mean(), (scale, shift)))

    start = [torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
    uphill = gradients(*start)
    length = torch.cat(uphill).norm()
    worst = [(p + sar.REACH * g / length).detach().requires_grad_() for p, g in zip(start, uphill, strict=True)]
    for parameter, before, gradient in zip(net.parameters(), start, gradients(*worst), strict=True):
        torch.testing.assert_close(parameter.detach(), (before - gradient).detach(), rtol=1e-4, atol=1e-6)


def test_sar_starts_again_when_its_answers_collapse() -> None:
    net = Answers()
    before = snapshot(net)
    learner = sar.Learner(net, net.learnable(), Sar(lr=0.1))
    learner(SURE * 10)  # entropies near 0
    assert is_unchanged(net, before)


def test_sar_leaves_the_last_layers_alone(prepared: PreparedBase, given: tuple[Context, Unseen]) -> None:
    seen: list[int] = []

    class Counting(sar.Learner):
        def __init__(self, net: nn.Module, parameters: list[nn.Parameter], how: Sar) -> None:
            seen.append(len(parameters))
            super().__init__(net, parameters, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sar, "Learner", Counting)
        sar.sar(given[0]).predict(given[1])
    affines = sum("weight" in name for name, _ in network(prepared, 1).named_parameters())
    assert 0 < seen[0] < 2 * affines


# ROID.


def test_sure_answers_have_no_likelihood_ratio_to_gain() -> None:
    for size, is_flat in ((20.0, True), (2.0, False)):
        logits = (torch.eye(3) * size).requires_grad_()
        certainty.soft_likelihood_ratio(logits).sum().backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert (float(logits.grad.abs().max()) < 1e-3) == is_flat


def test_roid_answers_are_corrected_by_class_frequencies() -> None:
    even = torch.eye(3) * 2
    torch.testing.assert_close(roid.corrected(even), even.log_softmax(dim=1) - np.log(3))
    mostly = torch.tensor([[4.0, 0, 0]] * 9 + [[0.5, 0.6, 0]])
    assert mostly.argmax(dim=1)[-1] == 1
    assert roid.corrected(mostly).argmax(dim=1)[-1] == 0


def test_roid_leaves_out_what_is_like_the_mean_answer_and_pulls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roid, "augmented", lambda x, generator: x)
    net = Answers()
    learner = roid.Learner(net, net.learnable(), Roid(lr=0.05), seed=0)
    weights = certainty.weigh(torch.cat([UNSURE, SURE[:2]]), None).weights
    assert (weights[:3] == 0).all()
    assert (weights[3:] > 1).all()
    with torch.no_grad():
        net.shift.fill_(1.0)
    learner._pull_back()
    torch.testing.assert_close(net.shift.detach(), torch.full((3,), 0.99))
    before = snapshot(net)
    learner(torch.cat([UNSURE, SURE[:2]]))
    assert not is_unchanged(net, before)


def test_two_equal_views_cross_at_their_entropy() -> None:
    torch.testing.assert_close(certainty.symmetric_cross_entropy(SURE, SURE).mean(), torch.tensor(entropy(SURE)))


# T3A.


def make_prototypes(most: int | None) -> Prototypes:
    return Prototypes(Head(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2)), most)


def test_prototypes_by_hand() -> None:
    prototypes = make_prototypes(None)
    x = torch.tensor([[3.0, 4.0], [5.0, 0.0]])  # answers (3, 8) and (5, 0): class 1 and class 0
    logits = prototypes.answer(x)
    zero = np.asarray([1.0, 0.0])  # the row (1, 0) and the picture (1, 0)
    one = np.asarray([0.6, 0.8]) + np.asarray([0.0, 1.0])
    expected = np.stack([x.numpy() @ zero, x.numpy() @ (one / np.linalg.norm(one))], axis=1)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-6)


def test_of_each_class_only_the_surest_are_kept() -> None:
    prototypes = make_prototypes(1)
    prototypes.answer(torch.tensor([[0.0, 9.0], [0.5, 0.6]]))  # both class 1; the first is surer than the row itself
    assert sorted(prototypes._features.tolist()) == [[0.0, 9.0], [1.0, 0.0]]


@pytest.mark.parametrize("make", [eata_learner, lambda net: sar.Learner(net, net.learnable(), Sar(lr=0.1))])
def test_answers_are_given_before_anything_is_learned(make: Callable[[Answers], Callable[[Tensor], Tensor]]) -> None:
    net = Answers()
    assert torch.equal(make(net)(SURE), SURE)
