"""Reports as one HTML file each: figures as inline SVG, no script, style, font or picture from anywhere else.

Matplotlib draws the figures. A library that draws in the browser (plotly) would answer to the pointer, at four
megabytes of script in every report and a blank page where scripts are off; here the numbers behind a figure stand in a
table under it instead.
"""

from __future__ import annotations

from .page import write_page

__all__ = ["write_page"]
