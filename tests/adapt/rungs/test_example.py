"""The rung that the how-to page shows is one: a search takes it where it helps, and unseen images gain."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapt.documents.soup import default_soup
from adapt.networks.forward import served_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.rungs.model import Answers, Model, Rung, total
from adapt.rungs.pool import Library
from adapt.rungs.registry import LADDER
from adapt.rungs.task import Part
from adapt.search.config import SearchConfig
from adapt.search.search import search
from tests.adapt.pictures import uneven

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "write-a-rung.md"
OFTEN = (0.8, 0.15, 0.05)


def shown() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {
        **{"np": np, "torch": torch, "replace": replace, "Sequence": Sequence, "Floats": np.ndarray},
        **{"Library": Library, "Model": Model, "Part": Part, "Answers": Answers, "Head": Head, "total": total},
    }
    exec(compile(code, str(PAGE), "exec"), names)
    return names["Frequencies"]


def test_a_search_takes_the_rung_of_the_page(tinted: PreparedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rung = shown()
    assert isinstance(rung.__new__(rung), Rung)
    monkeypatch.setitem(LADDER, "frequencies", rung)
    labelled, unseen = (uneven(n, tinted.manifest.class_names, OFTEN, seed=n, spread=110.0) for n in (100, 1000))
    accuracies = {}
    for rungs in (("statistics",), ("statistics", "frequencies")):
        config = SearchConfig(rungs=rungs, draw="fair")
        found = search(tinted, labelled, config, current=default_soup(tinted.manifest))
        said = served_logits(tinted, found.soup, unseen.images).argmax(dim=1).numpy()
        accuracies[rungs[-1]] = float((said == unseen.labels).mean())
    assert found.choice.rungs[-1] == "frequencies"
    assert accuracies["frequencies"] > accuracies["statistics"] + 0.03
