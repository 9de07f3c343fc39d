"""Why peers break laws: each cause with its public source, the laws that it breaks, and how to tell it from others.

Read by `findings`. A cause is what the peer's source says; that it suffices for the numbers is for the reader to judge,
who has the smallest example beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Example = Mapping[str, Any]
"""The fields of the `Spec` on which a law failed."""

PEERS = {
    "torch": "PyTorch",
    "torch-compile": "PyTorch",
    "torch-native": "PyTorch",
    "torch-chunked": "PyTorch",
    "torch-eight-chunks": "PyTorch",
    "liger": "Liger-Kernel",
    "apple": "Apple's ml-cross-entropy",
    "apple-kahan-full-c": "Apple's ml-cross-entropy",
    "apple-exact": "Apple's ml-cross-entropy",
    "quack": "quack",
}
"""Whose the subjects are."""

TORCH = ("torch", "torch-compile", "torch-native", "torch-chunked")
APPLE = ("apple", "apple-kahan-full-c", "apple-exact")
FILTERED = ("apple", "apple-kahan-full-c")
ANY = "*"


def always(version: str, example: Example) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One defect, or one decision, of a peer."""

    title: str
    subjects: tuple[str, ...]
    laws: tuple[str, ...]  # or ANY
    text: str
    source: str
    by_design: bool = False
    on_a_cpu: bool = False  # and nowhere else
    when: Callable[[str, Example], bool] = always  # of the peer's version and the example

    def explains(self, subject: str, law: str, version: str, example: Example) -> bool:
        named = ANY in self.laws or law in self.laws
        return named and subject in self.subjects and self.when(version, example)


def capped(version: str, example: Example) -> bool:
    return example.get("softcap") is not None


def half(version: str, example: Example) -> bool:
    return str(example.get("dtype", "float32")) != "float32"


def since_25_9(version: str, example: Example) -> bool:
    return not version.startswith("25.6") and half(version, example)


def before_25_9(version: str, example: Example) -> bool:
    return version.startswith("25.6")


def confident_lse(version: str, example: Example) -> bool:
    return bool(example.get("lse"))


def in_chunks(version: str, example: Example) -> bool:
    """Whether quack takes its chunked kernel."""
    whole = all(example.get(size, 1) % 8 == 0 for size in ("n", "v", "d"))
    return whole and example.get("bias") is None and example.get("reduction") != "none" and half(version, example)


def biased(version: str, example: Example) -> bool:
    return before_25_9(version, example) and example.get("bias") is not None


RETURNED = (
    "The loss of bf16 or fp16 inputs is a bf16 or fp16 number: with all logits 0 it is ln V to no more than 8 or 11 "
    "bits, however exact the rest was. In chunks on the CPU the logits are fp32, and the loss is what fails."
)

