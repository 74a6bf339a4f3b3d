"""The documentation: `sphinx-build -W --keep-going -c docs . site`.

The source folder is the root of the repository, so that links between pages, notebooks
and the README hold on a code host and on the site alike. The site loads nothing from
the network: a folder of it can be read offline.
"""

import sys
from pathlib import Path

from smoothout_jax import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "smoothout_jax"
author = "the authors of smoothout_jax"
release = version = __version__
copyright = f"2026, {author}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_options",
    "mathml",
    "notebooks",
    "readable",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "*.md"]
default_role = "py:obj"

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
napoleon_custom_sections = [("Reference", "References")]
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

html_theme = "furo"
pygments_dark_style = "monokai"
html_favicon = "static/favicon.svg"
html_title = f"smoothout_jax {release}"
html_math_renderer = "mathml"
html_additional_pages = {"index": "redirect.html"}
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_theme_options = {"navigation_with_keys": True}
