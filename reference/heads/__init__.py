"""Heads: real, drawn to resemble real ones, or read back from a file."""

from .bias import draw_bias
from .cache import load, save
from .head import Head
from .real import real
from .resolve import resolve

__all__ = ["Head", "draw_bias", "load", "real", "resolve", "save"]
