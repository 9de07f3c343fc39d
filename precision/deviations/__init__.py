"""The registry of known deviations: of the public call, of the kernels' numbers, of interpreter and models, and what
the laboratory cannot judge. A test tries each entry, and fails as soon as one no longer deviates."""

from __future__ import annotations

from .call import CALL
from .deviation import Deviation
from .judgement import JUDGEMENT
from .models import MODELS
from .numbers import NUMBERS

__all__ = ["CALL", "JUDGEMENT", "MODELS", "NUMBERS", "Deviation"]
