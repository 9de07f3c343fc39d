"""The README's picture: where the error of dE comes from, per variant, drawn from a committed report."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .report import Report

OUTPUT = "d_embeddings"
SHOWN = {
    "is_live": ("filter: tiles dropped", "#4477aa"),
    "cast_residual": ("residual rounded to bf16", "#66ccee"),
    "cast_increment": ("increments rounded to bf16", "#ccbb44"),
    "add_increment": ("sums in bf16", "#ee6677"),
    "cast_output": ("result rounded to bf16", "#aa3377"),
}
OTHERS = ("all other stages", "#bbbbbb")
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ccelab", "font.family": "DejaVu Sans", "font.size": 9}


def draw(report: Report) -> str:
    """SVG: a bar per variant, as long as ||dE - truth||^2 over that of two roundings, cut by the stages' shares."""
    results = [result for result in report.results if OUTPUT in result.stages]
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.4, 0.34 * len(results) + 1.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, result in enumerate(results):
            left = 0.0
            parts = [(result.stages[OUTPUT].share(stage), colour) for stage, (_, colour) in SHOWN.items()]
            for share, colour in [*parts, (1.0 - sum(share for share, _ in parts), OTHERS[1])]:
                axes.barh(place, max(share, 0.0) * 100, left=left, color=colour, height=0.7)
                left += max(share, 0.0) * 100
            axes.text(left + 1, place, f"{report.over_floor(result, OUTPUT):.2f}", va="center")
        for label, colour in [*SHOWN.values(), OTHERS]:
            axes.barh(0, 0, color=colour, label=label)
        axes.set_yticks(range(len(results)), [result.variant for result in results])
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 25), [f"{share} %" for share in range(0, 101, 25)])
        axes.set_xlabel("share of the squared error of dE; at the end of the bar, its error over that of two roundings")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, facecolor="white")
    return text.getvalue()
