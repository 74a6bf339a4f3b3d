"""Makes all pages from the committed results: `python -m pages`."""

from pages import (
    choose,
    convolutions,
    costs,
    eigenvalues,
    gallery,
    readme,
    results,
    rise,
    scaling,
)

for page in (
    choose,
    convolutions,
    costs,
    eigenvalues,
    gallery,
    readme,
    results,
    rise,
    scaling,
):
    page.main()
