"""Words for what the page shows."""

from __future__ import annotations

GRADIENTS = {"d_embeddings": "dE", "d_classifier": "dC"}
OUTPUTS = {"loss": "loss", "lse": "lse", **GRADIENTS, "d_bias": "dbias"}

STAGES = {
    "dot_logits": "logits: the product E·C over D",
    "add_bias": "logits: the bias",
    "soft_cap": "logits: the softcap",
    "exponentials": "forward: exponentials",
    "fold_tile": "forward: sums within and across tiles",
    "join_splits": "forward: joining the splits, and the logarithm",
    "indexed_dot": "the target's own dot product (Algorithm 1)",
    "token_loss": "loss of a token: lse less target logit",
    "reduce_losses": "mean or sum of the losses",
    "load_upstream": "upstream gradient to fp32",
    "recompute_logits": "backward: logits once more",
    "softmax": "backward: softmax",
    "residual": "backward: softmax less one-hot, times upstream",
    "soft_cap_slope": "backward: slope of the softcap",
    "is_live": "filter: tiles dropped",
    "cast_residual": "residual to the storage format",
    "tile_product": "product of a residual tile with C or E",
    "cast_increment": "increment to the storage format",
    "add_increment": "sum of the increments",
    "cast_output": "result to the storage format",
    "sum_bias": "sums of dbias",
}
"""The stages of the kernels, which are named by the functions that do them, in the order of execution."""
