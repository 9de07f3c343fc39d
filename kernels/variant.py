"""`Variant`: the numerical flags of a kernel, as one value. `PRESETS`: the paper's names for some of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain, product
from typing import Any, Literal, get_args, get_type_hints

Order = Literal["none", "mean_logit", "mean_prob"]
Accumulate = Literal["storage", "kahan", "hilo", "fp32"]
Increment = Literal["group", "tile"]
Target = Literal["fused", "indexed"]
Granularity = Literal["tile", "segment"]
RowOrder = Literal["none", "similar"]
Tail = Literal["drop", "rank1"]
Exponentials = Literal["recomputed", "stored"]

THRESHOLDS = ("eps", "eps_e")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One choice for each axis along which Cut Cross-Entropy kernels differ numerically.

    Print it to get a flag string, `Variant.parse` to read one back: ``PRESET(,field=value)*``.

    Raises:
        ValueError: a value or a combination of values is illegal; the message says what is legal.
    """

    filter_e: bool = True
    """Whether dE skips tiles in which every entry is negligible (paper, section 4.3)."""
    filter_c: bool = True
    """Whether dC does. "FullC" in the paper's names means that it does not."""
    eps: float | None = None
    """Entries with ``|g| <= eps * s`` are negligible; None is finfo(dtype).eps / 32."""
    eps_e: float | None = None
    """Of granularity=segment, the threshold of entries for the segments that dE keeps; None is eps / 4. dE looks for
    them in what dC keeps, so that a smaller one costs dE alone, which is the cheaper of the two."""
    order: Order = "mean_logit"
    """How the backward pass walks the vocabulary: as it is, by descending mean logit (paper), or by descending mean
    probability over some rows."""
    accumulate: Accumulate = "storage"
    """How the gradient sums carry what they have from one increment to the next."""
    increment: Increment = "group"
    """What a sum takes in at once: the product of as many tiles as its schedule makes one sum in the tensor core, less
    those that are dropped, or of one tile (paper)."""
    target: Target = "fused"
    """Where the target's logit comes from: the tile of the log-sum-exp, or Algorithm 1's own dot product."""
    granularity: Granularity = "tile"
    """What a filter keeps or drops: whole tiles (paper), or the segments of them that the owner of a gradient can leave
    out: for dC a row of half a tile, for dE a column of one. Their sums are one product of all that is kept, in
    fp32."""
    row_order: RowOrder = "none"
    """Of granularity=segment, which rows share a block of dE: those that lie together in the batch, or that keep as
    many segments and point towards the same of a few rows. They have more of their words in common."""
    tail: Tail = "drop"
    """What becomes of dropped residuals: nothing, or one vector over the vocabulary in their place, times what each row
    lost, so that rows of residuals keep their sums. Targets are kept then, and tiles are judged before any is computed
    again, whatever that costs."""
    exponentials: Exponentials = "recomputed"
    """Where the backward pass has the softmax from: logits that it computes once more, or what the forward pass stored
    of them, in N x V entries of 16 bits. In fp32 and with a softcap they are computed once more either way."""

    def __post_init__(self) -> None:
        for name, legal in LEGAL.items():
            value = getattr(self, name)
            if value not in legal or type(value) is not type(legal[0]):
                raise ValueError(f"{name}={shown(value)} is unknown; legal values: {', '.join(map(shown, legal))}")
        if self.granularity == "segment" and (
            not (self.filter_e and self.filter_c)
            or (self.order, self.accumulate, self.increment) != ("none", "fp32", "group")
        ):
            raise ValueError(
                "granularity=segment needs filter_e=yes, filter_c=yes, order=none, accumulate=fp32 and "
                "increment=group: what is kept is gathered anyway, and summed in one product"
            )
        for name in THRESHOLDS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, float) or math.isnan(value) or value < 0):
                raise ValueError(
                    f"{name}={value!r} is no threshold; legal values: a float >= 0, such as 2^-12 in a flag string"
                )
        if self.tail == "rank1" and self.order != "none":
            raise ValueError(
                "tail=rank1 with granularity=tile needs order=none: what rows lose is read from the forward pass's "
                "record of segments, which the words of a sorted tile lie scattered over"
            )
        if self.tail == "rank1" and not (self.filter_e or self.filter_c):
            raise ValueError("tail=rank1 has nothing to give back with filter_e=no and filter_c=no; switch one on")
        if self.tail == "rank1" and max(self.eps or 0.0, self.eps_e or 0.0) >= 1:
            raise ValueError("tail=rank1 needs eps and eps_e below 1, so that something is kept")
        if self.exponentials == "stored" and (self.filter_e or self.filter_c or self.order != "none"):
            raise ValueError(
                "exponentials=stored needs filter_e=no, filter_c=no and order=none: they lie where the forward pass "
                "found them, and residuals take their place"
            )
        if self.eps_e is not None and self.granularity != "segment":
            raise ValueError(
                f"eps_e={shown(self.eps_e)} needs granularity=segment: tiles are judged once for both gradients"
            )
        if self.row_order != "none" and self.granularity != "segment":
            raise ValueError(
                f"row_order={self.row_order} needs granularity=segment: rows of a tile are those of a block of E"
            )
        if self.eps is not None and not (self.filter_e or self.filter_c):
            raise ValueError(
                f"eps={shown(self.eps)} has no effect with filter_e=no and filter_c=no; leave it out or switch one on"
            )

    def threshold(self, spacing: float) -> float:
        """eps, or its default for a dtype whose finfo(dtype).eps is `spacing`."""
        return spacing / 32 if self.eps is None else self.eps

    def threshold_e(self, spacing: float) -> float:
        """eps_e, or its default."""
        if self.eps_e is not None:
            return self.eps_e
        return self.threshold(spacing) / (1 if self.granularity == "tile" else 4)

    def stores(self, bits: int, softcap: float | None) -> bool:
        """Whether exponentials are stored of inputs of so many bits: fp32 would take twice the memory, and the slope of
        a softcap needs the logits themselves."""
        return self.exponentials == "stored" and bits == 16 and softcap is None

    def __str__(self) -> str:
        def changes(preset: Variant) -> list[str]:
            pairs = [(f.name, getattr(self, f.name), getattr(preset, f.name)) for f in fields(self)]
            return [f"{name}={shown(mine)}" for name, mine, theirs in pairs if mine != theirs]

        name = min(PRESETS, key=lambda preset: len(changes(PRESETS[preset])))
        return ",".join([name, *changes(PRESETS[name])])

    @classmethod
    @lru_cache
    def parse(cls, text: str) -> Variant:
        """The variant that a flag string names.

        Raises:
            ValueError: the preset, a field or a value is unknown, or the combination is illegal.
        """
        name, *assignments = (part.strip() for part in text.split(","))
        if name not in PRESETS:
            raise ValueError(f"unknown variant {name!r}; legal presets: {', '.join(PRESETS)}")
        known = [f.name for f in fields(cls)]
        changes: dict[str, Any] = {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals or key not in known:
                raise ValueError(
                    f"unknown flag {assignment!r} in {text!r}; legal flags: {', '.join(known)}, as field=value"
                )
            if key in changes:
                raise ValueError(f"{key} is set twice in {text!r}")
            changes[key] = _read(key, value)
        return replace(PRESETS[name], **changes)

    @classmethod
    def of(cls, variant: str | Variant) -> Variant:
        """`variant` itself, or the one that the string names."""
        if not isinstance(variant, str | Variant):
            raise TypeError(f"variant is a {type(variant).__name__}, expected a flag string or a Variant")
        return variant if isinstance(variant, Variant) else cls.parse(variant)

    @lru_cache  # noqa: B019 - of frozen values; with `parse` and `default_schedule` 40 of 140 us of a host's per call
    def flags(self, *names: str) -> Variant:
        """What a kernel is compiled for: the named fields, all others at their defaults, so that variants which differ
        elsewhere share it."""
        return Variant(**{name: getattr(self, name) for name in names})


def every() -> list[Variant]:
    """All legal combinations of the axes, each with its default thresholds."""
    return list(_legal(dict(zip(LEGAL, values, strict=True)) for values in product(*LEGAL.values())))


def named(names: Iterable[str]) -> list[Variant]:
    """Those of presets' names and flag strings, each once; `all` are the presets, `every` what is legal.

    Raises:
        ValueError: a name is none; the message says what is legal.
    """
    several = {"all": lambda: list(PRESETS.values()), "every": every}
    found = (several[name]() if name in several else [Variant.parse(name)] for name in names)
    return list(dict.fromkeys(chain.from_iterable(found)))


def _legal(choices: Iterable[dict[str, Any]]) -> Iterator[Variant]:
    for choice in choices:
        with suppress(ValueError):
            yield Variant(**choice)


def shown(value: object) -> str:
    """A field's value as a flag string has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 0 < value < math.inf and math.frexp(value)[0] == 0.5:
        return f"2^{math.frexp(value)[1] - 1}"
    return "default" if value is None else str(value)


def _read(name: str, text: str) -> Any:
    if name in THRESHOLDS:
        try:
            base, _, exponent = text.partition("^")
            value = None if text == "default" else float(base) ** int(exponent) if exponent else float(text)
            if value == math.inf and "inf" not in text.lower():
                raise OverflowError
            return value
        except (ValueError, OverflowError, ZeroDivisionError):
            raise ValueError(f"{name}={text} is not a threshold; legal values: 2^-12, a decimal, or default") from None
    return {"yes": True, "no": False}.get(text, text) if LEGAL[name] == (False, True) else text


_HINTS = get_type_hints(Variant)
LEGAL: dict[str, tuple[Any, ...]] = {
    f.name: (False, True) if _HINTS[f.name] is bool else get_args(_HINTS[f.name])
    for f in fields(Variant)
    if f.name not in THRESHOLDS
}
"""The legal values of every axis but thresholds."""

PRESETS: dict[str, Variant] = {
    "cce": Variant(),
    "cce-no-sort": Variant(order="none"),
    "cce-no-filter": Variant(filter_e=False, filter_c=False, order="none"),
    "cce-kahan": Variant(accumulate="kahan"),
    "cce-kahan-full-c": Variant(filter_c=False, accumulate="kahan"),
    "cce-kahan-full-e": Variant(filter_e=False, accumulate="kahan"),
    "cce-exact": Variant(filter_e=False, filter_c=False, order="none", accumulate="fp32"),
    "cce-stored": Variant(filter_e=False, filter_c=False, order="none", accumulate="fp32", exponentials="stored"),
    "cce-segment": Variant(
        eps=2.0**-14, order="none", accumulate="fp32", granularity="segment", row_order="similar", tail="rank1"
    ),
}
"""The rows of the paper's Table 1, the exact variant of its authors' package, and two of our own."""
