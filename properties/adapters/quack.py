"""quack's linear cross-entropy: `--subject quack`. Written after the source of 0.6.5.

As its module `LinearCrossEntropy` does, shapes that the chunked kernel takes go there (N, V and D multiples of 8, no
bias, a reduction, 16 bits: its products take no fp32 on Hopper); in bf16 there it chooses the scaled exponentials by
itself where V is a multiple of 128. Others go through torch's linear and quack's cross-entropy over full logits.

It must lie in a folder named site-packages, as it does when installed: where it meets CuTe's functions elsewhere, it
fails to import.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ccelab.properties.promises import Unsupported, promising, require_bias_dtype

CHUNK = 4096  # rows; chunked_linear_cross_entropy's own default


@promising("bias", "float16", "float32", package=("quack", "pip install 'quack-kernels[cu13]' (Hopper or newer)"))
def module(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Any:
    """(N, D), (V, D), (N,) -> loss.

    Raises:
        Unsupported: a row of logits is no multiple of 16 bytes, or the bias has another dtype than the input.
    """
    from quack.linear_cross_entropy import chunked_linear_cross_entropy, linear_cross_entropy_func

    (v, d), n = linear_weight.shape, len(target)
    if linear_bias is None and reduction != "none" and input.element_size() == 2 and n % 8 == v % 8 == d % 8 == 0:
        return chunked_linear_cross_entropy(
            input,
            linear_weight,
            target,
            chunk_size=CHUNK,
            ignore_index=ignore_index,
            reduction=reduction,
            tuned=False,  # else dozens of tilings are compiled and timed for every shape
        )
    if v * input.element_size() % 16:
        raise Unsupported("quack's gradient takes rows of logits that are multiples of 16 bytes")
    require_bias_dtype("quack", input, linear_bias)
    return linear_cross_entropy_func(
        input, linear_weight, linear_bias, target, ignore_index=ignore_index, reduction=reduction
    )
