"""`GET /ui`: the console, a page of plain files that asks nobody but this service for anything.

The files hold only public text. The data that they show comes from the routes, which ask for a key.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from service.http.context import Context
from service.http.problems import Problem

FOLDER = Path(__file__).resolve().parent.parent / "console"
PAGE = "index.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Pictures that are about to be sent are shown from memory (blob:). Nothing is inline, so nothing that is typed in or
# comes with an answer can turn into a script or a style, and no text can be made into elements.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class File(NamedTuple):
    """One file of the console."""

    content: bytes
    media_type: str
    etag: str


@cache
def read_files() -> dict[str, File]:
    """Return the files of the console by name."""
    files = {}
    for path in FOLDER.iterdir():
        if (kind := MEDIA_TYPES.get(path.suffix)) is not None:
            content = path.read_bytes()
            files[path.name] = File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return files


async def console(_: Context, request: Request) -> Response:
    """`GET /ui` and `GET /ui/{file}`."""
    name = request.path_params.get("file")
    file = read_files().get(name or PAGE)
    if file is None or name == PAGE:  # links are relative to the page's own address
        raise Problem(404, "there is no such page")
    headers = HEADERS | {"ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=f"{file.media_type}; charset=utf-8")
