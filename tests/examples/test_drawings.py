from pathlib import Path

import numpy as np
from PIL import Image

from examples.drawings import DRAWINGS, PER_CLASS, draw, main
from training.named_sets import CIFAR10_CLASSES

ROOT = Path(__file__).parents[2]


def test_committed_drawings_are_those_of_the_script(tmp_path: Path) -> None:
    main(tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert len(files) == PER_CLASS * len(DRAWINGS)
    for file in files:
        with Image.open(tmp_path / file) as ours, Image.open(ROOT / "examples" / "images" / file) as theirs:
            assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 2


def test_drawings_are_of_classes_the_bundled_base_set_knows() -> None:
    assert set(DRAWINGS) <= set(CIFAR10_CLASSES)
    assert draw("ship", np.random.default_rng(0)).size == (32, 32)
