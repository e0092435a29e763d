"""How devices are named in options and settings. Imports no torch."""

import re
from typing import Annotated

from pydantic import AfterValidator

from training.parameters import Arg

AUTO = "auto"
DEVICE_HELP = "cpu, cuda or cuda:1; auto: cuda if there is one"


def check_device_name(name: str) -> str:
    """Return the name of a device.

    Raises:
        ValueError: none of auto, cpu, cuda, cuda:0, cuda:1 and so on.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"expected device cpu, cuda or auto, or one of several such as cuda:1, got {name!r}")
    return name


DeviceName = Annotated[str, AfterValidator(check_device_name), Arg(metavar="DEVICE")]
