# mypy: ignore-errors
"""Single stages of the kernels as functions of tensors, so that a test or a table can try them one by one.

The jit functions are the kernels' own; each wrapper only loads, calls and stores.
"""

from ccelab.kernels import Variant
from ccelab.kernels import backward as backward_stages
from ccelab.kernels import logits as logit_stages
from ccelab.kernels import rounding as rounding_stages
from ccelab.kernels.accumulate import add_increment, cast_increment
from ccelab.kernels.backend import IS_INTERPRETED, TL_DTYPES

# isort: split
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2**16 if IS_INTERPRETED else 1024


@triton.jit
def _upcast(X, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Out + i, rounding_stages.upcast(tl.load(X + i, mask=i < n, other=0.0)), mask=i < n)


@triton.jit
def _downcast(X, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(X + i, mask=i < n, other=0.0)
    tl.store(Out + i, rounding_stages.downcast(x, Out.dtype.element_ty), mask=i < n)


@triton.jit
def _rounded_sum(A, B, Out, n, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = rounding_stages.upcast(tl.load(A + i, mask=i < n, other=0.0))
    b = rounding_stages.upcast(tl.load(B + i, mask=i < n, other=0.0))
    tl.store(Out + i, rounding_stages.round_to(a + b, DTYPE), mask=i < n)


@triton.jit
def _two_sum(A, B, Sum, Rest, n, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = rounding_stages.upcast(tl.load(A + i, mask=i < n, other=0.0))
    b = rounding_stages.upcast(tl.load(B + i, mask=i < n, other=0.0))
    s, t = rounding_stages.two_sum(a, b, DTYPE)
    tl.store(Sum + i, s, mask=i < n)
    tl.store(Rest + i, t, mask=i < n)


@triton.jit
def _dot(A, B, Acc, Out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(A + i[:, None] * K + k[None, :])
    b = tl.load(B + k[:, None] * N + j[None, :])
    acc = tl.load(Acc + i[:, None] * N + j[None, :])
    tl.store(Out + i[:, None] * N + j[None, :], rounding_stages.dot(a, b, acc))


@triton.jit
def _power_of_two(X, Power, Inverse, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    power, inverse = rounding_stages.power_of_two(tl.load(X + i, mask=i < n, other=1.0))
    tl.store(Power + i, power, mask=i < n)
    tl.store(Inverse + i, inverse, mask=i < n)


@triton.jit
def _relative_scale(X, Top, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, top = tl.load(X + i, mask=i < n, other=1.0), tl.load(Top + i, mask=i < n, other=1.0)
    tl.store(Out + i, backward_stages.relative_scale(x, top), mask=i < n)


@triton.jit
def _soft_cap(Z, Tanh, Cap, Slope, softcap, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(Z + i, mask=i < n, other=0.0)
    tl.store(Tanh + i, logit_stages.tanh(z), mask=i < n)
    tl.store(Cap + i, logit_stages.soft_cap(z, softcap), mask=i < n)
    tl.store(Slope + i, logit_stages.soft_cap_slope(tl.full((BLOCK,), 1.0, tl.float32), z, softcap), mask=i < n)


@triton.jit
def _exponential(X, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Out + i, rounding_stages.exp(tl.load(X + i, mask=i < n, other=0.0)), mask=i < n)


@triton.jit
def _logarithm(X, Out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # As `combine.join_splits` takes it; the helper itself wants the partial results of a whole row.
    tl.store(Out + i, tl.log(tl.load(X + i, mask=i < n, other=1.0)), mask=i < n)


@triton.jit
def _accumulate(V, Sum, Companion, terms, n, VARIANT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.full((BLOCK,), 0.0, tl.float32)
    c = tl.full((BLOCK,), 0.0, tl.float32)
    for t in range(0, terms):
        v = cast_increment(tl.load(V + t * n + i, mask=i < n, other=0.0), VARIANT, DTYPE)
        s, c = add_increment(s, c, v, VARIANT, DTYPE)
    tl.store(Sum + i, s, mask=i < n)
    tl.store(Companion + i, c, mask=i < n)


def _elementwise(kernel, inputs, outputs, *scalars, **constants) -> None:
    n = inputs[0].numel()
    kernel[(triton.cdiv(n, BLOCK),)](*inputs, *outputs, *scalars, n, **constants, BLOCK=BLOCK, enable_fp_fusion=False)


def upcast(x: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _elementwise(_upcast, (x,), (out,))
    return out


def downcast(x: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    _elementwise(_downcast, (x,), (out,))
    return out


def rounded_sum(a: Tensor, b: Tensor) -> Tensor:
    """rn(a + b) as fp32, for a and b in one storage dtype."""
    out = torch.empty(a.shape, dtype=torch.float32, device=a.device)
    _elementwise(_rounded_sum, (a, b), (out,), DTYPE=TL_DTYPES[a.dtype])
    return out


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    s, t = (torch.empty(a.shape, dtype=torch.float32, device=a.device) for _ in range(2))
    _elementwise(_two_sum, (a, b), (s, t), DTYPE=TL_DTYPES[a.dtype])
    return s, t


def dot(a: Tensor, b: Tensor, acc: Tensor) -> Tensor:
    """acc + a @ b; dimensions are powers of two of at least 16."""
    out = torch.empty_like(acc)
    _dot[(1,)](a, b, acc, out, M=a.shape[0], N=b.shape[1], K=a.shape[1])
    return out


def power_of_two(x: Tensor) -> tuple[Tensor, Tensor]:
    power, inverse = torch.empty_like(x), torch.empty_like(x)
    _elementwise(_power_of_two, (x,), (power, inverse))
    return power, inverse


def relative_scale(x: Tensor, top: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _elementwise(_relative_scale, (x, top), (out,))
    return out


def soft_cap(z: Tensor, softcap: float) -> tuple[Tensor, Tensor, Tensor]:
    """(tanh(z), softcap tanh(z / softcap), the derivative of that)."""
    outputs = tuple(torch.empty_like(z) for _ in range(3))
    _elementwise(_soft_cap, (z,), outputs, logit_stages.SoftCap.of(softcap))
    return outputs


def exponential(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _elementwise(_exponential, (x,), (out,))
    return out


def logarithm(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _elementwise(_logarithm, (x,), (out,))
    return out


def accumulate(increments: Tensor, scheme: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(sum, companion) of (T, n) fp32 increments under a scheme of `Variant.accumulate`, held in fp32."""
    s, c = (torch.empty(increments.shape[1], dtype=torch.float32, device=increments.device) for _ in range(2))
    n, block = increments.shape[1], 512
    _accumulate[(triton.cdiv(n, block),)](
        increments,
        s,
        c,
        len(increments),
        n,
        VARIANT=Variant(accumulate=scheme),
        DTYPE=TL_DTYPES[dtype],
        BLOCK=block,
        enable_fp_fusion=False,
    )
    return s, c
