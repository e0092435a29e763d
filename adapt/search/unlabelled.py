"""Images that nobody labelled: what a search may do with them alone."""

import time

import numpy as np
import numpy.typing as npt

from adapt.documents.held_out import HeldOut, make_held_out
from adapt.documents.patch import Floats, Tensors, make_patch
from adapt.documents.soup import Outcome, SearchSummary, Soup, SupportSummary, check_soup, make_soup
from adapt.networks.network import Network
from adapt.networks.prepared import PreparedBase
from adapt.rungs.frequencies import Frequencies, report_uncalibrated
from adapt.rungs.registry import TRAINING
from adapt.rungs.site import Site
from adapt.rungs.statistics import Statistics
from adapt.rungs.stream import Stream
from adapt.rungs.task import Progress, ShouldStop
from training.bases import BaseSet
from training.devices import pick_device, thread_count
from training.manifest import Manifest

NO_LABELS = "no labelled images: without them nothing can be shown to be better"

Images = npt.NDArray[np.uint8]


def recalibrate(
    base: BaseSet | Network,
    unlabelled: Images,
    *,
    current: Soup,
    device: str = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> tuple[Soup, Outcome]:
    """Return the current soup with channel statistics of unlabelled images; it is never to be promoted by itself.

    Coefficients, temperature and the layers that the current soup's patch has stay as they are. Without labels
    nothing can be shown to be better: the outcome is always `kept`. It reports class frequencies, which nothing
    calibrates: their intervals are wide.

    Args:
        base: the base set; a `PreparedBase` saves folding it again (its own device is used then).
        unlabelled: uint8 (m, H, W, 3) at the network's input size, at least one.
        current: the soup now in use.
        device: "cpu", "cuda" or "auto".
        num_threads: CPU threads of torch; None leaves them as they are.
        progress: called with the fraction done and what is being done.
        should_stop: asked before each candidate.

    Raises:
        SoupError: the current soup belongs to another base set.
        Cancelled: `should_stop` said so.
        ValueError: a base set with neither BatchNorm nor moments; no images; another device or size; a current soup
            without BatchNorm whose scales and shifts were trained.
    """
    started = time.perf_counter()
    check_soup(current, base.manifest)
    if len(unlabelled) < 1:
        raise ValueError("expected at least one unlabelled image, got none")
    check_unlabelled(unlabelled, base.manifest)
    row = np.asarray([current.vector(base.manifest)])
    kept = current.patch.tensors() if current.patch is not None else {}
    rungs = () if current.patch is None else current.patch.rungs
    is_trained = any(name in TRAINING for name in rungs)
    has_trained_layer = Site.name in rungs and Frequencies.name not in rungs
    with thread_count(num_threads):
        if progress is not None:
            progress(0.0, "preparing the base set")
        network = PreparedBase(base, device=pick_device(device)) if isinstance(base, BaseSet) else base
        if {Site.name, Stream.name} & set(rungs) and not network.has_batchnorm:
            raise ValueError(
                "scales and shifts of the current version were trained, and without BatchNorm there are no statistics "
                "to estimate apart from them: send labelled images, or roll back first"
            )
        # Statistics belong to filters: with layers that were trained, they are estimated for these.
        found = network.run(
            row,
            unlabelled,
            patch=_layers(kept, network, with_last=has_trained_layer) if is_trained else None,
            recalibrate=True,
            should_stop=should_stop,
        )
    statistics = found.statistics[0]
    assert statistics is not None, "recalibration was asked for"
    names = [Statistics.name, *(name for name in rungs if name != Statistics.name)]
    patch = make_patch({**kept, **statistics}, recalibrated=len(unlabelled), rungs=names)
    outcome = Outcome(
        state="kept",
        reason=NO_LABELS,
        coefficients=current.coefficients,
        temperature=current.temperature,
        bn_mode="raw",
        patch=patch.summary,
        support=SupportSummary(n=0, unlabelled=len(unlabelled), per_class={}),
        accuracy=None,
        search=SearchSummary(
            strategy="recalibrate",
            candidates=1,
            image_forwards=found.image_forwards,
            seconds=time.perf_counter() - started,
        ),
        ingredients={},
        classes=report_uncalibrated(
            base.manifest,
            found.logits[0],
            temperature=current.temperature
            if has_trained_layer or _has_own_layer(kept, network)
            else base.manifest.default_temperature,
        ),
    )
    soup = make_soup(
        base.manifest,
        current.coefficients,
        bn_mode="raw",
        temperature=current.temperature,
        patch=patch,
        held_out=_without_answers(current),
        evidence=outcome,
    )
    return soup, outcome


def _layers(tensors: Tensors, network: Network, *, with_last: bool) -> dict[str, Floats]:
    return dict(tensors) if with_last else _without_layer(tensors, network)


def _without_layer(tensors: Tensors, network: Network) -> dict[str, Floats]:
    """Return the tensors that are not of the last layer: its biases may hold class frequencies of earlier images."""
    return {key: array for key, array in tensors.items() if not key.startswith(f"{network.head_key}.")}


def _has_own_layer(tensors: Tensors, network: Network) -> bool:
    return len(_without_layer(tensors, network)) == len(tensors)


def _without_answers(current: Soup) -> HeldOut | None:
    """Return the images that the soup was made from; its held-out answers were made with other statistics."""
    if current.held_out is None:
        return None
    known = current.held_out.answers()
    return make_held_out(known.hashes, known.folds, np.full_like(known.logits, np.nan))


def check_unlabelled(images: Images | None, manifest: Manifest) -> None:
    """Raise ValueError unless the images, if there are any, are uint8 (m, H, W, 3) at the base set's input size."""
    shape = (manifest.input.height, manifest.input.width, 3)
    if images is not None and (images.shape[1:] != shape or images.dtype != np.uint8):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected unlabelled images uint8 (m, {expected}), got {images.dtype} {images.shape}")
