"""The strong evaluation: what it tries, that it can be interrupted, what it writes."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.training.conftest import Trained
from training.cli import run
from training.evaluate import Evaluate, evaluate_classifier
from training.journal import Journal
from training.manifest import ThreatModel
from training.robustness import STRONG_LOSSES, Evaluation, _attempts

NUM = 32  # images
THREATS = (ThreatModel(norm="Linf", eps=0.1), ThreatModel(norm="L2", eps=1.5), ThreatModel(norm="L1", eps=6))


class Interrupted(Exception):
    """Somebody pulled the plug."""


class Counting(nn.Module):
    """Counts the images that pass, and pulls the plug when there were too many."""

    def __init__(self, model: nn.Module, most: float = float("inf")) -> None:
        super().__init__()
        self.model, self.most, self.count = model, most, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        if self.count > self.most:
            raise Interrupted
        return self.model(x)


def strong(model: nn.Module, trained: Trained, journal: Journal | None = None, *, num: int = NUM) -> Evaluation:
    return evaluate_classifier(
        model, trained.images[:num], trained.labels[:num], THREATS, num_steps=2, num_restarts=2, losses=STRONG_LOSSES,
        batch_size=16, seed=3, journal=journal,
    )  # fmt: skip


class Finished(NamedTuple):
    """An evaluation that nobody interrupted."""

    found: Evaluation
    count: int  # images that passed
    journal: Path  # read only


@pytest.fixture(scope="module")
def finished(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("finished") / "linf.jsonl"
    counting = Counting(trained.model)
    found = strong(counting, trained, Journal(path, {"seed": 3}))
    return Finished(found, counting.count, path)


def evaluate(*args: object) -> int:
    return run([Evaluate], prog="evaluate", description="", args=[str(arg) for arg in args])


def test_every_restart_tries_every_target() -> None:
    linf = _attempts(STRONG_LOSSES["Linf"], "Linf", 10, 5)
    assert linf == [("dlr-targeted", target) for target in range(9)] * 5
    l1 = _attempts(STRONG_LOSSES["L1"], "L1", 10, 2)
    assert l1 == [("ce", None), *(("dlr-targeted", target) for target in range(5))] * 2
    assert _attempts(STRONG_LOSSES["L2"], "L2", 3, 1) == [("dlr-targeted", 0), ("dlr-targeted", 1)]


def test_strong_is_no_weaker_than_quick(trained: Trained, finished: Finished) -> None:
    quick = evaluate_classifier(
        trained.model, trained.images[:NUM], trained.labels[:NUM], THREATS, num_steps=2, batch_size=16, seed=3
    ).accuracies()
    found = finished.found.accuracies()
    for name, hits in found.items():
        assert hits <= quick[name], name
    assert found["union"] < quick["union"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_an_interrupted_evaluation_ends_with_the_same_numbers(
    trained: Trained, finished: Finished, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "linf.jsonl"
    stopped = Counting(trained.model, share * finished.count)
    with pytest.raises(Interrupted):
        strong(stopped, trained, Journal(path, {"seed": 3}))
    resumed = Counting(trained.model)
    continued = strong(resumed, trained, Journal(path, {"seed": 3}))
    expected = finished.found
    assert continued.correct.keys() == expected.correct.keys()
    assert all(torch.equal(continued.correct[name], expected.correct[name]) for name in expected.correct)
    assert torch.equal(continued.predicted, expected.predicted)
    # And a finished one costs nothing at all.
    again = Counting(trained.model)
    strong(again, trained, Journal(path, {"seed": 3}))
    assert again.count == 0
    if share >= 0.5:
        assert resumed.count < (1 - share / 2) * finished.count


def test_only_images_still_standing_are_attacked(finished: Finished) -> None:
    found = finished.found
    lines = [json.loads(line) for line in finished.journal.read_text().splitlines()[1:]]
    for threat in THREATS:
        broken = [row for line in lines if line["key"].startswith(f"{threat.norm}/") for row in line["values"]]
        assert len(broken) == len(set(broken))
        lost = torch.nonzero(found.correct["clean"] & ~found.correct[threat.norm])[:, 0]
        assert sorted(broken) == lost.tolist()


def test_the_state_of_the_model_is_left_alone(trained: Trained) -> None:
    model = trained.model
    parts, parameters = list(model.modules()), list(model.parameters())
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        model.train()
        parts[-1].eval()
        parameters[0].grad = torch.ones_like(parameters[0])
        parameters[1].requires_grad_(False)
        modes = [part.training for part in parts]
        strong(model, trained, num=4)
        assert [part.training for part in parts] == modes
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
        assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
        assert all(parameter.grad is None for parameter in parameters[1:])
        assert [parameter.requires_grad for parameter in parameters] == [True, False] + [True] * (len(parameters) - 2)
    finally:
        parameters[0].grad = None
        parameters[1].requires_grad_(True)
        model.eval()


def test_the_mode_comes_back_after_an_interruption(trained: Trained) -> None:
    trained.model.train()
    try:
        with pytest.raises(Interrupted):
            strong(Counting(trained.model, 200), trained)
        assert all(part.training for part in trained.model.modules())
    finally:
        trained.model.eval()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_strong_evaluation_on_a_gpu_agrees(trained: Trained) -> None:
    def accuracies(device: str) -> dict[str, float]:
        found = evaluate_classifier(
            *trained, THREATS, num_steps=4, num_restarts=2, losses=STRONG_LOSSES, batch_size=32, seed=3, device=device
        )
        assert all(correct.device.type == "cpu" for correct in found.correct.values())
        return found.accuracies()

    try:
        found = accuracies("cuda")
    finally:
        trained.model.to("cpu")
    for name, share in accuracies("cpu").items():
        assert found[name] == pytest.approx(share, abs=0.05), name


def test_the_command_is_resumed_and_records_every_image(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [tiny_base_set, "--data", image_folder, "--n", 9, "--strong", "--steps", 2, "--restarts", 1, "--json"]
    found = []
    for record in ("record.jsonl", "record.csv"):
        assert evaluate(*common, "--state", tmp_path / "state", "--record", tmp_path / record) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["losses"] == {"Linf": "dlr-targeted", "L2": "dlr-targeted", "L1": "ce then dlr-targeted"}
    assert (found[0]["strong"], found[0]["restarts"], found[0]["steps"]) == (True, 1, 2)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        f"{name}.jsonl" for name in ("l1", "l2", "linf", "nominal")
    ]
    rows = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    with (tmp_path / "record.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == len(table) == 4 * 9
    assert list(rows[0]) == ["model", "index", "hash", "label", "predicted", "clean", "Linf", "L2", "L1", "union"]
    assert table == [
        {key: str(int(value)) if isinstance(value, bool) else str(value) for key, value in row.items()} for row in rows
    ]
    for name, accuracies in found[0]["ingredients"].items():
        mine = [row for row in rows if row["model"] == name]
        assert len({row["index"] for row in mine}) == len({row["hash"] for row in mine}) == 9
        for column in ("clean", "Linf", "L2", "L1", "union"):
            assert sum(row[column] for row in mine) / 9 == accuracies[column]
        assert all(row["clean"] == (row["label"] == row["predicted"]) for row in mine)


def test_a_state_of_other_settings_is_refused(
    tiny_base_set: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [tiny_base_set, "--data", image_folder, "--n", 3, "--only", "linf", "--state", tmp_path]
    assert evaluate(*common, "--steps", 1) == 0
    capsys.readouterr()
    assert evaluate(*common, "--steps", 2) == 2
    message = capsys.readouterr().err
    assert "steps 1 instead of 2" in message
    assert message.count("\n") == 1
