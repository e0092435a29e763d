"""Searches over coefficients alone on the bundled base sets: what they found when `golden/` was written.

`python -m tests.adapt.golden_searches` writes the files. They are to be written again only where a search is meant to
find something else.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from adapt.documents.soup import default_soup
from adapt.images.support import Support, load
from adapt.search.config import SearchConfig
from adapt.search.search import search
from training.bases import load_base_set

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
BASES = ("cifar10", "cifar10-small", "cifar10-small-ln")
CASES: dict[str, dict[str, Any]] = {
    "surrogate": {},
    "surrogate, 20 images": {"n": 20},
    "grid": {"strategy": "grid", "grid": "simplex", "step": 0.25},
    "raw": {"bn_mode": "raw", "balance": True, "n": 45},
}


def pictures(base: str) -> Support:
    """Return 60 labelled pictures: the drawings as they are, dark and noisy, and washed out."""
    manifest = load_base_set(ROOT / "bases" / base).manifest
    drawn = load(ROOT / "examples" / "images", manifest)
    pixels = drawn.images.astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 25, pixels.shape)
    kinds = [pixels, 0.4 * pixels + noise, 140 + 0.4 * pixels - noise / 2]
    images = np.concatenate([np.clip(kind, 0, 255).astype(np.uint8) for kind in kinds])
    hashes = tuple(f"{number:064x}" for number in range(len(images)))
    return Support(images, np.tile(drawn.labels, len(kinds)), hashes, manifest.class_names)


def run(base: str) -> dict[str, Any]:
    """Return the outcome of each case, without what depends on the machine."""
    loaded, support, found = load_base_set(ROOT / "bases" / base), pictures(base), {}
    for name, case in CASES.items():
        options = dict(case)
        some = support.subset(np.random.default_rng(1).permutation(len(support))[: options.pop("n", None)])
        config, current = SearchConfig(rungs=(), threads=1, **options), default_soup(loaded.manifest)
        outcome = search(loaded, some, config, current=current).outcome
        found[name] = outcome.model_dump(mode="json") | {"search": outcome.search.candidates}
    return found


if __name__ == "__main__":
    for base in BASES:
        (GOLDEN / f"{base}.json").write_text(json.dumps(run(base), indent=1) + "\n", encoding="utf-8")
