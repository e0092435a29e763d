"""Attacks of other libraries behind one signature, and one judge for all: what our attacks are held against.

Every attack takes a classifier in eval mode, images (N, C, H, W) in [0, 1], labels (N,), a threat model, the number of
steps and of restarts, and returns perturbed images. The libraries are imported when first used: only this comparison
needs them.
"""

import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.attack_losses import LossName
from training.attacks import apgd
from training.threat import Norm, ThreatModel, norm_of

Attack = Callable[[nn.Module, Tensor, Tensor, ThreatModel, int, int], Tensor]

ROUNDING = 1e-4  # by how much of eps a perturbation may be longer: the libraries' projections round


def ours(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    steps: int,
    restarts: int,
    *,
    loss: LossName,
) -> Tensor:
    """Our APGD, as `training evaluate` runs it."""
    generator = torch.Generator().manual_seed(0)
    return apgd(model, images, labels, threat, num_steps=steps, loss=loss, num_restarts=restarts, generator=generator)


def torchattacks_apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    steps: int,
    restarts: int,
    *,
    loss: Literal["ce", "dlr"],
) -> Tensor:
    """APGD of torchattacks, a port of the authors' code without L1."""
    import torchattacks

    with torch.random.fork_rng():  # it seeds the global generator
        attack = torchattacks.APGD(model, norm=threat.norm, eps=threat.eps, steps=steps, n_restarts=restarts, loss=loss)
        found: Tensor = attack(images, labels)
    return found


def art_apgd(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int, restarts: int
) -> Tensor:
    """APGD of ART on the cross-entropy, the only adaptive attack of the three libraries that takes L1."""
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        num_classes = model(images[:1]).shape[1]
    logging.getLogger("art").setLevel(logging.WARNING)
    estimator = PyTorchClassifier(
        copy.deepcopy(model),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = AutoProjectedGradientDescent(
        estimator,
        norm={"Linf": np.inf, "L2": 2, "L1": 1}[threat.norm],
        eps=threat.eps,
        eps_step=2 * threat.eps,
        max_iter=steps,
        nb_random_init=restarts,
        batch_size=len(images),
        loss_type="cross_entropy",
        verbose=False,
    )
    np.random.seed(0)  # noqa: NPY002 - where ART draws its starts from
    return torch.from_numpy(attack.generate(images.contiguous().numpy(), labels.numpy()))


def foolbox_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    steps: int,
    restarts: int,
    *,
    name: str,
    **settings: Any,
) -> Tensor:
    """Run an attack of foolbox, by the name of its class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports from scipy.ndimage.filters
        foolbox: Any = importlib.import_module("foolbox")

    attack = getattr(foolbox.attacks, name)(steps=steps, **settings)
    if restarts > 1:
        attack = attack.repeat(restarts)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, clipped, _ = attack(wrapped, images, labels, epsilons=threat.eps)
    found: Tensor = clipped
    return found


# By norm, then by name: the loss of our attack that it is held against, and the attack.
REFERENCES: dict[Norm, dict[str, tuple[LossName, Attack]]] = {
    "Linf": {
        "torchattacks APGD-CE": ("ce", partial(torchattacks_apgd, loss="ce")),
        "torchattacks APGD-DLR": ("dlr", partial(torchattacks_apgd, loss="dlr")),
    },
    "L2": {
        "torchattacks APGD-CE": ("ce", partial(torchattacks_apgd, loss="ce")),
        "torchattacks APGD-DLR": ("dlr", partial(torchattacks_apgd, loss="dlr")),
    },
    "L1": {
        "ART APGD-CE": ("ce", art_apgd),
        "foolbox SLIDE": ("ce", partial(foolbox_attack, name="SparseL1DescentAttack", random_start=True)),
        "foolbox L1 PGD": ("ce", partial(foolbox_attack, name="L1ProjectedGradientDescentAttack")),
        "foolbox L1 Adam PGD": ("ce", partial(foolbox_attack, name="L1AdamProjectedGradientDescentAttack")),
        "foolbox L1 FMN": ("ce", partial(foolbox_attack, name="L1FMNAttack")),
        # Nine searches of that many steps each.
        "foolbox EAD": ("ce", partial(foolbox_attack, name="EADAttack", decision_rule="L1")),
    },
}


def survivors(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    restarts: int = 1,
    batch_size: int = 250,
) -> Tensor:
    """Return which images a model in eval mode still gets right after an attack, bool (N,).

    Only what it gets right unperturbed is attacked. A perturbation counts if it lies in ball and box; one that does not
    leaves its image standing.
    """
    with quiet(), torch.no_grad():
        standing = torch.cat([model(x).argmax(1) for x in torch.split(images, batch_size)]) == labels
    for rows in torch.split(torch.nonzero(standing)[:, 0], batch_size):
        with quiet():
            x_adv = attack(model, images[rows], labels[rows], threat, steps, restarts).detach().float()
        delta = x_adv.double() - images[rows].double()
        is_inside = norm_of(delta, threat.norm) <= threat.eps * (1 + ROUNDING)
        is_inside &= (x_adv.amin((1, 2, 3)) >= 0) & (x_adv.amax((1, 2, 3)) <= 1)
        with torch.no_grad():
            standing[rows] = (model(x_adv).argmax(1) == labels[rows]) | ~is_inside
    return standing


@contextmanager
def quiet() -> Iterator[None]:
    """Leave the warnings of other libraries unsaid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
