"""JSON documents that cross from one stage to another: immutable models, read strictly, signed against edits.

Imports no torch: predictors read them too.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Frozen(BaseModel):
    """Base of everything that crosses a process: immutable, unknown fields refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Signed(Frozen):
    """A document that carries its own digest."""

    digest: str = Field(default="", description="sha256 of this document without this field, as canonical JSON")

    def check_digest(self, path: Path, error: type[ValueError]) -> None:
        """Raise `error` if the document was changed after it was signed."""
        if self.digest != (expected := self.own_digest()):
            raise error(f"{path}: edited after it was written (digest {self.digest[:12]}, expected {expected[:12]})")

    def own_digest(self) -> str:
        """Return what the digest must be."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


Document = TypeVar("Document", bound=Frozen)
SignedDocument = TypeVar("SignedDocument", bound=Signed)


def signed(document: SignedDocument) -> SignedDocument:
    """Return the document with its digest set."""
    return document.model_copy(update={"digest": document.own_digest()})


def read_document(
    path: Path,
    model: type[Document],
    *,
    version: int,
    what: str,
    error: type[ValueError],
    hint: str = "",
    build: Callable[[dict[str, Any]], Document] | None = None,
) -> Document:
    """Read a JSON document.

    Args:
        path: the file.
        model: what it holds; has a field `format_version`.
        version: the format version that is understood.
        what: what is expected, for messages: "the manifest of a base set".
        error: raised with one line that names the file.
        hint: what to do about another format version.
        build: makes the document of the JSON object, where that alone does not; None for `model.model_validate`.
    """
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: expected {what}, found no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise error(f"{path}: expected {what} in JSON, {one_line(problem)}") from None
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if found != version:
        raise error(f"{path}: expected format_version {version}, got {found!r}{hint}")
    try:
        return (build or model.model_validate)(raw)
    except ValidationError as problem:
        raise error(f"{path}: {first_error(problem)}") from None


def check_file(path: Path, sha256: str, error: type[ValueError], *, what: str = "a file") -> None:
    """Raise `error`, in one line that names the file, unless it exists and has this SHA-256."""
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        raise error(f"{path}: expected {what} with sha256 {sha256[:12]}, found no such file") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read, {one_line(problem)}") from None
    if found != sha256:
        raise error(f"{path}: expected sha256 {sha256[:12]}, got {found[:12]}: the file is corrupt or was edited")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_error(error: ValidationError) -> str:
    """Return the first problem of a pydantic error in one line, with its field."""
    problem: Any = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "top level"
    return f"{field}: {problem['msg'].removeprefix('Value error, ')}"


def one_line(error: Exception) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
