import re
from typing import Any

import pytest

from adapt.evidence.cross_fit import Comparison
from adapt.evidence.decision import HARM_CHANCE, MIN_IMAGES, decide
from adapt.evidence.posterior import Posterior

WIN = Comparison(0.02, 0.3, (0.2, 0.36), 0.001, None, 0.05, 100, 0)
DRAW = Comparison(0.04, 0.05, (-0.06, 0.08), 0.4, 4321, 0.03, 100, 0)
SAFE = Posterior(mean=0.01, harm=0.02, chance_of_harm=HARM_CHANCE / 2)


@pytest.mark.parametrize(
    ("comparison", "options", "state", "reason"),
    [
        (WIN, {}, "promoted", r"better on held-out images: accuracy 0\.300 against 0\.020, p = 0\.001, below 0\.025"),
        (DRAW, {}, "kept", r"not shown to be better.*about 4,321 labelled images would show a gain of this size"),
        (WIN, {"threshold": 0.001}, "kept", r"not below 0\.001"),
        (WIN, {"promote": "never"}, "kept", "promote=never"),
        (DRAW, {"promote": "always"}, "promoted", "promote=always"),
        (None, {"promote": "always", "counts": [1]}, "promoted", "nothing could be held out"),
        (None, {}, "kept", "nothing could be held out"),
        (WIN, {"same": True}, "kept", "current soup is the best"),
        (WIN, {"counts": [100]}, "kept", "of one class"),
        (WIN, {"counts": [5, 4]}, "kept", f"too few images.*got 9, expected {MIN_IMAGES}"),
        (None, {"counts": [1]}, "kept", "too few images"),
        (WIN, {"counts": [5], "same": True}, "kept", "too few images.*got 5"),
        (WIN, {"counts": [95], "same": True}, "kept", "all 95 images are of one class"),
        (WIN, {"counts": [1, 95, 1, 1]}, "kept", "95 of 98 images are of one class: 3 of the others.*expected 5"),
        (WIN, {"counts": [95, 2, 3]}, "promoted", "better on held-out images"),
        (DRAW, {"posterior": SAFE}, "kept", "not shown to be better"),
        (DRAW, {"promote": "likely", "posterior": SAFE}, "promoted", r"not proven: expected gain \+1\.0 points"),
        (WIN, {"promote": "likely", "posterior": SAFE}, "promoted", "^better on held-out images"),
        (DRAW, {"promote": "likely", "posterior": SAFE._replace(mean=-0.001)}, "kept", "too uncertain"),
        (DRAW, {"promote": "likely", "posterior": SAFE._replace(chance_of_harm=HARM_CHANCE)}, "kept", "too uncertain"),
        (DRAW, {"promote": "likely", "posterior": SAFE, "counts": [5, 4]}, "kept", "too few images"),
        (DRAW, {"promote": "likely", "posterior": SAFE, "same": True}, "kept", "current soup is the best"),
    ],
)
def test_decisions(comparison: Comparison | None, options: dict[str, Any], state: str, reason: str) -> None:
    usual: dict[str, Any] = {"promote": "auto", "same": False, "counts": [50, 50], "threshold": 0.025}
    decision = decide(comparison, **(usual | options))
    assert decision.state == state
    assert re.search(reason, decision.reason), decision.reason
