"""How far apart kernels and truth may be, and how far apart they are: budgets, measurements, reports."""
