"""The parts of an evaluation, in the order in which they are run: the one list of their names."""

from ddim.findings.part import Part
from ddim.findings.parts import (
    captions,
    consistency,
    convergence,
    diversity,
    grid,
    interpolation,
    likelihood,
    reconstruction,
    restoration,
    trajectory,
)

GRID = grid.PART.name
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        grid.PART,
        reconstruction.PART,
        consistency.PART,
        interpolation.PART,
        trajectory.PART,
        diversity.PART,
        convergence.PART,
        likelihood.PART,
        restoration.PART,
        captions.PART,
    )
}
