"""Bodies of HTTP requests that must be refused: forms, JSON, and what their headers say of them."""

import base64
import gzip
import json
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from tests.hostile.pictures import picture, png_bomb, saved

GOOD, OTHER = saved(picture(31)), saved(picture(32))
BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"
DEEP = 100_000


class Body(NamedTuple):
    """A body, its headers, and the statuses that it may be refused with."""

    data: bytes
    headers: dict[str, str]
    statuses: tuple[int, ...]


def form(parts: Iterable[tuple[str, bytes]], *, end: bytes = b"--\r\n", extra: bytes = b"") -> bytes:
    """Return a multipart body; `extra` headers go to every part."""
    body = b""
    for name, data in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="../../etc/passwd"\r\n'
        body += head.encode() + extra + b"\r\n" + data + b"\r\n"
    return body + f"--{BOUNDARY}".encode() + end


@cache
def forms() -> dict[str, Body]:
    """Return multipart bodies that no route takes, whatever its parts are called."""
    images = [("images", GOOD), ("images", OTHER)]
    whole = form(images)
    inner = form(images).replace(BOUNDARY.encode(), b"inner")
    malformed = {
        "nothing": (b"", FORM),
        "no boundary said": (whole, "multipart/form-data"),
        "an empty boundary": (whole, "multipart/form-data; boundary="),
        "a boundary of 71 letters": (whole, f"multipart/form-data; boundary={'x' * 71}"),
        "another boundary": (whole, "multipart/form-data; boundary=wall"),
        "a boundary that is not closed": (form(images, end=b"\r\n"), FORM),
        "a body that ends in a head": (whole[:50], FORM),
        "a body that ends in an image": (whole[:400], FORM),
        "a boundary and nothing else": (b"--frontier", FORM),
        "line ends of Unix": (whole.replace(b"\r\n", b"\n"), FORM),
        "a part without a name": (whole.replace(b' name="images";', b""), FORM),
        "a part without a head": (whole.replace(b"Content-Disposition", b"X-Nothing"), FORM),
        "heads of 100 kB": (form(images, extra=b"X-Long: " + b"x" * 100_000 + b"\r\n"), FORM),
        "heads of 10,000 lines": (form(images, extra=b"X: y\r\n" * 10_000), FORM),
    }
    unusable = {
        "a form in a form": (form([("images", inner)]), FORM),
        "an image in base64": (
            form([("images", base64.b64encode(GOOD))], extra=b"Content-Transfer-Encoding: base64\r\n"),
            FORM,
        ),
        "a part named by NUL": (form([("images\x00", GOOD)]), FORM),
        "a part named by noise": (form([("\u202e\ufeff", GOOD)]), FORM),
        "a part with a long name": (form([("x" * 8000, GOOD)]), FORM),
        "parts without content": (form([("images", b"")] * 20), FORM),
    }
    too_large = {"a thousand empty images": (form([("images", b"")] * 1000), FORM)}
    return {
        name: Body(data, {"content-type": kind}, (status,))
        for status, group in ((400, malformed), (422, unusable), (413, too_large))
        for name, (data, kind) in group.items()
    }


@cache
def labels() -> dict[str, tuple[bytes, int]]:
    """Return contents of the part `labels` beside two good images, with the status of their refusal."""
    malformed = {
        "nothing": b"",
        "text": b"cat,dog",
        "noise": b"\xff\xfe\xfd",
        "Latin-1": '["cät", "dog"]'.encode("latin-1"),
        "two arrays": b"[0][1]",
        "an array that goes on": b"[0, 1] and more",
        "an array that is not closed": b"[0, 1",
        "a trailing comma": b"[0, 1,]",
        "a comment": b"[0, 1] // labels",
        "single quotes": b"['cat', 'dog']",
        "deep nesting": b"[" * DEEP + b"]" * DEEP,
        "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "a number of 5,000 digits": b"[0, " + b"9" * 5000 + b"]",
        "a control character": b'["cat\x00", 0]',
        "XML": b"<labels><label>0</label></labels>",
    }
    unusable: dict[str, Any] = {
        "NaN": b"[0, NaN]",
        "infinity": b"[0, -Infinity]",
        "a number beyond floats": b"[0, 1e999]",
        "a number of 4,000 digits": b"[0, " + b"9" * 4000 + b"]",
        "a number beyond 64 bits": b"[0, 18446744073709551616]",
        "a negative number": b"[0, -1]",
        "a fraction": b"[0, 1.0]",
        "truth": b"[0, true]",
        "null": b"[0, null]",
        "a name in a list": b'[0, ["dog"]]',
        "900 lists in a list": b"[0, " + b"[" * 900 + b"]" * 900 + b"]",
        "an object": b'{"0": 0, "1": 1}',
        "one key twice": b'{"labels": [0, 1], "labels": [0, 2]}',
        "a string": b'"cat"',
        "a lone surrogate": b'[0, "\\ud800"]',
        "NUL in a name": b'[0, "dog\\u0000"]',
        "a name that looks the same": '[0, "d\u043eg"]'.encode(),
        "a name of a megabyte": b'[0, "' + b"x" * 1_000_000 + b'"]',
        "a path": b'[0, "../../../etc/passwd"]',
        "a statement": b'[0, "dog\'; DROP TABLE samples; --"]',
        "ten thousand": json.dumps([0] * 10_000).encode(),
        "one too few": b"[0]",
        "none": b"[]",
    }
    return {name: (text, 400) for name, text in malformed.items()} | {
        name: (text, 422) for name, text in unusable.items()
    }


