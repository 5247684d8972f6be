"""Sphinx's settings; `build.py` calls it."""

from pathlib import Path

import unetlib

project = "unetlib"
author = copyright = ""
version = release = unetlib.__version__
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "links"]
root_doc = "index"
exclude_patterns = ["_static"]
highlight_language = "none"  # of README's indented blocks: commands, lists of files

# Notebooks: as they are stored. Nothing is run, and no widget library is fetched from a CDN.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_code_prompt_show = "Code of this cell"
nb_code_prompt_hide = "Code of this cell"

myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "links.jupyter_anchor"  # links to headings are written as in JupyterLab
# Of MathJax, a page loads one file and its fonts: the menu would load more.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = napoleon_use_param = False  # types stand in the signature
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "unetlib"
html_css_files = ["course.css"]
html_favicon = html_logo = str(Path(__file__).parent / "static" / "unet.svg")
html_show_copyright = html_show_sphinx = False
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_theme_options = {
    "logo": {"text": "unetlib"},
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "max_navbar_depth": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # else a second bar, whose buttons take the place of the first ones
    "search_bar_text": "Search the course",
    "toc_title": "On this page",
}
