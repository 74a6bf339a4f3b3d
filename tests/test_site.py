"""The site can be read offline, and shows what its sources say."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
for module in ("furo", "math_core", "myst_nb", "sphinx_copybutton"):
    pytest.importorskip(module, reason="the site needs the extra docs")


# The attribute of each tag with the address of what a page loads.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(html.parser.HTMLParser):
    """What a page loads, its links, and its text outside code."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.links, self.text = [], [], ""
        self.tags, self.code, self.article = set(), 0, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.code += tag in ("pre", "code", "script", "style", "math")
        self.article |= tag == "article"
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.append(given[LOADED[tag]])
        if tag == "link" and given.get("rel") not in ("canonical", "author"):
            self.loaded.append(given["href"])
        if tag == "a" and self.article and "headerlink" not in given.get("class", ""):
            self.links.append(given.get("href"))

    def handle_endtag(self, tag):
        self.code -= tag in ("pre", "code", "script", "style", "math")
        self.article &= tag != "article"

    def handle_data(self, data):
        if not self.code:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, from an environment that is not activated."""
    folder = tmp_path_factory.mktemp("site") / "html"
    options = ["--quiet", "--fail-on-warning", "--keep-going"]
    build = [sys.executable, "-m", "sphinx", *options, "-c", "docs", ".", str(folder)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(["", *sys.path])}
    subprocess.run(build, cwd=ROOT, env=environment, check=True)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site): Page(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_nothing_is_loaded_from_a_network(site, pages):
    loaded = [address for page in pages.values() for address in page.loaded]
    assert len(loaded) > 100
    assert not [each for each in loaded if re.match(r"(https?:)?//", each)]
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import)[\"' ]*(?:https?:)?//", text), style


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser_itself(pages):
    method = pages[Path("docs/method.html")]
    assert "math" in method.tags
    for name, page in pages.items():
        assert not re.findall(r"\\(?:theta|varepsilon|mathbb|frac)", page.text), name


@pytest.mark.slow
def test_links_lead_somewhere(site, pages):
    for name, page in pages.items():
        for link in page.links:
            assert link != "#", name
            if not re.match(r"\w+:|#", link):
                target = (site / name).parent / link.partition("#")[0]
                assert target.exists(), (name, link)


@pytest.mark.slow
def test_signatures_show_types(pages):
    assert "batch_argnums: int | Sequence[int]" in pages[
        Path("docs/api/gradients.html")
    ].text.replace("\n", "")


@pytest.mark.slow
def test_every_notebook_can_be_downloaded(pages):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        links = pages[Path("notebooks") / f"{path.stem}.html"].links
        assert [link for link in links if link.endswith(f"/{path.name}")], path


@pytest.mark.slow
def test_pages_of_functions_begin_with_a_table_of_them(pages):
    for path in (ROOT / "docs" / "api").glob("*.md"):
        assert "table" in pages[Path("docs/api") / f"{path.stem}.html"].tags, path


@pytest.mark.slow
def test_options_show_their_defaults(pages):
    text = pages[Path("docs/command.html")].text
    assert "SUPPRESS" not in text
    assert "one of the methods of compare (default: adasmoothout)" in text
