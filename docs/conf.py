"""How Sphinx makes the site of README.md, docs/, notebooks/ and the docstrings; `make site` calls it."""

from __future__ import annotations

import re
from typing import Any

import ddim

project = "ddim"
version = release = ddim.__version__
author = project_copyright = "the authors of ddim"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"ddim {version}"
# The notebooks are shown with the outputs that are kept in them.
nb_execution_mode = "off"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# What a base class of another library says of itself is in its own documentation.
autodoc_inherit_docstrings = False
# A diagram in Mermaid is shown as it is written; pictures of widgets in notebooks have plain text beside them.
suppress_warnings = ["misc.highlighting_failure", "mystnb.unknown_mime_type", "mystnb.mime_priority"]

CODE = re.compile(r"(`+[^`]+`+)")
# What docutils would take for markup in sentences that are about mathematics.
MARKUP = re.compile(r"([*|]|(?<=\w)_(?=\W|$))")
FIELD = re.compile(r"(\s*:[^:`]+:)(.*)", re.DOTALL)
ENTRY = re.compile(r"""["\w][\w, .`*"]*(?: \([^)]*\))?: """)


def restructured(lines: list[str]) -> list[str]:
    """A docstring of sentences, `code` and lines `name: meaning`, as docutils writes the same."""
    listed: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        begins = number == 0 or not lines[number - 1].strip()
        if begins or not line.strip():
            inside = bool(number and ENTRY.match(line))
        if inside and line.strip():
            line = f"* {line}" if ENTRY.match(line) else f"  {line.lstrip()}"
        listed.append(line)
    text = "".join(
        f"``{part.strip('`')}``" if CODE.fullmatch(part) else _escaped(part) for part in CODE.split("\n".join(listed))
    )
    return text.split("\n")


def _escaped(text: str) -> str:
    """Line by line: the marker of a list and the name of a field stay what they are."""
    found = []
    for line in text.split("\n"):
        field = FIELD.fullmatch(line)
        marker, rest = (field[1], field[2]) if field else ("* ", line[2:]) if line.startswith("* ") else ("", line)
        found.append(marker + MARKUP.sub(r"\\\1", rest))
    return "\n".join(found)


def plain_docstring(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def folder_links(app: Any, name: str, source: list[str]) -> None:
    """On GitHub a folder is a page; here its first one is."""
    source[0] = source[0].replace("](notebooks)", "](notebooks/01_quickstart.ipynb)")


def setup(app: Any) -> None:
    # After napoleon, which needs the sections as they are written.
    app.connect("autodoc-process-docstring", plain_docstring, priority=900)
    app.connect("source-read", folder_links)
