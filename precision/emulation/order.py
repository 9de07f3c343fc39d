"""The stages in the order in which they run, and what each takes in."""

from __future__ import annotations

NEEDS: dict[str, tuple[str, ...]] = {
    "dot_logits": (),
    "add_bias": ("dot_logits",),
    "soft_cap": ("add_bias",),
    "exponentials": ("soft_cap", "fold_tile"),
    "fold_tile": ("soft_cap", "exponentials"),
    "store_exponentials": ("exponentials",),
    "join_splits": ("fold_tile",),
    "indexed_dot": (),
    "token_loss": ("join_splits", "soft_cap", "indexed_dot"),
    "reduce_losses": ("token_loss",),
    "load_upstream": (),
    "recompute_logits": (),
    "softmax": ("recompute_logits", "join_splits"),
    "restore_softmax": ("store_exponentials", "join_splits"),
    "residual": ("softmax", "restore_softmax", "load_upstream"),
    "soft_cap_slope": ("residual", "recompute_logits"),
    "is_live": ("soft_cap_slope",),
    "cast_residual": ("is_live",),
    "tile_product": ("cast_residual",),
    "cast_increment": ("tile_product",),
    "add_increment": ("cast_increment",),
    "add_tail": ("add_increment",),
    "sum_bias": ("soft_cap_slope",),
    "cast_output": ("add_tail", "sum_bias"),
}
"""What each stage takes in. The exponentials of a tile are shifted by its running maximum, which `fold_tile` finds and
which it needs for the sum: the two take in each other."""

ORDER: tuple[str, ...] = tuple(NEEDS)
"""Execution order. dbias is summed beside dC's increments and cast with them."""

OF_OUTPUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss": ("token_loss", ()),
    "reduced": ("reduce_losses", ()),
    "lse": ("token_loss", ("indexed_dot",)),
    "d_embeddings": ("cast_output", ("sum_bias",)),
    "d_classifier": ("cast_output", ("sum_bias",)),
    "d_bias": (
        "cast_output",
        ("is_live", "cast_residual", "tile_product", "cast_increment", "add_increment", "add_tail"),
    ),
}
"""The last stage of every output of `Solution`, and the stages before it that only other outputs pass through."""


def upstream(stage: str) -> tuple[str, ...]:
    """`stage` and everything that its result depends on, in execution order."""
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(NEEDS[name])
    return tuple(name for name in ORDER if name in found)


def stages_of(output: str) -> tuple[str, ...]:
    """The stages that an output passes through, in execution order."""
    last, others = OF_OUTPUT[output]
    return tuple(stage for stage in upstream(last) if stage not in others)
