"""What `findings` tells beside the reports: defects that only a peer's source shows, and those in our own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A defect that the source shows and that no report made on a GPU does (`findings.tried`)."""

    peer: str
    title: str  # of its cause, where `causes` tells of one
    law: str | None = None  # None: no law asks for it yet, or another defect hides it
    subject: str = ""  # who breaks the law
    version: str = ""
    dtype: str = "bfloat16"
    without: str = ""
    source: str

    @property
    def command(self) -> str | None:
        """What would show it."""
        if not self.law or not self.subject:
            return None
        less = f" --without {self.without}" if self.without else ""
        words = f"--subject {self.subject} --dtype {self.dtype}{less} -k test_{self.law}"
        return f"pytest --pyargs ccelab.properties --device cuda {words}"


PREDICTED = (
    Prediction(
        peer="Apple's ml-cross-entropy 25.9.3",
        title="bf16 logits, as fp16 ones above: the same laws fail in bf16, and pass with 25.6.4",
        law="every_output_is_within_its_budget",
        subject="apple-exact",
        version="25.9",
        without="softcap",
        source="cce_lse_forward.py, apple/ml-cross-entropy #55",
    ),
    Prediction(
        peer="Apple's ml-cross-entropy 25.9.3",
        title="an fp32 bias is cast to E's dtype; the rounding of the logits hides it",
        source="utils.py, maybe_type_as",
    ),
    Prediction(
        peer="Apple's ml-cross-entropy 25.9.3",
        title="writes beyond NegCorrectLogit: rows and columns of padding both have the number V + 1. Seen on the CPU "
        "with a guard band behind the buffer (without one the process aborts); a GPU's allocator hides it",
        source="cce_lse_forward.py, _cce_lse_forward_kernel",
    ),
    Prediction(
        peer="Apple's ml-cross-entropy",
        title="gradients differ from run to run (locks and atomics); not promised",
        law="a_second_run_repeats_every_bit",
        source="tl_utils.py, tl_lock_add; cce_backward.py",
    ),
    Prediction(
        peer="Apple's ml-cross-entropy",
        title="an upstream gradient of more than one dimension that is not contiguous: RuntimeError from `view`",
        source="cce.py, LinearCrossEntropyFunction.backward",
    ),
    Prediction(
        peer="Liger-Kernel 0.8.5",
        title="a mean in fp16 divides the logits' gradient by N before it is cast, so that small ones underflow: in a "
        "script dE is 20 times worse at N = 4096 than at N = 64. The law's upstream gradient comes after the cast",
        law="small_upstream_gradients_survive_fp16",
        source="cross_entropy.py, liger_cross_entropy_kernel; Liger #512",
    ),
    Prediction(
        peer="Liger-Kernel 0.8.5",
        title="bf16 logits and bf16 sums of dC, as in fp16 above",
        law="every_output_is_within_its_budget",
        subject="liger",
        without="softcap",
        source="fused_linear_cross_entropy.py",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="NaN in an ignored row reaches dC",
        law="nan_in_an_ignored_row_goes_nowhere",
        subject="quack",
        source="quack/linear_cross_entropy.py",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="Scaled exponentials overflow where the target lies far below the maximum",
        law="a_target_far_below_the_maximum_is_within_budget",
        subject="quack",
        source="quack/linear_cross_entropy.py, _lce_glue_row",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="A wrong target reads its neighbour's memory",
        law="a_wrong_target_gives_no_plausible_number",
        subject="quack",
        source="quack/cross_entropy.py",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="A second backward pass multiplies the upstream gradient in once more",
        law="a_second_backward_pass_is_the_first_one_again",
        subject="quack",
        source="quack/linear_cross_entropy.py",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="Logits and their gradients are kept in the input's dtype",
        law="every_output_is_within_its_budget",
        subject="quack",
        source="quack/linear_cross_entropy.py",
    ),
    Prediction(
        peer="quack 0.6.5",
        title="Exponentials, logarithms and reciprocals are the GPU's fast ones",
        law="every_output_is_within_its_budget",
        subject="quack",
        dtype="float32",
        source="quack/cross_entropy.py",
    ),
    Prediction(
        peer="PyTorch 2.13, in chunks on a GPU",
        title="the loss and dC are summed over chunks in bf16 (the CPU's default policy sums in fp32)",
        law="batches_add_up",
        subject="torch-chunked",
        source="torch/nn/modules/linear_cross_entropy.py; linear_cross_entropy_options.py, _AUTO_DEFAULTS",
    ),
)

OURS = (
    (
        "a loss a few ulp off that of the same problem with a column of zeros",
        "columns_of_zeros_change_nothing",
        "With D = 1 known at compile time, Triton drops the loop over D, finds dot(e, c, 0) + bias, and hands the bias "
        "to the tensor core as its accumulator, which truncates where an addition rounds. D is no longer specialized.",
    ),
    (
        "dE off by 2.1e-37 where 1.5e-37 was allowed (V = 1, softcap 1)",
        "a_softcap_bounds_the_logits",
        "The budget of a softcap's slope forgot that an exponential below 2^-126, which is flushed, is multiplied by "
        "4. The budget was wrong, not the kernel; it is fixed.",
    ),
    (
        "laws about sums of increments failed on a GPU",
        "several, of accumulation",
        "The laws drew the increments on the CPU, whatever the device. They draw them where they are used now.",
    ),
    (
        "a tenth of dE in cce-kahan has other bits where E and C are transposed in memory (N = 15, V = 53, D = 17)",
        "strides_do_not_matter",
        "How a tile lies in memory decides which thread holds what of it, and so the order in which a sum over threads "
        "rounds: two words of nearly the same mean logit changed places in the vocabulary's order. Such sums are taken "
        "in fp64 now.",
    ),
    (
        "dE in cce-segment has other bits with columns of zeros behind D",
        "columns_of_zeros_change_nothing",
        "The same once more, in the sums over the vocabulary and over tokens that a tail is pulled along: padded, rows "
        "lie otherwise in memory. They are joined in fp64 too.",
    ),
)
"""What the laws found in our own kernels, budgets and laws when they ran on a GPU, and what was done."""
