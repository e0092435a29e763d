"""`python -m service.demo`."""

import signal
import sys

from service.demo.digits import Demo
from training.cli import run

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server when asked to stop, too
    sys.exit(run([Demo], prog="python -m service.demo", description="Adaptation to a shift, end to end."))
