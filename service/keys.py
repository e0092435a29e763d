"""The commands of `saucier keys`: make API keys, list them, take them back."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from service.settings import Settings, SettingsError
from service.store.keys import NAME, Role, add_key, read_keys, revoke_key
from training.cli import Command, Result
from training.parameters import Arg


class AddCommand(Command):
    """Make a key and print it: the only time that it can be seen. Running services know it within a second.

    Example: SAUCIER_API_KEYS_FILE=keys.json saucier keys add --name camera-7 --role predict
    """

    name: ClassVar[str] = "add"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    key_name: Annotated[str, Arg(name="name")] = Field(
        pattern=f"^{NAME}$", description="who it is for: letters, digits and . _ @ -, at most 63; events name it"
    )
    role: Role = Field(description="what it may do: each role may also do what those before it may")

    def execute(self) -> Result:
        """Make it."""
        secret = add_key(_path(), self.key_name, self.role)
        return Result({"name": self.key_name, "role": self.role, "key": secret}, secret)


class ListCommand(Command):
    """List the keys: names, roles and when they were made.

    Example: SAUCIER_API_KEYS_FILE=keys.json saucier keys list
    """

    name: ClassVar[str] = "list"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    def execute(self) -> Result:
        """List them."""
        keys = read_keys(_path())
        lines = [f"{key.role:<8} {key.created_at:%Y-%m-%d %H:%M} {key.name}" for key in keys]
        rows = [key.model_dump(mode="json", exclude={"sha256"}) for key in keys]
        return Result({"keys": rows}, "\n".join(lines) or "no keys")


class RevokeCommand(Command):
    """Revoke a key. Running services refuse it within a second.

    Example: SAUCIER_API_KEYS_FILE=keys.json saucier keys revoke --name camera-7
    """

    name: ClassVar[str] = "revoke"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    key_name: Annotated[str, Arg(name="name")] = Field(description="name of the key")

    def execute(self) -> Result:
        """Take it back."""
        revoked = revoke_key(_path(), self.key_name)
        return Result({"name": revoked.name, "role": revoked.role}, f"revoked {revoked.name} ({revoked.role})")


def _path() -> Path:
    path = Settings.load().api_keys_file
    if path is None:
        raise SettingsError("SAUCIER_API_KEYS_FILE: expected the file that keeps the API keys, got nothing")
    return path
