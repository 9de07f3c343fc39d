"""Loss and lse: the numbers that have no figure of their own."""

from __future__ import annotations

from ..names import GRADIENTS
from ..report import Report
from .figure import Figure, Section, Table, number


def loss(report: Report) -> Section:
    columns = ("variant", "mean", "own logits", "token rms", "token max", "lse max", "bias dE", "bias dC")
    rows = []
    for result in report.results:
        token, lse = result.outputs["loss"], result.outputs["lse"]
        errors = (result.mean_loss_error, result.mean_loss_error_own_logits, token.rms, token.largest, lse.largest)
        biases = (result.outputs[name].signed_bias for name in GRADIENTS)
        rows.append([result.variant, *(number(abs(x)) for x in errors), *(number(x, 2) for x in biases)])
    figure = Figure(
        title="Errors in nats",
        how="Mean: of the mean loss. Own logits: the same against float64 over the kernel's own logits, which leaves "
        "out the error of the products. Bias: sum of (got - truth) sign(truth) over the sum of |truth|; 0 for fair "
        "rounding.",
        tables=[Table(title="Loss, lse, and bias of the gradients", columns=columns, rows=rows)],
        open_tables=True,
    )
    intro = f"The true mean loss is {report.true_mean_loss:.6f}."
    return Section(slug="loss", title="Loss", intro=intro, figures=[figure])
