"""The `ccelab` command: one file per subcommand."""

from __future__ import annotations

import os

import typer

# The interpreter multiplies tiles of a few thousand numbers through numpy, where more threads only wait for each other.
# numpy reads this once, when it is imported, which no module of this package does before a command runs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from . import bench, diff, report, show, sweep, variants

app = typer.Typer(
    help="How far is a fused cross-entropy kernel from the truth, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (report, bench, show, diff, sweep, variants):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
