"""The rungs there are, in the order in which a search climbs them. To add one, write its module and a line here."""

from collections.abc import Callable

from adapt.rungs import early, site, stream
from adapt.rungs.early import FirstLayers
from adapt.rungs.frequencies import Frequencies
from adapt.rungs.head import LastLayer
from adapt.rungs.model import Rung
from adapt.rungs.pool import Library
from adapt.rungs.site import Site
from adapt.rungs.statistics import Statistics
from adapt.rungs.stream import Stream

LADDER: dict[str, Callable[[Library], Rung]] = {
    Statistics.name: Statistics,
    LastLayer.name: LastLayer,
    Frequencies.name: Frequencies,
    Stream.name: Stream,
    FirstLayers.name: FirstLayers,
    Site.name: Site,
}
# Those that train weights, and the least number of labelled images that each does it on.
TRAINING = {Stream.name: stream.MIN_IMAGES, FirstLayers.name: early.MIN_IMAGES, Site.name: site.MIN_IMAGES}
