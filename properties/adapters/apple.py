"""apple/ml-cross-entropy, the authors' Cut Cross-Entropy: `--subject apple`, `apple-kahan-full-c` and `apple-exact`.

Written after the sources of 25.9.3 (b7a0279) and 25.6.4 (d42911f), which differ in arithmetic: whichever
`cut_cross_entropy` is importable is judged. On PyPI the name belongs to somebody else's upload of 24.12.1, which has
neither bias nor lse nor these implementations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ccelab.properties.adapters import interpreted
from ccelab.properties.promises import Unsupported, promising

PACKAGE = ("cut_cross_entropy", "pip install git+https://github.com/apple/ml-cross-entropy")


def _subject(impl: str, budget: str) -> Callable[..., Any]:
    """A subject of one of Apple's implementations, held to the preset whose name it bears.

    What Apple calls Kahan has been fp32 buffers since Triton 3.2, which a budget for Kahan's sums covers.
    """

    @promising("bias", "softcap", "lse", "float16", "float32", budget=budget, package=PACKAGE)
    def subject(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        return_lse: bool = False,
    ) -> Any:
        """(..., D), (V, D), (...) -> loss, or (loss, lse) with an lse in the shape of the shifted targets.

        Raises:
            Unsupported: there is no GPU that Apple takes, or bf16 in Triton's interpreter.
        """
        interpreted.refuse_bf16(input)
        interpreted.prepare()
        with interpreted.eager():
            from cut_cross_entropy import linear_cross_entropy

        try:
            with interpreted.as_on_a_gpu():
                return linear_cross_entropy(
                    input,
                    linear_weight,
                    target,
                    bias=linear_bias,
                    ignore_index=ignore_index,
                    softcap=softcap,
                    reduction=reduction,
                    shift=shift,
                    return_lse=return_lse,
                    impl=impl,
                )
        except RuntimeError as error:
            if "requires an ampere GPU" in str(error):
                raise Unsupported("Apple's needs an Ampere GPU or newer") from error
            raise

    return subject


cce = _subject("cce", budget="cce")
kahan_full_c = _subject("cce_kahan_full_c", budget="cce-kahan-full-c")
exact = _subject("cce_exact", budget="cce-exact")
