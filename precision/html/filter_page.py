"""What the filter drops on this head, and what its threshold costs in general."""

from __future__ import annotations

from ..dead_rows import DeadRows
from ..report import Report
from . import studies
from .figure import Figure, Section, Table, percent
from .verdicts import kept


def filter_page(report: Report) -> Section:
    intro = (
        "A tile whose every entry is negligible is skipped. That saves time, and what is dropped is missing from the "
        "gradients: rows of dC may stay exactly zero, mostly those of infrequent words."
    )
    return Section(slug="filter", title="The filter", intro=intro, figures=[_here(report), *studies.filtering()])


def _here(report: Report) -> Figure:
    rows, buckets = [], []
    for result in report.results:
        dead, shares = result.dead_rows, kept(result)
        rows.append(
            [
                result.variant,
                *(percent(share) for share in shares),
                percent(result.filtered_mass.get("mean", 0.0)),
                percent(result.filtered_mass.get("max", 0.0)),
                f"{dead.dead} of {dead.rows}" if dead else "–",
                percent(dead.lost) if dead else "–",
            ]
        )
        if dead is not None and dead.dead:
            buckets += _by_rank(result.variant, dead)
    everywhere = ("variant", "kept of dE", "kept of dC", "mass, mean", "mass, worst token", "dead dC rows", "norm lost")
    tables = [Table(title="On this head", columns=everywhere, rows=rows)]
    if buckets:
        columns = ("variant", "rank of the words", "targets", "rows", "dead", "norm lost of the bucket")
        tables.append(
            Table(title="Dead rows of dC by frequency", columns=columns, rows=buckets, words=frozenset({0, 1, 2}))
        )
    return Figure(
        title="On this head",
        how="Mass: the softmax probability of what dE skips. Dead: rows of dC that are exactly zero though "
        "the truth is not; the norm lost is theirs in the truth over that of the whole dC. Rank 1 is the word that is "
        "most often a target; among words that are equally often, the one that the softmax expects more often.",
        tables=tables,
        open_tables=True,
    )


def _by_rank(variant: str, dead: DeadRows) -> list[list[str]]:
    return [
        [
            variant,
            f"{b.first_rank}–{b.last_rank}",
            "yes" if b.targets else "never",
            str(b.rows),
            str(b.dead),
            percent(b.lost),
        ]
        for b in dead.buckets
        if b.rows
    ]
