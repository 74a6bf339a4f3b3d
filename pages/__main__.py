"""Makes all pages from the committed results: `python -m pages`."""

import importlib

MADE = (
    "choose", "convolutions", "costs", "eigenvalues", "feedback", "gallery", "gap",
    "generators", "kernels", "readme", "results", "rise", "scaling",
)  # fmt: skip

for name in MADE:
    importlib.import_module(f"pages.{name}").main()
