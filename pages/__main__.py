"""Makes all pages from the committed results: `python -m pages`."""

from pages import choose, costs, eigenvalues, gallery, readme, results, rise, scaling

for page in (choose, costs, eigenvalues, gallery, readme, results, rise, scaling):
    page.main()
