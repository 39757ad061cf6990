"""How a point of the grid is named: keys that sort, labels that are read.

A point is one that is yet to be sampled, a result, or the row of a part as its file holds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ddim.findings.columns import VALUES

GUIDANCE_ALIKE = ("guidance_labels", "guidance_weights")
NAMED_VARIANCES = {"sigma_hat": "σ̂", "sigma_hat_official": "σ̂ clipped"}


def distance_name(features: str) -> str:
    """ "FID" on the canonical Inception features only; "FD (<features>)" on any others; "energy distance" of what is no
    image."""
    if features == VALUES:
        return "energy distance"
    return "FID" if features == "inception-v3-compat" else f"FD ({features})"


class Variance(Protocol):
    """What a sampler adds as noise: of a result, or of a point that is yet to be sampled."""

    @property
    def eta(self) -> float: ...
    @property
    def variance(self) -> str: ...


class Setting(Variance, Protocol):
    """A point of the grid: of a result, or one that is yet to be sampled."""

    @property
    def sampler(self) -> str: ...
    @property
    def options(self) -> tuple[tuple[str, Any], ...] | None: ...
    @property
    def tau(self) -> str: ...
    @property
    def steps(self) -> int: ...


def point_key(point: Setting | Mapping[str, Any]) -> str:
    """`eta0.000/linear/steps0010`: sorts by sampler, then by η, by spacing and by S.

    The paper's own family (`ddim`) needs no name; others, and options, go before: `heun/order2/eta0.000/...`.
    """
    eta, variance = _of(point, "eta"), _of(point, "variance")
    # Three decimals sort; an eta that has more must not share its key with another.
    written = f"{eta:.3f}" if round(eta, 3) == eta else f"{eta:g}"
    noise = f"eta{written}" if variance == "eta" else variance
    named = "".join(f"{text}/" for text in sampler_parts(point))
    return f"{named}{noise}/{_of(point, 'tau')}/steps{_of(point, 'steps'):04d}"


def sampler_parts(point: Setting | Mapping[str, Any]) -> list[str]:
    """`["heun", "order2", "classifier_free", "scale2"]`: what tells a sampler, and its guidance, from the paper's."""
    return [*solver_parts(point), *guidance_parts(point)]


def solver_parts(point: Setting | Mapping[str, Any]) -> list[str]:
    """`["heun", "order2"]`: what tells a sampler from the paper's; nothing for that one without options."""
    name, options = _of(point, "sampler", "ddim"), _of(point, "options") or ()
    stated = [f"{key}{value}" for key, value in options if not _of_guidance(key)]
    return [name, *stated] if name != "ddim" or stated else []


def guidance_parts(point: Setting | Mapping[str, Any]) -> list[str]:
    """`["classifier_free", "scale2"]`; nothing where a network is taken as it is."""
    given = {key: value for key, value in _of(point, "options") or () if _of_guidance(key)}
    name = given.pop("guidance", None)
    # All points of an evaluation have the same labels and the same second network.
    own = {key.removeprefix("guidance_"): value for key, value in given.items() if key not in GUIDANCE_ALIKE}
    stated = [f"{key}{_short(value)}" for key, value in sorted(own.items(), key=lambda item: item[0] != "scale")]
    return [] if name is None else [str(name), *stated]


def _of_guidance(option: str) -> bool:
    return option == "guidance" or option.startswith("guidance_")


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def curve_key(point: Setting | Mapping[str, Any]) -> str:
    """`eta0.000/linear`: what the points of one curve against S have in common."""
    return point_key(point).rpartition("/")[0]


def noise_key(point: Setting | Mapping[str, Any]) -> str:
    """`eta0.000`: the sampler of a point as part of a file's name."""
    return point_key(point).rsplit("/", 2)[0].replace("/", "-")


def eta_label(point: Variance | Mapping[str, Any]) -> str:
    """ "0", "0.2", "1" for sigma(eta); "σ̂" for the paper's larger variance, "σ̂ clipped" for the official code's."""
    named = NAMED_VARIANCES.get(_of(point, "variance"))
    eta = _of(point, "eta")
    if named is not None:
        return named
    return "–" if eta is None else f"{eta:g}" if isinstance(eta, int | float) else str(eta)


def eta_title(label: str) -> str:
    """ "η = 0.2" for a number, "σ̂" and the name of a sampler as they are."""
    return f"η = {label}" if label[:1].isdigit() or label == "–" else label


def eta_order(label: str) -> tuple[float, str]:
    """Sort key of eta labels: numbers by value, then "σ̂", then "σ̂ clipped"."""
    try:
        return float(label), ""
    except ValueError:
        return math.inf, label


def title_order(title: str) -> tuple[float, str]:
    """Sort key of titles, as `eta_order` is of labels."""
    return eta_order(title.removeprefix("η = "))


def significant(value: float | None, digits: int = 4) -> str:
    """Text with that many significant digits, never fewer than the whole part has; "-" for None."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.split("e")[1])
    return scientific if exponent < -4 else f"{value:.{max(0, digits - 1 - exponent)}f}"


def line_label(point: Setting | Mapping[str, Any], among: Iterable[Setting | Mapping[str, Any]]) -> str:
    """What tells a line of `among` from the others: its η, and where they have several samplers its sampler first.

    Of guidance it is what not all of them have: "scale 2".
    """
    others = list(among)
    named = ""
    if len({tuple(solver_parts(other)) for other in others}) > 1:
        named = " ".join(solver_parts(point) or ["ddim"])
    guided = [guidance_parts(other) for other in others]
    if any(parts != guided[0] for parts in guided):
        own = [text for text in guidance_parts(point) if not all(text in parts for parts in guided)]
        spaced = [f"scale {text.removeprefix('scale')}" if text.startswith("scale") else text for text in own]
        named = " ".join([*([named] if named else []), *(spaced or ["unguided"])])
    if not named:
        return eta_label(point)
    etas = {eta_label(other) for other in others}
    return named if len(etas) == 1 else f"{named}, {eta_title(eta_label(point))}"


def with_sd(value: float | None, sd: float | None, digits: int = 4) -> str:
    """ "1.62 ± 0.13": the value with the places that its standard deviation has two digits in; without one as it is."""
    if value is None or sd is None or not (math.isfinite(value) and math.isfinite(sd)) or sd <= 0:
        return significant(value, digits)
    places = max(0, 1 - math.floor(math.log10(sd)))
    return f"{value:.{places}f} ± {sd:.{places}f}"


def _of(point: Any, name: str, default: Any = None) -> Any:
    return point.get(name, default) if isinstance(point, Mapping) else getattr(point, name, default)
