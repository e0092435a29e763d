"""What cannot be trained or served is refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from tests.conftest import BATCHNORM_NET, INPUT
from training.cli import EXIT_BAD_INPUT
from training.compute import Compute
from training.estimate import estimate
from training.manifest import Architecture
from training.recipe import Recipe, load_recipe
from training.train import train
from training.trial import check_network

CPU = Compute(device="cpu")


class Odd(nn.Module):
    """Does one thing that a network should not."""

    def __init__(self, oddity: str, num_classes: int) -> None:
        super().__init__()
        self.oddity = oddity
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Linear(4, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Any:
        features = self.stem(x).mean(dim=(2, 3))
        logits = self.head(features)
        if self.oddity == "branches" and logits.sum() > 0:
            return -logits
        if self.oddity == "infinite" and self.training:
            return logits / 0
        return (logits, features) if self.oddity == "auxiliary" and self.training else logits


@register_model
def odd_net(pretrained: bool = False, num_classes: int = 3, oddity: str = "", **_: Any) -> nn.Module:
    return Odd(oddity, num_classes)


ODDITIES = {
    "auxiliary": r"cannot be trained: expected logits \(2, 10\) in training, got a tuple",
    "infinite": "cannot be trained: the first loss is not finite",
    "branches": "cannot be served: the network cannot be exported with a free batch size: ",
}


def odd_recipe(oddity: str) -> Recipe:
    architecture = Architecture(name="odd_net", kwargs={"oddity": oddity})
    return load_recipe(Path("digits")).model_copy(update={"architecture": architecture})


@pytest.mark.parametrize("oddity", ODDITIES)
def test_a_network_that_cannot_be_trained_or_served_is_refused_at_once(oddity: str, tmp_path: Path) -> None:
    recipe = odd_recipe(oddity)
    for attempt in (
        lambda: train(recipe, tmp_path / "out", compute=CPU),
        lambda: estimate(recipe, compute=CPU),
    ):
        with pytest.raises(
            ValueError, match=f"architecture 'odd_net' .* at 16x16 pixels: {ODDITIES[oddity]}"
        ) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_sound_networks_pass_and_random_numbers_stay() -> None:
    before = torch.random.get_rng_state()
    check_network(BATCHNORM_NET, INPUT, 3)
    check_network(Architecture(name="odd_net"), INPUT, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("options", [["--dry-run"], ["--out", "out"]])
def test_the_command_line_says_so_in_one_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import run
    from training.commands import COMMANDS

    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "training/recipes/digits.yaml").read_text(encoding="utf-8")
    start, end = text.index("architecture:"), text.index("input:")
    odd = text[:start] + "architecture: {name: efficientformer_l1}\n" + text[end:]
    Path("odd.yaml").write_text(odd, encoding="utf-8")
    assert run(COMMANDS, prog="training", description="", args=["run", "odd.yaml", *options]) == EXIT_BAD_INPUT
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "'efficientformer_l1' with {} at 16x16 pixels (timm's own size is 224x224): " in said[0]
    assert not Path("out").exists()
