"""Tables and sentences on standard output: styled on a terminal, plain ASCII anywhere else."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ASCII = {
    **{"σ̂": "sigma_hat", "η": "eta", "τ": "tau", "σ": "sigma", "ε": "eps"},
    **{"·": "|", "×": "x", "±": "+-", "≤": "<=", "≠": "!=", "−": "-"},
}


class Terminal:
    """Where the results of an evaluation are printed.

    When `file` (default: standard output) is not a terminal, the text is ASCII without colours or boxes, as wide as it
    needs to be; numbers are never cut on a terminal either.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        file = sys.stdout if file is None else file
        self.styled = file.isatty() and "utf" in (getattr(file, "encoding", None) or "").lower()
        self.console = Console(file=file, force_terminal=self.styled, force_jupyter=False)

    def say(self, text: str = "", style: str = "") -> None:
        shown = Text(text if self.styled else ascii_text(text), style=style if self.styled else "")
        self.console.print(shown, soft_wrap=True)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[str] = ()) -> None:
        """One line per row; cells are right-aligned. Texts that are in `best` are emphasised on a terminal."""
        box, padding = (SIMPLE_HEAD, (0, 1, 0, 0)) if self.styled else (None, (0, 1))
        table = Table(box=box, pad_edge=False, padding=padding)
        for header in headers:
            table.add_column(header if self.styled else ascii_text(header), justify="right", no_wrap=True)
        for row in rows:
            cells = [text if self.styled else ascii_text(text) for text in row]
            styles = ["bold green" if self.styled and text in best else "" for text in row]
            table.add_row(*(Text(cell, style=style) for cell, style in zip(cells, styles, strict=True)))
        needed = Measurement.get(self.console, self.console.options.update(max_width=10_000), table).maximum
        self.console.width = max(self.console.width, needed)
        self.console.print(table)


def ascii_text(text: str) -> str:
    for symbol, name in _ASCII.items():
        text = text.replace(symbol, name)
    # Of a letter with an accent the letter.
    letters = "".join(part for part in unicodedata.normalize("NFD", text) if not unicodedata.combining(part))
    return letters.encode("ascii", "backslashreplace").decode()
