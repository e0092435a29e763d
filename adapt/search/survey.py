"""From a search to its landscape. After a search, evaluates the plain soups that a map still needs."""

import numpy as np
import numpy.typing as npt

from adapt.documents.landscape import MAX_POINTS, Kind, Landscape, LandscapePoint
from adapt.documents.soup import Soup
from adapt.evidence.scores import Bools, Scores, temp_ce
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.prepared import PreparedBase
from adapt.rungs.pool import is_among
from adapt.rungs.task import ShouldStop
from adapt.search.grid import Grid
from adapt.search.search import Search
from adapt.search.surrogate import nodes
from training.devices import thread_count

MAX_MISSING = 10  # soups evaluated for the map alone, all pairs of five ingredients; with more ingredients none are
DIGITS = 6


def seen(prepared: PreparedBase, support: Support, found: Search, *, current: Soup) -> Landscape:
    """Return what a search over folded BatchNorm saw. Arguments as for `survey`."""
    return _landscape(prepared, support, found, found.coefficients, _kinds(prepared, found, current), found.scores)


def survey(
    prepared: PreparedBase,
    support: Support,
    found: Search,
    *,
    current: Soup,
    num_threads: int | None = None,
    should_stop: ShouldStop | None = None,
) -> Landscape:
    """Return what a search over folded BatchNorm saw, with the plain soups that fix a quadratic.

    A search that recalibrates leaves most plain mixtures out, but these are what the dial serves. The few nodes that
    are missing cost about a tenth of the search.

    Args:
        prepared: the base set of the search.
        support: its labelled images.
        found: what it found.
        current: the soup it started from.
        num_threads: CPU threads of torch meanwhile; None leaves them as they are.
        should_stop: asked before each soup.

    Raises:
        Cancelled: `should_stop` said so (adapt.networks.forward).
    """
    rows, kinds, scores = found.coefficients, _kinds(prepared, found, current), found.scores
    wanted = nodes(rows.shape[1])
    missing = wanted[~is_among(wanted, rows[_are_plain(kinds)])]
    if 0 < len(missing) <= MAX_MISSING:
        with thread_count(num_threads):
            more = evaluate_soups(prepared, missing, support.images, support.labels, should_stop=should_stop)
        rows, scores = np.concatenate([rows, missing]), Scores.joined([scores, more])
        kinds += ["plain"] * len(missing)
    return _landscape(prepared, support, found, rows, kinds, scores)


def _landscape(
    prepared: PreparedBase, support: Support, found: Search, rows: Grid, kinds: list[Kind], scores: Scores
) -> Landscape:
    losses, _ = temp_ce(scores.losses)
    kept = _kept(np.isfinite(losses), rows, _are_plain(kinds), always=(0, found.choice.candidate))
    position = {old: new for new, old in enumerate(kept.tolist())}
    return Landscape(
        ingredients=prepared.manifest.ingredient_names,
        n=len(support),
        current=position.get(0),
        chosen=position.get(found.choice.candidate),
        points=tuple(_point(rows[i], kinds[i], scores.accuracy[i], losses[i]) for i in kept),
    )


def _are_plain(kinds: list[Kind]) -> Bools:
    return np.asarray([kind == "plain" for kind in kinds])


def _kinds(prepared: PreparedBase, found: Search, current: Soup) -> list[Kind]:
    kinds: list[Kind] = ["recalibrated" if anew else "plain" for anew in found.pool.recalibrated]
    if current.patch is not None or prepared.canonical(current.bn_mode) != "folded":
        kinds[0] = "patched"
    return kinds


def _kept(usable: Bools, rows: Grid, plain: Bools, *, always: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return positions of usable soups in order: of more than there is room for, the nodes and an even part."""
    if usable.sum() <= MAX_POINTS:
        return np.flatnonzero(usable)
    must = plain & is_among(rows, nodes(rows.shape[1]))
    must[list(always)] = True
    first = np.flatnonzero(usable & must)[:MAX_POINTS]
    rest = np.flatnonzero(usable & ~must)
    room = MAX_POINTS - len(first)
    return np.sort(np.concatenate([first, rest[np.linspace(0, len(rest) - 1, room).astype(np.intp)]]))


def _point(row: npt.NDArray[np.float64], kind: Kind, accuracy: float, loss: float) -> LandscapePoint:
    return LandscapePoint(
        coefficients=tuple(row.round(DIGITS).tolist()),
        kind=kind,
        accuracy=round(float(accuracy), DIGITS),
        temp_ce=round(float(loss), DIGITS),
    )
