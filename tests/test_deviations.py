"""Every entry of the registry still deviates; and would be found out if it did not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup
from torch import Tensor

from ccelab.kernels import default_schedule
from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.precision.budget import budget
from ccelab.precision.deviations import CALL, JUDGEMENT, MODELS, NUMBERS, Deviation, call, judgement, models, numbers
from ccelab.precision.emulation import HOPPER
from ccelab.precision.html.deviations import deviations, typeset
from ccelab.precision.study import STUDIES
from ccelab.reference import Problem, Solution, double

EVERY = (*CALL, *NUMBERS, *MODELS, *JUDGEMENT)
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not IS_INTERPRETED, reason="the registry is tried on the CPU, in Triton's interpreter")


@pytest.mark.parametrize("deviation", EVERY, ids=lambda deviation: deviation.name)
def test_it_still_deviates(deviation: Deviation) -> None:
    assert deviation.check(), f"{deviation.name!r} no longer deviates: take it out of the registry"


def plain(input: Tensor, linear_weight: Tensor, target: Tensor, *, return_lse: bool = False, **options: Any) -> Any:
    """The operation as it is written down, by torch over stored logits."""
    logits = input @ linear_weight.T
    loss = torch.nn.functional.cross_entropy(logits, target, **options)
    return (loss, logits.logsumexp(1)) if return_lse else loss


@pytest.mark.parametrize("deviation", CALL, ids=lambda deviation: deviation.name)
def test_the_plain_operation_does_not(deviation: Deviation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "linear_cross_entropy", plain)
    assert not deviation.check()


@pytest.mark.parametrize("deviation", NUMBERS, ids=lambda deviation: deviation.name)
def test_the_oracle_does_not(deviation: Deviation, monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(problem: Problem, variant: str = "") -> Solution:
        return double(problem)

    monkeypatch.setattr(numbers, "answer", exact)
    assert not deviation.check()


def test_a_model_that_is_right_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts that round, an interpreter that is the GPU's model, a schedule of 64 columns."""
    monkeypatch.setattr(models, "cast", lambda x: x.bfloat16())
    assert not models.triton_truncates_bf16()
    monkeypatch.setattr(models, "INTERPRETER", HOPPER)
    for check in (models.products_round_to_nearest, models.small_exponentials_are_kept, models.logarithms_are_numpys):
        assert not check(), check.__name__
    plain_schedule = default_schedule(torch.bfloat16, 4096, 64)
    monkeypatch.setattr(models, "default_schedule", lambda dtype, n, d: plain_schedule)
    assert not models.columns_come_1024_at_a_time()

    class Modelled:
        """A GPU whose functions and fp32 sums have a model."""

        def exp(self, x: Tensor) -> Tensor:
            return models._number(models._on_the_gpu("exp").worst_got)

        def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
            return (a.double() @ b.double()).float()

    monkeypatch.setattr(models, "HOPPER", Modelled())
    assert not models.the_gpus_exponential_has_no_model()
    assert not models.fp32_products_are_torchs()


def test_a_comparison_that_was_made_ends_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of an A100 among the studies, and one of the H100 without a dot that differs."""
    shutil.copy(STUDIES / "adder-cuda.json", tmp_path)
    monkeypatch.setattr(models, "STUDIES", tmp_path)
    assert models.no_a100_was_asked()
    assert models.tiny_dots_differ_from_the_model()
    found = json.loads((STUDIES / "adder-cuda.json").read_text())
    found["provenance"]["device"] = "NVIDIA A100"
    (tmp_path / "adder-a100.json").write_text(json.dumps(found))
    assert not models.no_a100_was_asked()
    for row in found["rows"]:
        row["unlike_model"] = dict.fromkeys(row["unlike_model"], 0)
    (tmp_path / "adder-cuda.json").write_text(json.dumps(found))
    assert not models.tiny_dots_differ_from_the_model()


def test_a_budget_that_binds_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of an eighth, and finite ones."""
    loose = budget

    def tight(*arguments: Any, **options: Any) -> Any:
        found = loose(*arguments, **options)
        changes = {name: getattr(found.bound, name).clamp(max=1e38) / 8 for name in ("d_embeddings", "d_classifier")}
        return dataclasses.replace(found, bound=dataclasses.replace(found.bound, **changes))

    monkeypatch.setattr(judgement, "budget", tight)
    for deviation in JUDGEMENT:
        assert not deviation.check(), deviation.name


def test_names_are_unique_and_sources_exist() -> None:
    assert len({deviation.name for deviation in EVERY}) == len(EVERY)
    for deviation in EVERY:
        paths = [word.strip(",;") for word in deviation.source.replace(";", " ").split() if "/" in word]
        for path in paths:
            if path.split("/")[0] in ("kernels", "reference", "precision", "properties", "tests"):
                assert (ROOT / path).is_file(), f"{deviation.name}: {path}"


def test_the_page_shows_every_entry() -> None:
    rows = [row for figure in deviations().figures for table in figure.tables for row in table.rows]
    assert [Markup(row[0]).striptags() for row in rows] == [typeset(deviation.name) for deviation in EVERY]
    for row, deviation in zip(rows, EVERY, strict=True):
        assert row[1:3] == [typeset(deviation.truth), typeset(deviation.ours)]
        assert deviation.source in Markup(row[3]).striptags()


def test_powers_of_two_are_typeset() -> None:
    assert typeset("below 2^-126, up to 2^8; 12^2 stays") == "below 2⁻¹²⁶, up to 2⁸; 12^2 stays"
