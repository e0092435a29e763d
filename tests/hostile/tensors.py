"""Bodies of `/v2/models/{name}/infer` that must be refused: tensors as JSON and as bytes."""

import gzip
import json
import struct
from functools import cache
from typing import Any

import numpy as np

from tests.hostile.bodies import JSON, Body

SIDE = 16  # of the network that they are sent to


def tensor(values: Any, shape: Any, **more: Any) -> dict[str, Any]:
    """Return a request for logits."""
    entry = {"name": "images", "datatype": "FP32", "shape": shape, "data": values}
    return {"inputs": [{**entry, **more}]}


def binary(document: dict[str, Any], data: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    """Return a body of JSON and bytes, and its headers; `length` may lie."""
    head = json.dumps(document).encode()
    said = str(len(head)) if length is None else length
    return head + data, {"content-type": "application/octet-stream", "Inference-Header-Content-Length": said}


@cache
def tensors() -> dict[str, Body]:
    """Return bodies of `/v2/models/{name}/infer` that must be refused."""
    shape, size = [1, 3, SIDE, SIDE], 3 * SIDE**2
    half = [0.5] * size
    documents: dict[str, Any] = {
        "nothing asked": {},
        "inputs that are no list": {"inputs": 3},
        "two tensors": {"inputs": tensor(half, shape)["inputs"] * 2},
        "another name": tensor(half, shape, name="../../etc/passwd"),
        "another type": tensor(half, shape, datatype="BYTES"),
        "no shape": tensor(half, None),
        "a flat shape": tensor(half, [size]),
        "no images": tensor([], [0, 3, SIDE, SIDE]),
        "a negative shape": tensor(half, [-1, 3, SIDE, SIDE]),
        "a shape of truths": tensor(half, [True, 3, SIDE, SIDE]),
        "a shape of fractions": tensor(half, [1.0, 3, SIDE, SIDE]),
        "a shape of text": tensor(half, ["1", "3", "16", "16"]),
        "another size": tensor([0.5] * 3 * 32**2, [1, 3, 32, 32]),
        "one number too few": tensor(half[1:], shape),
        "one number too many": tensor([*half, 0.5], shape),
        "numbers as text": tensor(["0.5"] * size, shape),
        "one text": tensor("0.5" * size, shape),
        "null": tensor([None] * size, shape),
        "truths": tensor([True] * (size - 1) + [{}], shape),
        "ragged lists": tensor([half[:7], half[7:]] * 2, shape),
        "a deep list": json.loads(
            json.dumps(tensor([], shape)).replace('"data": []', '"data": ' + "[" * 200 + "]" * 200)
        ),
        "numbers of 400 digits": tensor([10**400] * size, shape),
        "numbers below 0": tensor([-0.1] * size, shape),
        "numbers above 1": tensor([255.0] * size, shape),
        "NaN": tensor([float("nan")] * size, shape),
        "infinity": tensor([float("inf")] * size, shape),
        "shared memory": tensor(half, shape, parameters={"shared_memory_region": "/dev/shm/x"}),
        "a classification": {**tensor(half, shape), "parameters": {"classification": 3}},
        "parameters that are none": tensor(half, shape, parameters=3),
        "an id that is none": {**tensor(half, shape), "id": {}},
        "another output": {**tensor(half, shape), "outputs": [{"name": "weights"}]},
        "bytes that never come": {
            "inputs": [{**tensor(None, shape)["inputs"][0], "parameters": {"binary_data_size": 4}}]
        },
    }
    found = {
        name: Body(json.dumps(value).encode(), {"content-type": JSON}, (400,)) for name, value in documents.items()
    }
    too_many = {"a shape of a billion images": 10**9, "a shape beyond 64 bits": 10**30}
    for name, count in too_many.items():
        found[name] = Body(json.dumps(tensor(half, [count, *shape[1:]])).encode(), {"content-type": JSON}, (413,))
    entry = {"name": "images", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 4 * size}}
    asked, zeros = {"inputs": [entry]}, bytes(4 * size)
    bits = {"NaN": float("nan"), "infinity": float("inf"), "minus infinity": float("-inf"), "the largest float": 3e38}
    cases = {f"bytes of {name}": binary(asked, struct.pack("<f", value) * size) for name, value in bits.items()}
    cases |= {
        "bytes of noise": binary(asked, np.random.default_rng(1).bytes(4 * size)),
        "too few bytes": binary(asked, zeros[1:]),
        "too many bytes": binary(asked, zeros + b"x"),
        "a size that lies": binary({"inputs": [{**entry, "parameters": {"binary_data_size": 2**40}}]}, zeros),
        "a negative size": binary({"inputs": [{**entry, "parameters": {"binary_data_size": -4}}]}, zeros),
        "data and bytes": binary({"inputs": [{**entry, "data": half}]}, zeros),
        "a header beyond the body": binary(asked, zeros, "99999999"),
        "a header within the JSON": binary(asked, zeros, "7"),
        "a header of 0": binary(asked, zeros, "0"),
        "a negative header": binary(asked, zeros, "-1"),
        "a header that is no number": binary(asked, zeros, "0x10"),
        "a header of 5,000 digits": binary(asked, zeros, "9" * 5000),
        "no JSON": (zeros, {"content-type": "application/octet-stream"}),
    }
    found |= {name: Body(data, headers, (400,)) for name, (data, headers) in cases.items()}
    packed = gzip.compress(json.dumps(tensor(half, shape)).encode())
    found["compressed"] = Body(packed, {"content-type": JSON, "content-encoding": "gzip"}, (415,))
    return found