# The first that explains a failure counts: special causes before general ones.
CAUSES = (
    Cause(
        title="NaN in an ignored row reaches the loss",
        subjects=("torch-chunked",),
        laws=("nan_in_an_ignored_row_goes_nowhere",),
        text="The chunked path multiplies an ignored row's loss by a weight of 0, and 0 times NaN is NaN; so are a "
        "mean and a sum over the batch. The same call without options ignores the row, as F.cross_entropy does.",
        source="torch/nn/modules/linear_cross_entropy.py, the accumulator's loop over chunks (`weight_chunk`)",
    ),
    Cause(
        title="NaN in an ignored row reaches the gradients",
        subjects=TORCH,
        laws=("nan_in_an_ignored_row_goes_nowhere",),
        text="The gradient of an ignored row's logits is 0 times its softmax, which is NaN, and so are the row of dE "
        "and all of dC, a product with all rows of E. Every implementation over full logits does this.",
        source="the definition of the product; torch.nn.CrossEntropyLoss documents that an ignored target does not "
        "contribute to the input gradient",
    ),
    Cause(
        title="Subnormal bf16 numbers are flushed to zero",
        subjects=TORCH,
        laws=("subnormal_numbers_count",),
        when=lambda version, example: example["dtype"] == "bfloat16" and example["n"] * example["v"] > 2,
        text="On CPUs with avx512_bf16 a bf16 product of more than a few elements flushes subnormal inputs and "
        "results, as the instruction VDPBF16PS does whatever MXCSR says. Smaller products of these numbers are right.",
        source="Intel 64 and IA-32 Architectures Software Developer's Manual, VDPBF16PS",
        by_design=True,
        on_a_cpu=True,
    ),
    Cause(
        title="The loss is returned in the input's dtype",
        subjects=("torch-native",),
        laws=("no_embedding_is_a_uniform_guess", "reductions_agree_with_the_losses", "subnormal_numbers_count"),
        when=half,
        text=RETURNED,
        source="torch.nn.functional.linear_cross_entropy, whose documentation defines it as cross_entropy(linear(...))",
        by_design=True,
    ),
    Cause(
        title="The loss is returned in the input's dtype",
        subjects=("torch-chunked",),
        laws=(ANY,),
        when=half,
        text=RETURNED,
        source="torch.nn.functional.linear_cross_entropy, whose documentation defines it as cross_entropy(linear(...))",
        by_design=True,
    ),
    Cause(
        title="Logits are rounded to the input's dtype",
        subjects=("torch", "torch-compile", "torch-native"),
        laws=(ANY,),
        when=half,
        text="A linear layer's result has its input's dtype, so every logit loses all but 8 (bf16) or 11 (fp16) bits "
        "before the softmax; its error grows with the logit, and a common offset that the softmax does not see makes "
        "it larger still. The budget is that of fp32 logits.",
        source="torch.nn.functional.linear",
        by_design=True,
    ),
    Cause(
        title="NaN in an ignored row reaches dC",
        subjects=("liger",),
        laws=("nan_in_an_ignored_row_goes_nowhere",),
        text="The kernel stores zeros into an ignored row of the logits' gradient, and dC is its product with all rows "
        "of E: 0 times NaN is NaN. torch's own does the same.",
        source="liger_kernel/ops/fused_linear_cross_entropy.py, fused_linear_cross_entropy_forward",
    ),
    Cause(
        title="A wrong target reads and writes its neighbour's memory",
        subjects=("liger",),
        laws=("a_wrong_target_gives_no_plausible_number",),
        text="Nothing checks that a target lies in the vocabulary: `tl.load(X_ptr + y)` takes another row's logit for "
        "the target's and returns a finite loss, and the corrected gradient is stored at the same place.",
        source="liger_kernel/ops/cross_entropy.py, liger_cross_entropy_kernel",
    ),
    Cause(
        title="A second backward pass multiplies the upstream gradient in once more",
        subjects=("liger",),
        laws=("a_second_backward_pass_is_the_first_one_again",),
        text="Gradients of a mean or a sum are formed in the forward pass, and the backward pass multiplies the saved "
        "ones by the upstream gradient in place: with retain_graph=True the next one has it twice, silently.",
        source="liger_kernel/ops/fused_linear_cross_entropy.py, fused_linear_cross_entropy_backward; Liger #343",
    ),
    Cause(
        title="Nothing is left of a saturated softcap's slope",
        subjects=("liger",),
        laws=(ANY,),
        when=capped,
        text="The slope of softcap * tanh(z / softcap) is formed as 1 - tanh^2. Where tanh is nearly 1 this cancels; "
        "where it rounds to 1 the gradient is 0. 1 / cosh^2 would not cancel. Any implementation with this formula in "
        "fp32 has it.",
        source="liger_kernel/ops/cross_entropy.py, liger_cross_entropy_kernel",
    ),
    Cause(
        title="Logits and their gradients are kept in the input's dtype",
        subjects=("liger",),
        laws=(ANY,),
        when=half,
        text="`_input_chunk @ weight.t()` rounds each logit to the input's dtype, the kernel overwrites it by its "
        "gradient in that dtype, and dC is summed over chunks of tokens in the classifier's (`accum_dtype` is None by "
        "default). The budget is that of fp32 logits and sums.",
        source="liger_kernel/ops/fused_linear_cross_entropy.py, fused_linear_cross_entropy_forward",
        by_design=True,
    ),
    Cause(
        title="NaN in an ignored row reaches dC",
        subjects=("quack",),
        laws=("nan_in_an_ignored_row_goes_nowhere",),
        text="The kernel multiplies an ignored row's softmax by 0, or stores zeros there, and dC is the product of the "
        "logits' gradient with all rows of E: 0 times NaN is NaN.",
        source="quack/cross_entropy.py; quack/linear_cross_entropy.py",
    ),
    Cause(
        title="Scaled exponentials overflow where the target lies far below the maximum",
        subjects=("quack",),
        laws=("a_target_far_below_the_maximum_is_within_budget",),
        when=half,
        text="In bf16 on Hopper, V a multiple of 128, the element at the target is stored as (p - 1) exp(lse - k), k "
        "being the maximum of the target's tile. More than 88.7 nats below the lse that is infinite, and its product "
        "with the tile's factor, which is 0, is NaN. The loss is right.",
        source="quack/linear_cross_entropy.py, _lce_glue_row",
    ),
    Cause(
        title="A wrong target reads its neighbour's memory",
        subjects=("quack",),
        laws=("a_wrong_target_gives_no_plausible_number",),
        text="Nothing checks that a target lies in the vocabulary: the target's logit is read at that offset, and the "
        "loss is finite.",
        source="quack/cross_entropy.py, CrossEntropy.kernel (`mTargetLogit[row, target]`)",
    ),
    Cause(
        title="A second backward pass multiplies the upstream gradient in once more",
        subjects=("quack",),
        laws=("a_second_backward_pass_is_the_first_one_again",),
        when=in_chunks,
        text="The chunked kernels form dE in the forward pass, and the backward pass multiplies the saved one by the "
        "upstream gradient in place (`dx.mul_(dloss)`): with retain_graph=True the next one has it twice, silently.",
        source="quack/linear_cross_entropy.py, ChunkedLinearCrossEntropyFunction.backward",
    ),
    Cause(
        title="Logits and their gradients are kept in the input's dtype",
        subjects=("quack",),
        laws=(ANY,),
        when=half,
        text="torch's product rounds each logit to the input's dtype, and the kernel writes the logits' gradient in "
        "that dtype. Only where the scaled exponentials are used is the loss formed of fp32 logits. The budget is that "
        "of fp32 logits.",
        source="quack/linear_cross_entropy.py, linear_cross_entropy_func and chunked_linear_cross_entropy_fwd",
        by_design=True,
    ),
    Cause(
        title="Exponentials, logarithms and reciprocals are the GPU's fast ones",
        subjects=("quack",),
        laws=(ANY,),
        when=lambda version, example: not half(version, example),
        text="The lse is max + log(sum) with the GPU's approximate logarithm, the gradient an approximate 2^x of "
        "x log2(e) - lse log2(e), whose error grows with the logits. The budget is that of exact functions, rounded.",
        source="quack/cross_entropy.py (`fastmath=True`, `rcp_approx`)",
        by_design=True,
    ),
    Cause(
        title="Nothing but masked classes gives NaN for an lse of minus infinity",
        subjects=APPLE,
        laws=("nothing_but_masked_classes",),
        text="With all biases -inf a tile's log-sum-exp is -inf - (-inf) = NaN, and `tl_logaddexp` of -inf and -inf is "
        "NaN as well. torch.logsumexp gives -inf.",
        source="cut_cross_entropy/cce_lse_forward.py, _cce_lse_forward_kernel; cut_cross_entropy/tl_utils.py, "
        "tl_logaddexp",
    ),
    Cause(
        title="A wrong target gives a finite loss",
        subjects=APPLE,
        laws=("a_wrong_target_gives_no_plausible_number",),
        text="Nothing checks that a target lies in the vocabulary. For -1 25.9.3 finds no column and returns the lse "
        "for a loss, and 25.6.4 reads what lies before C. For V 25.6.4 returns the lse.",
        source="cut_cross_entropy/cce_lse_forward.py, _cce_lse_forward_kernel (25.9.3); "
        "cut_cross_entropy/indexed_dot.py, _indexed_neg_dot_forward_kernel (25.6.4)",
    ),
    Cause(
        title="A classifier with gaps between its rows fails in the backward pass",
        subjects=APPLE,
        laws=("strided_inputs_are_within_budget",),
        when=lambda version, example: not capped(version, example),
        text="The forward pass takes any strides. The backward pass allocates dC with `zeros_like`, which gives a "
        "matrix with gaps no gaps, and then asserts that its strides are C's: a bare AssertionError.",
        source="cut_cross_entropy/cce_backward.py, cce_backward_kernel",
    ),
    Cause(
        title="A mean over nothing divides by zero",
        subjects=APPLE,
        laws=("a_mean_over_nothing_is_no_accident",),
        when=before_25_9,
        text="If all targets are ignored, the backward pass of a mean computes 1 / 0 in Python: ZeroDivisionError. "
        "25.9.3 divides by max(N, 1).",
        source="cut_cross_entropy/cce.py, LinearCrossEntropyFunction.backward",
    ),
    Cause(
        title="The bias is added to the target's logit once per 256 columns",
        subjects=APPLE,
        laws=("problems_larger_than_anybodys_block_are_within_budget",),
        when=biased,
        text="Each program of the kernel for the target's logit takes one block of D and adds the bias. With D above "
        "256 the target's logit holds its bias twice or more often. Fixed in 25.9.3 (`pid_d == 0`).",
        source="apple/ml-cross-entropy #52, fixed by #53; cut_cross_entropy/indexed_dot.py, "
        "_indexed_neg_dot_forward_kernel",
    ),
    Cause(
        title="Small gradients underflow in fp16: 1/N and the upstream gradient come before the cast",
        subjects=APPLE,
        laws=("small_upstream_gradients_survive_fp16", "one_column", "more_than_two_tiles_everywhere"),
        when=lambda version, example: before_25_9(version, example) and half(version, example),
        text="The logits' gradient is multiplied by 1/N and by the upstream gradient, then cast to fp16, whose "
        "smallest normal number is 6.1e-5. That cast alone, in an otherwise exact computation, gives the same bits in "
        "both examples. 25.9.3 casts at the same place; there the rounding of the logits fails these laws first.",
        source="cut_cross_entropy/cce_backward.py, _cce_backward_kernel; compare Liger #512",
    ),
    Cause(
        title="The softcap is applied after the mask",
        subjects=APPLE,
        laws=(ANY,),
        when=capped,
        text="Columns beyond the vocabulary are set to -inf and then capped: tanh(-inf) is -1, so each column of "
        "padding adds exp(-softcap) to the sum. Wherever V is no multiple of the tile, the lse is too large, and "
        "losses and gradients with it.",
        source="cut_cross_entropy/cce_lse_forward.py, _cce_lse_forward_kernel; the same order of operations was fixed "
        "in unslothai/unsloth #10616",
    ),
    Cause(
        title="The filter does not see the gradient of the lse",
        subjects=FILTERED,
        laws=(ANY,),
        when=confident_lse,
        text="A tile is skipped when abs(softmax - onehot) is below eps everywhere. The gradient of the lse is not "
        "softmax - onehot but softmax: where the model is sure and right it is largest, and the tile is dropped with "
        "it. The kernel returns before it adds to dbias, too.",
        source="cut_cross_entropy/cce_backward.py, _cce_backward_kernel",
    ),
    Cause(
        title="The bias gradient is filtered with its tile",
        subjects=FILTERED,
        laws=("a_loss_is_not_negative", "confident_tokens_lose_nothing"),
        when=biased,
        text="The kernel returns from a negligible tile before it adds to dbias. Of a confident token nothing is left: "
        "dbias is 0 where it should be the probability of every other class, though the tile's sum would cost next to "
        "nothing.",
        source="cut_cross_entropy/cce_backward.py, _cce_backward_kernel",
    ),
    Cause(
        title="At the target the gradient of the lse cancels, and that of a small loss is lost",
        subjects=APPLE,
        laws=("another_target_moves_the_loss_by_the_logits",),
        when=lambda version, example: confident_lse(version, example) and not since_25_9(version, example),
        text="The logits' gradient is (p - onehot) * (d_loss + d_lse), and at the target d_lse is added again. Where p "
        "is small there this is -(d_loss + d_lse) + d_lse, with an error relative to d_lse, however small d_loss is: "
        "below 2^-25 d_lse nothing is left of it. The rounding of that sum alone, in an otherwise exact computation, "
        "gives the error of the example, and p * d_lse + (p - onehot) * d_loss in its place brings it within budget.",
        source="cut_cross_entropy/cce_backward.py, _cce_backward_kernel (`HAS_DLSE`)",
    ),
    Cause(
        title="Logits are rounded to the input's dtype",
        subjects=APPLE,
        laws=(ANY,),
        when=since_25_9,
        text="25.9.3 casts the fp32 sums to E's dtype and back, `cce_exact` included, to be closer to what PyTorch "
        "gives; 25.6.4 did not. The budget is that of fp32 logits.",
        source="apple/ml-cross-entropy #55; cut_cross_entropy/cce_lse_forward.py, _cce_lse_forward_kernel",
        by_design=True,
    ),
)
