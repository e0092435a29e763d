"""`POST /predict` of a running server: right answers, in every way to send an image."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.service.conftest import Labelled, Server, as_parts, encode
from training.bases import load_base_set
from training.images import to_input

pytestmark = pytest.mark.e2e


def predictions(client: httpx.Client, files: list[bytes], **query: Any) -> list[dict[str, Any]]:
    response = client.post("/predict", params=query, files=as_parts(files))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def test_answers_are_those_of_torch_in_request_order(server: Server, labelled: Labelled, tiny_base_set: Path) -> None:
    with torch.no_grad():
        logits = load_base_set(tiny_base_set).model("linf")(torch.from_numpy(to_input(labelled.pixels)))
    expected = torch.softmax(logits.double(), dim=1).numpy()
    found = predictions(server.client, labelled.files, top_k=3)
    assert [item["index"] for item in found] == expected.argmax(1).tolist()
    for item, row in zip(found, expected, strict=True):
        assert item["label"] == labelled.class_names[item["index"]]
        assert item["confidence"] == item["top_k"][0]["confidence"]
        assert {entry["index"]: entry["confidence"] for entry in item["top_k"]} == pytest.approx(
            dict(enumerate(row)), abs=1e-4
        )


def test_answer_names_deployment_and_version(server: Server, labelled: Labelled) -> None:
    body = server.client.post("/predict?deployment=default", files=as_parts(labelled.files[:2])).json()
    assert set(body) == {"deployment", "version", "predictions"}
    assert (body["deployment"], body["version"]) == ("default", 1)


@pytest.mark.parametrize(("top_k", "length"), [(1, 1), (2, 2), (3, 3), (99, 3), ("99999999999999999999", 3)])
def test_top_k_is_clipped_at_the_number_of_classes(server: Server, labelled: Labelled, top_k: Any, length: int) -> None:
    (item,) = predictions(server.client, labelled.files[:1], top_k=top_k)
    assert len(item["top_k"]) == length
    scores = [entry["confidence"] for entry in item["top_k"]]
    assert scores == sorted(scores, reverse=True)


def test_multipart_raw_and_json_give_the_same_answer(server: Server, labelled: Labelled) -> None:
    file = labelled.files[0]
    form = server.client.post("/predict", files=as_parts([file])).json()
    raw = server.client.post("/predict", content=file, headers={"content-type": "image/png"}).json()
    text = server.client.post("/predict", json={"images": [base64.b64encode(file).decode()]}).json()
    assert form == raw == text


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def variants() -> dict[str, tuple[bytes, bytes]]:
    """Unusual files, each beside a plain RGB PNG of the picture a viewer shows."""
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = rgb.quantize(200)
    cmyk = save(rgb.convert("CMYK"), "JPEG", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = save(rgb, "JPEG", quality=95, exif=exif)
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(turned))), k=-1)
    return {
        "grey": (save(grey, "PNG"), encode(np.stack([np.asarray(grey)] * 3, axis=2))),
        "16-bit": (save(deep, "PNG"), encode(np.stack([np.asarray(grey)] * 3, axis=2))),
        "palette": (save(palette, "PNG"), encode(np.asarray(palette.convert("RGB")))),
        "cmyk": (cmyk, encode(np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))),
        "exif": (turned, encode(np.ascontiguousarray(upright))),
        "still gif": (save(palette, "GIF"), encode(np.asarray(palette.convert("RGB")))),
        "webp": (save(rgb, "WEBP", lossless=True), encode(pixels)),
    }


@pytest.mark.parametrize("kind", list(variants()))
def test_unusual_files_are_read_as_a_viewer_shows_them(server: Server, kind: str) -> None:
    unusual, plain = variants()[kind]
    one, other = predictions(server.client, [unusual, plain])
    assert one == other


def test_large_picture_is_resized(server: Server) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (640, 384, 3), dtype=np.uint8)
    halfway = Image.fromarray(pixels).reduce((12, 20))  # by whole factors to twice the size at least, as documented
    small = np.asarray(halfway.resize((16, 16), Image.Resampling.BICUBIC))
    large = encode(pixels)
    assert len(large) > 500_000
    one, other = predictions(server.client, [large, encode(small)])
    assert one == other


def test_metrics_count_both_workers(server: Server, labelled: Labelled) -> None:
    def total() -> float:
        text = server.client.get("/metrics").text
        found = re.search(r'^saucier_predict_images_total{deployment="default"} (\S+)$', text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = total()
    for _ in range(40):  # a new connection each time: both workers take some
        assert httpx.post(f"{server.url}/predict", files=as_parts(labelled.files[:3])).status_code == 200
    assert total() == before + 120
    assert total() == total()


def test_every_metric_of_the_contract_is_there(server: Server, labelled: Labelled) -> None:
    predictions(server.client, labelled.files[:1])
    text = server.client.get("/metrics").text
    for name in (
        "predict_images_total",
        "predict_confidence",
        "inference_seconds",
        "batch_size",
        "soup_version",
        "swap_seconds",
        "swap_failures_total",
    ):
        assert re.search(rf'^saucier_{name}(_count)?{{deployment="default"}}', text, re.MULTILINE), name
    for ingredient in ("linf", "nominal", "l2", "l1"):
        assert f'saucier_soup_coefficient{{deployment="default",ingredient="{ingredient}"}}' in text


def test_service_pages_are_ours(server: Server) -> None:
    assert server.client.get("/livez").status_code == 200
    assert server.client.get("/readyz").status_code == 200
    assert server.client.get("/").json()["service"] == "saucier"
    assert server.client.get("/docs").headers["content-type"].startswith("text/html")
    assert "/predict" in server.client.get("/openapi.json").json()["paths"]
    for path in ("/docs.json", "/static_content/index.css", "/assets/x"):
        response = server.client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
