"""The landscape of a search: the soups it evaluated and how good each was, small enough to keep. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from training.documents import Frozen

MAX_POINTS = 400  # some 20 kB for four ingredients

Kind = Literal["plain", "recalibrated", "patched"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class LandscapePoint(Frozen):
    """One soup on the labelled images of a search."""

    coefficients: tuple[float, ...] = Field(description="in the order of `ingredients`")
    kind: Kind = Field(
        description="plain: as the dial serves it; recalibrated: with channel statistics of the images; patched: "
        "with the patch of the soup that was served then"
    )
    accuracy: Fraction = Field(description="on all labelled images; flatters the soup that was chosen on them")
    temp_ce: float = Field(description="cross-entropy at the soup's own best temperature")


class Landscape(Frozen):
    """The soups that a search evaluated (an even part of a long list), and the plain ones that fix a quadratic."""

    ingredients: tuple[str, ...]
    n: int = Field(ge=1, description="number of labelled images")
    current: int | None = Field(description="position of the soup that was served; null if it was not usable")
    chosen: int | None = Field(description="position of the mixture chosen, before its last layer was fitted again")
    points: tuple[LandscapePoint, ...] = Field(max_length=MAX_POINTS)
