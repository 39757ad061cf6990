"""What is evaluated: a checkpoint, ours or public, with what the command line says over it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ddim.command.config import typed_keys
from ddim.command.without_images import NAMES_IMAGES, Statistics, statistics_beside
from ddim.data.build import DATASETS
from ddim.denoisers import DENOISERS
from ddim.denoisers.formats.contents import Pretrained
from ddim.denoisers.formats.own import GROUPS
from ddim.denoisers.formats.torch_file import printable
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import BUILT_IN, SCHEDULES
from ddim.errors import UserError
from ddim.findings.paper import OFFICIAL_SCHEDULE, TABLES
from ddim.runs.locate import latest_checkpoint
from ddim.runs.plugins import VARIABLE

log = logging.getLogger(__name__)
MAX_DEPTH = 5


def open_subject(cfg: DictConfig) -> tuple[Pretrained, Statistics | None]:
    """Open the checkpoint and fill in the groups it decides: dataset, denoiser and schedule.

    What the command line says of a group goes over what the checkpoint states. A checkpoint that states no data set
    takes that of the statistics beside it, or that of `table=`; one that states no schedule takes the official one.

    Returns the checkpoint, and the statistics that stand in for its images where the command line names none.

    Raises:
        UserError: there is no such checkpoint, it cannot be read, or nothing says which images it is about.
    """
    pretrained = open_checkpoint(cfg.checkpoint, Path(cfg.output_dir), Path(cfg.cache_dir))
    stated: dict[str, Mapping[str, Any] | None] = {
        "dataset": pretrained.dataset,
        "denoiser": pretrained.denoiser,
        "schedule": pretrained.schedule,
    }
    typed = typed_keys()
    features = OmegaConf.select(cfg, "evaluation.features") if "evaluation.features" in typed else None
    beside = statistics_beside(pretrained, features)
    if beside is not None:
        stated["dataset"] = beside.about.dataset
    absent = [group for group, value in stated.items() if value is None]
    if absent and pretrained.format == "ddim":
        raise UserError(
            f"checkpoint={pretrained.origin} does not say its {' and '.join(absent)}; it was not written by train.py."
        )
    if stated["dataset"] is None and OmegaConf.select(cfg, "dataset.name") is None:
        stated["dataset"] = _dataset_of_the_table(cfg, pretrained)
    if stated["schedule"] is None and OmegaConf.select(cfg, "schedule.name") is None:
        stated["schedule"] = OFFICIAL_SCHEDULE
        log.info("%s does not state its noise schedule; the official linear one is taken.", pretrained.origin)
    OmegaConf.set_struct(cfg, False)
    for group in GROUPS:
        cfg[group] = _overlaid(group, stated[group], cfg.get(group), pretrained.origin)
        _check_known(group, cfg[group], pretrained.origin)
    _added_later(cfg)
    return pretrained, beside if typed.isdisjoint(NAMES_IMAGES) else None


def _check_known(group: str, config: DictConfig, origin: str) -> None:
    """Of a data set, denoiser or schedule of a user's own, say what it needs."""
    known = {"dataset": [*DATASETS], "denoiser": [*DENOISERS], "schedule": [*BUILT_IN, *SCHEDULES]}.get(group)
    name = config.get("name")
    if known is not None and isinstance(name, str) and name not in known:
        raise UserError(
            f"{group}.name={printable(name)} of checkpoint={origin} is not one of: {', '.join(known)}; one of your own "
            f"is known while {VARIABLE} names the file that registers it."
        )


def open_checkpoint(source: str | None, output_dir: Path, cache_dir: Path) -> Pretrained:
    """What `checkpoint=` names: latest, or what `open_pretrained` takes. Raises `UserError` where there is none."""
    if source is None:
        raise UserError("checkpoint=null names none; give latest, a run directory, a .ckpt or a public checkpoint.")
    where = latest_checkpoint(output_dir) if source == "latest" else source
    try:
        return open_pretrained(where, cache_dir)
    except UserError as error:
        raise UserError(f"checkpoint={source}: {error}") from error


def _dataset_of_the_table(cfg: DictConfig, pretrained: Pretrained) -> dict[str, Any]:
    table = TABLES.get(cfg.get("table") or "")
    if table is None:
        raise UserError(
            f"checkpoint={cfg.checkpoint} does not say which images {pretrained.origin} was trained on; add "
            "dataset=cifar10, dataset=celeba, or dataset=image_folder dataset.root=DIR."
        )
    return _option("dataset", table.configuration)


def _added_later(cfg: DictConfig) -> None:
    """What is asked of a data set goes with it, also of a checkpoint that was written before it was asked."""
    option = _option("dataset", str(cfg.dataset.name)) if cfg.dataset.get("name") in DATASETS else {}
    for key in ("table", "parts", "likelihood_images"):
        if key in option and key not in cfg.dataset:
            cfg.dataset[key] = option[key]


def _option(group: str, name: str) -> dict[str, Any]:
    """The file of conf/ that `group=name` composes."""
    (folder,) = [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.provider == "main"]
    path = folder / group / f"{name}.yaml"
    if not path.is_file():  # a user's own
        return {}
    container = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _overlaid(group: str, stated: Mapping[str, Any] | None, given: DictConfig | None, origin: str) -> DictConfig:
    """What a checkpoint states of a group, with what the command line said of it.

    Another option replaces the group. The checkpoint's own option, named once more, changes nothing by itself: its
    file's defaults are not what the checkpoint was trained with.
    """
    if stated is None:
        assert given is not None
        return given
    if given is not None and given.get("name", stated.get("name")) != stated.get("name"):
        return given
    typed = typed_keys()
    kept = {key: value for key, value in stated.items() if f"{group}.{key}" not in typed}
    _refuse_references(kept, group, origin)
    if kept.get("root") is not None:
        log.info("Images come from %s, as the checkpoint says; dataset.root=DIR is another folder.", kept["root"])
        if "download" in kept:
            # A folder named by a file, not by the user: it may be read but nothing is put there.
            kept["download"] = False
    base = OmegaConf.create(kept)
    for key in given or ():
        if f"{group}.{key!s}" in typed:
            assert given is not None
            base[str(key)] = given[key]
    return base


def _refuse_references(value: Any, key: str, origin: str, depth: int = 0) -> None:
    """A checkpoint states values; `${oc.env:...}` in it would be a question about this machine."""
    if depth > MAX_DEPTH:
        raise UserError(f"checkpoint={origin} states {key} in more levels than any configuration has.")
    if isinstance(value, str) and "${" in value:
        raise UserError(
            f"checkpoint={origin} states {printable(f'{key}={value}')}, and such references are not followed in "
            f"checkpoints; give {printable(key)}=VALUE."
        )
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        _refuse_references(name, f"{key}.{name}", origin, depth + 1)
        _refuse_references(item, f"{key}.{name}", origin, depth + 1)
