"""Whether a run goes on as it began."""

from __future__ import annotations

import pytest
import yaml

from ddim.command.resuming import begun_with


def test_a_run_remembers_what_auto_was(trained_run):
    assert yaml.safe_load((trained_run / "config.yaml").read_text())["trainer"]["precision"] == "32-true"
    assert begun_with(trained_run, {"precision": "auto"}) == {"precision": "32-true"}


@pytest.mark.parametrize(
    ("kept", "typed", "taken"),
    [
        ("trainer: {precision: bf16-mixed}", "auto", "bf16-mixed"),
        ("trainer: {precision: bf16-mixed}", "32-true", "32-true"),
        ("trainer: {precision: auto}", "auto", "auto"),
        ("trainer: {precision: [1]}", "auto", "auto"),
        ("trainer: {precision: fast}", "auto", "auto"),
        ("trainer: 1", "auto", "auto"),
        ("[", "auto", "auto"),
        (None, "auto", "auto"),
    ],
)
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(tmp_path, kept, typed, taken):
    """What is typed then still wins, as with every setting."""
    if kept is not None:
        (tmp_path / "config.yaml").write_text(kept)
    assert begun_with(tmp_path, {"precision": typed, "devices": 1}) == {"precision": taken, "devices": 1}
