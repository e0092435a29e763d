"""The rungs there are, in the order in which a search climbs them. To add one, write its module and a line here."""

from collections.abc import Callable

from adapt.rungs.early import FirstLayers
from adapt.rungs.frequencies import Frequencies
from adapt.rungs.head import LastLayer
from adapt.rungs.model import Rung
from adapt.rungs.pool import Library
from adapt.rungs.statistics import Statistics

LADDER: dict[str, Callable[[Library], Rung]] = {
    Statistics.name: Statistics,
    LastLayer.name: LastLayer,
    Frequencies.name: Frequencies,
    FirstLayers.name: FirstLayers,
}
