"""Bugs of tail=rank1 with granularity=tile: of what is known before a tile is computed, and of who gains what."""

from __future__ import annotations

from ..mutation import Mutant

VARIANT = "cce-no-sort,eps=2^-6,tail=rank1"
STEEP = "cce-no-sort,eps=2^-4,tail=rank1"
HILO = "cce-no-sort,accumulate=hilo,eps=2^-6,tail=rank1"
FULL_C = "cce-kahan-full-c,order=none,eps=2^-6,tail=rank1"
FULL_E = "cce-kahan-full-e,order=none,eps=2^-6,tail=rank1"
LOST_ROWS = "tail:lost_rows_kernel"
OF_TILES = "rank1:tail_of_tiles"
BACKWARD = "gradients:_Backward"
LOST = "what_rows_lose_is_what_was_dropped"
MISSED = "both_gradients_miss_what_a_tail_is_not"

MUTANTS = (
    Mutant("what rows keep of tiles counts as lost", LOST, VARIANT, LOST_ROWS, "live == 0", "live != 0"),
    Mutant(
        "what rows lose is read of the first tile alone",
        LOST,
        VARIANT,
        LOST_ROWS,
        "(segment // per_tile)",
        "(segment // per_tile * 0)",
    ),
    Mutant(
        "a row takes the tiles of another block",
        LOST,
        VARIANT,
        OF_TILES,
        "tiles.repeat_interleave(block.block_n, 0)",
        "tiles.repeat(block.block_n, 1)",
    ),
    Mutant(
        "a tail is forgotten where most is live",
        LOST,
        VARIANT,
        "look_ahead:LookAhead",
        'found.call.variant.tail == "drop" and ',
        "",
    ),
    Mutant(
        "a sure target's tile is dropped with a tail",
        "a_tail_keeps_targets",
        STEEP,
        "look_ahead:LookAhead",
        " and self.eps < 1",
        " and False",
    ),
    Mutant(
        "dE's tail is at the scale of probabilities and its sums are not",
        "a_tail_conserves_rows",
        STEEP,
        "tail:with_tail_of_e",
        " * HEADROOM, 0.0)",
        ", 0.0)",
    ),
    Mutant(
        "dE's tail is added to another row's sums",
        "a_tail_conserves_rows",
        STEEP,
        "products:finish_embeddings_kernel",
        "tl.load(Lost + i, mask=i < N",
        "tl.load(Lost + (i ^ 1), mask=(i ^ 1) < N",
    ),
    Mutant(
        "a tail is added to dE without the sum's companion",
        MISSED,
        HILO,
        "products:finish_embeddings_kernel",
        "upcast(s) + upcast(c)",
        "upcast(s)",
    ),
    Mutant(
        "a tail is added to dC without the sum's companion",
        MISSED,
        HILO,
        "products:classifier_kernel",
        "total + upcast(c)",
        "total",
    ),
    Mutant(
        "dC of tiles is given back along the first words",
        MISSED,
        VARIANT,
        "products:classifier_kernel",
        "tl.load(Share + cols,",
        "tl.load(Share + cols - first,",
    ),
    Mutant(
        "dE that drops nothing is given something back",
        "full_e_is_unfiltered_in_de",
        FULL_E,
        OF_TILES,
        '(lost, rank1.of_words(share)) if drops["e"] else NO_TAIL',
        "(lost, rank1.of_words(share))",
    ),
    Mutant(
        "what is dropped of dE is dropped of dC",
        "full_c_is_unfiltered_in_dc",
        FULL_C,
        BACKWARD,
        "if self.lists is not None and self._filters(name):",
        "if self.lists is not None:",
    ),
    Mutant(
        "dbias takes in what the tail's filter keeps",
        "dbias_is_never_filtered",
        VARIANT,
        BACKWARD,
        "self.keeps_dead or self.want_bias",
        "self.keeps_dead",
    ),
)