@cache
def texts() -> dict[str, Body]:
    """Return JSON bodies that no route takes."""
    malformed = {
        "nothing": b"",
        "half an object": b"{",
        "a lone quote": b'"',
        "noise": b"\xff\xff",
        "deep nesting": b"[" * DEEP,
        "deep objects": b'{"a":' * DEEP,
        "a number of 5,000 digits": b'{"version": ' + b"1" * 5000 + b"}",
        "NUL": b"\x00{}",
        "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "gzip": gzip.compress(b"{}"),
        "a gzip bomb": gzip.compress(bytes(50_000_000), 1),
    }
    unusable: dict[str, Any] = {
        "null": None,
        "an array": [],
        "a string": "images",
        "a number": 3,
        "an empty object": {},
        "an unknown field": {"__class__": "os.system"},
        "a field with a long name": {"x" * 100_000: 1},
        "a field of a lone surrogate": {"\ud800": 1},
        "a field without a name": {"": 1},
    }
    return {name: Body(text, {"content-type": JSON}, (400,)) for name, text in malformed.items()} | {
        name: Body(json.dumps(value).encode(), {"content-type": JSON}, (422,)) for name, value in unusable.items()
    }


def images_as_text(url: str) -> dict[str, Body]:
    """Return JSON bodies of `/predict`; `url` is one that must never be asked for."""
    good = base64.b64encode(GOOD).decode()
    items: dict[str, Any] = {
        "no base64": "no!",
        "base64 for URLs": good.replace("+", "-").replace("/", "_") + "-_",
        "base64 with other spaces": f"\u00a0{good}",
        "base64 without its padding": "eA=",
        "base64 and more": f"{good}====eA",
        "base64 of text": base64.b64encode(b"text").decode(),
        "base64 of nothing": "",
        "base64 of base64": base64.b64encode(good.encode()).decode(),
        "a data URL of text": "data:image/png,text",
        "a data URL in a data URL": f"data:image/png;base64,data:image/png;base64,{good}",
        "a data URL that does not begin": f"image/png;base64,{good}",
        "an URL": url,
        "an URL of a file": "file:///etc/passwd",
        "a path": "/etc/passwd",
        "a path upwards": "../../../../etc/passwd",
        "base64 of an URL": base64.b64encode(url.encode()).decode(),
        "an object with an URL": {"url": url},
        "a lone surrogate": "\ud800",
        "letters that are not ASCII": "ä" * 100,
        "NUL": "\x00",
        "null": None,
        "a number": 7,
        "truth": True,
        "a list": [good],
    }
    found = {name: (json.dumps({"images": [good, item]}).encode(), 422) for name, item in items.items()}
    found |= {
        "no list": (json.dumps({"images": good}).encode(), 422),
        "an object instead of a list": (json.dumps({"images": {"0": good}}).encode(), 422),
        "one key twice": (json.dumps({"images": [good]}).encode()[:-1] + b', "images": []}', 422),
        "NaN": (b'{"images": [NaN]}', 422),
        "a deep list": (b'{"images": ' + b"[" * 900 + b"]" * 900 + b"}", 422),
        "a field that is unknown": (json.dumps({"images": [good], "urls": [url]}).encode(), 422),
        "a thousand empty strings": (json.dumps({"images": [""] * 1000}).encode(), 413),
        "a bomb": (json.dumps({"images": [base64.b64encode(png_bomb()).decode()]}).encode(), 413),
    }
    return {name: Body(data, {"content-type": JSON}, (status,)) for name, (data, status) in found.items()}


def soups() -> dict[str, Any]:
    """Return objects that are no body of `PUT /deployments/{name}/soup`; all are refused with 404, 409 or 422."""
    fair = {"linf": 0.25, "nominal": 0.25, "l2": 0.25, "l1": 0.25}
    return {
        "a version beyond 64 bits": {"version": 10**30},
        "a version of 64 bits": {"version": 2**63 - 1},
        "a version of 32 bits": {"version": 2**31},
        "an expected version beyond 64 bits": {"version": 1, "expected_version": 10**30},
        "a version with a fraction": {"version": 1.5},
        "a lone surrogate": {"coefficients": {**fair, "\ud800": 0.0}},
        "a name of 100 kB": {"coefficients": {**fair, "x" * 100_000: 0.0}},
        "ten thousand ingredients": {"coefficients": {str(index): 0.0 for index in range(10_000)}},
        "numbers that cancel out": {"coefficients": {"linf": 1e308, "nominal": -1e308, "l2": 1.0, "l1": 0.0}},
        "a number of 400 digits": {"coefficients": {**fair, "linf": 10**400}},
        "a path": {"coefficients": {"../../etc/passwd": 1.0}},
    }
