"""How far one output is from the truth: norms, worst row, worst element, signed bias, share of the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import Format

ROWS_AT_ONCE = 2**24
"""Elements per step: a float64 copy of a whole dC at the paper's shape would take 4.7 GB."""


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element, in numbers that can be typed in again."""

    place: list[int]
    got: float
    got_hex: str  # the storage format's bits
    want: float
    want_hex: str  # the float64 truth, as float.fromhex reads it
    ulps: float  # |got - want| in units in the last place of `want` in the storage format
    over_budget: float | None
    bound: float | None = None
    bound_hex: str | None = None  # as of `want_hex`


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One output against the oracle."""

    output: str
    elements: int
    normwise: float  # ||got - want|| / ||want||, Frobenius
    rms: float
    largest: float  # max |got - want|
    signed_bias: float  # sum of (got - want) sign(want) / sum of |want|: 0 for unbiased rounding
    worst_row: int
    worst_row_error: float  # of the row, relative to its own norm
    worst_element: Element
    over_budget: float | None  # max of |got - want| / bound; at most 1 is within budget
    over_budget_quantiles: dict[str, float] | None  # of the same ratio over elements
    nonfinite_mismatches: int  # elements that are NaN or inf on one side only
    zero_over_budget: float | None = None  # max of |want| / bound: above 1, or the budget would pass an output of zeros
    infinite_bounds: int | None = None  # elements whose truth is finite and whose bound is not: nothing is judged there


