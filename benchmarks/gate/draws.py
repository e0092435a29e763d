"""One draw: labelled pictures, an adaptation to them, and what it says beside what is true."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from adapt.evidence.cross_fit import NUM_FOLDS, CrossFit
from adapt.evidence.scores import Scores, choose, cross_fit, summarise
from adapt.evidence.significance import fold_dependence, labels_needed, paired_p
from adapt.images.support import Support
from benchmarks.gate.population import Population

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# What is served when the adaptation comes. "default": what the base set ships. "earlier": what an adaptation to as many
# other pictures of the shift found. "oracle": the most accurate soup on the shift, so that every promotion is false.
# "tied": on every picture the soups' answers change owners at random, so that all soups are equally good.
Scenario = Literal["default", "earlier", "oracle", "tied"]
SCENARIOS: tuple[Scenario, ...] = ("default", "earlier", "oracle", "tied")


class Drawn(NamedTuple):
    """Labelled pictures. The current soup comes first, then all others."""

    scores: Scores
    labels: Ints
    truth: Doubles  # (C,) true accuracy of each
    positions: Ints  # (n,) of the pictures in their population


class Outcome(NamedTuple):
    """One adaptation, whatever its gate says; accuracies are fractions."""

    changed: bool  # the candidate is another soup than the current one
    gain: float  # true accuracy of the candidate less that of the current soup
    truth: float  # true accuracy of the candidate
    reported: float  # its cross-fitted accuracy
    seen: float  # reported gain
    naive_seen: float  # gain on the pictures it was chosen on
    covered: bool  # the interval holds the true gain
    needed: float  # labels needed to prove the gain, NaN where no number was given
    p_values: Mapping[str, float]  # by test


def draw(
    population: Population,
    n: int,
    scenario: Scenario,
    generator: np.random.Generator,
    *,
    noise: float = 0.0,
    shares: Doubles | None = None,
) -> Drawn:
    """Draw n labelled pictures, with replacement.

    Args:
        population: the shift.
        n: how many.
        scenario: what is served.
        generator: of all that is random.
        noise: share of labels that are replaced by another class, drawn at random.
        shares: (K,) how often each class is drawn; what is true stays an average over all pictures.
    """
    labels, truth = population.labels, population.truth
    current = int(truth.accuracy.argmax()) if scenario == "oracle" else 0
    if scenario == "earlier":
        earlier = generator.integers(len(labels), size=n)
        current = choose(truth.losses[:, :, earlier]).candidate
    chances = None if shares is None else shares[labels] / shares[labels].sum()
    positions = generator.choice(len(labels), size=n, p=chances)
    order = np.concatenate([[current], np.delete(np.arange(len(truth.accuracy)), current)])
    said = labels[positions]
    if noise:
        wrong = generator.random(n) < noise
        num_classes = population.logits.shape[2]
        said = np.where(wrong, (said + generator.integers(1, num_classes, size=n)) % num_classes, said)
    scores = population.scores(positions, said)
    scores = Scores(scores.losses[order], scores.correct[order])
    if scenario == "tied":
        owners = generator.random(scores.correct.shape).argsort(axis=0)
        scores = Scores(
            np.take_along_axis(scores.losses, owners[:, None], axis=0),
            np.take_along_axis(scores.correct, owners, axis=0),
        )
        return Drawn(scores, said, np.full(len(order), truth.accuracy.mean()), positions)
    return Drawn(scores, said, truth.accuracy[order], positions)


def adapt(drawn: Drawn, *, seed: int, weights: Floats | None = None) -> Outcome:
    """Choose, cross-fit and test as a search does, and compare with the truth.

    Args:
        drawn: the labelled pictures.
        seed: of the folds and of `fold_dependence`.
        weights: of the pictures.
    """
    scores, labels, truth, _ = drawn
    candidate = choose(scores.losses, weights=weights).candidate
    folds = folds_of(labels, seed=seed)
    fit = cross_fit(scores, folds, weights=weights)
    dependence = fold_dependence(scores, folds, weights=weights, seed=seed)
    summary = summarise(fit, dependence=dependence)
    needed = labels_needed(summary.p_value, len(labels))
    gain = float(truth[candidate] - truth[0])
    return Outcome(
        changed=candidate != 0,
        gain=gain,
        truth=float(truth[candidate]),
        reported=summary.candidate,
        seen=summary.candidate - summary.current,
        naive_seen=fit.share(scores.correct[candidate]) - summary.current,
        covered=summary.interval[0] <= gain <= summary.interval[1],
        needed=float("nan") if needed is None else float(needed),
        p_values={name: test(fit, dependence) for name, test in TESTS.items()},
    )


def folds_of(labels: Ints, *, seed: int) -> Ints:
    """Return the folds a search would make of these."""
    nothing = np.empty((len(labels), 0, 0, 3), dtype=np.uint8)
    return Support(nothing, labels, (), ()).folds(NUM_FOLDS, seed=seed)


def mcnemar(fit: CrossFit, dependence: float) -> float:
    """Test as earlier versions did: right against wrong, exact; without the folds' dependence, which was near 1."""
    wins, losses = int((fit.candidate & ~fit.current).sum()), int((fit.current & ~fit.candidate).sum())
    return float(stats.binom.sf(wins - 1, wins + losses, 0.5)) if wins else 1.0


def bounded_losses(fit: CrossFit, dependence: float) -> float:
    """Test the cross-entropy saved alone, at most one nat a picture."""
    return paired_p(np.clip(fit.current_losses - fit.candidate_losses, -1, 1), dependence=dependence)


def wilcoxon(fit: CrossFit, dependence: float) -> float:
    """Test the ranks of the cross-entropy saved."""
    saved = fit.current_losses - fit.candidate_losses
    if np.count_nonzero(saved) < 5:
        return 1.0
    p_value = float(stats.wilcoxon(saved[saved != 0], alternative="greater", method="approx").pvalue)
    return float(stats.norm.sf(stats.norm.isf(p_value) / dependence)) if p_value < 0.5 else p_value


OURS, OLD = "evidence", "mcnemar"
TESTS: Mapping[str, Callable[[CrossFit, float], float]] = {
    OURS: lambda fit, dependence: paired_p(fit.evidence, dependence=dependence),
    OLD: mcnemar,
    "bounded losses": bounded_losses,
    "wilcoxon on losses": wilcoxon,
    "evidence, folds taken as independent": lambda fit, _: paired_p(fit.evidence),
}
