"""The command `completion`: what makes a shell complete commands, options, choices and files."""

from typing import Annotated, ClassVar, Literal

from click.shell_completion import get_completion_class
from pydantic import Field

from training.cli import Command, Result
from training.parameters import Positional
from training.parsing import GroupParser


class Completion(Command):
    """Print what makes a shell complete the commands, options, choices and files of `saucier`.

    Bash and zsh: add the line of the example to ~/.bashrc or ~/.zshrc. Fish: saucier completion fish | source

    Example: eval "$(saucier completion bash)"
    """

    name: ClassVar[str] = "completion"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    shell: Annotated[Literal["bash", "zsh", "fish"], Positional] = Field(description="bash, zsh or fish")

    def execute(self) -> Result:
        """Print it."""
        from service.saucier import COMMANDS, PROG  # the tree names this module

        kind = get_completion_class(self.shell)
        assert kind is not None
        script = kind(GroupParser(PROG, COMMANDS), {}, PROG, f"_{PROG.upper()}_COMPLETE").source()
        return Result({"shell": self.shell, "script": script}, script)
