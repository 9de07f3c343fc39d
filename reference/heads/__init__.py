"""Heads: real, drawn to resemble real ones, or read back from a file."""

from .cache import load, save
from .head import Head
from .real import real
from .resolve import resolve

__all__ = ["Head", "load", "real", "resolve", "save"]
