"""The one command `saucier`: the commands of all stages, each imported when it is asked for."""

import signal
import sys
from collections.abc import Iterator, Sequence

from adapt.commands.tree import COMMANDS as ADAPT
from deploy.commands import COMMANDS as DEPLOY
from service.commands import COMMANDS as SERVICE
from service.commands import DEMO
from training.cli import run
from training.commands import COMMANDS as TRAINING
from training.parsing import Entry, Group
from training.reference import CommandReference, references
from training.version import VERSION

PROG = "saucier"

_TRAINING, _ADAPT, _DEPLOY, _SERVICE = TRAINING.commands, ADAPT.commands, DEPLOY.commands, SERVICE.commands
COMMANDS = Group(
    "serve image classifiers that adapt to new kinds of images, by mixing the weights of a few networks",
    {
        "demo": DEMO,
        "data": _TRAINING["data"],
        "init": _TRAINING["init"],
        "train": _TRAINING["run"],
        "import": _TRAINING["import"],
        "convert": _TRAINING["convert"],
        "evaluate": _TRAINING["evaluate"],
        "moments": _TRAINING["moments"],
        "compress": _TRAINING["compress"],
        "list": _TRAINING["list"],
        "adapt": Group(ADAPT.summary, {name: item for name, item in _ADAPT.items() if name != "plot"}),
        "report": _ADAPT["plot"],
        "bundle": _DEPLOY["bundle"],
        "export": _DEPLOY["export"],
        "check": _DEPLOY["check"],
        "serve": _SERVICE["serve"],
        "db": _SERVICE["db"],
        "keys": _SERVICE["keys"],
        "reference": _SERVICE["reference"],
        "completion": Entry("service.completion:Completion", "print what makes a shell complete these commands"),
    },
    version=VERSION,
)


def reference() -> Iterator[CommandReference]:
    """Yield all that every command can be asked, for the reference pages."""
    return references(COMMANDS, PROG)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command (of `sys.argv` unless `args` are given) and return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to stop, commands end as with Ctrl-C
    return run(COMMANDS, prog=PROG, args=args)


if __name__ == "__main__":
    sys.exit(main())
