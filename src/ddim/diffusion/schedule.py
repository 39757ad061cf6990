"""How much signal is left at each timestep: `NoiseSchedule` and the four published ways to choose one.

`alpha_bar[t]` is the variance that the data keeps at timestep t, the product of (1 - beta_s) over s <= t. The DDIM
paper writes alpha_t for this quantity; here it always has DDPM's name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

import torch
from torch import Tensor

from ddim.errors import UserError

# A thousand times what anybody trains with; a mistyped number must not fill the memory.
MAX_TIMESTEPS = 1_000_000
BUILT_IN = ("linear", "cosine", "scaled_linear", "sigmoid")
# Further schedules by name: functions of numbers that return alpha_bar (T,).
SCHEDULES: dict[str, Callable[..., Tensor]] = {}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete variance-preserving schedule.

    `alpha_bar` is a float64 tensor (T,) on the CPU, strictly decreasing inside (0, 1). `name` and `params` say what
    made it: `NoiseSchedule.from_name(name, **params)` makes it again. Two schedules are equal when their `alpha_bar`
    are.

    Raises ValueError when `alpha_bar` is not such a tensor.
    """

    alpha_bar: Tensor
    name: str = "custom"
    params: Mapping[str, Any] = field(default_factory=dict)
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        alpha_bar = torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64, copy=True)
        if alpha_bar.ndim != 1 or len(alpha_bar) == 0:
            raise ValueError(f"alpha_bar must have shape (T,) with T >= 1, got {tuple(alpha_bar.shape)}")
        if not bool(((alpha_bar > 0) & (alpha_bar < 1)).all()) or not bool((alpha_bar.diff() < 0).all()):
            raise ValueError(
                f"alpha_bar must fall strictly inside (0, 1); {self.name} {dict(self.params)} runs from "
                f"{alpha_bar[0]:.6g} to {alpha_bar[-1]:.6g} over {len(alpha_bar)} timesteps and does not"
            )
        object.__setattr__(self, "alpha_bar", alpha_bar)
        object.__setattr__(self, "params", dict(self.params))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and torch.equal(self.alpha_bar, other.alpha_bar)

    def __hash__(self) -> int:
        return hash((self.num_timesteps, float(self.alpha_bar[-1])))

    @classmethod
    def linear(cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """beta rises linearly from `beta_start` to `beta_end` (Ho et al. 2020, section 4)."""
        _check_betas(num_timesteps, beta_start, beta_end)
        betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        params = {"num_timesteps": num_timesteps, "beta_start": beta_start, "beta_end": beta_end}
        return cls(torch.cumprod(1 - betas, dim=0), "linear", params)

    @classmethod
    def scaled_linear(
        cls, num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """sqrt(beta) rises linearly (latent diffusion, Rombach et al. 2022; the defaults are Stable Diffusion's)."""
        _check_betas(num_timesteps, beta_start, beta_end)
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps, dtype=torch.float64)
        params = {"num_timesteps": num_timesteps, "beta_start": beta_start, "beta_end": beta_end}
        return cls(torch.cumprod(1 - roots.square(), dim=0), "scaled_linear", params)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """alpha_bar follows cos^2 with offset `s`, no beta above `max_beta` (Nichol and Dhariwal 2021, eq. 17)."""
        if not (math.isfinite(s) and s >= 0):
            raise ValueError(f"s must be a finite number >= 0, got {s!r}")
        params = {"num_timesteps": num_timesteps, "s": s, "max_beta": max_beta}
        curve = [math.cos((u + s) / (1 + s) * math.pi / 2) ** 2 for u in _grid(num_timesteps)]
        return cls(_alpha_bar_of_curve(curve, max_beta), "cosine", params)

    @classmethod
    def sigmoid(
        cls,
        num_timesteps: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        max_beta: float = 0.999,
    ) -> NoiseSchedule:
        """alpha_bar follows a falling sigmoid over [start, end], temperature `tau` (Jabri et al. 2022; Chen 2023).

        The papers' curve reaches 0 at the end, so beta is limited to `max_beta` as in the cosine schedule.
        """
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            raise ValueError(f"start must be less than end, both finite, got start={start!r} and end={end!r}")
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau must be a finite number > 0, got {tau!r}")
        params = {"num_timesteps": num_timesteps, "start": start, "end": end, "tau": tau, "max_beta": max_beta}
        first, last = _logistic(start / tau), _logistic(end / tau)
        values = [_logistic((start + u * (end - start)) / tau) for u in _grid(num_timesteps)]
        curve = [(last - value) / (last - first) for value in values]
        return cls(_alpha_bar_of_curve(curve, max_beta), "sigmoid", params)

    @classmethod
    def from_name(cls, name: str, **params: Any) -> NoiseSchedule:
        """The named schedule; `params` are the arguments of the constructor of that name.

        Raises ValueError that lists the known names, or the known parameters of that name.
        """
        constructors: dict[str, Callable[..., NoiseSchedule]] = {known: getattr(cls, known) for known in BUILT_IN}
        if name not in constructors and name not in SCHEDULES:
            raise ValueError(f"schedule name must be one of {', '.join([*constructors, *SCHEDULES])}, got {name!r}")
        signature = inspect.signature(constructors.get(name) or SCHEDULES[name])
        known = signature.parameters
        for key in params:
            if key not in known:
                raise ValueError(f"schedule {name!r} has no parameter {key!r}; it has {', '.join(known)}")
        if name in SCHEDULES:
            bound = signature.bind(**params)
            bound.apply_defaults()
            return cls(SCHEDULES[name](**params), name, bound.arguments)
        return constructors[name](**params)

    @property
    def num_timesteps(self) -> int:
        return len(self.alpha_bar)

    @property
    def betas(self) -> Tensor:
        """float64 (T,): 1 - alpha_bar[t] / alpha_bar[t - 1], with alpha_bar[-1] read as 1."""
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        return 1 - self.alpha_bar / previous

    @overload
    def alpha_bar_at(self, t: int) -> float: ...

    @overload
    def alpha_bar_at(self, t: Tensor) -> Tensor: ...

    def alpha_bar_at(self, t: int | Tensor) -> float | Tensor:
        """alpha_bar at timestep t in [-1, T - 1], where t = -1 is the clean data and gives 1.

        An int gives a Python float. An integer tensor of any shape gives a float64 tensor of that shape on the same
        device (on the CPU where the device has no float64).

        Raises ValueError for a t out of range; a tensor on an accelerator is left to the device's own bounds check,
        because looking at it would stall the device.
        """
        if isinstance(t, int):
            if not -1 <= t < self.num_timesteps:
                raise ValueError(f"t must be in [-1, {self.num_timesteps - 1}], got {t}")
            return 1.0 if t == -1 else float(self.alpha_bar[t])
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"t must be an integer tensor, got {t.dtype}")
        t = t.cpu() if t.device.type == "mps" else t
        if t.device.type == "cpu" and t.numel():
            low, high = int(t.min()), int(t.max())
            if low < -1 or high >= self.num_timesteps:
                raise ValueError(f"t must be in [-1, {self.num_timesteps - 1}], got values from {low} to {high}")
        if t.device not in self._tables:
            clean = torch.ones(1, dtype=torch.float64)
            self._tables[t.device] = torch.cat([clean, self.alpha_bar]).to(t.device)
        return self._tables[t.device].index_select(0, t.reshape(-1) + 1).reshape(t.shape)


