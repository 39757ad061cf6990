"""Builds the documentation site: README.md, docs/, notebooks/ and a page of docstrings for each room of src/ddim.

    python -m tools.site [OUTPUT]

They are gathered in build/site/source as they lie to each other here, so that links between them are those of the
repository; one that leads nowhere fails the build. Needs pip install -e '.[site]', and no network.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE, OUTPUT = REPOSITORY / "build" / "site" / "source", REPOSITORY / "build" / "site" / "html"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "CITATION.cff", "docs", "notebooks")
# What a reader wants first; every other page of docs/ follows by name.
FIRST = ("configuration", "results", "extending", "wandb")


def gather(source: Path) -> None:
    """All pages, an index of them, and pages that ask for the docstrings."""
    shutil.rmtree(source, ignore_errors=True)
    (source / "api").mkdir(parents=True)
    for name in PAGES:
        # Not as links: Sphinx follows them, and then finds pages outside of its source.
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("outputs", "cache", "*.py", ".*"))
        else:
            shutil.copyfile(path, source / name)
    rooms = api_pages()
    for name, text in rooms.items():
        (source / "api" / f"{name}.rst").write_text(text, encoding="utf-8")
    (source / "index.md").write_text(index(list(rooms)), encoding="utf-8")


def index(rooms: Sequence[str]) -> str:
    """The root of the site: every page, once."""
    names = sorted(path.stem for path in (REPOSITORY / "docs").glob("*.md"))
    pages = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    notebooks = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
    chapters = {
        "Guide": ["README", *(f"docs/{name}" for name in pages)],
        "Notebooks": [f"notebooks/{name}" for name in notebooks],
        "Docstrings": [f"api/{name}" for name in rooms],
        "Project": ["CHANGELOG", "CONTRIBUTING", "SECURITY"],
    }
    trees = (
        "\n".join(["```{toctree}", f":caption: {name}", ":maxdepth: 1", "", *chapters[name], "```"])
        for name in chapters
    )
    return "# ddim\n\n" + "\n\n".join(trees) + "\n"


def api_pages() -> dict[str, str]:
    """{room: page}: the modules of each folder of src/ddim, and the doors beside them as a room of their own."""
    package = REPOSITORY / "src" / "ddim"
    rooms: dict[str, list[str]] = {"doors": []}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("")
        parts = [part for part in module.parts if part != "__init__"]
        if not parts or not path.read_text(encoding="utf-8").strip():
            continue
        rooms.setdefault(parts[0] if len(module.parts) > 1 else "doors", []).append(".".join(["ddim", *parts]))
    return {name: _page(name, modules) for name, modules in rooms.items() if modules}


def _page(room: str, modules: Sequence[str]) -> str:
    title = "Doors: what a user opens by name" if room == "doors" else f"ddim.{room}"
    parts = [f"{title}\n{'=' * len(title)}"]
    for module in modules:
        parts.append(f"{module}\n{'-' * len(module)}\n\n.. automodule:: {module}\n   :members:\n   :no-index:")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Build, and return the exit status: not 0 where a page has a warning."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("error: the site needs Sphinx: pip install -e '.[site]'", file=sys.stderr)
        return 2
    output = Path(arguments[0]) if arguments else OUTPUT
    gather(SOURCE)
    configuration = str(REPOSITORY / "docs")
    status = build_main(["-b", "html", "-c", configuration, "-W", "--keep-going", "-q", str(SOURCE), str(output)])
    if status == 0:
        print(f"The site is {output / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
