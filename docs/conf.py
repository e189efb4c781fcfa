"""Sphinx: the pages of this folder and the API reference."""

import nl_jax

project = "nl_jax"
author = "the nl_jax authors"
copyright = "the nl_jax authors"
release = nl_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "deflist"]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "sphinx_rtd_theme"
exclude_patterns = ["_build"]
napoleon_use_ivar = True
