"""8-bit blocks: the form in which a quantised classifier fits into half the bytes of bf16 without losing a bit.

GGUF's Q8_0 stores 32 weights as int8 codes q in [-127, 127] and one fp16 scale s = max|w| / 127; the weight is q s,
exact in fp32 (7 + 11 bits). Source: `quantize_row_q8_0_ref` in llama.cpp's ggml-quants.c.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
_ROWS = 4096  # rows of C looked at together: bounds the fp32 copies, and gives up early on a classifier without blocks


def unpack(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The classifier (V, D) in `dtype`: ``codes`` (V, D) int8 times ``scales`` (V, D / 32) fp16, rounded once."""
    blocks = codes.float().view(*scales.shape, BLOCK) * scales.float()[..., None]
    return blocks.view(codes.shape).to(dtype)


def pack(classifier: Tensor) -> tuple[Tensor, Tensor] | None:
    """Codes (V, D) int8 and scales (V, D / 32) fp16 that `unpack` turns into `classifier` bit by bit; None if none do.

    The blocks are found in the values themselves. In fp32 the scale is max|w| / 127 exactly. A classifier rounded to
    fewer bits leaves it uncertain by the rounding of that maximum, 2^-8 relative in bf16, which is 8 steps of fp16: the
    neighbours are tried until one gives back the whole block.
    """
    if classifier.ndim != 2 or classifier.shape[1] % BLOCK != 0:
        return None
    packed = []
    for rows in torch.split(classifier.detach().cpu(), _ROWS):
        pair = _pack_rows(rows)
        if pair is None:
            return None
        packed.append(pair)
    codes, scales = zip(*packed, strict=True)
    return torch.cat(codes), torch.cat(scales)


def _pack_rows(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    target = rows.reshape(-1, BLOCK)
    codes = torch.zeros(target.shape, dtype=torch.int8)
    scales = (target.float().abs().amax(1, keepdim=True) / 127).half()
    nearest = scales.clone().view(torch.int16)
    open_blocks = torch.arange(len(target))
    for step in sorted(range(-9, 10), key=abs):
        scale = (nearest[open_blocks] + step).clamp(min=0).view(torch.float16)
        wanted = target[open_blocks]
        code = (wanted.float() / scale.float()).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
        found = (_bits(unpack(code, scale, rows.dtype)) == _bits(wanted)).all(1)
        codes[open_blocks[found]] = code[found]
        scales[open_blocks[found]] = scale[found]
        open_blocks = open_blocks[~found]
        if len(open_blocks) == 0:
            return codes.reshape(rows.shape), scales.reshape(len(rows), -1)
    return None


def _bits(values: Tensor) -> Tensor:
    """The bit patterns, so that -0.0 differs from 0.0."""
    return values.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
