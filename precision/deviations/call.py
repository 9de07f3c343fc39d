"""Where the public call answers by a rule of its own. The plain operation is torch's over stored logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import linear_cross_entropy

from .deviation import Deviation


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """E (2, 3) and C (4, 3) that want gradients, and targets (2,), the second of them ignored."""
    generator = torch.Generator().manual_seed(0)
    e, c = (torch.randn(rows, 3, generator=generator).requires_grad_() for rows in (2, 4))
    return e, c, torch.tensor([1, -100])


def mean_over_nothing_is_zero() -> bool:
    e, c, target = _inputs()
    loss = linear_cross_entropy(e, c, torch.full_like(target, -100))
    gradients = torch.autograd.grad(loss, (e, c))
    return float(loss.detach()) == 0 and not any(bool(x.any()) for x in gradients)


def nan_in_an_ignored_row_goes_nowhere() -> bool:
    e, c, target = _inputs()
    with torch.no_grad():
        e[1] = torch.nan
    loss = linear_cross_entropy(e, c, target)
    return all(bool(x.isfinite().all()) for x in torch.autograd.grad(loss, (e, c)))


def lse_of_an_ignored_row_is_zero() -> bool:
    e, c, target = _inputs()
    _, lse = linear_cross_entropy(e, c, target, return_lse=True)
    return float(lse[1].detach()) == 0


def second_derivatives_are_refused() -> bool:
    e, c, target = _inputs()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(e, c, target), e, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), c)
    except RuntimeError:
        return True
    return False


def weights_and_smoothing_are_refused() -> bool:
    e, c, target = _inputs()
    refused = 0
    for option in ({"weight": torch.ones(4)}, {"label_smoothing": 0.1}):
        try:
            linear_cross_entropy(e, c, target, **option)
        except TypeError:
            refused += 1
    return refused > 0


CALL = (
    Deviation(
        name="Mean over nothing",
        truth="0 / 0: torch's mean of no losses is NaN, and so are its gradients.",
        ours="0, with gradients of 0.",
        reason="A batch that happens to hold no target must not end a training run.",
        source="ARCHITECTURE.md, The public call; kernels/function.py",
        check=mean_over_nothing_is_zero,
    ),
    Deviation(
        name="NaN in an ignored row",
        truth="Over stored logits an ignored row counts 0 times its values, and 0 times NaN is NaN: so are all of dC "
        "and that row of dE.",
        ours="The row is not read. Its gradients are 0, and dC does not know of it.",
        reason="Padding is what a batch may leave unwritten.",
        source="properties/test_special_values.py, nan_in_an_ignored_row_goes_nowhere; kernels/backward.py",
        check=nan_in_an_ignored_row_goes_nowhere,
    ),
    Deviation(
        name="lse of an ignored row",
        truth="The log-sum-exp of its logits, which do not depend on the target.",
        ours="0, and its upstream gradient is ignored.",
        reason="A z-loss over all tokens then leaves padding out by itself.",
        source="ARCHITECTURE.md, The public call; kernels/combine.py",
        check=lse_of_an_ignored_row_is_zero,
    ),
    Deviation(
        name="Second derivatives",
        truth="The loss has derivatives of every order.",
        ours="RuntimeError where a gradient is differentiated.",
        reason="The backward pass is a kernel without a derivative of its own; a gradient penalty that silently was 0 "
        "would be worse.",
        source="kernels/function.py, _Once",
        check=second_derivatives_are_refused,
    ),
    Deviation(
        name="Class weights and label smoothing",
        truth="torch's linear_cross_entropy takes weight and label_smoothing.",
        ours="TypeError, which names the keyword.",
        reason="Not built yet. The oracles and the residual helper have them already.",
        source="kernels/check.py, NOT_YET",
        check=weights_and_smoothing_are_refused,
    ),
)
