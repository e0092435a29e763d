from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.attacks.__main__ import Attacks
from benchmarks.attacks.references import REFERENCES, ours, survivors
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.threat import ThreatModel

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for index in range(8):
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def test_the_benchmark_times_and_compares(tiny_base_set: Path, folder: Path) -> None:
    threads = torch.get_num_threads()
    try:
        benchmark = Attacks(base=tiny_base_set, data=folder, n=24, n_timed=24, steps=3, repeats=2)
        result = benchmark.execute()
    finally:
        torch.set_num_threads(threads)
    speed, rows = result.data["speed"], result.data["accuracies"]
    assert len(speed["ratio_per_round"]) == 2
    assert min(speed["images_per_second"].values()) > 0
    assert {(row["norm"], row["reference"]) for row in rows} == {
        (norm, name) for norm, attacks in REFERENCES.items() for name in attacks
    }
    for row in rows:
        assert row["ours_interval"][0] <= row["ours"] <= row["ours_interval"][1]
    assert result.exit_code in (0, 1)
    assert f"{rows[0]['reference']:24}" in result.text


def test_a_perturbation_outside_the_ball_breaks_nothing(tiny_base_set: Path) -> None:
    model = load_base_set(tiny_base_set).model()
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    threat = ThreatModel(norm="L2", eps=0.5)

    def cheat(*args: object) -> torch.Tensor:
        return ours(model, images, labels, ThreatModel(norm="L2", eps=10), 5, 1, loss="ce")

    assert not (model(cheat()).argmax(1) == labels).all()
    assert survivors(cheat, model, images, labels, threat, steps=5).all()
