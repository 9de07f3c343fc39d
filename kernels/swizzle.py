# mypy: ignore-errors
"""The order in which programs go through pairs of a block of rows and a part of the vocabulary, so that what several
read at one time stays in the L2 cache."""

import triton.language as tl

from .backend import device_function


@device_function
def swizzled(place, row_blocks, parts, at_once):
    """(block, part) of a place among all pairs: `at_once` blocks of rows go through all `parts` of the vocabulary, one
    after another, before the next blocks do.

    Programs that run together read the same rows of C, which go by, and rows of E that are read again and again."""
    passed = place // (at_once * parts)
    first = passed * at_once
    blocks = tl.minimum(at_once, row_blocks - first)
    rest = place - passed * at_once * parts
    return first + rest % blocks, rest // blocks
