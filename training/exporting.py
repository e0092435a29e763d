"""A network as an ONNX graph with a free batch size: what serving makes of it, so it is tried before it is trained.

Attention is exported as products and a softmax. PyTorch's fused attention with a mask has no export with a free batch
size, and where it has one the products are as fast in ONNX Runtime.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir
import torch

from training.models import Classifier


class ExportError(ValueError):
    """A network that does not become an ONNX graph with all its weights outside. One line."""


def export_graph(
    classifier: Classifier, image_shape: tuple[int, int, int], *, names: tuple[str, str] = ("images", "logits")
) -> onnx_ir.Model:
    """Return the graph of a classifier, nothing in it simplified; its weights are initialisers `net.<key>`.

    Args:
        classifier: in eval mode, on the CPU.
        image_shape: (3, H, W).
        names: of the input (batch, 3, H, W) and of the output (batch, K).

    Raises:
        ExportError: torch cannot export it with a free batch size.
    """
    example = torch.zeros(2, *image_shape)
    try:
        with quiet_exporter(), _plain_attention(classifier):
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                optimize=False,  # folds weights otherwise
                verbose=False,
                input_names=names[:1],
                output_names=names[1:],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"the network cannot be exported with a free batch size: {_root_cause(error)}") from error
    if program is None:
        raise ExportError("the network cannot be exported: torch returned no program")
    return program.model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about each node, and the deprecations its parts have for one another."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _plain_attention(classifier: Classifier) -> Iterator[None]:
    """Have timm's attention layers compute products and a softmax, step by step."""
    fused = [module for module in classifier.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost error: the exporter's own text is about reporting it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
