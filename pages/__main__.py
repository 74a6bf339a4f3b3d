"""Makes all pages from the committed results: `python -m pages`."""

from pages import costs, eigenvalues, gallery, readme, results, rise, scaling

for page in (costs, eigenvalues, gallery, readme, results, rise, scaling):
    page.main()
