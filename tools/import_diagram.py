"""Writes the import diagram of docs/architecture.md from the layers in pyproject.toml and the package's imports.

    python -m tools.import_diagram

A box is a room or a door, a row of boxes a layer, an arrow an import; arrows that others imply are left out. A test
fails when the page has another diagram, `make lint` when an import goes against the layers.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES, PAGE = REPOSITORY / "src" / "ddim", REPOSITORY / "docs" / "architecture.md"
DIAGRAM = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def layers() -> list[list[str]]:
    """The rooms and doors from top to bottom, those of one layer together."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (whole,) = (contract for contract in contracts if contract.get("containers") == ["ddim"])
    return [[name.strip() for name in layer.split("|")] for layer in whole["layers"]]


def imported(path: Path) -> set[str]:
    """Rooms and doors of the package that a file names in its import statements, wherever they stand."""
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
    """(importing room, imported room)."""
    rooms = [room for layer in layers() for room in layer]
    found = set()
    for room in rooms:
        folder = SOURCES / room
        for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCES / f"{room}.py"]:
            found |= {(room, name) for name in imported(file) if name in rooms and name != room}
    return found


def without_implied(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The transitive reduction. Raises ValueError where the imports go in a circle."""
    below: dict[str, set[str]] = {}

    def reach(room: str, path: tuple[str, ...] = ()) -> set[str]:
        if room in path:
            raise ValueError(f"imports in a circle: {' -> '.join((*path, room))}")
        if room not in below:
            direct = {to for origin, to in edges if origin == room}
            below[room] = direct.union(*(reach(to, (*path, room)) for to in direct))
        return below[room]

    for room in {room for edge in edges for room in edge}:
        reach(room)
    return {(a, b) for a, b in edges if not any(b in below[c] for o, c in edges if o == a and c != b)}


def diagram() -> str:
    """The fenced mermaid block."""
    lines = ["```mermaid", "flowchart TD"]
    for number, layer in enumerate(layers(), start=1):
        lines.append(f"  subgraph floor{number}[ ]")
        lines += [f'    {room}["{room}{"/" if (SOURCES / room).is_dir() else ".py"}"]' for room in layer]
        lines.append("  end")
    order = [room for layer in layers() for room in layer]
    edges = sorted(without_implied(arrows()), key=lambda edge: (order.index(edge[0]), order.index(edge[1])))
    lines += [f"  {a} --> {b}" for a, b in edges]
    return "\n".join([*lines, "```"]) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(DIAGRAM.sub(lambda _: diagram(), text, count=1), encoding="utf-8")
    print(f"{PAGE.relative_to(REPOSITORY)} written")
