"""The Open Inference Protocol of a running server, asked by the client of Triton and by hand."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from deploy.runtime import Bundle, find_bundle
from service.store.database import Database
from service.store.registry import Registry
from tests.service.conftest import Server, as_parts, encode
from training.images import to_input
from training.manifest import read_manifest

pytestmark = pytest.mark.e2e

MODEL = "models-are-deployments"
TEMPERATURES = {1: 1.0, 2: 2.5, 3: 0.5}  # by version
NAMES = ("linf", "nominal", "l2", "l1")


@pytest.fixture(scope="module")
def model(server: Server) -> Iterator[str]:
    """A deployment of three versions, the second of which is served."""
    assert server.client.put(f"/deployments/{MODEL}", json={"base_set": "tiny"}).status_code == 201
    database = Database(f"sqlite:///{server.home / 'registry.db'}")
    registry = Registry(database)
    first = registry.soup(MODEL, 1)
    for version, temperature in TEMPERATURES.items():
        if version > 1:
            share = version / 10
            coefficients = {"linf": 1 - share, "nominal": share, "l2": 0.0, "l1": 0.0}
            registry.dial(MODEL, first.model_copy(update={"coefficients": coefficients, "temperature": temperature}))
    registry.dial(MODEL, first.model_copy(update={"base_digest": "0" * 64}))  # made for other weights
    database.close()
    assert server.client.put(f"/deployments/{MODEL}/soup", json={"version": 2}).status_code == 200
    yield MODEL
    assert server.client.delete(f"/deployments/{MODEL}").status_code == 204


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(11).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def ask(
    triton: InferenceServerClient, model: str, images: np.ndarray, *, is_binary: bool = True, **options: Any
) -> InferResult:
    tensor = InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=is_binary)
    outputs = [InferRequestedOutput("logits", binary_data=is_binary)]
    return triton.infer(model, [tensor], outputs=outputs, **options)


def expected_logits(server: Server, pixels: np.ndarray, coefficients: dict[str, float]) -> np.ndarray:
    folder = server.bases / "tiny"
    bundle = find_bundle(folder, read_manifest(folder), None)
    assert bundle is not None
    return Bundle.open(bundle).session(coefficients).run(to_input(pixels))


def test_health_and_metadata(triton: InferenceServerClient, model: str) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(model)
    assert triton.is_model_ready(model, "3")
    assert not triton.is_model_ready(model, "9")
    assert not triton.is_model_ready(model, "4")
    assert not triton.is_model_ready("none")
    server = triton.get_server_metadata()
    assert server["name"] == "saucier"
    assert "binary_tensor_data" in server["extensions"]
    found = triton.get_model_metadata(model)
    assert found["name"] == model
    assert found["versions"] == ["1", "2", "3"]  # not the one of other weights
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert (found["parameters"]["version"], found["parameters"]["temperature"]) == ("2", 2.5)
    assert found["parameters"]["class_names"] == ["cat", "dog", "ship"]
    assert triton.get_model_metadata(model, "3")["parameters"]["temperature"] == 0.5


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_answers_with_its_own_logits(
    server: Server, triton: InferenceServerClient, model: str, pixels: np.ndarray, version: int, is_binary: bool
) -> None:
    share = 0 if version == 1 else version / 10
    expected = expected_logits(server, pixels, dict(zip(NAMES, (1 - share, share, 0.0, 0.0), strict=True)))
    found = ask(triton, model, to_input(pixels), model_version=str(version), is_binary=is_binary, request_id="mine")
    assert found.as_numpy("logits").dtype == np.float32
    np.testing.assert_allclose(found.as_numpy("logits"), expected, atol=1e-5)
    answer = found.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (model, str(version), "mine")
    if version == 2:
        current = ask(triton, model, to_input(pixels), is_binary=is_binary)
        np.testing.assert_array_equal(current.as_numpy("logits"), found.as_numpy("logits"))
        assert current.get_response()["model_version"] == "2"


def test_binary_is_the_answer_where_the_request_asks_for_it(
    triton: InferenceServerClient, model: str, pixels: np.ndarray
) -> None:
    tensor = InferInput("images", [5, 3, 16, 16], "FP32")
    tensor.set_data_from_numpy(to_input(pixels))
    found = triton.infer(model, [tensor])  # no outputs named: the client asks for bytes of all
    assert found.get_output("logits")["parameters"] == {"binary_data_size": 5 * 3 * 4}
    mixed = triton.infer(model, [tensor], outputs=[InferRequestedOutput("logits", binary_data=False)])
    assert len(mixed.get_output("logits")["data"]) == 15
    np.testing.assert_array_equal(found.as_numpy("logits"), mixed.as_numpy("logits"))


def test_more_images_than_a_batch_come_back_in_order(triton: InferenceServerClient, model: str) -> None:
    images = np.random.default_rng(2).random((75, 3, 16, 16), dtype=np.float32)
    whole = ask(triton, model, images).as_numpy("logits")
    single = np.concatenate([ask(triton, model, image[None]).as_numpy("logits") for image in images[::15]])
    np.testing.assert_allclose(whole[::15], single, atol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), version=st.sampled_from([None, 1, 2, 3]))
def test_softmax_at_the_temperature_is_what_predict_says(
    server: Server, triton: InferenceServerClient, model: str, seed: int, count: int, version: int | None
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    if version is not None:
        server.client.put(f"/deployments/{model}/soup", json={"version": version})
    metadata = triton.get_model_metadata(model)["parameters"]
    found = ask(triton, model, to_input(pixels))
    assert found.get_response()["model_version"] == metadata["version"]
    logits = found.as_numpy("logits").astype(float) / metadata["temperature"]
    confidences = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidences /= confidences.sum(axis=1, keepdims=True)
    answer = server.client.post(f"/predict?deployment={model}", files=as_parts([encode(one) for one in pixels])).json()
    assert str(answer["version"]) == metadata["version"]
    for row, prediction in zip(confidences, answer["predictions"], strict=True):
        said = {score["index"]: score["confidence"] for score in prediction["top_k"]}
        assert said == pytest.approx(dict(enumerate(row)), abs=2e-6)
        assert metadata["class_names"][prediction["index"]] == prediction["label"]


def request(images: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """A JSON request for two images, with fields of its tensor changed; None leaves one out."""
    images = np.full((2, 3, 16, 16), 0.5) if images is None else images
    tensor = {"name": "images", "datatype": "FP32", "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return {"inputs": [{key: value for key, value in (tensor | changes).items() if value is not None}]}


HALF = np.full((2, 3, 16, 16), 0.5)
WRONG: dict[str, tuple[Any, str]] = {
    "no inputs": ({}, "inputs: expected an array with one tensor, 'images'"),
    "two inputs": ({"inputs": request()["inputs"] * 2}, "inputs: expected an array with one"),
    "not an object": ([], "request: expected a JSON object"),
    "input not an object": ({"inputs": [1]}, r"inputs\[0\]: expected a JSON object"),
    "another name": (request(name="pixels"), "name: expected 'images', got \"pixels\""),
    "another datatype": (request(datatype="UINT8"), "datatype: expected 'FP32', got \"UINT8\""),
    "no name": (request(name=None), r"inputs\[0\].name: it is missing"),
    "no shape": (request(shape=None), r"inputs\[0\].shape: it is missing"),
    "no images": (request(shape=[0, 3, 16, 16], data=[]), r"shape: expected \[B >= 1, 3, 16, 16\]"),
    "negative": (request(shape=[-2, 3, 16, 16]), r"shape: expected \[B >= 1"),
    "another size": (request(np.full((2, 3, 8, 8), 0.5)), r"got \[2, 3, 8, 8\]"),
    "channels last": (request(np.full((2, 16, 16, 3), 0.5)), r"got \[2, 16, 16, 3\]"),
    "three dimensions": (request(HALF[0]), r"got \[3, 16, 16\]"),
    "empty shape": (request(shape=[]), r"got \[\]"),
    "shape of floats": (request(shape=[2.0, 3, 16, 16]), "shape: expected"),
    "shape of text": (request(shape="2,3,16,16"), "shape: expected"),
    "shape of booleans": (request(shape=[True, 3, 16, 16]), "shape: expected"),
    "too few numbers": (request(data=[0.5] * 10), "data: expected 1536 numbers for this shape, got 10"),
    "no data": (request(data=None), "data: expected an array of numbers"),
    "empty data": (request(data=[]), "expected 1536 numbers for this shape, got 0"),
    "text": (request(data=["0.5"] * 1536), "data: expected an array of numbers"),
    "null": (request(data=[None] * 1536), "data: expected an array of numbers"),
    "object": (request(data={"a": 1}), "data: expected an array of numbers"),
    "huge integer": (request(data=[10**400] * 1536), "data: expected an array of numbers"),
    "too deep": (request(data=[[[[[0.5]]]]] * 1536), "data: expected an array of numbers"),
    "NaN": (
        request(np.where(HALF == 0.5, np.nan, 0)),
        r"image 0: expected values within \[0, 1\], got from nan to nan",
    ),
    "one NaN": (request(np.concatenate([HALF[:1], HALF[1:] * np.array([1, np.nan, 1])[:, None, None]])), "image 1: "),
    "infinity": (request(HALF * np.inf), "image 0: expected values within"),
    "beyond float32": (request(HALF * 1e60), "image 0: expected values within"),
    "bytes as numbers": (request(HALF * 510), r"got from 255 to 255 \(pixels of 8 bits are divided by 255\)"),
    "a little above one": (request(HALF * 2.0000002), r"got from 1.0000001 to 1.0000001 \(clip what"),
    "a little below zero": (request(HALF - 0.5000001), r"got from -1e-07 to -1e-07 \(clip what"),
    "below zero": (request(HALF - 0.6), r"within \[0, 1\], got from -0.1 to -0.1"),
    "another output": ({**request(), "outputs": [{"name": "labels"}]}, "name: expected 'logits', got \"labels\""),
    "output not an object": ({**request(), "outputs": [1]}, r"outputs\[0\]: expected a JSON object"),
    "classification": (
        {**request(), "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        "classification: not supported here",
    ),
    "shared memory": (request(parameters={"shared_memory_region": "a"}), "shared_memory_region: not supported here"),
    "flag of text": ({**request(), "parameters": {"binary_data_output": "yes"}}, "expected true or false"),
    "parameters not an object": ({**request(), "parameters": [1]}, "parameters: expected a JSON object"),
    "id of a number": ({**request(), "id": 7}, "id: expected a string, got 7"),
    "id of half a letter": ({**request(), "id": "\ud800"}, "id: expected whole letters"),
    "outputs not an array": ({**request(), "outputs": {}}, "outputs: expected an array with one tensor, 'logits', or"),
    "no size": (request(data=None, parameters={"binary_data_size": 0}), "size: expected 6144 for this shape, got 0"),
}


def refusal(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    message: str = body["error"]
    return message


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_request_is_refused_with_what_was_expected(server: Server, model: str, kind: str) -> None:
    body, expected = WRONG[kind]
    response = server.client.post(f"/v2/models/{model}/infer", content=json.dumps(body))
    assert re.search(expected, refusal(response, 400)), response.text


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"inputs": [NaN'])
def test_what_is_not_json_is_refused(server: Server, model: str, text: bytes) -> None:
    response = server.client.post(f"/v2/models/{model}/infer", content=text)
    assert "request: expected JSON" in refusal(response, 400)


def binary(model: str, head: dict[str, Any], data: bytes, length: Any = None) -> dict[str, Any]:
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text) if length is None else length)}
    return {"url": f"/v2/models/{model}/infer", "content": text + data, "headers": headers}


def test_wrong_binary_sizes_are_refused(server: Server, model: str) -> None:
    data = HALF.astype("<f4").tobytes()
    size = len(data)

    def head(declared: Any) -> dict[str, Any]:
        return request(data=None, parameters={"binary_data_size": declared})

    def refused(**arguments: Any) -> str:
        return refusal(server.client.post(**arguments), 400)

    assert server.client.post(**binary(model, head(size), data)).status_code == 200
    assert "expected 6144 for this shape, got 6143" in refused(**binary(model, head(size - 1), data[:-1]))
    assert "expected 6144 for this shape, got -1" in refused(**binary(model, head(-1), data))
    assert "expected 6144 for this shape, got true" in refused(**binary(model, head(True), data))
    assert "expected 6144 bytes after the JSON object, got 6140" in refused(**binary(model, head(size), data[:-4]))
    assert "expected 6144 bytes after the JSON object, got 6148" in refused(
        **binary(model, head(size), data + data[:4])
    )
    assert "expected no bytes after the JSON object" in refused(**binary(model, request(), data))
    assert "either data or binary_data_size" in refused(
        **binary(model, request(parameters={"binary_data_size": size}), data)
    )
    for length in ("-1", "1e3", "x", "", 10**6, "9" * 30, "\u0663"):
        arguments = binary(model, head(size), data)
        arguments["headers"] = {"Inference-Header-Content-Length": str(length).encode()}
        assert "Inference-Header-Content-Length: expected at most" in refused(**arguments)
    assert "request: expected JSON" in refused(**binary(model, head(size), data, length=20))
    broken = np.array(HALF, dtype="<f4")
    broken[1, 0, 0, 0] = np.nan
    assert "image 1: expected values within" in refused(**binary(model, head(size), broken.tobytes()))


def test_limits_hold_here_too(server: Server, model: str) -> None:
    url = f"/v2/models/{model}/infer"
    many = request(data=None, shape=[301, 3, 16, 16], parameters={"binary_data_size": 301 * 3072})
    assert "at most 300 images" in refusal(server.client.post(**binary(model, many, b"")), 413)
    assert "at most 2 MB" in refusal(server.client.post(url, content=b" " * 2_100_000), 413)
    packed = server.client.post(url, content=b"x", headers={"content-encoding": "gzip"})
    assert "Content-Encoding" in refusal(packed, 415)


def test_unknown_models_versions_and_routes_are_404_in_the_protocols_form(
    server: Server, triton: InferenceServerClient, model: str
) -> None:
    images = HALF.astype(np.float32)
    with pytest.raises(InferenceServerException, match="there is no deployment 'none'") as unknown:
        ask(triton, "none", images)
    assert unknown.value.status() == "404"
    for version in ("9", "0", "01", "x", "-1", "9" * 40):
        with pytest.raises(InferenceServerException, match="the deployment has no version"):
            ask(triton, model, images, model_version=version)
        assert not triton.is_model_ready(model, version)
    with pytest.raises(InferenceServerException, match="made for other weights") as outdated:
        ask(triton, model, images, model_version="4")
    assert outdated.value.status() == "409"
    for path in ("/v2/nothing", "/v2/models", f"/v2/models/{model}/config", f"/v2/models/{model}/versions", "/v2/x/y"):
        refusal(server.client.get(path), 404)
    wrong_method = server.client.get(f"/v2/models/{model}/infer")
    refusal(wrong_method, 405)
    assert "POST" in wrong_method.headers["allow"]
    refusal(server.client.get("/v2/models/none/ready"), 404)
    elsewhere = server.client.get("/v20")
    assert elsewhere.headers["content-type"] == "application/problem+json"


def test_refusals_of_the_gate_have_the_protocols_form(server: Server, model: str) -> None:
    refusal(server.client.get("/v2", headers={"host": "elsewhere.example"}), 403)
    evil = {"origin": "http://evil.example"}
    refusal(server.client.post(f"/v2/models/{model}/infer", json=request(), headers=evil), 403)
    for probe in ("/v2/health/live", "/v2/health/ready"):
        assert server.client.get(probe, headers={"host": "10.0.0.7:3000"}).status_code == 200


def test_metrics_count_images_and_confidences_of_the_current_version_only(
    server: Server, triton: InferenceServerClient, model: str, pixels: np.ndarray
) -> None:
    def counts() -> tuple[float, float]:
        lines = dict(line.rsplit(" ", 1) for line in server.client.get("/metrics").text.splitlines() if line[0] != "#")
        label = f'{{deployment="{model}"}}'
        return (
            float(lines[f"saucier_predict_images_total{label}"]),
            float(lines[f"saucier_predict_confidence_count{label}"]),
        )

    server.client.put(f"/deployments/{model}/soup", json={"version": 2})
    ask(triton, model, to_input(pixels))
    images, confidences = counts()
    ask(triton, model, to_input(pixels))
    ask(triton, model, to_input(pixels), model_version="2")
    ask(triton, model, to_input(pixels), model_version="1")
    assert counts() == (images + 15, confidences + 10)


def test_images_are_sampled_where_a_reservoir_is_on(
    server: Server, triton: InferenceServerClient, model: str, pixels: np.ndarray
) -> None:
    url, folder = f"/deployments/{model}/reservoir", server.home / "reservoirs"
    assert server.client.put(url, json={"size": 50}).status_code == 201
    server.wait_for(lambda: len(list(folder.glob("*/*.bin"))) == 2, "reservoir of both workers")
    ask(triton, model, to_input(pixels))
    server.wait_for(
        lambda: server.client.get(f"/deployments/{model}").json()["reservoir"]["kept"] == 5, "sampled images"
    )
    records = b"".join(path.read_bytes() for path in folder.glob("*/*.bin"))
    assert all(picture.tobytes() in records for picture in pixels)
    assert server.client.delete(url).status_code == 204
