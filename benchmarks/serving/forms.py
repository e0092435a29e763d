"""How long forms of many parts take to be taken apart, alone in this process."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from service.demo.client import multipart
from service.http.forms import Part, read_form
from service.settings import Settings

ODD = b"X-Part: 1\r\n"  # a header more, for which a form is left to the parser


class Form(NamedTuple):
    """A kind of form."""

    num_parts: int
    num_bytes: int  # of each part


FORMS = (Form(1000, 2_000), Form(300, 30_000))


def measure_forms(*, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Return the processor time that each kind of form takes, written as clients do and in an odd way.

    Args:
        rounds: measurements, in turn, after one that does not count.
        seed: of the bytes.
    """
    rows = []
    settings = Settings(max_images=max(form.num_parts for form in FORMS))
    for form in FORMS:
        content = np.random.default_rng(seed).bytes(form.num_parts * form.num_bytes)
        files = [content[start : start + form.num_bytes] for start in range(0, len(content), form.num_bytes)]
        usual, media_type = multipart(files)
        boundary = media_type.partition("boundary=")[2].encode()
        odd = usual.replace(b"\r\nContent-Type: ", b"\r\n" + ODD + b"Content-Type: ")
        taken: dict[str, list[float]] = {"usual": [], "odd": []}
        for turn in range(rounds + 1):
            for kind, body in (("usual", usual), ("odd", odd)):
                start = time.process_time()
                parts = read_form(body, boundary, settings)
                seconds = time.process_time() - start
                _check(parts, files)
                if turn > 0:
                    taken[kind].append(seconds)
        rows.append(form._asdict() | {f"{kind}_ms": round(1e3 * float(np.median(taken[kind])), 2) for kind in taken})
    return rows


def _check(parts: Sequence[Part], files: Sequence[bytes]) -> None:
    if [part.data for part in parts] != list(files):
        raise RuntimeError("a form gave back other parts than were put into it")


def forms_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the measurements as lines."""
    lines = [
        f"a form of {row['num_parts']} parts of {row['num_bytes']} bytes: {row['usual_ms']} ms as clients write it, "
        f"{row['odd_ms']} ms with a header more"
        for row in rows
    ]
    return "\n".join(lines)
