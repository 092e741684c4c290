"""Numbers of a configuration that cannot be worked with, refused when the configuration is read."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any


def check_numbers(
    rule: Any,
    *,
    least: Mapping[str, float] | None = None,
    above_zero: Collection[str] = (),
    shares: Collection[str] = (),
    below_one: Collection[str] = (),
    free: Collection[str] = (),
) -> None:
    """Raise a ValueError that names the first number among a dataclass's own fields which is out of its range.

    A number is 0 or more unless it is named here; NaN is in no range.

    Args:
        rule: the dataclass; fields that are no numbers are passed over.
        least: smallest value by field.
        above_zero: fields that must not be 0 either.
        shares: fields that lie in [0, 1].
        below_one: fields that lie in [0, 1).
        free: fields that may have any value.
    """
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or field.name in free:
            continue
        low = (least or {}).get(field.name, 0)
        if field.name in above_zero:
            fits, expected = value > 0, "more than 0"
        elif field.name in shares:
            fits, expected = 0 <= value <= 1, "0 to 1"
        elif field.name in below_one:
            fits, expected = 0 <= value < 1, "0 or more, below 1"
        else:
            fits, expected = value >= low, f"{low:g} or more"
        if not fits:
            raise ValueError(f"{field.name} = {value:g}: expected {expected}")
