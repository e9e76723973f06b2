"""Sphinx configuration."""

from importlib.metadata import version as installed

project = "lowdim"
author = "The lowdim authors"
copyright = "2026, The lowdim authors"
release = installed("lowdim")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
autosummary_generate = True
myst_enable_extensions = ["dollarmath"]  # $...$ in the Markdown pages
autodoc_typehints = "none"
numpydoc_show_class_members = False
exclude_patterns = ["_build"]
templates_path = []

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_title = "lowdim"

sphinx_gallery_conf = {
    "examples_dirs": "../gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "show_memory": False,
    "download_all_examples": False,
}
