"""The help of benchmarks and examples keeps the rules of `saucier`'s."""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator

import pytest

import benchmarks
import examples
from training.cli import Command
from training.helping import command_help

OTHERS = ("litserve", "mlserver")  # rivals that need not be installed


def commands() -> Iterator[type[Command]]:
    """Yield every command class of the two folders."""
    for package in (benchmarks, examples):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                with warnings.catch_warnings(action="ignore"):  # of libraries that rivals use
                    found = vars(importlib.import_module(module.name)).values()
            except ModuleNotFoundError as error:
                if error.name in OTHERS:
                    continue
                raise
            for one in found:
                if inspect.isclass(one) and issubclass(one, Command) and one.__module__ == module.name:
                    yield one


@pytest.mark.parametrize("command", list(commands()), ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_help_fits_on_a_screen_and_names_things_alike(command: type[Command]) -> None:
    path = f"python -m {command.__module__.removesuffix('.__main__')}"
    text = command_help(path, inspect.getdoc(command) or "", command.parameters(), command.sections)
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 100
    assert "Example: python -m " in text
    assert "None" not in text
    options = {flag: one for one in command.parameters() for flag in one.flags}
    assert {"--json", "--seed"} <= options.keys()
    assert all(one.help for one in command.parameters())
    assert not {"--num-steps", "--threats", "--eps"} & options.keys()
    if "--device" in options:
        assert (options["--device"].metavar, options["--device"].default) == ("DEVICE", "auto")
