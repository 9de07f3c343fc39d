"""Liger-Kernel's fused linear cross-entropy: `--subject liger`. Written after the source of 0.8.5.

Tokens are taken in chunks of about N D / V; logits and their gradients are kept in the input's dtype, and dC is summed
over the chunks in the classifier's (its `accum_dtype` is left at its default).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ccelab.properties.adapters import interpreted
from ccelab.properties.promises import promising, require_bias_dtype


@promising("bias", "softcap", "float16", "float32", package=("liger_kernel", "pip install liger-kernel"))
def fused(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    softcap: float | None = None,
) -> Any:
    """(N, D), (V, D), (N,) -> loss.

    Raises:
        Unsupported: the bias has another dtype than the input, which ends in a product of two dtypes; or bf16 in
            Triton's interpreter.
    """
    interpreted.refuse_bf16(input)
    interpreted.prepare()
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    require_bias_dtype("Liger", input, linear_bias)
    return liger_fused_linear_cross_entropy(
        input,
        linear_weight,
        target,
        bias=linear_bias,
        ignore_index=ignore_index,
        reduction=reduction,
        softcap=interpreted.number(softcap),
    )
