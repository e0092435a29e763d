"""Statistics of the stream that a few odd pictures or frequent classes move less, and a shift of the mean feature."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator
from adapt.rungs.head import fit_heads
from benchmarks.streams.start import Chosen, Pictures, Pixels
from training.moments import Moments

PICKED_SHARE = 0.5  # of the stream that a balanced pick keeps at most


def median_moments(x: Tensor) -> Moments:
    """Return the median over images of each channel's mean, and the variance about it; x is (B, C, ...).

    Source: Park et al. 2024 (arXiv:2403.19326), MedBN; theirs is of one batch at a time, without a prior.
    """
    flat = x.flatten(2) if x.dim() > 2 else x[:, :, None]
    centre = flat.mean(dim=2).median(dim=0).values
    return Moments(centre, (flat - centre[:, None]).square().mean(dim=(0, 2)))


class MedianBase(PreparedBase):
    """A base set whose channel statistics are medians."""

    @cached_property
    def recalibrator(self) -> Recalibrator:
        """As that of all base sets, with `median_moments`."""
        return self.recalibrator_with(measure=median_moments)


def balanced(stream: Pixels, logits: Tensor) -> Pixels:
    """Return half of the stream at most: the same number of every class as answered, surest first.

    Fewer of a class that is answered more rarely. Source: the class-balanced part of SNAP, arXiv:2511.15276.

    Args:
        stream: uint8 (m, H, W, 3).
        logits: (m, K).
    """
    surest, answers = logits.softmax(dim=1).max(dim=1)
    most = max(1, int(PICKED_SHARE * len(stream) / logits.shape[1]))
    order = torch.argsort(surest, descending=True).numpy()
    kept = [order[answers.numpy()[order] == label][:most] for label in range(logits.shape[1])]
    return np.asarray(stream[np.sort(np.concatenate(kept))])


def restated(chosen: Chosen, pictures: Pictures, network: PreparedBase, stream: Pixels) -> Tensor:
    """Return logits on the unseen pictures with other statistics, the last layer fitted to them as the ladder did.

    Coefficients and the strength of the pull stay as they are.

    Args:
        chosen: with statistics of labelled pictures and stream.
        pictures: of the trial.
        network: measures the statistics.
        stream: pictures for them beside the labelled ones.
    """
    row, labelled = np.asarray([chosen.coefficients]), pictures.labelled
    found = network.run(row, labelled.images, recalibrate=True, unlabelled=stream)
    statistics, features = found.statistics[0], found.features[0]
    assert statistics is not None, "recalibration was asked for"
    unseen = network.run(row, pictures.unseen.images, bn_mode="raw", patch=statistics)
    if chosen.own is None or chosen.penalty is None:
        return unseen.logits[0]
    seen = unseen.features[0]
    assert features is not None, "the last layer is linear"
    assert seen is not None, "the last layer is linear"
    return fit_heads(features, labelled.labels, chosen.own)[chosen.penalty](seen)


def feature_shift(chosen: Chosen, pictures: Pictures) -> Tensor:
    """Return what moves the logits (K,) as the mean feature of the stream is moved to that of clean pictures.

    That is W (mu_source - mu_stream). Clean pictures pass the same soup with channel statistics of their own.

    Source: Niu et al. 2024 (arXiv:2404.01650), FOA, sec. 3.2, for every batch; here for the stream.
    """
    row = np.asarray([chosen.coefficients])
    is_open = chosen.prepared.can_recalibrate
    clean = chosen.prepared.run(row, pictures.source, recalibrate=is_open).features[0]
    seen = chosen.run(pictures.stream).features[0]
    assert clean is not None, "the last layer is linear"
    assert seen is not None, "the last layer is linear"
    return torch.mv(chosen.layer.weight.double(), (clean.double().mean(dim=0) - seen.double().mean(dim=0)))
