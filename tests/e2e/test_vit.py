"""A small vision transformer from training to an adapted soup, in torch and in ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from adapt.documents.soup import default_soup
from adapt.images.support import from_images
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import search
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from service.demo.digits import photograph_digits, train_digits
from training.bases import load_base_set
from training.images import to_input


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_vision_transformer_learns_digits_and_adapts_to_a_dull_day(tmp_path: Path) -> None:
    folder = train_digits(tmp_path / "digits-vit", recipe="digits-vit", seed=0)
    base = load_base_set(folder)
    accuracy = {one.name: one.metrics["clean"].value for one in base.manifest.ingredients}
    assert min(accuracy.values()) > 0.85

    pictures = photograph_digits("dull-day", seed=0)
    labelled, unseen = (
        from_images([pictures.files[i] for i in chosen], pictures.labels(chosen), base.manifest)
        for chosen in (pictures.support, pictures.test)
    )
    current = default_soup(base.manifest)
    config = SearchConfig(effort="full", rungs=("statistics", "head", "early"))
    found = search(PreparedBase(base), labelled, config, current=current)
    assert found.outcome.state == "promoted"
    assert "early" not in found.outcome.not_tried

    bundle = Bundle.open(build_bundle(folder, tmp_path / "bundles"))
    right = []
    for soup in (current, found.soup):
        patch = None if soup.patch is None else soup.patch.tensors()
        session = bundle.session(soup.coefficients, bn_mode=soup.bn_mode, patch=patch)
        right.append(float(np.mean(session.run(to_input(unseen.images)).argmax(axis=1) == unseen.labels)))
    before, after = right
    assert before < 0.6 < 0.85 < after
