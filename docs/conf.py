"""Sphinx configuration."""

project = "Trivet"
author = "The Trivet authors"
copyright = "2026, The Trivet authors"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Trivet"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]
