"""Command lines that are kept with a run, whatever the bytes of their file are."""

from __future__ import annotations

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.runs.overrides import read_overrides

BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=150, **BOUNDED)
@given(data=st.data())
def test_damaged_command_lines(damage, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run", numbered=True)
    intact = yaml.safe_dump(["seed=1", "sampler.steps=[1,2]", "~logger", "dataset.label='it is'"]).encode()
    content = data.draw(damage(intact) | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
    (folder / "overrides.yaml").write_bytes(content)
    try:
        assert all(isinstance(override, str) for override in read_overrides(folder))
    except UserError as error:
        assert "overrides.yaml" in str(error)
