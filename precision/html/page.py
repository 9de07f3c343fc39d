"""The page: its contents, filled into a template with its style and script inside."""

from __future__ import annotations

from pathlib import Path

import jinja2

from ..files import write_text
from ..provenance import Provenance
from ..report import Report
from ..saved import Study
from .contents import contents

HERE = Path(__file__).parent
Shown = Report | Study


def write_page(shown: Shown, path: Path) -> None:
    """The page of a report, sweep or study, whole or not at all."""
    write_text(render(shown), path)


def render(shown: Shown) -> str:
    """HTML that asks nothing of any network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        **contents(shown)._asdict(),
        provenance=_provenance(shown.provenance),
        complete=getattr(shown, "complete", True),
        style=(HERE / "page.css").read_text(),
        script=(HERE / "page.js").read_text(),
    )


def _provenance(source: Provenance) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in vars(source).items() if value is not None]
