"""For which variants a law holds: conditions, each of which says why it refuses one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccelab.kernels import Variant

Applies = Callable[[Variant], str | None]
"""Why a law does not apply to a variant, or None."""


def always(variant: Variant) -> str | None:
    return None


def unfiltered(variant: Variant) -> str | None:
    return "its gradients are filtered" if variant.filter_e or variant.filter_c else None


def unsorted(variant: Variant) -> str | None:
    return "its vocabulary is sorted" if variant.order != "none" else None


def in_order(variant: Variant) -> str | None:
    return "its vocabulary is not sorted" if variant.order == "none" else None


def by_mean_logit(variant: Variant) -> str | None:
    return None if variant.order == "mean_logit" else "its vocabulary is not sorted by mean logit"


def by_mean_probability(variant: Variant) -> str | None:
    return None if variant.order == "mean_prob" else "its vocabulary is not sorted by mean probability"


def filtered(variant: Variant) -> str | None:
    return None if variant.filter_e and variant.filter_c else "it does not filter both gradients"


def filtered_somewhere(variant: Variant) -> str | None:
    return None if variant.filter_e or variant.filter_c else "it filters no gradient"


def filtered_in_e(variant: Variant) -> str | None:
    return None if variant.filter_e else "it does not filter dE"


def unfiltered_in_e(variant: Variant) -> str | None:
    return "its dE is filtered" if variant.filter_e else None


def unfiltered_in_c(variant: Variant) -> str | None:
    return "its dC is filtered" if variant.filter_c else None


def storing(variant: Variant) -> str | None:
    return None if variant.exponentials == "stored" else "it stores no exponentials"


def by_segment(variant: Variant) -> str | None:
    return None if variant.granularity == "segment" else "it does not filter segments"


def by_likeness(variant: Variant) -> str | None:
    return None if variant.row_order == "similar" else "it leaves rows where they are"


def by_tile(variant: Variant) -> str | None:
    return None if variant.granularity == "tile" else "it does not filter whole tiles"


def dropping(variant: Variant) -> str | None:
    return None if variant.tail == "drop" else "it gives back what it drops"


def giving_back(variant: Variant) -> str | None:
    return None if variant.tail == "rank1" else "it gives nothing back"


def telling(variant: Variant) -> str | None:
    """What it dropped, in statistics."""
    return giving_back(variant) and by_segment(variant) and "it does not tell what it dropped"


def without_filter(variant: Variant) -> Variant:
    unfiltered = replace(Variant(), filter_e=False, filter_c=False)
    names = ("filter_e", "filter_c", "eps", "eps_e", "granularity", "row_order", "tail")
    return replace(variant, **{name: getattr(unfiltered, name) for name in names})


def both(*conditions: Applies) -> Applies:
    """The first refusal of several."""
    return lambda variant: next((reason for c in conditions if (reason := c(variant))), None)
