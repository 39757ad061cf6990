"""Runs the notebooks from top to bottom and keeps what they show: `make notebooks`.

    python -m tools.run_notebooks [NAME.ipynb ...]

Each runs in an empty folder, with the interpreter that runs this. Outputs keep no path of the machine, no warnings and
no times of execution.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "notebooks"
SECONDS_PER_CELL = 1800


def execute(path: Path, directory: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in `directory`. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(directory)}},
    )
    # The kernel of this name may be another interpreter's.
    client.create_kernel_manager()
    assert client.km is not None and client.km.kernel_spec is not None
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    return cleaned(notebook, directory)


def cleaned(notebook: nbformat.NotebookNode, directory: Path) -> nbformat.NotebookNode:
    """Without what differs from machine to machine."""
    places = {str(directory.resolve()): ".", str(directory): ".", str(REPOSITORY): ".."}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            # Pictures are shown twice, as PNG and as JPEG.
            output.get("data", {}).pop("image/jpeg", None)
            for place, name in places.items():
                if "text" in output:
                    output.text = output.text.replace(place, name)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main(names: list[str]) -> None:
    os.environ.setdefault("WANDB_MODE", "offline")
    for path in [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as directory:
            nbformat.write(execute(path, Path(directory)), path)
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
