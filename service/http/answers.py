"""Logits to the answer of `/predict`, without a detour through models: this runs for every request."""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]

CONFIDENCE_DIGITS = 6


def confidences(logits: npt.NDArray[np.float32], temperature: float) -> Probabilities:
    """Return softmax(logits / temperature), (B, K).

    Raises:
        FloatingPointError: a logit is not finite.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    if not np.isfinite(scaled).all():
        raise FloatingPointError("the network's logits are not finite")
    return scaled


def predictions_json(
    deployment: str,
    version: int,
    probabilities: Probabilities,
    class_names: Sequence[str],
    *,
    top_k: int,
) -> bytes:
    """Return the JSON text of `service.http.schemas.Predictions`.

    Args:
        deployment: name of the deployment.
        version: soup version all images were served with.
        probabilities: (B, K), rows sum to 1.
        class_names: K names.
        top_k: classes per image, >= 1; clipped at K. Equal confidences are ordered by index.
    """
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    values = np.take_along_axis(probabilities, best, axis=1).round(CONFIDENCE_DIGITS)
    predictions = []
    for indices, scores in zip(best.tolist(), values.tolist(), strict=True):
        ranked = [
            {"label": class_names[index], "index": index, "confidence": score}
            for index, score in zip(indices, scores, strict=True)
        ]
        predictions.append({**ranked[0], "top_k": ranked})
    return json.dumps({"deployment": deployment, "version": version, "predictions": predictions}).encode()
