"""Where a kernel's number is not the operation's rounded: overflow on the way, nothing left of it, or a tile dropped.

Each check holds the kernel, on a problem of a few numbers, to the float64 oracle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant
from ccelab.reference import Problem, Solution, double

from .. import call
from .deviation import Deviation

_TILES = Tiles(block_n=16, block_v=16, block_d=16)
SMALL = Schedule(forward=_TILES, backward=_TILES)


def answer(problem: Problem, variant: str = "cce-exact") -> Solution:
    """What a kernel gives, in tiles of 16 x 16."""
    return call.run(problem, Variant.of(variant), SMALL)[0]


def _problem(e: Tensor, c: Tensor, target: list[int], **options: Any) -> Problem:
    return Problem(embeddings=e, classifier=c, targets=torch.tensor(target), **{"reduction": "none", **options})


def _column(*entries: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, 1)."""
    return torch.tensor(entries, dtype=dtype)[:, None]


def _gaussian(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _gradients(solution: Solution) -> tuple[Tensor, Tensor]:
    assert solution.d_embeddings is not None
    assert solution.d_classifier is not None
    return solution.d_embeddings.double(), solution.d_classifier.double()


def logits_overflow() -> bool:
    """Two logits of 2^128 each: ln 2."""
    problem = _problem(_column(2.0**64), _column(2.0**64, 2.0**64), [0])
    return bool(double(problem).loss.isfinite()) and bool(answer(problem).loss.isnan())


def a_masked_product_overflows() -> bool:
    """A product of 2^128 under a bias of minus infinity, at the target and elsewhere."""
    e, c, bias = _column(2.0**64), _column(2.0**64, 0.0), torch.tensor([-torch.inf, 0.0])
    at_target, elsewhere = (_problem(e, c, [target], bias=bias) for target in (0, 1))
    truth = float(double(at_target).loss), float(double(elsewhere).loss)
    return truth == (torch.inf, 0) and all(bool(answer(x).loss.isnan()) for x in (at_target, elsewhere))


def overflowing_de() -> Problem:
    """A residual of 1.99 times its row's power of two at the target and at another class, by entries of 1.1 * 2^126: in
    sum 4.4 * 2^126, and 1.1 * 2^127 where that power of two, 1/2, is put back."""
    c = 1.1 * 2.0**126
    bias = torch.tensor([-100.0, 0.0])
    return _problem(_column(0.0), _column(-c, c), [0], bias=bias, grad_loss=torch.tensor([0.995]))


def de_overflows_on_the_way() -> bool:
    problem = overflowing_de()
    (want, _), (got, _) = _gradients(double(problem)), _gradients(answer(problem))
    return bool((want.abs() < torch.finfo(torch.float32).max).all()) and bool(got.isinf().all())


def dc_overflows_on_the_way_in_fp16() -> bool:
    """Four tiles of rows that add 64000, 64000, -64000 and -64000."""
    e = torch.tensor([8000.0, 8000.0, -8000.0, -8000.0]).repeat_interleave(16)[:, None].half()
    problem = _problem(e, torch.zeros(2, 1).half(), [0] * 64, reduction="sum")
    schemes = (f"cce-no-filter,accumulate={scheme}" for scheme in ("storage", "kahan", "hilo"))
    found = [_gradients(answer(problem, variant))[1] for variant in schemes]
    return not _gradients(double(problem))[1].any() and not any(bool(x.isfinite().any()) for x in found)


def a_sure_token_is_quite_sure() -> bool:
    """A probability of 1 - 4e-18."""
    problem = _problem(_column(1.0), _column(40.0, 0.0), [0])
    want, got = double(problem), answer(problem)
    (_, wanted), (_, dc) = _gradients(want), _gradients(got)
    return float(want.loss) > 0 == float(got.loss) and bool(wanted[0].any()) and not dc[0].any()


def a_dropped_row_of_dc() -> bool:
    """63 words of probability 6e-6 each, of which three tiles hold 48."""
    logits = torch.zeros(1, 64)
    logits[0, 0] = 12.0
    problem = _problem(logits.bfloat16(), torch.eye(64).bfloat16(), [0])
    (_, want), (_, got) = _gradients(double(problem)), _gradients(answer(problem, "cce"))
    return bool(want.any(1).all()) and int((~got.any(1)).sum()) == 48


def a_token_sees_its_neighbour() -> bool:
    """A token that leaves class 40 a probability of 1.2e-4, beside one that hesitates over its tile, or does not."""
    answers = []
    for hesitates in ((0, 1), (40, 41)):
        logits = torch.full((2, 64), -30.0)
        logits[0, 0], logits[0, 40] = 9.0, 0.0
        logits[1, list(hesitates)] = 9.0
        problem = _problem(logits.bfloat16(), torch.eye(64).bfloat16(), [0, hesitates[0]])
        answers.append(_gradients(answer(problem, "cce-no-sort"))[0][0])
    one, other = answers
    return float((one - other).norm()) > float(one.norm()) / 2


def an_upstream_gradient_far_below_its_tile_in_fp16() -> bool:
    """Rows that share a tile of dC, with upstream gradients of 1 and 2^-26; the first has an embedding of 0."""
    e = _column(0.0, 30000.0, dtype=torch.float16)
    problem = _problem(e, torch.zeros(2, 1).half(), [0, 0], grad_loss=torch.tensor([1.0, 2.0**-26]))
    (_, want), (_, got) = _gradients(double(problem)), _gradients(answer(problem))
    return bool((want.abs() > torch.finfo(torch.float16).tiny).all()) and not got.any()


def an_indexed_loss_is_negative() -> bool:
    """Every token is sure of its target."""
    c = _gaussian(64, 256, torch.bfloat16)
    loss = answer(_problem(c, c, list(range(64))), "cce,target=indexed").loss
    return bool((loss < 0).any())


def an_indexed_loss_of_one_class_is_not_zero() -> bool:
    problem = _problem(_gaussian(16, 256, torch.bfloat16), _gaussian(1, 256, torch.bfloat16, seed=1), [0] * 16)
    return bool(answer(problem, "cce,target=indexed").loss.any())


def storage_is_fp32_for_fp32() -> bool:
    """The same bits, which Kahan's sums do not have."""
    problem = _problem(_gaussian(64, 20, torch.float32), _gaussian(64, 20, torch.float32, seed=1), list(range(64)))
    storage, fp32, kahan = (
        _gradients(answer(problem, f"cce-no-filter,accumulate={scheme}")) for scheme in ("storage", "fp32", "kahan")
    )
    same = all(torch.equal(a, b) for a, b in zip(storage, fp32, strict=True))
    return same and not all(torch.equal(a, b) for a, b in zip(kahan, fp32, strict=True))


NUMBERS = (
    Deviation(
        name="Logits beyond 2^128",
        truth="A loss depends on differences of logits: two logits of 2^128 have the loss ln 2.",
        ours="NaN: fp32 holds no logit of 2^128.",
        reason="Logits are fp32, as a tensor core gives them. bf16 inputs reach this only with entries near 2^60.",
        source="kernels/logits.py, dot_logits; the bound there is infinite",
        check=logits_overflow,
    ),
    Deviation(
        name="Masked class whose product overflows",
        truth="A bias of minus infinity masks the class whatever its product is: +inf is the loss of such a target, "
        "and elsewhere the class counts nothing.",
        ours="NaN, for +inf - inf.",
        reason="The product overflows fp32 before the bias is added. To mask it would cost a comparison per logit, for "
        "entries that no trained head has.",
        source="kernels/logits.py, add_bias; tests/test_budget_corners.py",
        check=a_masked_product_overflows,
    ),
    Deviation(
        name="dE where C exceeds 2^126",
        truth="A row's residuals are at most 2 in sum: with an upstream gradient of 1/2 or less, as after a mean, dE "
        "is finite for every C.",
        ours="Infinite where the product of a tile is, which is taken at the scale of a probability and may be four "
        "times an entry of C.",
        reason="The power of two of a row, and the headroom of 1/8, are multiplied in after the product: before it, in "
        "fp16, they would cost small residuals their bits.",
        source="kernels/products.py, embeddings_kernel; kernels/accumulate.py, HEADROOM",
        check=de_overflows_on_the_way,
    ),
    Deviation(
        name="Sums of dC in fp16",
        truth="Increments that cancel leave a sum that fp16 holds.",
        ours="Infinite or NaN with accumulate=storage, kahan or hilo where the sum leaves 65504 on the way.",
        reason="The sum over tokens is kept at the scale of the result in fp16. accumulate=fp32 has no such limit.",
        source="ARCHITECTURE.md, Scales",
        check=dc_overflows_on_the_way_in_fp16,
    ),
    Deviation(
        name="Token that is sure of its target",
        truth="The loss is log(1 + r) with r the other classes' share, and the residual at the target -r / (1 + r): "
        "positive, however small.",
        ours="Both are exactly 0 once r is below 2^-24 or so.",
        reason="1 + r is rounded to fp32, which costs half an ulp of 1 and is in the budget. A log1p would need the "
        "sum without its largest term.",
        source="kernels/logsumexp.py, fold_tile; reference/formula.py has the other form",
        check=a_sure_token_is_quite_sure,
    ),
    Deviation(
        name="Rows of dC that the filter drops",
        truth="Every word has a gradient from every token, in proportion to its probability.",
        ours="With filter_c, a row of dC is exactly 0 where all its tiles are negligible: a rare word learns nothing "
        "from the batch.",
        reason="That is what the filter is for. cce-kahan-full-c keeps them.",
        source="Wijmans et al., ICLR 2025, section 4.3; the page's section on the filter counts them",
        check=a_dropped_row_of_dc,
    ),
    Deviation(
        name="Token beside another under a filter",
        truth="A row of dE depends on that row of E alone.",
        ours="Whether its small entries count depends on who shares its tile: the row may change when another changes.",
        reason="A tile is kept or dropped as a whole. Variants without filter_e do not do this.",
        source="ARCHITECTURE.md, What the filter tests; tests/test_determinism.py",
        check=a_token_sees_its_neighbour,
    ),
    Deviation(
        name="fp16 rows far below their tile's largest",
        truth="A token with an upstream gradient of 2^-26 adds that much of its residual to dC.",
        ours="Nothing, in fp16, beside a token with a gradient of 1 in the same tile of rows.",
        reason="Rows of one dC tile add up in one product and share their largest power of two; the residual is cast "
        "at that scale. bf16 has the same limit at 2^-126 and below; fp32 has none.",
        source="kernels/products.py, classifier_kernel",
        check=an_upstream_gradient_far_below_its_tile_in_fp16,
    ),
    Deviation(
        name="Negative loss with target=indexed",
        truth="A cross-entropy is not negative.",
        ours="A little below 0 for tokens that are sure of their target.",
        reason="The paper's Algorithm 1 takes the target's logit as a dot product of its own, whose rounding differs "
        "from that of the lse. The default, fused, never is negative.",
        source="Wijmans et al., ICLR 2025, Algorithm 1; kernels/indexed.py",
        check=an_indexed_loss_is_negative,
    ),
    Deviation(
        name="One class with target=indexed",
        truth="The loss of the only class is 0.",
        ours="A few ulp of the logit, of either sign.",
        reason="As above: two sums of the same products in two orders.",
        source="kernels/indexed.py; tests/test_traps.py has fused",
        check=an_indexed_loss_of_one_class_is_not_zero,
    ),
    Deviation(
        name="accumulate=storage for fp32 inputs",
        truth="The flag names sums in the storage dtype, as opposed to fp32.",
        ours="The same bits as accumulate=fp32.",
        reason="The storage dtype of fp32 inputs is fp32. Both names stay legal, so that a sweep over flags needs no "
        "exceptions.",
        source="ARCHITECTURE.md, Increments and accumulators",
        check=storage_is_fp32_for_fp32,
    ),
)
