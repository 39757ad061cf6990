"""A file of tensors that is whole or recognised as damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.evaluation.kept.checked_file import DamagedFileError, read_checked, write_checked
from ddim.evaluation.kept.hashes import tensors_sha256

TENSORS = {"indices": torch.arange(5), "images": torch.arange(10, dtype=torch.uint8).reshape(5, 2)}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "deep" / "file.safetensors"
    write_checked(path, TENSORS, {"seconds": 1.25})
    return path


def test_it_comes_back(written):
    tensors, about = read_checked(written)
    assert about == {"seconds": 1.25} and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in tensors)
    assert [path.name for path in written.parent.iterdir()] == ["file.safetensors"]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damage_is_noticed(written, data):
    """A flipped bit or a cut anywhere; what is read nevertheless is what was written."""
    content = bytearray(written.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    damaged = written.with_name("damaged")
    damaged.write_bytes(content)
    try:
        tensors, about = read_checked(damaged)
    except DamagedFileError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert about == {"seconds": 1.25} and tensors_sha256(tensors) == tensors_sha256(TENSORS)
