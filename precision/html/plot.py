"""One panel of a figure as SVG that takes its colours from the page: light or dark, without a second drawing."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, MUTED, GRID, ALARM = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0a00{k:02x}" for k in range(10)]
DASHES: list[tuple[int, tuple[float, ...]]] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2))]
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", ALARM: "alarm"} | {c: f"s{k}" for k, c in enumerate(SERIES)}
"""Colours that nobody draws with, by the CSS variable that each stands for."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "ccelab",  # the same report gives the same page
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Series:
    """How one line, and its entry in the legend, looks."""

    label: str
    place: int
    width: float = 2.0

    @property
    def colour(self) -> str:
        return SERIES[self.place % len(SERIES)]

    @property
    def variable(self) -> str:
        return f"s{self.place % len(SERIES)}"

    @property
    def dash(self) -> tuple[int, tuple[float, ...]]:
        return DASHES[self.place // len(SERIES) % len(DASHES)] if self.place >= len(SERIES) else DASHES[0]

    @property
    def dash_array(self) -> str:
        return " ".join(map(str, self.dash[1]))


def series(labels: Sequence[str]) -> list[Series]:
    """The first is the widest, so that lines which coincide are all seen."""
    step = 1.8 / max(len(labels) - 1, 1)
    return [Series(label, place, round(3.4 - step * place, 2)) for place, label in enumerate(labels)]


def panel(title: str, draw: Callable[[Axes], None], *, width: float = 4.4, height: float = 3.0) -> Markup:
    """An SVG of one pair of axes, `width` x `height` inches, which scales with its place on the page."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        axes.set_title(title)
        draw(axes)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_for_a_page(text.getvalue(), title))


_serial = 0


def _for_a_page(svg: str, title: str) -> str:
    """Without what belongs to a file of its own, with ids that no other panel has, and with the page's colours."""
    global _serial
    _serial += 1
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"([^>]*)>', r"<svg \1\2>", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*)>', r"<svg \1\2>", svg, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    svg = re.sub(r'\bid="', f'id="p{_serial}-', svg)
    svg = re.sub(r"url\(#", f"url(#p{_serial}-", svg)
    svg = re.sub(r'href="#', f'href="#p{_serial}-', svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    return re.sub(r"#0[0-9a][0-9a-f]{4}\b", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], svg)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(base: int, exponent: int) -> str:
    """10⁻³, or 1."""
    return "1" if exponent == 0 else f"{base}{str(exponent).translate(_SUPERSCRIPTS)}"


def log_axis(axes: Axes, which: str, base: int = 10) -> None:
    """A logarithmic axis whose labels are plain text."""
    getattr(axes, f"set_{which}scale")("log", base=base)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(base=base, numticks=7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: power(base, round(math.log(x, base))) if x > 0 else "0"))


def plain_ticks(axes: Axes, which: str, values: Sequence[float], labels: Sequence[str]) -> None:
    getattr(axes, f"set_{which}ticks")(values, labels)
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())
