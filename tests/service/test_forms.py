"""Forms that are cut directly and forms that the parser reads: the same parts, the same refusals."""

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.http.forms import MAX_OTHER_PARTS, Part, _cut, _Parser, read_form
from service.http.problems import Problem
from service.settings import Settings

BOUNDARY = b"edge"
LIMITS = Settings(max_images=1)
MOST = LIMITS.max_images + MAX_OTHER_PARTS
USUAL = (
    b'Content-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n',
    b'content-disposition: form-data; name="labels"\r\n\r\n',
    b'Content-Disposition: form-data; name=" a= "; filename=""\r\nContent-Type:  x \r\n\r\n',
)
UNUSUAL = (
    b'Content-Disposition: form-data; name="\xc3\xa4=; b"; filename="c"\r\n\r\n',
    b'Content-Disposition: form-data; name="a"; filename="\\"; name=b"\r\n\r\n',
    b'Content-Disposition: form-data; name="a"; filename="b"; name="c"\r\n\r\n',
    b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"\r\n\r\n',
    b"Content-Disposition: form-data; name=a\r\n\r\n",
    b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="a"\r\n\r\n',
    b'Content-Disposition: form-data; filename="a"\r\n\r\n',
    b'Content-Disposition: form-data; name=""\r\n\r\n',
    b'Content-Disposition: form-data; name="a"\r\nContent-Type: \r\n\r\n',
    b'Content-Disposition: form-data; name="a"\n\r\n\r\n',
    b"\r\n",
    b"",
)
PIECES = (
    b"",
    b"x",
    b"\r",
    b"\n",
    b"\r\n",
    b"-",
    b"--",
    b"--edge",
    b"\r\n--edge",
    b"\r\n--edg",
    b" ",
    b"\t",
    b"\r\n\r\n",
)
Outcome = list[Part] | tuple[int, str]


def outcome(body: bytes, *, by_parser: bool) -> Outcome:
    try:
        if not by_parser:
            return read_form(body, BOUNDARY, LIMITS)
        parser = _Parser(BOUNDARY, MOST)
        parser.read(body)
    except Problem as problem:
        return problem.status, problem.detail
    return parser.found if len(parser.found) <= MOST else (413, f"expected at most {LIMITS.max_images} images")


junk = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=4).map(b"".join)
ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"--", b"--\r\n", b" \r\n", b"-", b"\r", b"x", b""])
part = st.tuples(st.sampled_from([*USUAL] * 6 + [*UNUSUAL]), junk, st.just(b"\r\n--edge"), ends).map(b"".join)
forms = st.builds(
    lambda start, parts, rest: start + b"".join(parts) + rest,
    st.sampled_from([b"--edge\r\n"] * 6 + [b"\r\n--edge\r\n", b"--edge", b"x--edge\r\n", b"--edge--", b""]),
    st.lists(part, max_size=6),
    junk,
)


@settings(deadline=None, max_examples=1000)
@given(forms)
@example(b"--edge\r\n" + (USUAL[0] + b"x\r\n--edge\r\n") * (MOST + 1))
@example(b"--edge\r\n" + (USUAL[0] + b"x\r\n--edge\r\n") * MOST)
@example(b"--edge\r\n" + (USUAL[0] + b"x\r\n--edge\r\n") * (MOST - 1) + USUAL[0] + b"\r\n--edge--")
@example(b"--edge\r\n" + USUAL[0] + b"--edge--")
def test_cutting_and_parsing_agree(body: bytes) -> None:
    assert outcome(body, by_parser=False) == outcome(body, by_parser=True)


@pytest.mark.parametrize("name", ["images", "bïld"])
def test_what_clients_send_is_cut(name: str) -> None:
    parts = [
        (name, ("a photo (1).png", b"one", "image/png")),
        (name, ("b.bin", b"\r\n--two")),
        ("labels", (None, "[0, 1]")),
    ]
    request = httpx.Request("POST", "http://here", files=parts)
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    expected = [Part(name, b"one"), Part(name, b"\r\n--two"), Part("labels", b"[0, 1]")]
    assert _cut(request.read(), boundary, MOST) == expected


@pytest.mark.parametrize("head", UNUSUAL)
def test_unusual_heads_are_left_to_the_parser(head: bytes) -> None:
    assert _cut(b"--edge\r\n" + head + b"x\r\n--edge--\r\n", BOUNDARY, MOST) is None
