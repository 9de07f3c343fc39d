"""Bugs outside the kernels: checks, reductions, strides, what is allocated and launched."""

from __future__ import annotations

from ..mutation import Mutant

CALL = "function:linear_cross_entropy"

MUTANTS = (
    Mutant(
        "a target of V is let through",
        "targets_outside_the_vocabulary_are_errors",
        "cce-exact",
        "check:check_targets",
        "targets >= vocabulary",
        "targets > vocabulary",
    ),
    Mutant(
        "a negative target is let through",
        "targets_outside_the_vocabulary_are_errors",
        "cce",
        "check:check_targets",
        "(targets < 0) | ",
        "",
    ),
    Mutant(
        "a mean over nothing is NaN",
        "all_ignored_is_nothing",
        "cce-exact",
        CALL,
        "max(count, 1)",
        "count",
    ),
    Mutant(
        "the mean counts ignored tokens",
        "reductions_agree_with_the_losses",
        "cce-exact",
        CALL,
        "max(count, 1)",
        "max(len(targets), 1)",
    ),
    Mutant(
        "losses are summed in bf16",
        "reductions_agree_with_the_losses",
        "cce",
        CALL,
        "loss.sum(dtype=torch.float64)",
        "loss.bfloat16().sum(dtype=torch.float64)",
    ),
    Mutant(
        "sum and mean are swapped",
        "a_sum_is_unreduced_losses_with_ones",
        "cce-exact",
        CALL,
        'if reduction == "mean" else 1',
        'if reduction == "sum" else 1',
    ),
    Mutant(
        "shift goes the wrong way",
        "a_shift_is_a_slice",
        "cce-exact",
        CALL,
        "torch.cat([targets[..., shift:], torch.full_like(targets[..., :shift], ignore_index)], -1)",
        "torch.cat([torch.full_like(targets[..., :shift], ignore_index), targets[..., :-shift]], -1)",
    ),
    Mutant(
        "leading dimensions are flattened in another order than the targets",
        "shapes_before_the_last_dimension_do_not_matter",
        "cce-exact",
        CALL,
        "input.reshape(-1, input.shape[-1])",
        "input.movedim(0, -2).reshape(-1, input.shape[-1])",
    ),
    Mutant(
        "rows are taken to be contiguous",
        "strides_do_not_matter",
        "cce-exact",
        "launch:_matrix",
        "Matrix(x, x.stride(0), x.stride(1), x.shape[1])",
        "Matrix(x, x.shape[1], 1, x.shape[1])",
    ),
    Mutant(
        "vectors are taken to have one element",
        "signed_upstream_gradients",
        "cce-exact",
        "launch:vector",
        "x.stride(0)",
        "0",
    ),
    Mutant(
        "sums start from what memory holds",
        "a_second_run_repeats_every_bit",
        "cce-exact",
        "launch:_accumulator",
        "torch.zeros(output.shape,",
        "torch.randn(output.shape,",
    ),
    Mutant(
        "the last block of classes is not launched",
        "dc_sums_to_nothing_over_the_vocabulary",
        "cce-exact",
        "launch:backward",
        "classifier_kernel[(vocabulary_blocks,)]",
        "classifier_kernel[(max(vocabulary_blocks - 1, 1),)]",
    ),
    Mutant(
        "the vocabulary is sorted for dE alone",
        "gradients_do_not_depend_on_who_else_asks",
        "cce",
        "launch:backward",
        'if variant.order == "mean_logit":',
        'if variant.order == "mean_logit" and want_e:',
    ),
    Mutant(
        "every gradient is that of a mean",
        "every_output_is_within_its_budget",
        "cce",
        "function:_TokenLoss",
        "call, row_max, log_sum, dloss, dlse, wanted, ctx.stats",
        "call, row_max, log_sum, dloss * 0 + 1 / len(dloss), dlse, wanted, ctx.stats",
    ),
)
