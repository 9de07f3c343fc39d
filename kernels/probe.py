# mypy: ignore-errors
"""The kernels' own fp32 logits, exponentials and logarithms, stored: what an emulation takes from the device where it
has no model of it, and what separates the error of the products from that of everything after them."""

import torch
import triton
import triton.language as tl

from .backend import kernel
from .launch import Call, operand, options, vector
from .logits import add_bias, dot_logits, soft_cap
from .rounding import reciprocal

FUNCTIONS = ("exp2", "log", "reciprocal")


@kernel
def logits_kernel(
    E,
    C,
    Bias,
    Out,
    softcap,
    first,
    width,
    N,
    V,
    D,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """One tile per program: the stages of logsumexp_kernel up to the capped logit."""
    row0 = tl.program_id(0) * TILES.block_n
    rows = row0 + tl.arange(0, TILES.block_n)
    col0 = first + tl.program_id(1) * TILES.block_v
    cols = col0 + tl.arange(0, TILES.block_v)
    row_mask, col_mask = rows < N, cols < V
    z = dot_logits(E, C, row0, rows, row_mask, col0, cols, col_mask, D, TILES, E_DESCRIPTOR, C_DESCRIPTOR)
    z = soft_cap(add_bias(z, Bias, cols, col_mask), softcap)
    offsets = rows.to(tl.int64)[:, None] * width + (cols - first)[None, :]
    tl.store(Out + offsets, z, mask=row_mask[:, None] & (cols - first < width)[None, :])


def own_logits(call: Call, first: int, last: int) -> torch.Tensor:
    """(N, last - first) fp32 logits of the vocabulary range, bit for bit those of the forward pass.

    Raises:
        ValueError: `first` is not the start of a tile of the forward schedule.
    """
    tiles = call.schedule.forward
    if first % tiles.block_v:
        raise ValueError(f"first={first} is not a multiple of the forward tile's block_v={tiles.block_v}")
    n, v, d = call.shape
    out = torch.empty((n, last - first), dtype=torch.float32, device=call.embeddings.device)
    e, e_descriptor = operand(call.embeddings, (tiles.block_n, tiles.block_d), call.schedule)
    c, c_descriptor = operand(call.classifier, (tiles.block_v, tiles.block_d), call.schedule)
    logits_kernel[(triton.cdiv(n, tiles.block_n), triton.cdiv(last - first, tiles.block_v))](
        e,
        c,
        vector(call.bias),
        out,
        call.cap,
        first,
        last - first,
        n,
        v,
        d,
        TILES=tiles,
        E_DESCRIPTOR=e_descriptor,
        C_DESCRIPTOR=c_descriptor,
        **options(tiles, call.schedule),
    )
    return out


@kernel
def function_kernel(X, Out, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    """exp2 (ex2.approx.ftz on a GPU), log or reciprocal (rcp.approx.ftz) of n fp32 numbers."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n, other=1.0)
    tl.store(Out + i, tl.exp2(x) if NAME == "exp2" else tl.log(x) if NAME == "log" else reciprocal(x), mask=i < n)


def own_function(name: str, x: torch.Tensor) -> torch.Tensor:
    """The function `name`, exp2, log or reciprocal, of fp32 x, as the kernels compute it.

    Raises:
        ValueError: it is none of them.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"no function {name!r}; legal: {', '.join(FUNCTIONS)}")
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        block = 1024
        grid = (triton.cdiv(x.numel(), block),)
        function_kernel[grid](x, out, x.numel(), NAME=name, BLOCK=block, enable_fp_fusion=False)
    return out
