# mypy: ignore-errors
"""One tile of logits, z = cap(E C^T + bias): the same stages in the forward and in the backward pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import triton.language as tl

from .backend import IS_INTERPRETED, device_function, stage
from .matrix import load_rows
from .rounding import dot, exp, fma, reciprocal, upcast

BY_TILE = tl.constexpr(IS_INTERPRETED)
"""Elsewhere a softcap goes entry by entry: operation by operation it needs the registers of several tiles."""


class SoftCap(NamedTuple):
    """Of logits, as kernels take it: two fp32 numbers."""

    size: float
    reciprocal: float  # a division is a call, which takes registers of the logits

    @classmethod
    def of(cls, softcap: float | None) -> SoftCap | None:
        if softcap is None:
            return None
        size = np.float32(softcap)
        return cls(float(size), float(np.float32(1.0) / size))


@stage
def dot_logits(
    E,
    C,
    row0,
    rows,
    row_mask,
    col0,
    cols,
    col_mask,
    D,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """(BLOCK_N, BLOCK_V) fp32 products of rows of E and rows of C, summed over D in steps of BLOCK_D."""
    z = tl.full((TILES.block_n, TILES.block_v), 0.0, tl.float32)
    for d in range(0, D, TILES.block_d):
        e = load_rows(E, row0, rows, row_mask, d, TILES.block_d, E_DESCRIPTOR)
        c = load_rows(C, col0, cols, col_mask, d, TILES.block_d, C_DESCRIPTOR)
        z = dot(e, tl.trans(c), z)
    return z


@stage
def add_bias(z, Bias, cols, col_mask):
    """z plus the biases of the given columns (its last dimension), in fp32 and once per logit."""
    if Bias is None:
        return z
    else:
        bias = tl.load(Bias.ptr + cols.to(tl.int64) * Bias.stride_row, mask=col_mask, other=0.0)
        return z + upcast(bias)


TANH_IS_1 = tl.constexpr(9.02)
"""From here on the rational form has nothing to tell tanh from 1 by."""


@device_function
def tanh(x):
    """tanh within a few ulp, as x P(x^2) / Q(x^2).

    P and Q are of degree 4, both 1 at 0, and all their coefficients are positive, so that nothing cancels: a minimax
    fit of the relative error up to 9.02, which is 0.37 u. A form near 0, another with an exponential, and divisions to
    the last digit, which are calls, had the tensor core wait: 2.8 products of the forward pass for 1.16 (H200).
    """
    x = tl.minimum(tl.maximum(x, -TANH_IS_1, tl.PropagateNan.ALL), TANH_IS_1, tl.PropagateNan.ALL)
    s = x * x
    p = fma(fma(s, 1.3384118824649356e-08, 2.0635796859368456e-05), s, 3.497460671476601e-03)
    p = fma(fma(p, s, 1.338269137158877e-01), s, 1.0)
    q = fma(fma(s, 7.790207445296303e-07, 3.2885189897149123e-04), s, 2.5884377229188578e-02)
    q = fma(fma(q, s, 4.6716012667581575e-01), s, 1.0)
    return (x * p) * reciprocal(q)


@device_function
def capped(z, size, inverse):
    """The softcap `size` of z."""
    return tanh(z * inverse) * size


@device_function
def sloped(g, z, inverse):
    """g times its derivative."""
    q = exp(-2.0 * tl.abs(z * inverse))
    return g * ((4.0 * q) * reciprocal((1.0 + q) * (1.0 + q)))


@stage
def soft_cap(z, softcap):
    """softcap * tanh(z / softcap)."""
    if softcap is None:
        return z
    elif BY_TILE:
        return capped(z, softcap.size, softcap.reciprocal)
    else:
        return tl.map_elementwise(capped, z, softcap.size, softcap.reciprocal)


@stage
def soft_cap_slope(g, z, softcap):
    """g times the derivative of soft_cap at z: sech^2 as 4q / (1 + q)^2, exact where 1 - tanh^2 loses its digits."""
    if softcap is None:
        return g
    elif BY_TILE:
        return sloped(g, z, softcap.reciprocal)
    else:
        return tl.map_elementwise(sloped, g, z, softcap.reciprocal)


@device_function
def mask_columns(z, col_mask):
    """-inf outside the vocabulary. After soft_cap, which would turn -inf into -softcap."""
    return tl.where(col_mask[None, :], z, float("-inf"))
