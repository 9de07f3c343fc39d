"""Bugs of granularity=segment: of what is kept, of the products of it, and of the tail."""

from __future__ import annotations

from ..mutation import Mutant

VARIANT = "cce-segment,eps=2^-6"
DROP = "cce-segment,eps=2^-6,tail=drop"
LIVE_ROWS = "row_segments:live_rows_kernel"
WITHIN = "every_output_is_within_its_budget"
LOST = "what_rows_lose_is_what_was_dropped"
NEGLIGIBLE = "segments_that_are_dropped_are_negligible"
CONSERVED = "a_tail_conserves_rows"
SIMILAR = "similar_rows_share_blocks"
ORDER, LIKENESS = "similar_rows:similar_rows", "similar_rows:likeness_kernel"
SPREAD = "a_tail_is_spread_as_sampled_rows_lose"

MUTANTS = (
    Mutant(
        "the forward pass records the running sum",
        NEGLIGIBLE,
        VARIANT,
        "logsumexp:visit_tile",
        "finite, base, parts,",
        "finite, base, parts + s[:, None],",
    ),
    Mutant(
        "the record forgets the maximum",
        LOST,
        DROP,
        "record:record_mass",
        "(m - base)[:, None] + fast_log(parts)",
        "fast_log(parts)",
    ),
    Mutant(
        "the record mixes up the segments of a tile",
        NEGLIGIBLE,
        VARIANT,
        "record:record_mass",
        "fast_log(parts)",
        "fast_log(tl.sum(parts, 1)[:, None] - parts)",
    ),
    Mutant(
        "the record is read at the first split's maximum",
        LOST,
        DROP,
        "record:load_base",
        "split.to(tl.int64) * N",
        "0 * split.to(tl.int64) * N",
    ),
    Mutant(
        "words are marked four by four",
        NEGLIGIBLE,
        VARIANT,
        "row_segments:pack_bits",
        "(x.shape[1] // 8))[None",
        "(x.shape[1] // 4))[None",
    ),
    Mutant("what rows keep counts as lost", LOST, VARIANT, LIVE_ROWS, "(live == 0)", "live"),
    Mutant(
        "a row of segments is kept 64 times too seldom",
        NEGLIGIBLE,
        VARIANT,
        LIVE_ROWS,
        "rows.size[None, :], eps)",
        "rows.size[None, :], 64 * eps)",
    ),
    Mutant(
        "a target's segment may be dropped",
        NEGLIGIBLE,
        VARIANT,
        LIVE_ROWS,
        "tl.where(segment[:, None] == of_target[None, :], 1.0, largest)",
        "largest",
    ),
    Mutant(
        "a target's word may be dropped",
        NEGLIGIBLE,
        "cce-segment,eps=2^-2",
        "segments:_Segments",
        "keep_targets=self.eps_e < 1",
        "keep_targets=False",
    ),
    Mutant(
        "entries are judged by dC's eps",
        NEGLIGIBLE,
        VARIANT,
        "segments:_Segments",
        "            self.eps_e,\n",
        "            self.eps,\n",
    ),
    Mutant(
        "rows are judged by dE's eps_e",
        "a_larger_eps_e_keeps_no_more",
        VARIANT,
        "segments:_Segments",
        "judge(self.eps)",
        "judge(self.eps_e)",
    ),
    Mutant(
        "words are marked for the first block of rows",
        NEGLIGIBLE,
        VARIANT,
        "row_segments:mark_words_kernel",
        "(i // TILES.block_n)",
        "(i // TILES.block_n * 0)",
    ),
    Mutant(
        "words of the last rows of a chunk are not marked",
        NEGLIGIBLE,
        DROP,
        "row_segments:mark_words_kernel",
        "mask=(live != 0) &",
        "mask=(live != 0) & (place < count - 1)[:, None] &",
    ),
    Mutant(
        "words are marked for the block that a row was in",
        NEGLIGIBLE,
        VARIANT,
        "row_segments:mark_words_kernel",
        "i = tl.load(Place + i)",
        "i = i + 0",
    ),
    Mutant(
        "residuals of dE are of the rows that were there",
        WITHIN,
        VARIANT,
        "column_segments:column_residuals_kernel",
        "i = rows_of_block(Order, row0 + tl.arange(0, TILES.block_n), N)",
        "i = row0 + tl.arange(0, TILES.block_n)",
    ),
    Mutant(
        "rows of dE are written where others were",
        WITHIN,
        VARIANT,
        "column_segments:column_segments_kernel",
        "i = rows_of_block(Order, block * TILES.block_n + here, N)",
        "i = block * TILES.block_n + here",
    ),
    Mutant("rows that keep less come first", SIMILAR, VARIANT, ORDER, "descending=True", "descending=False"),
    Mutant("all rows are likened to one", SIMILAR, VARIANT, LIKENESS, "* PIVOTS + alike", "* PIVOTS"),
    Mutant("pivots of great length attract all", SIMILAR, VARIANT, LIKENESS, "tl.rsqrt(square)", "tl.sqrt(square)"),
    Mutant("ignored rows come first", SIMILAR, VARIANT, LIKENESS, "PARTS * PIVOTS, key", "0, key + 1"),
    Mutant(
        "the last member of an owner is forgotten",
        WITHIN,
        VARIANT,
        "compact:chunks_kernel",
        "tl.minimum(count - c * size, size)",
        "tl.minimum(count - c * size - 1, size)",
    ),
    Mutant(
        "the first owner's list begins one late",
        WITHIN,
        VARIANT,
        "compact:bounds_kernel",
        "tl.store(Bounds, 0)",
        "tl.store(Bounds, 1)",
    ),
    Mutant(
        "a chunk's sum is not carried on",
        WITHIN,
        VARIANT,
        "row_segments:segment_product",
        "v = dot(g, m, v)",
        "v = dot(g, m, v * 0)",
    ),
    Mutant(
        "a later chunk takes the residuals of the first",
        WITHIN,
        DROP,
        "row_segments:segment_product",
        "first * CHUNK + k0",
        "first * CHUNK + 0 * k0",
    ),
    Mutant(
        "dC is written over residuals that are still to be read",
        WITHIN,
        VARIANT,
        "borrowed:Borrowed",
        "(begin + int(firsts[end]) * chunk) // tile)",
        "tiles)",
    ),
    Mutant(
        "residuals of dE lie over those of dC",
        WITHIN,
        VARIANT,
        "borrowed:Borrowed",
        "flat[steps[0][1] * tile : begin]",
        "flat[begin:]",
    ),
    Mutant(
        "dC's last residuals are not moved out of its way",
        WITHIN,
        VARIANT,
        "segments:_Segments",
        "chunk * self.of_rows.block_n :].clone()",
        "chunk * self.of_rows.block_n :]",
    ),
    Mutant(
        "dC stays at the scale of its residuals",
        WITHIN,
        VARIANT,
        "row_segments:row_segments_kernel",
        "v = v * tl.load(Top)",
        "v = v * 1.0",
    ),
    Mutant(
        "the headroom of dE is forgotten", WITHIN, DROP, "column_segments:column_segments_kernel", "v * HEADROOM", "v"
    ),
    Mutant(
        "dC's tail forgets upstream gradients",
        WITHIN,
        VARIANT,
        "rank1:Rank1",
        "lost * (dloss + dlse)",
        "lost",
    ),
    Mutant("a tail is given back twice", CONSERVED, VARIANT, "tail:add_tail", "return v + m", "return v + 2.0 * m"),
    Mutant("a tail is taken once more", CONSERVED, VARIANT, "tail:add_tail", "return v + m", "return v - m"),
    Mutant(
        "a tail pulls towards all words alike",
        CONSERVED,
        VARIANT,
        "tail:pull_kernel",
        "total += x * w[:, None]",
        "total += x",
    ),
    Mutant(
        "a tail is spread over what is kept",
        SPREAD,
        VARIANT,
        "tail:tail_share_kernel",
        "(live == 0)",
        "(live != 0)",
    ),
    Mutant("a tail's share is not one", SPREAD, VARIANT, "rank1:Rank1", "share / total", "share"),
)
