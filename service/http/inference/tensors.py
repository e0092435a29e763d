"""Requests and answers of the Open Inference Protocol as tensors: JSON, and the extension for binary tensors.

A binary body is a JSON object followed by the tensors' bytes; a header says where the object ends.
"""

import json
from array import array
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from deploy.layout import FLOAT_BYTES, INPUT_NAME, OUTPUT_NAME
from service.http.inference.models import BinarySize, InferenceRequest, InferenceResponse, InputTensor, OutputTensor
from service.http.problems import Problem
from service.http.uploads import parse_json

Floats = npt.NDArray[np.float32]

NUM_DIMENSIONS = 4  # of the images
HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 16_000_000  # numbers written out take up to ten times as much once they are read
EIGHT_BITS_FROM = 2.0  # larger values are pixels that nobody divided by 255
ROUNDING = 1e-3


@dataclass(frozen=True)
class InferRequest:
    """A request for the logits of some images."""

    images: Floats  # (B, 3, H, W) in [0, 1]
    id: str | None
    is_binary: bool  # the answer is wanted as bytes


def malformed(message: str) -> Problem:
    """Return the 400 of a request that does not say what the protocol asks for."""
    return Problem(400, message)


def json_size(header: str | None, body_size: int) -> int:
    """Return how many bytes of a body are its JSON object.

    Args:
        header: value of `Inference-Header-Content-Length`, None without binary tensors.
        body_size: bytes of the whole body.

    Raises:
        Problem: 400 not a number within the body; 413 more than `MAX_JSON_BYTES`.
    """
    size = body_size
    if header is not None:
        if not (header.isascii() and header.isdecimal()) or len(header) > 18 or int(header) > body_size:
            raise malformed(f"{HEADER_LENGTH}: expected at most the {body_size} bytes of the body, got {header[:80]!r}")
        size = int(header)
    if size > MAX_JSON_BYTES:
        limit = f"expected at most {MAX_JSON_BYTES:,} bytes of JSON, got {size:,}: send binary tensors"
        raise Problem(413, limit, reason="bytes")
    return size


def read_request(
    body: bytes, size: int, image_shape: tuple[int, int, int], *, max_images: int, max_pixels: int
) -> InferRequest:
    """Read the body of a request.

    Args:
        body: the whole of it.
        size: bytes of it that are JSON, see `json_size`.
        image_shape: (3, H, W) of the network's input.
        max_images: most images.
        max_pixels: most pixels of all images together.

    Raises:
        Problem: 400 naming what is wrong, 413 too many images or pixels.
    """
    try:
        document = InferenceRequest.model_validate(parse_json(body[:size], "request"))
    except ValidationError as error:
        raise malformed(_first_error(error)) from None
    tensor = document.inputs[0]
    shape = _shape(tensor.shape, image_shape)
    if shape[0] > max_images:
        raise Problem(413, f"expected at most {max_images} images", reason="count")
    if shape[0] * shape[2] * shape[3] > max_pixels:
        raise Problem(413, f"expected at most {max_pixels} pixels in one request", reason="pixels")
    images = _data(tensor, shape, body[size:])
    _check_values(images)
    return InferRequest(images, document.id, document.is_answer_binary)


def write_answer(
    logits: Floats, *, name: str, version: int, request_id: str | None, is_binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer and its headers.

    Args:
        logits: float32 (B, K).
        name: of the deployment.
        version: soup version that computed them.
        request_id: name of the request.
        is_binary: bytes after the JSON object, instead of numbers in it.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise FloatingPointError("the network's logits are not finite")
    data = logits.astype("<f4", copy=False).tobytes() if is_binary else b""
    tensor = OutputTensor(
        shape=list(logits.shape),
        data=None if is_binary else logits.reshape(-1).tolist(),
        parameters=BinarySize(binary_data_size=len(data)) if is_binary else None,
    )
    document = InferenceResponse(model_name=name, model_version=str(version), id=request_id, outputs=[tensor])
    head = document.model_dump_json(exclude_none=True).encode()
    if not is_binary:
        return head, {"Content-Type": "application/json"}
    return head + data, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def _first_error(error: ValidationError) -> str:
    """Return what is wrong with a request, by the names of its parts."""
    found = error.errors(include_url=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]]
    field = "".join(parts).removeprefix(".") or "request"
    if field in _ARRAYS:
        return f"{field}: expected {_ARRAYS[field]}"
    match found["type"]:
        case "missing":
            return f"{field}: it is missing"
        case "literal_error":
            return f"{field}: expected {found['ctx']['expected']}, got {_shown(found['input'])}"
        case "value_error":
            return f"{field}: {found['ctx']['error']}"
        case "model_type":
            return f"{field}: expected a JSON object"
        case kind:
            return f"{field}: expected {_TYPES.get(kind, found['msg'])}, got {_shown(found['input'])}"


