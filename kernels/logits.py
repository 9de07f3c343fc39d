# mypy: ignore-errors
"""One tile of logits, z = cap(E C^T + bias): the same stages in the forward and in the backward pass."""

import triton.language as tl

from .backend import device_function, stage
from .matrix import load_rows
from .rounding import dot, exp, upcast


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


@device_function
def tanh(x):
    """tanh within a few ulp: a rational form near 0, where 1 - 2/(e^2x + 1) would cancel.

    Coefficients: Cephes tanhf (S. Moshier), for |x| < 0.625.
    """
    square = x * x
    poly = ((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square
    poly = ((poly + 1.33314422036e-1) * square - 3.33332819422e-1) * square
    size = tl.abs(x)
    far = 1.0 - tl.div_rn(tl.full(x.shape, 2.0, tl.float32), exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, x + x * poly, tl.where(x < 0, -far, far))


@stage
def soft_cap(z, softcap):
    """softcap * tanh(z / softcap)."""
    if softcap is None:
        return z
    else:
        return softcap * tanh(tl.div_rn(z, tl.full(z.shape, 1.0, tl.float32) * softcap))


@stage
def soft_cap_slope(g, z, softcap):
    """g times the derivative of soft_cap at z: sech^2 as 4q / (1 + q)^2, exact where 1 - tanh^2 loses its digits."""
    if softcap is None:
        return g
    else:
        q = exp(-2.0 * tl.abs(tl.div_rn(z, tl.full(z.shape, 1.0, tl.float32) * softcap)))
        return g * tl.div_rn(4.0 * q, (1.0 + q) * (1.0 + q))


@device_function
def mask_columns(z, col_mask):
    """-inf outside the vocabulary. After soft_cap, which would turn -inf into -softcap."""
    return tl.where(col_mask[None, :], z, float("-inf"))
