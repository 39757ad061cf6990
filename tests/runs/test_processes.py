"""Where a process stands among those of its run."""

from __future__ import annotations

import pytest

from ddim.runs.processes import Place, place


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, Place()),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2, 1, started_by="lightning")),
        (
            {
                "TORCHELASTIC_RUN_ID": "none",
                "RANK": "5",
                "WORLD_SIZE": "8",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "4",
                "GROUP_RANK": "1",
            },
            Place(5, 8, 1, 1, 2, "torchrun"),
        ),
        (
            {
                "SLURM_NTASKS": "16",
                "SLURM_PROCID": "9",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "1",
                "SLURM_NNODES": "2",
                "SLURM_JOB_NAME": "train",
            },
            Place(9, 16, 1, 1, 2, "srun"),
        ),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, Place()),
    ],
)
def test_the_place_of_a_process(environment, expected):
    assert place(environment) == expected
    assert expected.started_alike == (expected.started_by in ("torchrun", "srun"))