_ARRAYS = {
    "inputs": f"an array with one tensor, {INPUT_NAME!r}",
    "outputs": f"an array with one tensor, {OUTPUT_NAME!r}, or none",
}
_TYPES = {
    "bool_type": "true or false",
    "string_type": "a string",
}


def _shape(found: object, image_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    if isinstance(found, list) and all(type(size) is int for size in found):
        num_images, *rest = found or [0]
        if num_images >= 1 and tuple(rest) == image_shape:
            return (num_images, *image_shape)
    expected = ", ".join(map(str, image_shape))
    raise malformed(f"inputs[0].shape: expected [B >= 1, {expected}], got {_shown(found)}")


def _data(tensor: InputTensor, shape: tuple[int, int, int, int], binary: bytes) -> Floats:
    count = shape[0] * shape[1] * shape[2] * shape[3]
    size = None if tensor.parameters is None else tensor.parameters.binary_data_size
    if size is None:
        if binary:
            raise malformed(f"expected no bytes after the JSON object, got {len(binary)}: no tensor is binary")
        return _numbers(tensor.data, count).reshape(shape)
    if tensor.data is not None:
        raise malformed("inputs[0]: expected either data or binary_data_size, got both")
    if type(size) is not int or size != count * FLOAT_BYTES:
        expected = f"{count * FLOAT_BYTES} for this shape"
        raise malformed(f"inputs[0].parameters.binary_data_size: expected {expected}, got {_shown(size)}")
    if len(binary) != size:
        raise malformed(f"expected {size} bytes after the JSON object, got {len(binary)}")
    return np.frombuffer(binary, dtype="<f4").astype(np.float32, copy=False).reshape(shape)


def _numbers(data: object, count: int) -> Floats:
    """Return the numbers of an array, flat or nested, as float32 (count,)."""
    flat = data
    try:
        for _ in range(NUM_DIMENSIONS - 1):
            if isinstance(flat, list) and flat and isinstance(flat[0], list):
                flat = list(chain.from_iterable(flat))
        # Not numpy, which takes strings for numbers, and makes arrays as wide as the longest of them.
        numbers = array("d", flat if isinstance(flat, list) else "")
    except (TypeError, OverflowError):
        raise malformed("inputs[0].data: expected an array of numbers, flat or nested like the shape") from None
    if len(numbers) != count:
        raise malformed(f"inputs[0].data: expected {count} numbers for this shape, got {len(numbers)}")
    with np.errstate(over="ignore"):  # infinity is found where the values are checked
        return np.frombuffer(numbers).astype(np.float32)


def _check_values(images: Floats) -> None:
    """Raise a Problem unless all values are within [0, 1]; NaN is not."""
    lowest = images.min(axis=(1, 2, 3))
    highest = images.max(axis=(1, 2, 3))
    if (bad := np.flatnonzero(~((lowest >= 0) & (highest <= 1)))).size:
        index = int(bad[0])
        low, high = lowest[index], highest[index]
        found = f"from {_digits(low)} to {_digits(high)}"
        hint = ""
        if high > EIGHT_BITS_FROM:
            hint = " (pixels of 8 bits are divided by 255)"
        elif low >= -ROUNDING and high <= 1 + ROUNDING:
            hint = " (clip what rounding took beyond)"
        raise malformed(f"inputs[0].data: image {index}: expected values within [0, 1], got {found}{hint}")


def _digits(number: np.float32) -> str:
    """Return as many digits as tell a number from all others: 1.0000001 is not 1."""
    return str(number).removesuffix(".0")


def _shown(value: object) -> str:
    return json.dumps(value)[:80]
