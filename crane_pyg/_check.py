import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any


def check_integer(**values: Any) -> None:  # noqa: ANN401
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"'{name}' needs to be an integer (got {value!r})")


def check_size(least: int, **values: Any) -> None:  # noqa: ANN401
    check_integer(**values)
    check_least(least, **values)


def check_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:  # Which NaN is not.
            raise ValueError(
                f"'{name}' needs to be at least {least} (got {value})"
            )


def check_option(name: str, value: object, options: Sequence[object]) -> None:
    if value not in options:
        raise ValueError(
            f"'{name}' needs to be one of {options} (got '{value}')"
        )


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"'{name}' needs to be in [0, 1) (got {value})")


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"'{name}' needs to be in [0, 1] (got {value})")


def check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"'{name}' needs to be finite (got {value})")


def check_positive(value: float, name: str) -> None:
    if not value > 0:  # Which NaN is not.
        raise ValueError(f"'{name}' needs to be positive (got {value})")
