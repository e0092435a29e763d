"""Bodies of the Open Inference Protocol: JSON and bytes say the same, and nothing else is read as a tensor."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tritonclient.http import InferResult

from service.http.inference.tensors import (
    HEADER_LENGTH,
    MAX_JSON_BYTES,
    InferRequest,
    json_size,
    read_request,
    write_answer,
)
from service.http.problems import Problem

SHAPE = (3, 2, 4)
LIMITS = {"max_images": 6, "max_pixels": 40}

batches = st.integers(1, 5).flatmap(
    lambda count: arrays(np.float32, (count, *SHAPE), elements=st.floats(0, 1, width=32))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=20,
)


def read(document: Any, binary: bytes = b"") -> InferRequest:
    head = json.dumps(document).encode()
    return read_request(head + binary, len(head), SHAPE, **LIMITS)


def tensor(images: np.ndarray, **fields: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "images", "datatype": "FP32", "shape": list(images.shape), **fields}]}


@given(images=batches)
def test_flat_nested_and_binary_tensors_are_the_same(images: np.ndarray) -> None:
    forms = (
        read(tensor(images, data=images.reshape(-1).tolist())),
        read(tensor(images, data=images.tolist())),
        read(tensor(images, parameters={"binary_data_size": images.nbytes}), images.astype("<f4").tobytes()),
    )
    for found in forms:
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.images, images)
        assert not found.is_binary


def test_null_is_as_good_as_nothing() -> None:
    """MLServer's client writes null for whatever is not set."""
    images = np.full((1, *SHAPE), 0.5, np.float32)
    document = tensor(images, data=images.tolist(), parameters=None) | {"id": None, "parameters": None, "outputs": None}
    assert read(document).images.shape == images.shape
    output = {"name": "logits", "datatype": None, "shape": None, "data": None, "parameters": None}
    binary = tensor(images, data=None, parameters={"binary_data_size": images.nbytes}) | {"outputs": [output]}
    assert not read(binary, images.tobytes()).is_binary


@given(
    logits=arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    is_binary=st.booleans(),
    request_id=st.none() | st.text(max_size=5),
)
def test_client_reads_the_logits_that_were_written(logits: np.ndarray, is_binary: bool, request_id: str | None) -> None:
    body, headers = write_answer(logits, name="a", version=7, request_id=request_id, is_binary=is_binary)
    length = headers.get(HEADER_LENGTH)
    assert (length is not None) == is_binary
    found = InferResult.from_response_body(body, header_length=None if length is None else int(length))
    np.testing.assert_array_equal(found.as_numpy("logits"), logits)
    assert found.get_response().get("id") == request_id
    assert found.get_response()["model_version"] == "7"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_answer(bad: float) -> None:
    with pytest.raises(FloatingPointError):
        write_answer(np.array([[bad]], np.float32), name="a", version=1, request_id=None, is_binary=True)


@given(document=json_values, binary=st.binary(max_size=8))
def test_any_other_json_is_a_problem_of_the_caller(document: Any, binary: bytes) -> None:
    with pytest.raises(Problem) as refused:
        read(document, binary)
    assert refused.value.status == 400


@given(
    field=st.sampled_from(["name", "datatype", "shape", "data", "parameters"]),
    where=st.sampled_from(["inputs", "outputs", "parameters", "id"]),
    value=json_values,
    binary=st.binary(max_size=8),
)
def test_any_field_of_another_kind_is_a_problem_or_passed_over(
    field: str, where: str, value: Any, binary: bytes
) -> None:
    images = np.full((1, *SHAPE), 0.5, np.float32)
    document = tensor(images, data=images.tolist(), parameters={})
    if where == "inputs":
        document["inputs"][0][field] = value
    else:
        document[where] = value
    found = None
    with suppress(Problem):
        found = read(document, binary)
    assert found is None or found.images.shape == images.shape


def test_limits() -> None:
    with pytest.raises(Problem, match="at most 6 images") as many:
        read(tensor(np.zeros((7, *SHAPE)), data=[]))
    with pytest.raises(Problem, match="at most 40 pixels") as large:
        read(tensor(np.zeros((6, *SHAPE)), data=[]))
    with pytest.raises(Problem, match="send binary tensors") as wordy:
        json_size(None, MAX_JSON_BYTES + 1)
    assert {problem.value.status for problem in (many, large, wordy)} == {413}
    assert json_size("5", MAX_JSON_BYTES + 1) == 5
    with pytest.raises(Problem, match="at most the 4 bytes"):
        json_size("5", 4)
