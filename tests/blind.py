"""Networks that do not see blue, and pictures in which only blue tells two classes apart: a shift that training mends.

No statistics and no last layer can use what the first filters leave out.
"""

from pathlib import Path

import numpy as np

from training.bases import load_base_set, save_base_set

SHARE = 0.02  # of the size of the first filters: they are small, so that a few steps of training move them far


def make_blind(source: Path, folder: Path) -> Path:
    """Write the base set `source` of the tiny BatchNorm nets with first filters that are small and leave out blue."""
    base = load_base_set(source)
    state_dicts = {}
    for name, state_dict in base.state_dicts.items():
        filters = state_dict["stem.0.weight"] * SHARE
        filters[:, 2] = 0
        state_dicts[name] = {
            **state_dict,
            "stem.0.weight": filters,
            "stem.1.running_mean": state_dict["stem.1.running_mean"] * SHARE,
            "stem.1.running_var": state_dict["stem.1.running_var"] * SHARE**2,
        }
    save_base_set(folder, base.manifest, {name: dict(found) for name, found in state_dicts.items()})
    return folder


def blue_pictures(n: int, *, seed: int = 0, is_visible: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 (n, 16, 16, 3) of three classes, and labels (n,).

    Args:
        n: pictures.
        seed: of the noise.
        is_visible: green takes the place of blue, and no tint varies from picture to picture: then there is nothing to
            train for.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    shifts = np.asarray([(60, 0, 0), (0, 0, -60), (0, 0, 60)])[labels]
    pixels = 128 + generator.normal(0, 30, (n, 16, 16, 3))
    if is_visible:
        shifts = shifts[:, [0, 2, 1]]
    else:
        pixels += generator.normal(0, 40, (n, 1, 1, 3)) * np.asarray([1, 1, 0])
    return (pixels + shifts[:, None, None, :]).clip(0, 255).round().astype(np.uint8), labels
