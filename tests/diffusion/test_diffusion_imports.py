"""The diffusion room loads torch and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh process after the statement."""
    code = f"{statement}; import json, sys; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_importing_it_loads_nothing_that_torch_does_not():
    extra = loaded_by("import ddim.diffusion") - loaded_by("import torch") - sys.stdlib_module_names
    assert extra == {"ddim"}


def test_importing_it_loads_no_other_room():
    code = "import ddim.diffusion, sys; print(*[m for m in sys.modules if m.startswith('ddim.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in result.stdout.split()}
    assert rooms <= {"diffusion", "errors"}
