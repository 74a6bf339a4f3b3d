"""Makes all pages from the committed results: `python -m pages`."""

from pages import costs, eigenvalues, readme, results, rise, scaling

for page in (costs, eigenvalues, readme, results, rise, scaling):
    page.main()
