"""Taking request bodies apart: multipart, JSON, limits while reading."""

import asyncio
import base64
import gzip
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from service.http.adaptation import Upload, check_upload
from service.http.forms import Part
from service.http.problems import Problem
from service.http.uploads import read_body, read_images, read_json, read_multipart
from service.settings import Settings
from tests.service.conftest import encode
from training.manifest import read_manifest

LIMITS = Settings(max_upload_mb=0.001, max_images=5, upload_timeout_seconds=0.2)
BOUNDARY = "frontier"


def request(chunks: Iterable[bytes], content_type: str, **headers: str) -> Request:
    """A request whose body comes in these chunks; after them it stays silent."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not headers.pop("never_ends", ""):
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.sleep(3600)

    raw = [(b"content-type", content_type.encode())]
    raw += [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw, "state": {}}, receive)


def multipart(parts: Iterable[tuple[str, bytes]], boundary: str = BOUNDARY) -> bytes:
    body = b""
    for name, data in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def parse(body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}") -> list[Part]:
    return asyncio.run(read_multipart(request([body], content_type), LIMITS))


def refusal(run: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        asyncio.run(run)
    return caught.value


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["images", "labels"]), st.binary(max_size=60)), max_size=6))
def test_multipart_gives_back_the_parts(parts: list[tuple[str, bytes]]) -> None:
    if any(f"--{BOUNDARY}".encode() in data for _, data in parts):
        return
    assert parse(multipart(parts)) == [Part(name, data) for name, data in parts]


@pytest.mark.parametrize(
    "content_type",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"multipart/form-data; charset=utf-8; Boundary={BOUNDARY}; x=y",
    ],
)
def test_boundary_is_found_in_its_spellings(content_type: str) -> None:
    assert parse(multipart([("images", b"x")]), content_type) == [Part("images", b"x")]


@pytest.mark.parametrize(
    "parameters",
    [
        b"name=images",
        b'name="images"; filename="a; name="',
        b'filename="a; name="; name="images"',
        b'filename="a; name=labels; b"; name="images"',
        b'filename="\\"; name=labels; \\""; name="images"',
        b"filename*=UTF-8''a%3B%20name%3D; name=images",
        b'NAME="images"; filename=""',
    ],
)
def test_part_has_its_own_name_whatever_its_file_is_called(parameters: bytes) -> None:
    body = b"\r\n--frontier\r\ncontent-disposition: form-data; " + parameters + b"\r\n\r\nx\r\n--frontier--epilogue"
    assert parse(body) == [Part("images", b"x")]


def test_names_are_read_as_utf8() -> None:
    assert parse(multipart([("bïld", b"x")])) == [Part("bïld", b"x")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"--frontier\r\n",
        b'--frontier\r\nContent-Disposition: form-data; name="images"\r\n\r\nno end',
        b"--frontier\r\n\r\nno header\r\n--frontier--",
        b"--frontier\r\nContent-Type: text/plain\r\n\r\nno name\r\n--frontier--",
        b'--frontierX\r\nContent-Disposition: form-data; name="images"\r\n\r\nx\r\n--frontier--',
        multipart([("images", b"x")])[:-12],
        multipart([("images", b"x")])[:-4],
        multipart([("images", b"x")]).replace(b"filename", b"x" * 9000),
        multipart([("images", b"x")]).replace(
            b"\r\n\r\n", b"\r\nX: " + b"y" * 5000 + b"\r\nZ: " + b"y" * 5000 + b"\r\n\r\n"
        ),
        multipart([("images", b"x")]).replace(b"\r\n\r\n", b"\r\nX: y" * 20 + b"\r\n\r\n"),
    ],
)
def test_malformed_multipart_is_a_400(body: bytes) -> None:
    problem = refusal(read_multipart(request([body], f"multipart/form-data; boundary={BOUNDARY}"), Settings()))
    assert problem.status == 400


def test_missing_boundary_is_a_400() -> None:
    assert refusal(read_multipart(request([b"x"], "multipart/form-data"), LIMITS)).status == 400


def test_too_many_parts_are_a_413() -> None:
    body = multipart([("images", b"")] * 6)
    with_others = Settings(max_upload_mb=0.01, max_images=5)
    problem = refusal(read_images(request([body], f"multipart/form-data; boundary={BOUNDARY}"), with_others))
    assert problem.status == 413


def test_declared_size_is_refused_without_reading() -> None:
    problem = refusal(read_body(request([], "image/png", content_length="1001", never_ends="1"), LIMITS))
    assert (problem.status, problem.reason) == (413, "bytes")


def test_undeclared_size_is_refused_once_it_is_too_much() -> None:
    chunks = (b"x" * 400 for _ in range(1000))
    assert refusal(read_body(request(chunks, "image/png", never_ends="1"), LIMITS)).status == 413


def test_body_at_the_limit_is_read_whole() -> None:
    assert asyncio.run(read_body(request([b"x" * 500, b"y" * 500], "image/png"), LIMITS)) == b"x" * 500 + b"y" * 500


def test_slow_body_is_cut_off() -> None:
    problem = refusal(read_body(request([b"x"], "image/png", never_ends="1"), LIMITS))
    assert (problem.status, problem.reason) == (408, "slow")


@pytest.mark.parametrize("text", [b"", b"{", b"nope", b"\xff\xfe\xfd", b"[" * 100_000, b"1" * 5000])
def test_bad_json_is_a_400_that_says_so(text: bytes) -> None:
    problem = refusal(read_json(request([text], "application/json"), Settings()))
    assert problem.status == 400
    assert problem.errors[0].field == "body"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "images"),
        ({"images": "x"}, "images"),
        ({"images": []}, "images"),
        ({"images": [1]}, "images[0]"),
        ({"images": ["eA==", "no!"]}, "images[1]"),
        ({"images": ["eA==", "http://127.0.0.1/x.png"]}, "images[1]"),
        ({"images": ["eA=="], "model": "x"}, "model"),
    ],
)
def test_json_images_that_are_none_are_a_422_naming_the_item(body: Any, field: str) -> None:
    problem = refusal(read_images(request([json.dumps(body).encode()], "application/json"), LIMITS))
    assert problem.status == 422
    assert problem.errors[0].field == field


def test_three_ways_to_send_an_image_are_the_same() -> None:
    raw = request([b"abc"], "image/jpeg")
    form = request([multipart([("images", b"abc")])], f"multipart/form-data; boundary={BOUNDARY}")
    text = request([json.dumps({"images": [base64.b64encode(b"abc").decode()]}).encode()], "application/json; x=y")
    for sent in (raw, form, text):
        assert asyncio.run(read_images(sent, LIMITS)) == [b"abc"]


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,{}",
        "DATA:image/svg+xml;charset=utf-8;BASE64,{}",
        " data:;base64,{}\n",
        "{}\n",
    ],
)
@pytest.mark.parametrize("encode_lines", [base64.b64encode, base64.encodebytes])
def test_data_urls_and_base64_in_lines_are_images(text: str, encode_lines: Any) -> None:
    data = bytes(range(256))
    encoded = encode_lines(data).decode()
    for item in (text.format(encoded), text.format(encoded.replace("\n", "\r\n  "))):
        sent = request([json.dumps({"images": [item]}).encode()], "application/json")
        assert asyncio.run(read_images(sent, LIMITS)) == [data]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "gzip, identity", "identity, gzip"])
@pytest.mark.parametrize("kind", ["application/json", "image/png", f"multipart/form-data; boundary={BOUNDARY}"])
def test_compressed_bodies_are_a_415_that_names_the_header(encoding: str, kind: str) -> None:
    problem = refusal(read_images(request([gzip.compress(b"{}")], kind, content_encoding=encoding), LIMITS))
    assert (problem.status, problem.headers) == (415, {"Accept-Encoding": "identity"})
    assert f"Content-Encoding, got {encoding!r}" in problem.detail
    assert asyncio.run(read_body(request([b"x"], kind, content_encoding="Identity"), LIMITS)) == b"x"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream", "application/x-tar"])
def test_other_media_types_are_a_415(content_type: str) -> None:
    assert refusal(read_images(request([b"x"], content_type), LIMITS)).status == 415


def test_pixels_of_an_archive_count_like_those_of_other_images(tiny_base_set: Path) -> None:
    manifest = read_manifest(tiny_base_set)
    pictures = np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index, picture in enumerate(pictures[:3]):
            archive.writestr(f"cat/{index}.png", encode(picture))
    for unlabelled, size in (([], 3), ([encode(pictures[3])], 4)):
        upload = Upload([], [], packed.getvalue(), unlabelled)
        check_upload(upload, manifest, Settings(max_request_pixels=size * 256))
        with pytest.raises(Problem, match="pixels in one request") as caught:
            check_upload(upload, manifest, Settings(max_request_pixels=size * 256 - 1))
        assert caught.value.status == 413
