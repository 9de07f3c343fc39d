"""Axes of a sweep, written `name=values`: `eps=2^-8:2^-18`, `tokens=64,256,1024`, `block=16:256:4`."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEANINGS = {
    "eps": "the filter's threshold, of every variant asked for",
    "tokens": "N",
    "vocabulary": "V, of a planted or gaussian head",
    "hidden": "D",
    "scale": "factor on E, and so on the logits",
    "block": "rows and words per tile of the backward pass: the sums of dE take V / block tiles, those of dC N / block",
}
WHOLE = {"tokens", "vocabulary", "hidden", "block"}
MOST_VALUES = 64


@dataclass(frozen=True)
class Axis:
    """What is varied, and the values it takes."""

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`NAME=a,b,c` or `NAME=a:b` in steps of a factor 2, or `NAME=a:b:factor`; numbers as 2^-12 or decimals.

        Raises:
            ValueError: the name is unknown, or the values are no such numbers; the message says what is legal.
        """
        name, equals, values = text.partition("=")
        if name not in MEANINGS or not equals:
            raise ValueError(f"unknown axis {text!r}; legal axes, as name=values: {', '.join(MEANINGS)}")
        if ":" in values:
            found = _range(text, [_number(text, part) for part in values.split(":")])
        else:
            found = [_number(text, part) for part in values.split(",")]
        if len(set(found)) != len(found):
            raise ValueError(f"{text!r} takes a value twice")
        if name in WHOLE and any(value != int(value) for value in found):
            raise ValueError(f"{text!r} has values that are not whole numbers")
        return cls(name, tuple(found))


def written(name: str, value: float) -> str:
    """A value as a person writes it: powers of two below 1 as such."""
    if name in WHOLE:
        return str(int(value))
    return f"2^{math.frexp(value)[1] - 1}" if 0 < value < 1 and math.frexp(value)[0] == 0.5 else f"{value:g}"


def _number(text: str, part: str) -> float:
    base, _, exponent = part.partition("^")
    try:
        value = float(base) ** int(exponent) if exponent else float(part)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(f"{part!r} in {text!r} is not a number; legal are 2^-12 and decimals") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{part!r} in {text!r} is not a positive, finite number")
    return value


def _range(text: str, parts: list[float]) -> list[float]:
    first, last, factor = parts if len(parts) == 3 else (*parts, 2.0) if len(parts) == 2 else (0.0, 0.0, 0.0)
    if factor <= 1:
        raise ValueError(f"{text!r} is no range; legal are first:last, in steps of a factor 2, and first:last:factor")
    steps = round(abs(math.log(last / first, factor)))
    if steps >= MOST_VALUES:
        raise ValueError(f"{text!r} has {steps + 1} values, the most is {MOST_VALUES}")
    ratio = factor if last >= first else 1 / factor
    found = [value for k in range(steps + 1) if min(first, last) <= (value := first * ratio**k) <= max(first, last)]
    if len(found) == 1 and last != first:
        raise ValueError(f"{text!r} has one value, {first:g}: {last:g} is less than a step of a factor {factor:g} away")
    return found
