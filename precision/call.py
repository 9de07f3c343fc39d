"""The kernels on a `Problem`: its launch call, and the public call with gradients."""

from __future__ import annotations

import torch

from ccelab.kernels import Schedule, Statistics, Variant, launch, linear_cross_entropy
from ccelab.kernels.function import reduce_losses
from ccelab.kernels.probe import own_logits
from ccelab.reference import Problem, Solution


def launch_call(problem: Problem, variant: Variant, schedule: Schedule) -> launch.Call:
    """The problem's rows as the launches take them."""
    return launch.Call(
        problem.embeddings,
        problem.classifier,
        problem.bias,
        problem.targets,
        problem.ignore_index,
        problem.softcap,
        variant,
        schedule,
    )


def run(problem: Problem, variant: Variant, schedule: Schedule) -> tuple[Solution, Statistics]:
    """The public call on the problem's rows, with per-token losses and the gradients of its reduced loss."""
    embeddings, classifier = (x.detach().requires_grad_() for x in (problem.embeddings, problem.classifier))
    bias = None if problem.bias is None else problem.bias.detach().requires_grad_()
    stats = Statistics()
    loss, lse = linear_cross_entropy(
        embeddings,
        classifier,
        problem.targets,
        linear_bias=bias,
        reduction="none",
        ignore_index=problem.ignore_index,
        softcap=problem.softcap,
        return_lse=True,
        variant=variant,
        schedule=schedule,
        stats=stats,
    )
    d_loss, d_lse = problem.upstream()
    torch.autograd.backward((loss, lse), (d_loss.float(), d_lse.float()))
    loss = loss.detach()
    divisor = max(float(problem.row_weights().sum()), 1.0) if problem.reduction == "mean" else 1
    return Solution(
        loss=loss,
        reduced=loss if problem.reduction == "none" else reduce_losses(loss, divisor),
        lse=lse.detach(),
        d_embeddings=embeddings.grad,
        d_classifier=classifier.grad,
        d_bias=None if bias is None else bias.grad,
    ), stats


def own_mean_loss(problem: Problem, schedule: Schedule) -> float:
    """The mean loss in float64 over the kernel's own fp32 logits: every error but that of the products."""
    call = launch_call(problem, Variant(), schedule)
    n, v, _ = problem.shape
    target = torch.where(problem.valid, problem.targets, 0).long()[:, None]
    step = max(1, 2**26 // max(n, 1) // schedule.forward.block_v) * schedule.forward.block_v
    parts, target_logit = [], torch.zeros((n, 1), dtype=torch.float64, device=target.device)
    for first in range(0, v, step):
        logits = own_logits(call, first, min(first + step, v)).double()
        parts.append(logits.logsumexp(1, keepdim=True))
        here = (target >= first) & (target < first + logits.shape[1])
        picked = logits.gather(1, (target - first).clamp(0, logits.shape[1] - 1))
        target_logit += torch.where(here, picked, 0.0)
    loss = torch.cat(parts, 1).logsumexp(1, keepdim=True) - target_logit
    return float(torch.where(problem.valid[:, None], loss, 0.0).sum() / max(int(problem.valid.sum()), 1))
