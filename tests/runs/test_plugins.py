"""Files and modules that a user names are imported once; what is wrong with them is one sentence."""

from __future__ import annotations

import sys

import pytest

from ddim.errors import UserError
from ddim.metrics import METRICS
from ddim.runs import plugins

pytestmark = pytest.mark.usefixtures("forgotten")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", set())


@pytest.mark.parametrize(
    ("written", "named", "sentence"),
    [
        ("", "none.py", "DDIM_PLUGINS=none.py is not a file"),
        ("", "no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "mine.py", "ZeroDivisionError"),
        ("def", "mine.py", "SyntaxError"),
        ("raise ddim", "mine.py", "NameError"),
        ("from ddim.extending import register_metric\nregister_metric('kid')(len)", "mine.py", "kid already"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch, written, named, sentence):
    (tmp_path / "mine.py").write_text(written)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIM_PLUGINS", named)
    with pytest.raises(UserError, match=r"(?s)^[^\n]*$") as error:
        plugins.load_plugins()
    assert sentence in str(error.value)


def test_files_and_modules_are_imported_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f"from ddim.extending import register_metric\nregister_metric('from_{name}')(lambda g, r: 0.0)"
        )
    (tmp_path / "as_a_module.py").write_text("import builtins")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIM_PLUGINS", "a/mine.py, b/mine.py,as_a_module,")
    plugins.load_plugins()
    plugins.load_plugins()
    assert {"from_a", "from_b"} <= set(METRICS) and "as_a_module" in sys.modules


def test_nothing_is_loaded_without_the_variable(monkeypatch):
    monkeypatch.delenv("DDIM_PLUGINS", raising=False)
    plugins.load_plugins()
    assert plugins._loaded == set()
