"""`report.html`: an evaluation, or several side by side, as one file that opens anywhere.

`python -m ddim.report DIR [DIR ...]` rebuilds it. `reading` takes what there is from the files of an evaluation's
directory, `facts`, `tables`, `charts`, `contents` and `pictures` make what is shown of it, `page` puts it into
`assets/page.html`. The page asks the network for nothing: images, style, scripts and the chart library are inside, and
its Content Security Policy allows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddim.display.page.render import render
from ddim.findings.reading import read_evaluation
from ddim.runs.files import write_atomically

REPORT_NAME, COMPARISON_NAME = "report.html", "comparison.html"


def write_report(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one evaluation, or of several side by side, and return where it is.

    directories: of evaluations, finished or not, or of sweeps whose table is collected; at least one.
    output: the file; by default `report.html` in the only directory, `comparison.html` in the current one for several.

    The same files give the same bytes, whoever writes them.

    Raises:
        UserError: a directory has no results, or one of its result files cannot be understood.
    """
    if output is None:
        output = directories[0] / REPORT_NAME if len(directories) == 1 else Path(COMPARISON_NAME)
    page = render([read_evaluation(directory) for directory in directories])
    # File names need not be text, and are shown all the same.
    write_atomically((output, page.encode("utf-8", "replace")))
    return output
