"""`saucier adapt attack`: clean, robust and union accuracy of soups, by the attacks of `training evaluate`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from adapt.documents.soup import BnMode, Soup, check_soup, default_soup, make_soup, read_soup
from adapt.networks.folding import folded_state_dicts
from adapt.networks.mixing import mix
from training.bases import BaseSet
from training.evaluate import Evaluate
from training.manifest import Manifest


class Attack(Evaluate):
    """Attack soups of a base set: the default one, any coefficients, any soup.json; `--only` adds ingredients.

    Example: saucier adapt attack bases/cifar10-small --data .data/cifar10 --coefficients linf=-0.25,nominal=1.25
    """

    name: ClassVar[str] = "attack"
    coefficients: str | None = Field(
        default=None, description="NAME=NUMBER,... that sum to 1; an ingredient not named has 0"
    )
    bn_mode: BnMode = Field(default="folded", description="how BatchNorm is mixed, with --coefficients")
    soups: tuple[Path, ...] = Field(default=(), description="soup.json files")

    def _models(self, base: BaseSet) -> Iterator[tuple[str, nn.Module]]:
        """Yield the soups, then the ingredients of `--only`."""
        for name, soup in self._soups(base.manifest).items():
            yield name, classifier_of(base, soup)
        if self.only:
            yield from super()._models(base)

    def _identity(self, base: BaseSet, name: str) -> Any:
        soup = self._soups(base.manifest).get(name)
        if soup is None:
            return super()._identity(base, name)
        found = {"base": base.manifest.digest, "coefficients": soup.coefficients, "bn_mode": soup.bn_mode}
        return found if soup.patch is None else found | {"patch": soup.patch.digest}

    def _soups(self, manifest: Manifest) -> dict[str, Soup]:
        soups = {str(path): read_soup(path) for path in self.soups}
        for soup in soups.values():
            check_soup(soup, manifest)
        if self.coefficients is not None:
            numbers = parse_coefficients(self.coefficients, manifest.ingredient_names)
            soups[self.coefficients] = make_soup(manifest, numbers, bn_mode=self.bn_mode)
        return soups or {"default": default_soup(manifest)}


def parse_coefficients(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """Return a coefficient for each of `names` from NAME=NUMBER,NAME=NUMBER,...; 0 where not named.

    Raises:
        ValueError: another form, an unknown name, or one twice. Sum and range are not looked at.
    """
    numbers = dict.fromkeys(names, 0.0)
    seen = set()
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in numbers or name in seen:
            problem = "given twice" if name in seen else f"none of {list(names)}"
            raise ValueError(f"coefficients: expected NAME=NUMBER,..., got {part!r}, with an ingredient {problem}")
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", number):
            raise ValueError(f"coefficients: expected NAME=NUMBER,..., got {part!r}")
        numbers[name] = float(number)
        seen.add(name)
    return numbers


def classifier_of(base: BaseSet, soup: Soup) -> nn.Module:
    """Return a classifier in eval mode with the weights of a soup, its patch included, through which gradients flow."""
    state_dicts = folded_state_dicts(base) if soup.bn_mode == "folded" else base.state_dicts
    classifier = base.model()
    row = torch.tensor(soup.vector(base.manifest), dtype=torch.float64)
    patch = None if soup.patch is None else soup.patch.tensors()
    classifier.net.load_state_dict(mix(list(state_dicts.values()), row, patch=patch))
    return classifier