def measure(output: str, got: Tensor, want: Tensor, bound: Tensor | None = None) -> Measurement:
    """`got` in its storage dtype against `want` and `bound` in float64, all of one shape, at most two-dimensional.

    Elements where the truth is not finite must match it (NaN for NaN, the same infinity); they enter no norm.
    """
    if got.shape != want.shape:
        raise ValueError(f"{output} has shape {tuple(got.shape)}, the oracle's is {tuple(want.shape)}")
    fmt = Format.of(got.dtype)
    shape = want.shape
    got, want = (x.reshape(shape[0] if shape else 1, -1) for x in (got, want))
    bound = None if bound is None else bound.reshape(want.shape)
    step = max(1, ROWS_AT_ONCE // want.shape[1])
    totals = dict.fromkeys(("error", "want", "signed", "absolute"), 0.0)
    largest, mismatches, zero, unbounded = 0.0, 0, 0.0, 0
    row_errors, worst, ratios = [], (-1.0, 0), []
    for start in range(0, len(want), step):
        g, w = got[start : start + step].double(), want[start : start + step]
        finite = w.isfinite()
        same = torch.where(w.isnan(), g.isnan(), torch.where(finite, g.isfinite(), g == w))
        if bound is not None:  # may overflow there
            same |= finite & (bound[start : start + step] == torch.inf)
        mismatches += int((~same).sum())
        usable = finite & g.isfinite()
        error, w = torch.where(usable, g - w, 0.0), torch.where(usable, w, 0.0)
        totals["error"] += float(error.square().sum())
        totals["want"] += float(w.square().sum())
        totals["signed"] += float((error * w.sign()).sum())
        totals["absolute"] += float(w.abs().sum())
        largest = max(largest, float(error.abs().amax()))
        row_errors.append(quotient(error.square().sum(1).sqrt(), w.square().sum(1).sqrt()))
        score = error.abs()
        if bound is not None:
            allowed = bound[start : start + step]
            score = quotient(score, allowed)
            zero = max(zero, float(quotient(w.abs(), allowed).amax()))
            unbounded += int((finite & ~allowed.isfinite()).sum())
            ratios.append(score.flatten()[:: max(1, want.numel() // 2**22)])
        top = int(score.argmax())
        if float(score.flatten()[top]) > worst[0]:
            worst = (float(score.flatten()[top]), start * want.shape[1] + top)
    rows = torch.cat(row_errors)
    quantiles = None
    if ratios:
        sample = torch.cat(ratios).sort().values
        quantiles = {f"{q:g}": float(sample[min(len(sample) - 1, int(q * len(sample)))]) for q in (0.5, 0.99, 0.999)}
    return Measurement(
        output=output,
        elements=want.numel(),
        normwise=math.sqrt(totals["error"] / totals["want"]) if totals["want"] else math.sqrt(totals["error"]),
        rms=math.sqrt(totals["error"] / want.numel()),
        largest=largest,
        signed_bias=totals["signed"] / totals["absolute"] if totals["absolute"] else 0.0,
        worst_row=int(rows.argmax()),
        worst_row_error=float(rows.max()),
        worst_element=element(got, want, bound, worst[1], shape, fmt),
        over_budget=worst[0] if bound is not None else None,
        over_budget_quantiles=quantiles,
        nonfinite_mismatches=mismatches,
        zero_over_budget=None if bound is None else zero,
        infinite_bounds=None if bound is None else unbounded,
    )


def row_blocks(
    got: Tensor, want: Tensor, bound: Tensor, *, multiple: int = 1, order: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(got, want, bound) in float64 and two-dimensional, some rows at a time: a multiple of `multiple`, but the last.

    `order` names the rows in the order in which they come; None is as they stand.
    """
    got, want, bound = (x.reshape(len(x) if x.ndim else 1, -1) for x in (got, want, bound))
    step = max(1, ROWS_AT_ONCE // max(want.shape[1], 1) // multiple) * multiple
    for start in range(0, len(want), step):
        chosen = slice(start, start + step) if order is None else order[start : start + step]
        yield got[chosen].double(), want[chosen].double(), bound[chosen].double()


def worst_elements(got: Tensor, want: Tensor, bound: Tensor, count: int = 5) -> list[Element]:
    """The `count` elements that come nearest to their bounds, the nearest first."""
    scores, places, start = [], [], 0
    for g, w, b in row_blocks(got, want, bound):
        usable = g.isfinite() & w.isfinite()
        ratio = quotient(torch.where(usable, g - w, 0.0).abs(), b).flatten()
        top = ratio.topk(min(count, len(ratio)))
        scores.append(top.values)
        places.append(start + top.indices)
        start += len(ratio)
    best = torch.cat(scores).topk(min(count, start)).indices
    fmt, flat = Format.of(got.dtype), torch.cat(places)[best].tolist()
    return [element(got, want, bound, place, want.shape, fmt) for place in flat]


def quotient(error: Tensor, size: Tensor) -> Tensor:
    """error / size, for bounds and norms: 0 where the error is 0 or the size inf; a size that is NaN allows "
    "nothing."""
    return torch.where((error == 0) | (size == torch.inf), 0.0, error / size).nan_to_num(
        nan=torch.inf, posinf=torch.inf
    )


def worst_ratio(got: Tensor, want: Tensor, bound: Tensor) -> float:
    """max |got - want| / bound. A bound of 0 admits 0, one of inf (possible overflow) anything, one of NaN nothing.

    Where the truth is not finite, only its like will do.
    """
    got, want, bound = (x.double().reshape(-1) for x in (got, want, bound))
    if not len(want):
        return 0.0
    finite = want.isfinite()
    alike = torch.where(want.isnan(), got.isnan(), got == want)
    error = (got - want).abs()
    return float(torch.where(finite, quotient(error, bound), torch.where(alike, 0.0, torch.inf)).max())


def pattern(x: Tensor) -> str:
    """The bits of one number of 16, 32 or 64 bits, in hex."""
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).item()
    width = 2 * x.element_size()
    return f"0x{bits & (16**width - 1):0{width}x}"


def element(got: Tensor, want: Tensor, bound: Tensor | None, index: int, shape: torch.Size, fmt: Format) -> Element:
    """The element at `index` of the flattened tensors, its place in `shape`."""
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), shape)] if shape else []
    g, w = got.flatten()[index], float(want.flatten()[index])
    b = None if bound is None else bound.flatten()[index]
    exponent = math.frexp(w)[1] if w and math.isfinite(w) else -1100
    ulp = max(math.ldexp(1.0, exponent - fmt.digits), fmt.tiny)
    error = torch.tensor(float(g) - w, dtype=torch.float64).abs()
    usable = math.isfinite(float(g)) and math.isfinite(w)
    return Element(
        place=place,
        got=float(g),
        got_hex=pattern(g),
        want=w,
        want_hex=w.hex(),
        ulps=float(error) / ulp,
        over_budget=None if b is None else float(quotient(error, b.cpu().double())) if usable else 0.0,
        bound=None if b is None else float(b),
        bound_hex=None if b is None else float(b).hex(),
    )
