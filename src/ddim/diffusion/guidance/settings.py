"""The `guidance` group: which rule, how strongly, where, and of what the samples are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ddim.diffusion.guidance.table import GUIDANCE, NONE
from ddim.errors import UserError

# (name, value) pairs, by name, as points of the grid hold them among their options.
Setting = tuple[tuple[str, Any], ...]
NAME, PREFIX = "guidance", "guidance_"


@dataclass
class GuidanceConfig:
    """How a conditional network is led to what a sample is of, or any network away from a worse one.

    Attributes:
        name: the rule, one of GUIDANCE; none takes the network as it is, a conditional one with each sample's label.
        scale (number of at least 0, or a list): of eps_null + scale (eps - eps_null), or of the guide's eps in place of
            eps_null; 0 is unconditional (the guide alone), 1 the network alone. A list is an axis of the grid.
        interval (two numbers): the noise levels √((1 - ᾱ) / ᾱ) that are guided; null guides everywhere.
        labels (numbers or names of classes): sample i is of the i-th of these, again and again; null: of all classes in
            turn.
        checkpoint: of autoguidance: an earlier or smaller network; a run directory, a `.ckpt`, or a public checkpoint.
        options: those of a rule of your own; each may also be given as `guidance.NAME`.
    """

    name: str = NONE
    scale: Any = None
    interval: Any = None
    labels: Any = None
    checkpoint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def with_options(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The group's values with those that a rule has for itself gathered under `options`."""
        known = {item.name for item in fields(cls)}
        own = {key: value for key, value in values.items() if key not in known}
        given = values.get("options") or {}
        rest = {key: value for key, value in values.items() if key in known}
        # What is no mapping is for the schema to refuse.
        return {**rest, "options": {**own, **given} if isinstance(given, Mapping) else given}

    @property
    def label_list(self) -> list[Any]:
        """The labels that are chosen, numbers or names; none where all classes come in turn."""
        if self.labels is None:
            return []
        listed = list(self.labels) if isinstance(self.labels, list | tuple) else [self.labels]
        if not listed:
            raise UserError("guidance.labels=[] is empty; give at least one class, or null for all in turn.")
        return listed

    def settings(self) -> list[Setting]:
        """What points of the grid hold of it, one for each scale; nothing of no guidance.

        Raises `UserError` naming the first value that is wrong.
        """
        if self.name not in GUIDANCE:
            raise UserError(f"guidance.name={self.name} is not known; choose one of {', '.join(GUIDANCE)}.")
        rule = GUIDANCE[self.name]
        if rule.needs_guide != (self.checkpoint is not None):
            if rule.needs_guide:
                raise UserError(
                    f"guidance={self.name} needs guidance.checkpoint=PATH, an earlier or smaller network to guide with."
                )
            raise UserError(f"guidance.checkpoint={self.checkpoint} is of no use with guidance={self.name}.")
        interval = None if self.interval is None else _interval(self.interval)
        stated = {"scale": self.scale, "interval": interval}
        given = {**{name: value for name, value in stated.items() if value is not None}, **self.options}
        for name, value in given.items():
            if name not in rule.options:
                has = f"its own are {', '.join(rule.options)}" if rule.options else "it has none"
                raise UserError(f"guidance.{name}={value} is no option of guidance={self.name}; {has}.")
        labels = tuple(self.label_list)
        beside = {f"{PREFIX}labels": labels} if labels else {}
        if self.name == NONE:
            return [tuple(beside.items())]
        options = {**rule.options, **given}
        scales = options.get("scale")
        several = list(scales) if isinstance(scales, list | tuple) else [scales]
        if not several or any(several.count(scale) > 1 for scale in several):
            raise UserError(f"guidance.scale={scales} must be different numbers, at least one.")
        found = []
        for scale in several:
            own = {**options, "scale": scale} if "scale" in options else options
            _check(self.name, own)
            known = {f"{PREFIX}{name}": _plain(value) for name, value in own.items() if name == "scale"}
            known |= {f"{PREFIX}{name}": _plain(value) for name, value in own.items() if value != rule.options[name]}
            found.append(tuple(sorted({NAME: self.name, **known, **beside}.items())))
        return found


def of_options(options: Setting) -> tuple[str, dict[str, Any]]:
    """The rule that a point of the grid is guided by, and the rule's own options, from all options of the point."""
    given = dict(options)
    name = given.get(NAME, NONE)
    own = {key.removeprefix(PREFIX): value for key, value in given.items() if key.startswith(PREFIX)}
    return name, {key: value for key, value in own.items() if key in GUIDANCE[name].options}


def without_guidance(options: Setting) -> Setting:
    """The options of a point that are not of its guidance."""
    return tuple((name, value) for name, value in options if name != NAME and not name.startswith(PREFIX))


def _check(name: str, options: Mapping[str, Any]) -> None:
    try:
        GUIDANCE[name].check(**options)
    except (ValueError, TypeError) as error:
        stated = ", ".join(f"guidance.{key}={_said(value)}" for key, value in options.items())
        raise UserError(f"{stated} cannot be used: {error}.") from error


def _said(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _interval(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(float(end) if isinstance(end, int) and not isinstance(end, bool) else end for end in value)
    raise UserError(f"guidance.interval={value} must be two noise levels, such as [0.2,2.0], or null.")


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
