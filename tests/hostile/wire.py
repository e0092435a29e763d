"""What HTTP must not look like on a connection: heads and frames that lie, and other protocols."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.hostile.bodies import BOUNDARY, FORM, GOOD, form

BODY = form([("images", GOOD)])
PNG = b"content-type: image/png\r\n"


def request(head: bytes, body: bytes = b"", *, path: bytes = b"/predict", method: bytes = b"POST") -> bytes:
    """Return a request with these lines in its head."""
    return method + b" " + path + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n" + head + b"\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    """Return a request whose body is in chunks, written out."""
    return request(PNG + b"transfer-encoding: chunked\r\n", b"".join(chunks))


def length(said: bytes, body: bytes = GOOD) -> bytes:
    """Return a request that says how long its body is."""
    return request(PNG + b"content-length: " + said + b"\r\n", body)


def connections() -> Mapping[str, bytes]:
    """Return all that is sent before our side is closed; whatever is answered is a 4xx, or nothing."""
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    sent = b"content-length: %d\r\n" % len(BODY)
    return {
        "nothing": b"",
        "noise": bytes(range(256)) * 8,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/0.9": b"GET /\r\n",
        "HTTP/9.9": b"GET /deployments/x HTTP/9.9\r\nhost: 127.0.0.1\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "a request for a proxy": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        "a method of 10 kB": request(b"", method=b"X" * 10_000),
        "a method that is none": request(b"", method=b"P\x00ST"),
        "a path of 100 kB": request(b"", path=b"/" + b"x" * 100_000, method=b"GET"),
        "a path with NUL": request(b"", path=b"/ui/\x00", method=b"GET"),
        "a path upwards": request(b"", path=b"/ui/../../../../etc/passwd", method=b"GET"),
        "a path upwards, written in code": request(b"", path=b"/ui/..%2f..%2f..%2fetc%2fpasswd", method=b"GET"),
        "a path upwards, by backslashes": request(b"", path=b"/ui/..%5c..%5cwin.ini", method=b"GET"),
        "a path with a NUL in code": request(b"", path=b"/ui/main.js%00.png", method=b"GET"),
        "a path of bytes that are no text": request(b"", path=b"/deployments/%ff%fe", method=b"GET"),
        "a head of 100 kB": request(b"x-long: " + b"x" * 100_000 + b"\r\n", method=b"GET", path=b"/bases"),
        "a head of 20,000 lines": request(b"x: y\r\n" * 20_000, method=b"GET", path=b"/bases"),
        "NUL in the head": request(b"x: a\x00b\r\n", path=b"/nowhere", method=b"GET"),
        "a line without a colon": request(b"nonsense\r\n", path=b"/nowhere", method=b"GET"),
        "no host": b"GET /deployments HTTP/1.1\r\n\r\n",
        "two hosts": request(b"host: evil.example\r\n", path=b"/nowhere", method=b"GET"),
        "a foreign host": b"GET /deployments HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        "a length that is too long": length(b"%d" % (len(GOOD) + 100)),
        "a length that is too short": length(b"%d" % (len(GOOD) - 100)),
        "a negative length": length(b"-1"),
        "a length that is no number": length(b"many"),
        "a length with a sign": length(b"+%d" % len(GOOD)),
        "a length beyond 64 bits": length(b"9" * 30),
        "a length of 9 EB": length(b"9223372036854775807"),
        "two lengths": request(PNG + b"content-length: 5\r\ncontent-length: 6\r\n", GOOD),
        "a length and chunks": request(PNG + b"content-length: 4\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\nGET /"),
        "chunks, said twice": request(PNG + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n", whole),
        "a transfer encoding that is none": request(PNG + b"transfer-encoding: gzip\r\n", GOOD),
        "chunks that never end": chunked(b"%x\r\n%s\r\n" % (len(GOOD), GOOD)),
        "a chunk that breaks off": chunked(b"ffff\r\n", GOOD),
        "a chunk whose size is no number": chunked(b"xyz\r\n", GOOD),
        "a negative chunk": chunked(b"-5\r\n", GOOD),
        "a chunk of 16 EiB": chunked(b"ffffffffffffffff\r\n", GOOD),
        "a chunk beyond 64 bits": chunked(b"f" * 40 + b"\r\n", GOOD),
        "a chunk that is longer than it says": chunked(b"5\r\n", GOOD, b"\r\n0\r\n\r\n"),
        "a chunk with an extension of 100 kB": chunked(b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n"),
        "a thousand chunks of a byte, and no end": chunked(b"1\r\nx\r\n" * 1000),
        "trailers without end": chunked(b"0\r\n", b"x: y\r\n" * 20_000),
        "a body that waits to be asked": request(b"expect: 200-maybe\r\n" + PNG + b"content-length: 0\r\n"),
        "a form that breaks off": request(b"content-type: " + FORM.encode() + b"\r\n" + sent, BODY[:-200]),
        "a form of another length": request(
            b"content-type: " + FORM.encode() + b"\r\ncontent-length: 20\r\n", BODY + BOUNDARY.encode()
        ),
        "a WebSocket": request(
            b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n",
            method=b"GET",
        ),
    }


def addresses() -> Mapping[str, tuple[str, str]]:
    """Return methods and addresses that are refused: numbers and names that nothing has."""
    beyond, surrogate = "9" * 40, "%ed%a0%80"
    deployment = "/deployments/default"
    return {
        "a version beyond 64 bits": ("POST", f"{deployment}/soups/{beyond}/predict"),
        "a version in other digits": ("POST", f"{deployment}/soups/%D9%A1/predict"),
        "a negative version": ("POST", f"{deployment}/soups/-1/predict"),
        "a model's version beyond 64 bits": ("GET", f"/v2/models/default/versions/{beyond}"),
        "a model's version with a fraction": ("GET", "/v2/models/default/versions/1.5/ready"),
        "a name with a statement": ("GET", "/deployments/x'%20OR%201=1;--"),
        "a name of half a letter": ("GET", f"/deployments/{surrogate}"),
        "a name with NUL": ("GET", "/deployments/default%00"),
        "a name of 60 kB": ("GET", f"/deployments/{'x' * 60_000}"),
        "a model of half a letter": ("GET", f"/v2/models/{surrogate}"),
        "a job of half a letter": ("GET", f"/jobs/{surrogate}"),
        "a job with NUL": ("GET", "/jobs/%00/events"),
        "a deployment of half a letter to ask": ("POST", f"/predict?deployment={surrogate}"),
        "a deployment with NUL to ask": ("POST", "/predict?deployment=default%00"),
        "top_k in other digits": ("POST", "/predict?top_k=%D9%A1"),
        "top_k twice": ("POST", "/predict?top_k=1&top_k=2"),
        "a wait that is no number": ("POST", "/adapt?wait=nan"),
        "a wait without end": ("POST", "/adapt?wait=inf"),
        "events before a number that is none": ("GET", f"{deployment}/events?before=-1"),
        "no events": ("GET", f"{deployment}/events?limit=0"),
        "no jobs": ("GET", f"{deployment}/jobs?limit=0"),
        "a hash that is none": ("DELETE", f"{deployment}/samples?hash=x"),
        "a hash in capitals": ("DELETE", f"{deployment}/samples?hash={'A' * 64}"),
        "a time that is none": ("DELETE", f"{deployment}/samples?before=yesterday"),
        "a time of nowhere": ("DELETE", f"{deployment}/samples?before=2026-01-31T12:00:00"),
        "a condition that is unknown": ("DELETE", f"{deployment}/samples?clas=cat"),
        "a condition twice": ("DELETE", f"{deployment}/samples?class=cat&class=dog"),
    }


LAST = request(b"connection: close\r\n", path=b"/deployments", method=b"GET")  # answered with 200 where one goes on


class Exchange(NamedTuple):
    """What is sent on one connection, packet by packet, and the statuses of the answers to it."""

    packets: Sequence[bytes]
    statuses: Sequence[int]
    goes_on: bool = True  # the connection takes another request


def upgrades() -> Mapping[str, Exchange]:
    """Return requests that offer another protocol: they are answered as if they did not, and so is what follows."""
    to_h2c = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    to_websocket = (
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
    )
    size, hidden = b"content-length: %d\r\n" % len(GOOD), request(b"", path=b"/deployments", method=b"GET")
    whole = request(PNG + to_h2c + size, GOOD)
    head = whole.removesuffix(GOOD)
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, GOOD[:10], len(GOOD) - 10, GOOD[10:])
    in_chunks = request(PNG + to_h2c + b"transfer-encoding: chunked\r\n")
    smuggling = request(PNG + to_h2c + b"content-length: %d\r\n" % len(hidden))
    form_head = b"content-type: " + FORM.encode() + b"\r\ncontent-length: %d\r\n" % len(BODY)
    return {
        "with a length": Exchange([whole], [200]),
        "a form with a length": Exchange([request(to_h2c + form_head, BODY)], [200]),
        "the body in a second packet": Exchange([head, GOOD], [200]),
        "the body in three packets": Exchange([head + GOOD[:5], GOOD[5:50], GOOD[50:]], [200]),
        "the head in three packets": Exchange([whole[:30], whole[30:100], whole[100:]], [200]),
        "chunks": Exchange([in_chunks + chunks], [200]),
        "chunks in packets": Exchange([in_chunks, chunks[:7], chunks[7:]], [200]),
        "an offer in a trailer": Exchange(
            [
                request(PNG + b"connection: upgrade\r\ntransfer-encoding: chunked\r\n"),
                chunks[:-2] + b"upgrade: h2c\r\n\r\n",
            ],
            [200],
        ),
        "a request as its body": Exchange([smuggling + hidden], [422]),
        "a request as its body, in a second packet": Exchange([smuggling, hidden], [422]),
        "no body": Exchange([request(PNG + to_h2c)], [422]),
        "another request behind it": Exchange([whole + hidden], [200, 200]),
        "two, and another request": Exchange([whole + whole[:90], whole[90:] + hidden], [200, 200, 200]),
        "one behind another request": Exchange([hidden + head, GOOD], [200, 200]),
        "the last on its connection": Exchange(
            [whole.replace(b"Upgrade, ", b"close, Upgrade, ") + hidden], [200], goes_on=False
        ),
        "two offers": Exchange([whole.replace(b"upgrade: h2c", b"upgrade: h2c, websocket\r\nupgrade: x")], [200]),
        "HTTP/1.0": Exchange([whole.replace(b"HTTP/1.1", b"HTTP/1.0")], [200], goes_on=False),
        "a body that waits to be asked": Exchange(
            [request(PNG + to_h2c + size + b"expect: 100-continue\r\n"), GOOD], [100, 200]
        ),
        "a WebSocket": Exchange([request(to_websocket, path=b"/deployments", method=b"GET"), hidden], [200, 200]),
        "a WebSocket with a body": Exchange([request(to_websocket + PNG + size), GOOD, hidden], [200, 200]),
        "two lengths": Exchange(
            [request(PNG + to_h2c + size + size.replace(b": ", b": 1"), GOOD)], [400], goes_on=False
        ),
        "a length and chunks": Exchange(
            [request(PNG + to_h2c + size + b"transfer-encoding: chunked\r\n", chunks)],
            [400],
            goes_on=False,
        ),
        "a head of 100 kB": Exchange(
            [request(PNG + to_h2c + size + b"x-long: " + b"x" * 100_000 + b"\r\n", GOOD)],
            [431],
            goes_on=False,
        ),
        "a tunnel": Exchange(
            [b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", hidden], [400], goes_on=False
        ),
    }
