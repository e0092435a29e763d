"""Class frequencies of images that nobody labelled, estimated from a classifier's answers to them. No torch.

Assumption (label shift): the images of a class look alike wherever they are; only the frequencies of the classes
differ. Then the answers to images of unknown classes tell the frequencies, if the answers are calibrated.

Calibration is that of a case-control study. Labelled images may have any class shares q, because they need not be a
fair draw. So `temperature` and `bias` are the most likely ones in  p(y | x) ~ q(y) exp(logit_y / temperature + bias_y).
Without the factor q, the answers are those of a world where every class is equally frequent, for any training data and
any labelled images: the reference is a frequency of 1 / K for each class.

Source: Saerens, Latinne, Decaestecker 2002 (Neural Computation 14:21), expectation and maximisation; Alexandari,
Kundaje, Shrikumar 2020 (arXiv:1901.06852), bias-corrected calibration; Prentice and Pyke 1979 (Biometrika 66:403),
case-control studies.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from adapt.evidence.scores import Doubles, Ints

PRIOR_IMAGES = 1.0  # images of each class that stand beside those seen, so that no class is impossible
# Standard deviations of the prior of each bias, in logits. The estimate needs a narrow one: noise in the biases costs
# more accuracy than the biases do. The interval needs one as wide as biases are: see EXPERIMENTS.md.
BIAS_DEVIATION, BIAS_DOUBT = 0.25, 1.0
TEMPERATURE_DEVIATION = 0.3  # of the prior of the temperature's logarithm
MAX_STEPS = 2000  # of expectation and maximisation
TOLERANCE = 1e-6  # largest change of a frequency at which they have settled
NORMAL_95 = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution

Logits = npt.NDArray[np.float64]


class Calibration(NamedTuple):
    """Temperature and biases that make logits those of equally frequent classes.

    Attributes:
        temperature: divides the logits.
        bias: (K,) added after that.
        covariance: (K, K) of the bias, under the wide prior.
    """

    temperature: float
    bias: Doubles
    covariance: Doubles

    def __call__(self, logits: Logits) -> Doubles:
        """Return calibrated logits (n, K)."""
        return logits / self.temperature + self.bias


def uncalibrated(num_classes: int, temperature: float) -> Calibration:
    """Return the calibration without any labelled image: no bias, which is as uncertain as its prior says."""
    return Calibration(temperature, np.zeros(num_classes), BIAS_DOUBT**2 * np.eye(num_classes))


def calibrate(logits: Logits, labels: Ints, *, temperature: float, is_fitted: bool = False) -> Calibration:
    """Return the calibration that labelled images call for, drawn to no bias and to the temperature given.

    Only the classes that have labelled images are compared with one another: an image cannot show how frequent a
    class without labels is. The bias of such a class stays 0.

    Args:
        logits: (n, K), finite.
        labels: (n,) class indices.
        temperature: that the logits are served with, above 0.
        is_fitted: the logits are those of a layer that was fitted to these very labels. It looks surer on them than it
            is, so the temperature stays; it has their shares in its biases, so the wide prior is that of the estimate,
            too.
    """
    num_classes = logits.shape[1]
    found, counts = np.unique(labels, return_counts=True)
    plain = uncalibrated(num_classes, temperature)
    if len(found) < 2:
        return plain
    shares, targets = np.log(counts / len(labels)), np.searchsorted(found, labels)
    some, rows = logits[:, found] / temperature, np.arange(len(labels))
    pull = (BIAS_DOUBT if is_fitted else BIAS_DEVIATION) ** -2
    pull_scale = TEMPERATURE_DEVIATION**-2

    def objective(point: Doubles) -> tuple[float, Doubles]:
        bias, log_scale = point[:-1], point[-1]
        scaled = some * np.exp(log_scale)
        log_p = special.log_softmax(scaled + bias + shares, axis=1)
        error = np.exp(log_p)
        error[rows, targets] -= 1
        loss = -log_p[rows, targets].sum() + 0.5 * (pull * bias @ bias + pull_scale * log_scale**2)
        of_scale = 0.0 if is_fitted else float((error * scaled).sum()) + pull_scale * log_scale
        return float(loss), np.append(error.sum(axis=0) + pull * bias, of_scale)

    best = optimize.minimize(objective, np.zeros(len(found) + 1), jac=True, method="L-BFGS-B").x
    probabilities = special.softmax(some * np.exp(best[-1]) + best[:-1] + shares, axis=1)
    bias, covariance = plain.bias.copy(), plain.covariance.copy()
    bias[found] = best[:-1]
    information = (
        np.diag(probabilities.sum(axis=0)) - probabilities.T @ probabilities + BIAS_DOUBT**-2 * np.eye(len(found))
    )
    covariance[np.ix_(found, found)] = np.linalg.inv(information)
    return Calibration(float(temperature * np.exp(-best[-1])), bias, covariance)


def estimate(logits: Logits, calibration: Calibration, *, counts: Doubles | None = None) -> Doubles:
    """Return the class frequencies (K,) of images without labels, and of labelled ones that are a fair draw with them.

    The most probable frequencies under a Dirichlet prior that counts as `PRIOR_IMAGES` of each class; all above 0.

    Args:
        logits: (m, K), finite, of the images without labels; m may be 0.
        calibration: of the classifier.
        counts: (K,) labelled images of each class that are a fair draw; None for none.
    """
    return settle(special.softmax(calibration(logits), axis=1), _known(logits, counts))


def interval(
    frequencies: Doubles, logits: Logits, calibration: Calibration, *, counts: Doubles | None = None
) -> tuple[Doubles, Doubles]:
    """Return both ends of the 95 % interval of each frequency, (K,); other arguments as of `estimate`.

    It takes in the chance of the draw and the uncertain bias, and takes the temperature for certain. The delta method,
    on the scale of log-odds so that no end leaves [0, 1]. The lower end goes without the image of the prior, so that
    a class that is not there may have frequency 0.

    With a = log f, memberships P and N images, those of the prior included, minus the second derivative of
    `log_posterior` is  I = diag(known) + P^T P - N f f^T.  The estimate moves with the bias b as  da = I^-1 J db
    where  J = diag(N f - known) - P^T P.

    Args:
        frequencies: (K,) what `estimate` returned.
        logits: of the images without labels.
        calibration: of the classifier.
        counts: of labelled images.
    """
    known = _known(logits, counts)
    memberships = _memberships(frequencies, special.softmax(calibration(logits), axis=1))
    total = len(logits) + known.sum()
    products = memberships.T @ memberships
    information = np.diag(known) + products - total * np.outer(frequencies, frequencies)
    inverse = np.linalg.inv(information + 1.0)  # a constant in all of a changes nothing: its direction is filled up
    follows = inverse @ (np.diag(total * frequencies - known) - products)
    of_logs = inverse + follows @ calibration.covariance @ follows.T
    spread = of_logs @ frequencies
    variance = np.diag(of_logs) - 2 * spread + frequencies @ spread  # of log f, the frequencies summing to 1
    odds = special.logit(frequencies)
    reach = NORMAL_95 * np.sqrt(np.maximum(variance, 0)) / (1 - frequencies)
    low = special.expit(odds - reach) - PRIOR_IMAGES / total
    return np.maximum(low, 0.0), special.expit(odds + reach)


def log_ratio(frequencies: Doubles) -> Doubles:
    """Return what calibrated logits lack to answer at these frequencies, (K,)."""
    return np.asarray(np.log(frequencies * len(frequencies)))


def settle(likelihoods: Doubles, known: Doubles) -> Doubles:
    """Return the frequencies (K,) of the greatest `log_posterior`: a concave problem, climbed from equal ones.

    Args:
        likelihoods: (m, K) of each image under each class, up to a factor of each image.
        known: (K,) above 0, images whose class is known, those of the prior included.
    """
    frequencies = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    for _ in range(MAX_STEPS):
        updated = step(frequencies, likelihoods, known)
        if np.abs(updated - frequencies).max() < TOLERANCE:
            return updated
        frequencies = updated
    return frequencies


def step(frequencies: Doubles, likelihoods: Doubles, known: Doubles) -> Doubles:
    """Return frequencies (K,) after one step of expectation and maximisation; `log_posterior` never falls."""
    memberships = _memberships(frequencies, likelihoods)
    return np.asarray((memberships.sum(axis=0) + known) / (len(likelihoods) + known.sum()))


def log_posterior(frequencies: Doubles, likelihoods: Doubles, known: Doubles) -> float:
    """Return the logarithm of the probability of frequencies (K,), up to a constant."""
    return float(np.log(likelihoods @ frequencies).sum() + known @ np.log(frequencies))


def _memberships(frequencies: Doubles, likelihoods: Doubles) -> Doubles:
    """Return the probability of each class for each image, (m, K)."""
    joint = likelihoods * frequencies
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _known(logits: Logits, counts: Doubles | None) -> Doubles:
    """Return the images of known class, (K,): those of the prior, and what was counted."""
    prior = np.full(logits.shape[1], PRIOR_IMAGES)
    return prior if counts is None else prior + counts
