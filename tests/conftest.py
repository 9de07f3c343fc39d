"""Whether this process interprets is chosen before any test file imports triton."""

import ccelab.kernels  # noqa: F401
