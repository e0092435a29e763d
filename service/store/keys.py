"""API keys at rest: a file of names, roles and hashes. The keys themselves are stored nowhere.

A key is 32 random bytes, so that one pass of SHA-256 protects it: nobody can try them all. Slow hashes are for
passwords.
"""

import base64
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import AwareDatetime, Field, model_validator

from training.documents import Frozen, read_document
from training.files import replace_file

logger = logging.getLogger(__name__)

Role = Literal["predict", "adapt", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
PREFIX = "saucier_"  # lets scanners for leaked secrets, and people, see what a string is
KEY_BYTES = 32
FORMAT_VERSION: Literal[1] = 1
NAME = "[A-Za-z0-9][A-Za-z0-9._@-]{0,62}"
LOOK_SECONDS = 1.0  # between two looks at whether the file changed


class KeysError(ValueError):
    """A keys file, or a change to it, that cannot be. One line."""


class Key(Frozen):
    """What is known of a key."""

    name: str = Field(pattern=f"^{NAME}$", description="who it was made for; events and jobs name it")
    role: Role
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="hash of the key")
    created_at: AwareDatetime


class KeysFile(Frozen):
    """The file."""

    format_version: Literal[1] = FORMAT_VERSION
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            if doubled := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"expected every {field} once, got {doubled[0]} again")
        return self


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file.

    Raises:
        KeysError: it is not there, cannot be read, or is not a keys file; names the file.
    """
    hint = ", a newer version of this program wrote it"
    what = "the file of the API keys (made by `saucier keys add`)"
    return read_document(path, KeysFile, version=FORMAT_VERSION, what=what, error=KeysError, hint=hint).keys


def add_key(path: Path, name: str, role: Role) -> str:
    """Make a key, append it to the file, which is made if need be, and return it: nobody can look it up later.

    Raises:
        KeysError: the file cannot be used, or has a key of that name.
    """
    secret = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b"=").decode()
    made = Key(name=name, role=role, sha256=hash_key(secret), created_at=datetime.now(UTC).replace(microsecond=0))
    with _locked(path):
        keys = read_keys(path) if path.exists() else ()
        if any(key.name == name for key in keys):
            raise KeysError(f"{path}: expected a new name, there is a key {name!r}; revoke it first")
        _write(path, (*keys, made))
    return secret


def revoke_key(path: Path, name: str) -> Key:
    """Remove a key from the file and return what was known of it.

    Raises:
        KeysError: the file cannot be used, or has no key of that name.
    """
    with _locked(path):
        keys = read_keys(path)
        revoked = next((key for key in keys if key.name == name), None)
        if revoked is None:
            raise KeysError(f"{path}: expected the name of a key, one of {sorted(key.name for key in keys)}")
        _write(path, tuple(key for key in keys if key is not revoked))
    return revoked


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others from changing the file meanwhile; its folder is locked, as the file itself is replaced."""
    folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file in one step, readable by its owner only."""
    target = path.resolve()  # a link stays a link
    text = KeysFile(keys=tuple(keys)).model_dump_json(indent=1) + "\n"
    replace_file(target, lambda partial: partial.write_text(text, encoding="utf-8"), mode=0o600)


def hash_key(secret: str) -> str:
    """Return the hash that stands in the file for a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(keys: Sequence[Key], secret: str) -> Key | None:
    """Return the key that a secret is, after as long a look at every one of them."""
    digest = hash_key(secret)
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


class KeyRing:
    """The keys of a file, read again when it changed. For one thread.

    A file that cannot be read any more leaves the keys that were read before: an editor's slip locks nobody out. A
    process that has read none yet knows none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: tuple[Key, ...] = ()
        self._mark: tuple[int, ...] | None = ()
        self._look_at = 0.0
        self._complaint = ""  # what was logged last of a file that cannot be read

    def find(self, secret: str) -> Key | None:
        """Return the key that a secret is, or None."""
        self._refresh()
        return find_key(self._keys, secret)

    def has(self, key: Key) -> bool:
        """Say if a key that was found earlier still counts, with the same role."""
        self._refresh()
        return key in self._keys

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        mark = _mark(self._path)
        if mark == self._mark:
            return
        try:
            self._keys = read_keys(self._path)
        except KeysError as error:  # looked at again: what fails now may be read later without having changed
            if (complaint := str(error)) != self._complaint:
                logger.error("the API keys stay as they were: %s", complaint)
            self._complaint = complaint
        else:
            self._mark, self._complaint = mark, ""
            logger.info("%d API keys", len(self._keys))


def _mark(path: Path) -> tuple[int, ...] | None:
    """Return what differs once a file was changed or replaced; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
