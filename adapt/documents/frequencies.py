"""Class frequencies as an adaptation reports them. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from training.documents import Frozen

DIGITS = 6

Share = Annotated[float, Field(ge=0, le=1)]


class ClassFrequency(Frozen):
    """How frequent a class is among the images that an adaptation is for, a fraction."""

    name: str = Field(description="of the class")
    expected: Share = Field(description="what calibrated answers expect before they see an image: all classes alike")
    estimated: Share = Field(description="among the images without labels, and the labelled ones with draw=fair")
    low: Share = Field(description="lower end of its 95 % interval")
    high: Share = Field(description="upper end of its 95 % interval")


def class_frequencies(
    names: Sequence[str],
    estimated: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
) -> tuple[ClassFrequency, ...]:
    """Return the estimates (K,) of the classes and the ends of their intervals as a document."""
    rows = zip(names, *(array.round(DIGITS).tolist() for array in (estimated, low, high)), strict=True)
    expected = round(1 / len(names), DIGITS)
    return tuple(
        ClassFrequency(name=name, expected=expected, estimated=middle, low=lower, high=upper)
        for name, middle, lower, upper in rows
    )
