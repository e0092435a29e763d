"""A network's graph without its weights: ONNX whose parameters and BatchNorm statistics lie in an external file.

Exporters fold BatchNorm silently in eval mode. Here nothing is constant-folded into a parameter: parameters are graph
inputs while the graph is simplified and become external initialisers, named as in the state dict, only afterwards. ONNX
Runtime fuses BatchNorm when it builds a session, for whichever soup's weights it is given.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
from torch import Tensor

from deploy.layout import ALIGNMENT, FLOAT_BYTES, INPUT_NAME, OUTPUT_NAME, WEIGHTS_LOCATION, TensorSlot
from deploy.session import Floats
from training.exporting import ExportError, export_graph, quiet_exporter
from training.models import Classifier

logger = logging.getLogger(__name__)

NET_PREFIX = "net."  # of the timm network inside Classifier
STATISTICS = ("running_mean", "running_var")
OWN_NAME = "_value"  # appended to a graph value whose name a weight or a constant has


@dataclass(frozen=True)
class Skeleton:
    """The graph, and where each of its weights lies in a flat row."""

    graph: bytes  # serialised ONNX model; input `images` (batch, 3, H, W), output `logits` (batch, K)
    tensors: tuple[TensorSlot, ...]
    row_floats: int

    def flatten(self, state_dict: Mapping[str, Tensor]) -> Floats:
        """Return the weights of a timm network as one float32 row (row_floats,), zero between tensors."""
        row = np.zeros(self.row_floats, dtype=np.float32)
        for slot in self.tensors:
            row[slot.floats] = state_dict[slot.name].detach().cpu().numpy().reshape(-1)
        return row


def make_skeleton(classifier: Classifier, image_shape: tuple[int, int, int]) -> Skeleton:
    """Export a classifier, in eval mode and on the CPU, as a graph without weights.

    Normalisation stays in the graph as constants; integer buffers too.

    Args:
        classifier: the network.
        image_shape: (3, H, W).

    Raises:
        ExportError: torch cannot export it with a free batch size, or its BatchNorm did not stay a node whose
            parameters and statistics are external.
    """
    weights = {key: tensor for key, tensor in classifier.net.state_dict().items() if tensor.is_floating_point()}
    model = export_graph(classifier, image_shape, names=(INPUT_NAME, OUTPUT_NAME))
    inputs = _weights_to_inputs(model.graph, weights)
    with quiet_exporter():
        onnxscript.optimizer.optimize(model)
    _check_batchnorms(model.graph, weights, set(inputs))
    _keep_pads(model.graph)
    _strip(model)
    tensors = tuple(_layout({name: tuple(weights[name].shape) for name in weights if name in inputs}))
    _inputs_to_external(model.graph, tensors)
    row_bytes = _aligned(tensors[-1].offset + tensors[-1].num_floats * FLOAT_BYTES)
    graph = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    return Skeleton(graph, tensors, row_bytes // FLOAT_BYTES)


def embed(skeleton: Skeleton, row: Floats) -> onnx.ModelProto:
    """Return the graph with the weights of a row inside: a self-contained model.

    Raises:
        ExportError: the weights exceed what one ONNX file can hold (2 GiB).
    """
    if row.nbytes + len(skeleton.graph) >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"the network has {row.nbytes} bytes of weights, expected fewer than 2 GiB for one ONNX file")
    model = onnx.load_model_from_string(skeleton.graph)
    slots = {slot.name: slot for slot in skeleton.tensors}
    for tensor in model.graph.initializer:
        if tensor.name in slots:
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = row[slots[tensor.name].floats].astype("<f4").tobytes()
    return model


def _weights_to_inputs(graph: onnx_ir.Graph, weights: Mapping[str, Tensor]) -> dict[str, onnx_ir.Value]:
    """Turn the initialisers that are weights into graph inputs, under their state-dict names; return them by name."""
    inputs = {}
    for name in weights:
        if (value := graph.initializers.pop(NET_PREFIX + name, None)) is not None:
            value.const_value = None
            inputs[name] = value
    claimed = inputs.keys() | graph.initializers.keys()
    for value in (output for node in graph for output in node.outputs):
        if value.name in claimed:  # `x.mean()` beside a buffer named mean, say
            value.name += OWN_NAME
    for name, value in inputs.items():
        value.name = name
        graph.inputs.append(value)
    if unused := [name for name in weights if name not in inputs]:
        logger.warning("the network never uses %d of its weights, among them %s", len(unused), unused[0])
    return inputs


def _check_batchnorms(graph: onnx_ir.Graph, weights: Mapping[str, Tensor], inputs: set[str]) -> None:
    """Require that each BatchNorm of the state dict is a node and that all it holds comes in from outside."""
    kept = set()
    for node in graph:
        if node.op_type == "BatchNormalization":
            kept |= {value.name for value in node.inputs[1:] if value is not None}
    layers = [name.removesuffix(".running_mean") for name in weights if name.endswith(".running_mean")]
    for layer in layers:
        held = {f"{layer}.{part}" for part in ("weight", "bias", *STATISTICS)} & weights.keys()
        if lost := sorted(held - (kept & inputs)):
            raise ExportError(f"expected {lost[0]} to feed a BatchNormalization node of the graph: it was folded away")


def _keep_pads(graph: onnx_ir.Graph) -> None:
    """Name the axes of every padding that a maximum is taken of: ONNX Runtime then leaves it alone.

    Otherwise its Pad_Fusion moves the padding into MaxPool, which pads with minus infinity instead of the given value.
    """
    for node in graph:
        if node.op_type != "Pad" or len(node.inputs) > 3:
            continue
        pools = [user for output in node.outputs for user in output.consumers() if user.op_type == "MaxPool"]
        if pools:
            rank = 2 + len(pools[0].attributes["kernel_shape"].as_ints())
            axes = onnx_ir.Value(
                name=f"{node.outputs[0].name}_axes", const_value=onnx_ir.tensor(np.arange(rank, dtype=np.int64))
            )
            graph.register_initializer(axes)
            node.resize_inputs(4)
            node.replace_input_with(3, axes)


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[TensorSlot]:
    offset = 0
    for name, shape in shapes.items():
        slot = TensorSlot(name=name, offset=offset, shape=shape, is_variance=name.endswith(".running_var"))
        yield slot
        offset = _aligned(offset + slot.num_floats * FLOAT_BYTES)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _inputs_to_external(graph: onnx_ir.Graph, tensors: tuple[TensorSlot, ...]) -> None:
    by_name = {value.name: value for value in graph.inputs}
    for slot in tensors:
        value = by_name[slot.name]
        graph.inputs.remove(value)
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS_LOCATION,
            slot.offset,
            slot.num_floats * FLOAT_BYTES,
            onnx_ir.DataType.FLOAT,
            shape=onnx_ir.Shape(slot.shape),
            name=slot.name,
            base_dir="",
        )
        graph.initializers[slot.name] = value


def _strip(model: onnx_ir.Model) -> None:
    """Drop what the exporter notes beside the graph: stack traces with the paths of this machine, mostly."""
    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = "saucier", None, None
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
