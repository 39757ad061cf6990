"""`python -m ddim.report DIR [DIR ...] [--output FILE]`: an evaluation as one HTML file, or several side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddim.display.page.write import COMPARISON_NAME, REPORT_NAME, write_report
from ddim.errors import UserError
from ddim.runs.ending import exit_with_sentence
from ddim.runs.paths import usable_path
from ddim.runs.plugins import load_plugins


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m ddim.report",
        description="An evaluation as one self-contained HTML file; several directories are compared in one.",
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="of an evaluation, or of a sweep")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the file to write; by default DIR/{REPORT_NAME}, for several directories ./{COMPARISON_NAME}",
    )
    options = parser.parse_args(arguments)
    print(f"Report    {exit_with_sentence(lambda: _run(options.directories, options.output))}")
    return 0


def _run(given: Sequence[str], output: str | None) -> Path:
    load_plugins()
    directories = [usable_path(directory, "DIR") for directory in dict.fromkeys(given)]
    file = None if output is None else usable_path(output, "--output")
    if file is not None and file.is_dir():
        raise UserError(f"--output={output} is a directory; give the name of a file in it, such as {REPORT_NAME}.")
    try:
        return write_report(directories, file)
    except OSError as error:
        raise UserError(
            f"{error.filename or 'the report'} cannot be written ({error.strerror}); "
            "give another file with --output=FILE."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
