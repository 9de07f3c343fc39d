"""`Variant`: flag strings, the paper's presets, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace
from itertools import product
from typing import Any

import pytest

from ccelab.kernels import PRESETS, Variant, every

EPS = [2.0**-12, 2.0**-149, 0.1, 1e-9, 0.0, 1.0, 4.0, 3e5, float("inf")]


def test_presets_are_the_rows_of_the_design() -> None:
    fields = ("filter_e", "filter_c", "order", "accumulate")
    table = {
        "cce": (True, True, "mean_logit", "storage"),
        "cce-no-sort": (True, True, "none", "storage"),
        "cce-no-filter": (False, False, "none", "storage"),
        "cce-kahan": (True, True, "mean_logit", "kahan"),
        "cce-kahan-full-c": (True, False, "mean_logit", "kahan"),
        "cce-kahan-full-e": (False, True, "mean_logit", "kahan"),
        "cce-exact": (False, False, "none", "fp32"),
    }
    plain = {
        **{"increment": "group", "eps": None, "eps_e": None, "target": "fused", "granularity": "tile", "tail": "drop"},
        **{"exponentials": "recomputed", "row_order": "none"},
    }
    want = {name: {**dict(zip(fields, row, strict=True)), **plain} for name, row in table.items()}
    segments = dict(zip(fields, (True, True, "none", "fp32"), strict=True))
    kept = {"eps": 2.0**-14, "granularity": "segment", "row_order": "similar", "tail": "rank1"}
    want["cce-segment"] = {**segments, **plain, **kept}
    want["cce-stored"] = {**want["cce-exact"], "exponentials": "stored"}
    assert {name: asdict(variant) for name, variant in PRESETS.items()} == want
    assert list(PRESETS) == [*table, "cce-stored", "cce-segment"]


def test_every_is_every_legal_combination_once() -> None:
    axes: tuple[tuple[Any, ...], ...] = (
        (False, True),
        (False, True),
        ("none", "mean_logit", "mean_prob"),
        ("storage", "kahan", "hilo", "fp32"),
        ("group", "tile"),
        ("fused", "indexed"),
    )
    fields = ("filter_e", "filter_c", "order", "accumulate", "increment", "target", "granularity", "tail")
    found = [tuple(getattr(v, name) for name in fields) for v in every()]
    tiles = {(*choice, "tile", "drop") for choice in product(*axes)}
    tails = {(*x[:-1], "rank1") for x in tiles if (x[0] or x[1]) and x[2] == "none"}
    segments = set(
        product((True,), (True,), ("none",), ("fp32",), ("group",), axes[-1], ("segment",), ("drop", "rank1"))
    )
    assert set(found) == tiles | tails | segments
    similar = [tuple(getattr(v, name) for name in fields) for v in every() if v.row_order == "similar"]
    assert set(similar) == segments
    stored = [v for v in every() if v.exponentials == "stored"]
    kept = product((False,), (False,), ("none",), *axes[3:])
    assert [tuple(getattr(v, name) for name in fields[:6]) for v in stored] == list(kept)
    assert len(found) == len(set(every())) == len(tiles) + len(tails) + 2 * len(segments) + len(stored)
    assert all(v.eps is None and v.eps_e is None for v in every())
    assert {replace(v, eps=None) for v in PRESETS.values()} <= set(every())


def test_a_printed_variant_reads_back() -> None:
    names = {str(v) for v in every()}
    assert len(names) == len(every())
    for variant in every():
        assert Variant.parse(str(variant)) == variant == Variant.of(str(variant))
    for name, preset in PRESETS.items():
        assert str(preset) == name


@pytest.mark.parametrize("eps", EPS)
def test_a_printed_eps_reads_back(eps: float) -> None:
    for base in ("cce", "cce-kahan-full-c,order=none", "cce,accumulate=hilo,target=indexed"):
        variant = Variant.parse(f"{base},eps={eps!r}")
        assert variant.eps == eps
        assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize(
    ("text", "eps"),
    [("2^-12", 2.0**-12), ("2^0", 1.0), ("0.5", 0.5), ("1e-3", 1e-3), ("0", 0.0), ("default", None)],
)
def test_eps_is_a_power_or_a_decimal(text: str, eps: float | None) -> None:
    assert Variant.parse(f"cce,eps={text}").eps == eps


def test_spaces_and_order_do_not_matter() -> None:
    assert Variant.parse("cce, filter_c=no , order=none") == Variant.parse("cce,order=none,filter_c=no")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paper", [*PRESETS]),
        ("", [*PRESETS]),
        ("cce,", ["filter_e", "filter_c", "eps", "order", "accumulate", "target"]),
        ("cce,sort=yes", ["sort", "filter_e", "filter_c", "eps", "order", "accumulate", "target"]),
        ("cce,order", ["order", "field=value"]),
        ("cce,order=random", ["random", "none", "mean_logit", "mean_prob"]),
        ("cce,accumulate=fp64", ["fp64", "storage", "kahan", "hilo", "fp32"]),
        ("cce,target=both", ["both", "fused", "indexed"]),
        ("cce,filter_e=maybe", ["maybe", "no", "yes"]),
        ("cce,filter_e=True", ["True", "no", "yes"]),
        ("cce,eps=small", ["small", "2^-12", "decimal"]),
        ("cce,eps=2^x", ["2^x", "2^-12", "decimal"]),
        ("cce,eps=-1", ["-1", ">= 0"]),
        ("cce,eps=nan", ["nan", ">= 0"]),
        ("cce-segment,eps_e=nan", ["eps_e", "nan", ">= 0"]),
        ("cce-segment,eps_e=small", ["eps_e", "small", "2^-12"]),
    ],
)
def test_a_refusal_lists_what_is_legal(text: str, said: list[str]) -> None:
    with pytest.raises(ValueError, match="legal") as refused:
        Variant.parse(text)
    for word in said:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"order": "random"},
        {"order": None},
        {"accumulate": "fp16"},
        {"filter_e": 1},
        {"filter_c": "yes"},
        {"eps": 1},  # an int prints as no eps reads back
        {"eps": -0.5},
        {"filter_e": False, "filter_c": False, "eps": 2.0**-12},
    ],
    ids=str,
)
def test_an_illegal_variant_is_never_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"legal|no effect"):
        Variant(**fields)


def test_what_is_stored_has_its_place() -> None:
    for change in ("filter_e=yes", "filter_c=yes", "order=mean_logit"):
        with pytest.raises(ValueError, match=r"exponentials=stored needs filter_e=no, filter_c=no and order=none"):
            Variant.parse(f"cce-stored,{change}")
    assert not Variant.parse("cce-exact").stores(16, None)
    assert Variant.parse("cce-stored").stores(16, None)
    assert not Variant.parse("cce-stored").stores(32, None)
    assert not Variant.parse("cce-stored").stores(16, 30.0)


def test_rows_of_tiles_stay_where_they_are() -> None:
    with pytest.raises(ValueError, match="row_order=similar needs granularity=segment"):
        Variant.parse("cce,row_order=similar")
    assert str(Variant.parse("cce-segment,row_order=none")) == "cce-segment,row_order=none"


def test_eps_e_is_for_segments_that_keep_something() -> None:
    with pytest.raises(ValueError, match=r"eps_e=2\^-14 needs granularity=segment"):
        Variant.parse("cce,eps_e=2^-14")
    with pytest.raises(ValueError, match=r"tail=rank1 .* eps_e below 1"):
        Variant.parse("cce-segment,eps_e=1")
    assert Variant.parse("cce-segment,eps_e=2^-15").threshold_e(1.0) == 2.0**-15
    assert Variant.parse("cce-segment").threshold_e(1.0) == 2.0**-16
    assert Variant.parse("cce,eps=2^-14").threshold_e(1.0) == 2.0**-14


def test_a_tail_is_for_filters_that_keep_something_in_the_natural_order() -> None:
    with pytest.raises(ValueError, match=r"tail=rank1 with granularity=tile needs order=none: what rows lose"):
        Variant.parse("cce,tail=rank1")
    with pytest.raises(ValueError, match=r"tail=rank1 has nothing to give back .* switch one on"):
        Variant.parse("cce-exact,tail=rank1")
    with pytest.raises(ValueError, match=r"tail=rank1 needs eps .* below 1"):
        Variant.parse("cce-no-sort,tail=rank1,eps=1")
    assert Variant.parse("cce-kahan-full-e,order=none,tail=rank1").tail == "rank1"


def test_eps_without_a_filter_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"eps=2\^-12 has no effect .* switch one on"):
        Variant.parse("cce-exact,eps=2^-12")


def test_it_is_a_value() -> None:
    variant = Variant()
    with pytest.raises(FrozenInstanceError):
        variant.order = "none"  # type: ignore[misc]
    assert hash(variant) == hash(Variant())
    assert Variant.of(variant) is variant


def test_what_a_kernel_does_not_read_is_no_part_of_what_is_compiled() -> None:
    assert Variant.parse("cce-kahan,eps=2^-6").flags("target") == PRESETS["cce-exact"].flags("target") == PRESETS["cce"]
