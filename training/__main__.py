"""The offline stage: `python -m training data|init|run|import|convert|evaluate|moments|compress|list`."""

import sys

from training.cli import run
from training.commands import COMMANDS

if __name__ == "__main__":
    sys.exit(run(COMMANDS, prog="python -m training"))
