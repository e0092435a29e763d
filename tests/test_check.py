"""The run-time type checks of the tests: what they refuse, in functions that are made again and again, too."""

from collections.abc import Callable

import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor, zeros

from tests import check


def made(kind: type, default: int = 0) -> Callable[..., object]:
    @jaxtyped(typechecker=check)
    def inner(x: kind, y: int = default) -> kind:  # type: ignore[valid-type]
        return "other" if y < 0 else (x, y)[y > 1]

    return inner


def test_each_of_several_functions_made_in_a_function_is_checked() -> None:
    for _ in range(3):
        assert made(int)(3) == 3
        assert made(int, 7)(3) == 7  # its own default
        assert made(str)("a") == "a"
        with pytest.raises(TypeCheckError, match="parameters"):
            made(int)("a")
        with pytest.raises(TypeCheckError, match="parameters"):
            made(str)(3)
        with pytest.raises(TypeCheckError, match="return value"):
            made(int)(3, -1)


def test_an_int_is_taken_for_a_float_and_shapes_are_those_of_each_call() -> None:
    @jaxtyped(typechecker=check)
    def scaled(x: Float[Tensor, "n"], y: Float[Tensor, "n"], factor: float) -> Float[Tensor, "n"]:
        return (x + y) * factor

    for n in (2, 3):
        assert scaled(zeros(n), zeros(n), 2).shape == (n,)
    with pytest.raises(TypeCheckError):
        scaled(zeros(2), zeros(3), 2)
