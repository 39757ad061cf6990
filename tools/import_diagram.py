"""Writes the import diagram of docs/architecture.md from the import statements of the package.

    python -m tools.import_diagram

An arrow is an import. Arrows that others imply are left out, as are the small modules that stand below everything
(errors, files, ...). A test fails when the page has another diagram.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES, PAGE = REPOSITORY / "src" / "ddim", REPOSITORY / "docs" / "architecture.md"
# A box for each, from top to bottom, with the modules in it.
BOXES = {
    "scripts": ("train.py", "evaluate.py"),
    "run": ("run",),
    "cli": ("cli",),
    "studies": ("studies",),
    "build": ("build", "subject"),
    "config": ("config", "evaluation_config"),
    "extending": ("extending",),
    "callbacks": ("callbacks",),
    "lit_module": ("lit_module", "grid", "checkpoint"),
    "results": ("results", "records", "rows"),
    "diffusion": ("diffusion",),
    "denoisers": ("denoisers",),
    "data": ("data",),
    "metrics": ("metrics",),
}
DIAGRAM = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def imported(path: Path) -> set[str]:
    """Modules and rooms of the package that a file names in its import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "ddim" else [f"ddim.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ddim.")}
    return found


def arrows() -> set[tuple[str, str]]:
    """(importing box, imported box)."""
    box_of = {module: box for box, modules in BOXES.items() for module in modules}
    found = set()
    for box, modules in BOXES.items():
        for module in modules:
            folder = SOURCES / module
            path = REPOSITORY / module if module.endswith(".py") else SOURCES / f"{module}.py"
            for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [path]:
                found |= {(box, box_of[name]) for name in imported(file) if box_of.get(name, box) != box}
    return found


def without_implied(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The transitive reduction. Raises ValueError where the imports go in a circle."""
    below: dict[str, set[str]] = {box: set() for box in BOXES}

    def reach(box: str, path: tuple[str, ...] = ()) -> set[str]:
        if box in path:
            raise ValueError(f"imports in a circle: {' -> '.join((*path, box))}")
        if not below[box]:
            direct = {to for origin, to in edges if origin == box}
            below[box] = direct.union(*(reach(to, (*path, box)) for to in direct))
        return below[box]

    for box in BOXES:
        reach(box)
    return {(a, b) for a, b in edges if not any(b in below[c] for o, c in edges if o == a and c != b)}


def diagram() -> str:
    """The fenced mermaid block."""
    lines = ["```mermaid", "flowchart TD"]
    for box, modules in BOXES.items():
        room = (SOURCES / modules[0]).is_dir()
        label = f"{box}/" if room else "<br>".join(modules)
        lines.append(f'  {box}["{label}"]')
    order = list(BOXES)
    edges = sorted(without_implied(arrows()), key=lambda edge: (order.index(edge[0]), order.index(edge[1])))
    lines += [f"  {a} --> {b}" for a, b in edges]
    return "\n".join([*lines, "```"]) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(DIAGRAM.sub(lambda _: diagram(), text, count=1), encoding="utf-8")
    print(f"{PAGE.relative_to(REPOSITORY)} written")
