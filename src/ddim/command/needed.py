"""Hydra's launchers and sweepers that are packages of their own: what an option needs is said before Hydra looks."""

from __future__ import annotations

import importlib.util

from ddim.errors import UserError


def check_launcher(launcher: str) -> None:
    """Raises UserError where the plugin of `hydra/launcher=` is not installed; Hydra knows no such option then."""
    plugin = {"joblib": "joblib", "submitit": "submitit", "slurm": "submitit"}.get(launcher.partition("_")[0])
    module = f"hydra_{plugin}_launcher"
    if plugin is not None and not _installed(f"hydra_plugins.{module}"):
        raise UserError(f"hydra/launcher={launcher} needs the package {module}: pip install -e '.[cluster]'")


def check_sweeper(search: str) -> None:
    """The same for the sweeper of `hparams_search=`."""
    if not _installed("hydra_plugins.hydra_optuna_sweeper"):
        raise UserError(f"hparams_search={search} needs the package hydra_optuna_sweeper: pip install -e '.[search]'")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False
