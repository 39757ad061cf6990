"""Names and options of what a user registers, and their place beside the files of conf/."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from hydra.core.config_store import ConfigStore

from ddim.errors import UserError


def defaults_of(function: Callable[..., Any], skip: int = 0, known: Collection[str] = ()) -> dict[str, Any]:
    """{name: default} of the parameters after the first `skip`; those that are `known` need no default."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    for parameter in parameters:
        if parameter.name in known:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"the parameter {parameter.name} of {function.__name__} needs a default.")
    return {parameter.name: parameter.default for parameter in parameters}


def check_name(kind: str, name: str, taken: Any) -> None:
    """Raises `UserError` for what is no name, or one of those that are taken."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"the {kind} {name!r} needs a name of letters, digits and underscores.")
    if name in taken:
        raise UserError(f"there is a {kind} {name} already; take another name.")


def store_option(group: str, name: str, node: dict[str, Any], package: str | None = None) -> None:
    """`group=NAME` composes these values from now on."""
    ConfigStore.instance().store(group=group, name=name, node=node, package=package or group, provider="ddim")
