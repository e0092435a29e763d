"""The linear probe: a last layer fitted from nothing on the features of the nominal ingredient, which stay.

Source: Kornblith et al. 2019 (arXiv:1805.08974), section 3 and appendix A: multinomial logistic regression on the
penultimate layer, L2 penalty, L-BFGS. Ours deviates in that features are centred and divided by the root mean square of
their entries, and the penalty is chosen on other domains, as a few labels cannot spare a validation part.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor

from adapt.networks.last_layer import Head
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.nominal import nominal_features
from benchmarks.shifts.options import Probing
from benchmarks.shifts.tuned import chosen

MAX_STEPS = 1000  # of L-BFGS
NEVER = -1e4  # logit of a class that has no label

Doubles = npt.NDArray[np.float64]


def probe(context: Context) -> Answer:
    """Fit a last layer to the labelled pictures' features, with the penalty that was best on other domains."""
    prepared, support = context.prepared, context.support
    features = context.table.features
    if features is None:
        features = nominal_features(prepared, support.images)
    penalty = chosen(context, "probe", Probing).penalty
    head = fit_probe(features, support.labels, len(support.class_names), penalty=penalty)

    def predict(unseen: Unseen) -> Tensor:
        found = nominal_features(prepared, unseen.images) if unseen.features is None else unseen.features
        return head(found).float()

    return Answer(predict, len(support), is_tabled=context.table.features is not None)


def fit_probe(features: Tensor, labels: npt.NDArray[np.int64], num_classes: int, *, penalty: float) -> Head:
    """Return the W, b of least  mean_i CE(y_i, W x_i + b) + penalty / 2 ||W||^2,  x centred and scaled as above.

    Classes without labels are never answered.

    Args:
        features: (n, D).
        labels: (n,).
        num_classes: K, the rows of W.
        penalty: greater than 0.
    """
    x = features.double().numpy()
    centre = x.mean(axis=0)
    scale = max(1e-12, float(np.sqrt(np.square(x - centre).mean())))
    x = (x - centre) / scale
    known, targets = np.unique(labels, return_inverse=True)
    shape, of_label = (len(known), x.shape[1]), (np.arange(len(x)), targets)
    size = shape[0] * shape[1]

    def objective(found: Doubles) -> tuple[float, Doubles]:
        weight, bias = found[:size].reshape(shape), found[size:]
        logits = x @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        error = np.exp(logits)
        sums = error.sum(axis=1, keepdims=True)
        loss = (np.log(sums[:, 0]) - logits[of_label]).mean() + penalty / 2 * np.square(weight).sum()
        error /= sums
        error[of_label] -= 1
        error /= len(x)
        return float(loss), np.concatenate([(error.T @ x + penalty * weight).ravel(), error.sum(axis=0)])

    options = {"maxiter": MAX_STEPS, "ftol": 1e-12, "gtol": 1e-7}
    found = optimize.minimize(objective, np.zeros(size + shape[0]), jac=True, method="L-BFGS-B", options=options).x
    weight, bias = np.zeros((num_classes, shape[1])), np.full(num_classes, NEVER)
    weight[known] = found[:size].reshape(shape) / scale
    bias[known] = found[size:] - weight[known] @ centre
    return Head(torch.from_numpy(weight), torch.from_numpy(bias))