def _check_num_timesteps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int) or isinstance(num_timesteps, bool) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be an integer >= 1, got {num_timesteps!r}")
    if num_timesteps > MAX_TIMESTEPS:
        raise ValueError(f"num_timesteps must be at most {MAX_TIMESTEPS}, got {num_timesteps}")


def _check_betas(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(num_timesteps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"0 < beta_start <= beta_end < 1 must hold, got beta_start={beta_start}, beta_end={beta_end}")


def _logistic(value: float) -> float:
    return math.exp(-math.log1p(math.exp(-value))) if value > -700 else 0.0


def _grid(num_timesteps: int) -> list[float]:
    _check_num_timesteps(num_timesteps)
    return [i / num_timesteps for i in range(num_timesteps + 1)]


def _alpha_bar_of_curve(curve: list[float], max_beta: float) -> Tensor:
    """alpha_bar (T,) from a falling curve of T + 1 values over [0, 1], rebuilt from its limited betas."""
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must be in (0, 1), got {max_beta!r}")
    betas = [min(1 - after / before, max_beta) if before > 0 else max_beta for before, after in pairwise(curve)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0)


def build_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that `{name: ..., **parameters}` describes."""
    parameters = dict(config)
    name = parameters.pop("name", None)
    try:
        return NoiseSchedule.from_name(name, **parameters)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"schedule={dict(config)} cannot be built: {error}") from error
