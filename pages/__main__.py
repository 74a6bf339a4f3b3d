"""Makes all pages and pictures from the committed results: `python -m pages`."""

from pages import (
    cases,
    choose,
    gallery,
    gap,
    performance,
    readme,
    results,
)
from pages.panels import PICTURES
from pages.pictures import DPI
from pages.source import DOCS, fill

# What makes the values of each page, whose text is in pages.
PAGES = {
    "results": results.values,
    "cases": cases.values,
    "choose": choose.values,
    "gap": gap.values,
    "scaling": performance.many_devices,
    "performance/cpu": performance.cpu,
    "performance/convolutions": performance.convolutions,
    "performance/kernels": performance.kernels,
}


def main() -> None:
    """Writes the files."""
    for name, values in PAGES.items():
        (DOCS / f"{name}.md").write_text(fill(name, values()))
    readme.write()
    for name, draw in PICTURES.items():
        draw().savefig(DOCS / f"{name}.png", dpi=DPI)
    for name, picture in gallery.pictures().items():
        (DOCS / "gallery" / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
