"""When a candidate replaces the current soup, as jobs and searches are told. Imports no other module: all read it."""

from typing import Literal

Promote = Literal["auto", "likely", "always", "never"]
