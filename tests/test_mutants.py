"""The laws find every seeded bug, each by the law that it names, and no law is without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase

from ccelab.kernels import Variant
from ccelab.properties import catalogue
from ccelab.properties.law import Bench
from ccelab.properties.mutants import MUTANTS
from ccelab.properties.mutation import Mutant, planted
from ccelab.properties.subject import load

KILLED = (AssertionError, pytest.fail.Exception)


LAWS = catalogue.by_name()


@pytest.mark.usefixtures("fresh_memory_is_nan")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_killed_by_its_law(mutant: Mutant, tmp_path: Path) -> None:
    law, variant = LAWS[mutant.law], Variant.parse(mutant.variant)
    attempt = law.test(Phase.generate)  # what --hypothesis-profile=quick draws, without shrinking what fails
    with planted(mutant):
        subject = load("ours")  # now, as the call itself may be what is changed
        assert law.refusal(subject, variant) is None
        with pytest.raises(KILLED):
            attempt(bench=Bench(subject, variant, tmp_path))


def test_no_law_is_without_a_mutant() -> None:
    assert {mutant.law for mutant in MUTANTS} == LAWS.keys()


def test_the_page_of_laws_is_up_to_date() -> None:
    """`make readme` renews it."""
    assert (Path(__file__).parent.parent / "properties/LAWS.md").read_text() == catalogue.page()


def test_mutants_differ() -> None:
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.variant in LAWS[mutant.law].variants for mutant in MUTANTS)


def test_a_mutant_leaves_nothing_behind(tmp_path: Path) -> None:
    mutant = MUTANTS[0]
    with planted(mutant):
        pass
    LAWS[mutant.law].test(Phase.generate)(bench=Bench(load("ours"), Variant.parse(mutant.variant), tmp_path))


def test_a_mutant_that_is_out_of_date_says_so() -> None:
    stale = Mutant("stale", "one_token", "cce", "residual:residual", "no such text", "")
    with pytest.raises(LookupError, match="occurs 0 times in residual:residual"), planted(stale):
        pass
