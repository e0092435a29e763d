"""The run-time type checker of the test suite: beartype, with int accepted where float is asked for (PEP 484)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))
_checked: dict[tuple[Any, ...], Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with its types checked.

    jaxtyping gives us a function without a body in place of the one to check, for its parameters and what it returns. A
    function within a function is made each time the outer one runs. To make its check takes a millisecond, so the
    check of the same parameters and types serves again.
    """
    if "<locals>" not in function.__qualname__ or function.__closure__ is not None:
        return _beartype(function)
    code = function.__code__
    key = (
        function.__module__,
        function.__qualname__,
        code.co_varnames,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        tuple(function.__annotations__.items()),
    )
    if key not in _checked:
        _checked[key] = _beartype(function)
    return _checked[key]
