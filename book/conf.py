"""Sphinx's configuration of the book. `python -m helpers book` assembles the pages beside it and calls Sphinx."""

from docutils import nodes

project = "Smaller, faster, measured"
author = "The maintainers of the model compression course"
copyright = author
html_title = project
language = "en"

extensions = ["myst_nb"]
nb_execution_mode = "off"  # the pages show the published runs
nb_render_markdown_format = "myst"  # the sentences that cells generate have tables and formulas
nb_output_stderr = "remove"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "html_image"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_favicon = "_static/favicon.svg"
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_context = {"default_mode": "auto"}  # the colours of the reader's system
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],
}

html_math_renderer = "katex"


def setup(app):
    """Leave formulas to KaTeX, which lies beside the pages: no page asks another host for anything."""
    app.add_html_math_renderer("katex", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("html-page-context", _load_katex)


def _inline(self, node):
    self.body.append(f'<span class="math">{self.encode(node.astext())}</span>')
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(f'<div class="math">{self.encode(node.astext())}</div>\n')
    raise nodes.SkipNode


def _load_katex(app, pagename, templatename, context, doctree):
    if 'class="math"' in context.get("body", ""):
        app.add_css_file("katex/katex.min.css")
        app.add_js_file("katex/katex.min.js", defer="defer")
        app.add_js_file("formulas.js", defer="defer")
