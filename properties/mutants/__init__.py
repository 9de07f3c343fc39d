"""Seeded bugs, by the stage that has them. Every one is killed by the law that it names; every law has one."""

from __future__ import annotations

from . import accumulation, backward, filtering, forward, launching, residual, rounding, segments, stored, tails

MUTANTS = (
    *forward.MUTANTS,
    *residual.MUTANTS,
    *filtering.MUTANTS,
    *backward.MUTANTS,
    *accumulation.MUTANTS,
    *rounding.MUTANTS,
    *launching.MUTANTS,
    *segments.MUTANTS,
    *stored.MUTANTS,
    *tails.MUTANTS,
)
