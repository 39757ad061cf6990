"""CITATION.cff, CHANGELOG.md, LICENSE and CONTRIBUTING.md agree with the package."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import ddim

REPOSITORY = Path(__file__).resolve().parents[1]


def test_one_version_everywhere():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    versions = re.findall(r"^## \[(\d[^]]*)\]", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert citation["version"] == versions[0] == ddim.__version__
    assert citation["license"] == "MIT" and "MIT License" in (REPOSITORY / "LICENSE").read_text()
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Song", "Meng", "Ermon"]
    assert paper["year"] == 2021 and paper["url"].endswith("2010.02502")


def test_what_contributing_names_exists():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"`((?:docs|tests|src|benchmarks|notebooks|conf)/[\w./]*)`", text):
        assert (REPOSITORY / path).exists(), path
    for module in re.findall(r"python -m (tools\.\w+)", text):
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).is_file(), module


class TestImportDiagram:
    tool = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "import_diagram.py")))

    def test_it_is_what_is_imported(self):
        page = (REPOSITORY / "docs" / "architecture.md").read_text()
        assert self.tool.DIAGRAM.findall(page) == [self.tool.diagram()], "run `make docs`"

    def test_arrows_that_others_imply_are_left_out(self):
        edges = {("command", "training"), ("training", "data"), ("command", "data"), ("data", "runs")}
        assert self.tool.without_implied(edges) == edges - {("command", "data")}
        with pytest.raises(ValueError, match="circle"):
            self.tool.without_implied({("training", "data"), ("data", "training")})

    def test_it_shows_that_rooms_do_not_know_each_other(self):
        rooms = {"diffusion", "denoisers", "data", "metrics", "findings"}
        found = self.tool.arrows()
        assert ("command", "training") in found
        # What a network predicts becomes eps by the mathematics of its schedule.
        assert {(a, b) for a, b in found if a in rooms and b in rooms} == {("denoisers", "diffusion")}


class TestContracts:
    """What each room may know, as pyproject.toml states it for import-linter."""

    def test_they_are_kept(self):
        outcome = subprocess.run(
            [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stdout
        assert "0 broken" in outcome.stdout

    def test_nothing_is_excepted_and_every_room_is_named(self):
        settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
        assert not any("ignore_imports" in contract for contract in settings["contracts"])
        assert settings["contracts"][0]["exhaustive"] is True

    def test_only_rooms_and_doors_lie_in_the_package(self):
        found = {path.name for path in (REPOSITORY / "src" / "ddim").iterdir() if path.name != "__pycache__"}
        rooms = {"command", "training", "evaluation", "display", "tracking", "findings", "metrics", "data"}
        rooms |= {"denoisers", "diffusion", "runs"}
        doors = {"results.py", "report.py", "export.py", "draw.py", "extending.py"}
        assert found - {"py.typed"} == rooms | doors | {"errors.py", "__init__.py"}

    @pytest.mark.parametrize("path", sorted((REPOSITORY / "src").rglob("*.py")), ids=lambda path: path.stem)
    def test_modules_and_functions_fit_on_a_few_screens(self, path):
        text = path.read_text()
        assert len(text.splitlines()) <= 300
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as they are made for links: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere():
    texts = {page: page.read_text() for page in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]}
    for notebook in REPOSITORY.glob("notebooks/*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        texts[notebook] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for page, text in texts.items():
        for target, anchor in re.findall(r"\]\(([^()#:]*)(?:#([^()]*))?\)", text):
            file = page.parent / target if target else page
            assert file.exists() and REPOSITORY in file.resolve().parents, (page.name, target)
            assert not anchor or anchor in anchors(file), (page.name, target, anchor)
    assert sum(len(re.findall(r"\]\([^()#:]+\)", text)) for text in texts.values()) > 20


def test_development_dependencies_are_pinned():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = (REPOSITORY / "constraints.txt").read_text().lower().replace("_", "-")
    for requirement in (name for names in extras.values() for name in names):
        name = re.split(r"[<>=\[]", requirement)[0].lower().replace("_", "-")
        assert f"\n{name}==" in pinned, name


class TestPreCommit:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())

    def test_pre_commit_takes_it(self):
        command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)

    def test_it_is_what_make_lint_runs(self):
        entries = [hook["entry"] for repository in self.config["repos"] for hook in repository["hooks"]]
        recipe = re.findall(r"^\t\$\(BIN\)/(.*)$", _target("lint"), flags=re.MULTILINE)
        assert recipe == ["ruff check .", "ruff format --check .", "mypy", "lint-imports"]
        for command in recipe:
            words = [word for word in command.split() if word not in (".", "--check")]
            assert any(entry.split()[: len(words)] == [f".venv/bin/{words[0]}", *words[1:]] for entry in entries), (
                command
            )


def _target(name: str) -> str:
    makefile = (REPOSITORY / "Makefile").read_text()
    found = re.search(rf"^{name}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert found is not None, name
    return found[1]


class TestContainerfile:
    """No image is built here; what is written is parsed, and what it copies and runs is there."""

    @pytest.fixture
    def steps(self, tmp_path: Path):
        parser = pytest.importorskip("dockerfile_parse").DockerfileParser(str(tmp_path))
        parser.content = (REPOSITORY / "Containerfile").read_text()
        return [step for step in parser.structure if step["instruction"] != "COMMENT"]

    def test_its_instructions_are_known_and_in_order(self, steps):
        names = [step["instruction"] for step in steps]
        assert names[0] == "FROM" and names[-2:] == ["ENTRYPOINT", "CMD"]
        known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
        assert set(names) <= known
        assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")

    def test_what_it_copies_exists_and_is_not_ignored(self, steps):
        ignored = set((REPOSITORY / ".containerignore").read_text().split())
        copied = [source for step in steps if step["instruction"] == "COPY" for source in step["value"].split()[:-1]]
        assert {"conf", "src", "train.py", "evaluate.py", "constraints.txt"} <= set(copied)
        for source in copied:
            assert (REPOSITORY / source).exists() and source.partition("/")[0] not in ignored, source

    def test_what_is_in_brackets_is_json_and_the_shell_understands_it(self, steps):
        values = {step["instruction"]: step["value"] for step in steps if step["value"].startswith("[")}
        entry, command = json.loads(values["ENTRYPOINT"]), json.loads(values["CMD"])
        assert (REPOSITORY / command[0]).is_file() and json.loads(values["VOLUME"])
        shell, flag, program, *rest = entry
        said = subprocess.run(
            [shell, flag, program.replace("exec python", "exec echo"), *rest, *command, "two words"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == "/opt/ddim/train.py --help two words\n"

    def test_its_python_and_extras_are_ours(self, steps):
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        (image,) = [step["value"] for step in steps if step["instruction"] == "FROM"]
        version = re.search(r"python:(\d+)\.(\d+)", image)
        assert version is not None and f">={version[1]}.{version[2]}" == project["requires-python"]
        (extras,) = [match[1] for step in steps if (match := re.search(r"\.\[([\w,]+)\]", step["value"]))]
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
