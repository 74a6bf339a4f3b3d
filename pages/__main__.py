"""Makes all pages from the committed results: `python -m pages`."""

from pages import costs, eigenvalues, readme, results, scaling

for page in (costs, eigenvalues, readme, results, scaling):
    page.main()
