"""How the labelled images of a search were drawn: what their labels may be asked about. No torch."""

from typing import Literal

Draw = Literal["any", "fair"]  # fair: classes are as frequent among the labelled images as among those to be served
