"""The density that a network has learnt over the plane, by its flow, beside the exact one or the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.evaluation.likelihood.asked import flow_of
from ddim.evaluation.likelihood.units import Nats
from ddim.evaluation.subject import Subject
from ddim.findings.parts.likelihood import densities
from ddim.findings.telling import Densities

# Places along each side, and how far beyond the data they reach, as a share of its width.
SIDE, ROOM = 64, 0.15
# A picture needs no more digits.
COARSE = 1e-3


def density_map(subject: Subject, unit: Nats, points: Tensor, tolerance: float) -> tuple[str, Densities, str]:
    """What is shown of the log-density in nats over a square around held-out points (N, 2), as they are stored.

    Raises UserError where the flow cannot be followed there.
    """
    low, high = points.double().amin(dim=0), points.double().amax(dim=0)
    centre, half = (low + high) / 2, (high - low).max() * (0.5 + ROOM)
    steps = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE * 2 - 1
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    places = (centre + half * torch.stack([across.flatten(), down.flatten()], dim=1)).float()
    learnt = unit.log_density(_bits(subject, unit, places, max(tolerance, COARSE))).reshape(SIDE, SIDE)
    exact = None if unit.exact is None else unit.exact(places).reshape(SIDE, SIDE)
    edges = [(float(middle - half), float(middle + half)) for middle in centre]
    return densities(str(subject.identity.get("dataset", "samples")), learnt, exact, points, (*edges[0], *edges[1]))


def _bits(subject: Subject, unit: Nats, places: Tensor, tolerance: float) -> Tensor:
    found = []
    for batch in places.split(subject.sampling.batch_size):
        x_0 = subject.sampling.space.to_model(batch).to(subject.device)
        noise = subject.sampling.noise.bind(torch.arange(len(batch)), "validation")
        with subject.arithmetic():
            flow = flow_of(subject, x_0, noise, levels=unit.levels, divergence=unit.divergence, tolerance=tolerance)
        found.append(flow.bits)
    return torch.cat(found)
