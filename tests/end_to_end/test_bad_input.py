"""What a user can get wrong: one sentence on stderr that names the key and its value, status 2, nothing written."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddim.data import build_datamodule
from ddim.errors import UserError

# What a sentence may call a whole number.
WHOLE = "whole number|Integer"

# arguments of train.py -> regular expressions that the sentence must match: key and value first, then what is right.
TRAINING: dict[str, tuple[str, ...]] = {
    "seed=-1": ("seed=-1", "from 0"),
    "seed=text": ("seed", "text", WHOLE),
    "seed=1.5": ("seed", r"1\.5", WHOLE),
    "loader.batch_size=0": ("loader.batch_size=0", "at least 1"),
    "loader.batch_size=many": ("loader.batch_size", "many", WHOLE),
    "loader.batch_size=5000": ("loader.batch_size=5000", "1437"),
    "loader.eval_batch_size=0": ("loader.eval_batch_size=0", "at least 1"),
    "loader.num_workers=-1": ("loader.num_workers=-1", "at least 0"),
    "loss.weighting=none_such": ("loss.weighting=none_such", "simple"),
    "schedule.num_timesteps=0": ("schedule", "num_timesteps", "(?<!0)0", ">= 1|at least 1"),
    "schedule.num_timesteps=ten": ("schedule", "num_timesteps", "ten", "integer|whole number"),
    "schedule.beta_end=2": ("schedule", "beta_end", "2", "1"),
    "schedule.beta_start=0.5": ("schedule", "beta_start", r"0\.5"),
    "schedule.name=none_such": ("schedule", "none_such", "cosine"),
    "+schedule.none_such=1": ("schedule", "none_such"),
    "denoiser.name=none_such": ("denoiser", "none_such", "unet"),
    "denoiser.channel_mult=[]": ("denoiser", "channel_mult", r"\[\]|empty"),
    "denoiser.channel_mult=[1,2,2,2,2]": ("denoiser", "resolution", "8", "16"),
    "denoiser.base_channels=0": ("denoiser", "base_channels", "0"),
    "denoiser.base_channels=30": ("denoiser", "base_channels|channels", "30", "16"),
    "denoiser.attention_resolutions=[many]": ("denoiser", "attention_resolutions", "many", "integer|whole number"),
    "denoiser.num_res_blocks=0": ("denoiser", "num_res_blocks", "0"),
    "denoiser.dropout=1.5": ("denoiser", "dropout", r"1\.5"),
    "denoiser.in_channels=3": (r"denoiser\.in_channels=3", r"dataset\.channels=1"),
    "denoiser.resolution=0": ("denoiser", "resolution", "0"),
    "denoiser.resolution=large": ("denoiser", "resolution", "large"),
    "denoiser.base_channels=wide": ("denoiser", "base_channels", "wide"),
    "+denoiser.none_such=1": ("denoiser", "none_such"),
    "+dataset.none_such=1": (r"dataset\.none_such", "random_flip"),
    "+none_such=1": ("none_such",),
    "optimizer.lr=0": ("optimizer.lr=0", "positive"),
    "optimizer.lr=-1": ("optimizer.lr=-1", "positive"),
    "optimizer.lr=nan": ("optimizer.lr=nan", "positive"),
    "optimizer.lr=1{zeros}": (r"optimizer\.lr: ", "too large"),
    "optimizer.lr=fast": ("optimizer.lr", "fast", "number|Float"),
    "optimizer.betas=[0.9]": (r"optimizer\.betas", r"0\.9", "two numbers|2"),
    "optimizer.betas=[0.9,1.5]": (r"optimizer\.betas", r"1\.5", r"\[0, 1\)"),
    "optimizer.betas=[a,b]": (r"optimizer\.betas", "a", "number|Float"),
    "optimizer.weight_decay=-1": (r"optimizer\.weight_decay=-1", "negative"),
    "optimizer.warmup_steps=-1": (r"optimizer\.warmup_steps=-1", "at least 0"),
    "optimizer.warmup_images=-1": (r"optimizer\.warmup_images=-1", "at least 0"),
    "optimizer.schedule=none_such": (r"optimizer\.schedule=none_such", "cosine"),
    "optimizer.schedule=cosine trainer.max_steps=-1": (r"optimizer\.schedule=cosine", r"trainer\.max_steps=N"),
    "objective.predicts=score": (r"objective\.predicts=score", "eps, x0, v"),
    "objective.times=none_such": (r"objective\.times=none_such", "lognormal"),
    "objective.label_dropout=1.5": (r"objective\.label_dropout=1\.5", r"\[0, 1\]"),
    "objective.label_dropout=nan": (r"objective\.label_dropout=nan", r"\[0, 1\]"),
    "objective.times_std=0": (r"objective\.times_std=0", "positive"),
    "objective.times_mean=inf": (r"objective\.times_mean=inf", "finite"),
    "denoiser.patch=3": ("denoiser", "patch 3", "divisible"),
    "callbacks.ema.halflife_images=0": (r"callbacks\.ema\.halflife_images=0", "at least 1"),
    "callbacks.ema.ramp=-1": (r"callbacks\.ema\.ramp=-1", "positive", "null"),
    "optimizer.name=none_such": (r"optimizer\.name=none_such", "adam"),
    "trainer.precision=12": (r"trainer\.precision=12", "32-true"),
    "trainer.none_such=1": (r"trainer\.none_such=1", "Trainer"),
    "trainer.callbacks=[]": (r"trainer\.callbacks", "set by this program"),
    "trainer.logger=false": (r"trainer\.logger", "set by this program"),
    "trainer.max_steps=text": (r"trainer\.max_steps=text", WHOLE),
    "trainer.devices=0": ("trainer", "devices", "0"),
    "trainer.accelerator=none_such": ("trainer", "accelerator", "none_such", "cpu"),
    "trainer.strategy=none_such": ("trainer", "strategy", "none_such"),
    "sampler.steps=0": (r"sampler\.steps=0", "from 1 to 1000"),
    "sampler.tau=none_such": (r"sampler\.tau=none_such", "linear"),
    "sampler.tau=gits": (r"sampler\.tau=gits", "trained network", r"evaluate\.py", "linear"),
    "sampler.eps_scale=-1": (r"sampler\.eps_scale=-1", "finite number"),
    "callbacks.ema.decay=1.5": (r"callbacks\.ema\.decay=1\.5", r"\[0, 1\)"),
    "callbacks.ema.decay=nan": (r"callbacks\.ema\.decay=nan", r"\[0, 1\)"),
    "callbacks.ema.enabled=perhaps": (r"callbacks\.ema\.enabled", "perhaps", "(?i)bool|true"),
    "callbacks.checkpoint.mode=up": (r"callbacks\.checkpoint\.mode=up", "min"),
    "callbacks.checkpoint.every_n_steps=0": (r"callbacks\.checkpoint\.every_n_steps=0", "at least 1"),
    "callbacks.sample_grid.steps=0": (r"callbacks\.sample_grid\.steps=0", "from 1 to 1000"),
    "callbacks.sample_grid.eta=[0,1]": (r"callbacks\.sample_grid\.eta=\[0, 1\]", "one value"),
    "callbacks.sample_grid.num_images=0": (r"callbacks\.sample_grid\.num_images=0", "at least 1"),
    "callbacks.evaluation.steps=[2000]": (r"callbacks\.evaluation\.steps=2000", "from 1 to 1000"),
    "callbacks.evaluation.eta=2": (r"callbacks\.evaluation\.eta=2", "from 0 to 1"),
    "callbacks.evaluation.num_samples=1": (r"callbacks\.evaluation\.num_samples=1", "at least 2"),
    "callbacks.evaluation.features=none_such": (r"callbacks\.evaluation\.features=none_such", "pixels"),
    "callbacks.evaluation.metrics=[none_such]": (r"callbacks\.evaluation\.metrics", "none_such", "frechet_distance"),
    "callbacks.checkpoint.monitor=val/none_such": (r"callbacks\.checkpoint\.monitor", "val/none_such", "val/loss"),
    "logger.name=none_such": (r"logger\.name=none_such", "wandb"),
    "logger=wandb logger.mode=maybe": (r"logger\.mode=maybe", "auto"),
    "resume=latest": ("resume|checkpoint", "outputs", r"train\.py"),
    "resume=nowhere": ("resume", "nowhere", "run directory"),
    "resume={stray}": ("resume", "{stray}", "run directory"),
    "resume={text}": ("resume", "{text}", "run directory"),
    "resume={run} denoiser.base_channels=16": (r"denoiser\.base_channels=16", "8", "resumed"),
    "resume={run} schedule.num_timesteps=500": (r"schedule\.num_timesteps=500", "1000", "resumed"),
    "resume={run} schedule=cosine": (r"schedule\.name=cosine", "linear", "resumed"),
    "dataset=image_folder": (r"dataset\.root", "VALUE|DIR"),
    "dataset=image_folder dataset.root=nowhere": (r"dataset\.root=nowhere", "does not exist"),
    "dataset=image_folder dataset.root={text}": (r"dataset\.root={text}", "folder"),
    "dataset=image_folder dataset.root={empty_folder}": (r"dataset\.root", "{empty_folder}", r"\.png"),
    "dataset=image_folder dataset.root={imageless}": (r"dataset\.root", "{imageless}", r"\.png"),
    "dataset=image_folder dataset.root={one_image}": (r"dataset\.root={one_image}", "test_fraction"),
    "dataset=image_folder dataset.root={images} dataset.resolution=0": (r"dataset\.resolution=0", "at least 1"),
    "dataset=image_folder dataset.root={images} dataset.resolution=64 loader.batch_size=2": (
        r"dataset\.resolution=64",
        "allow_upscale",
    ),
    "dataset=image_folder dataset.root={images} dataset.channels=2": (r"dataset\.channels=2", "1, 3"),
    "dataset=image_folder dataset.root={images} dataset.resize=none_such": (r"dataset\.resize=none_such", "bilinear"),
    "dataset=image_folder dataset.root={images} dataset.test_fraction=1": (r"dataset\.test_fraction=1", "0"),
    "dataset=image_folder dataset.root={truncated_image} loader.batch_size=2": (r"7\.png", "on_bad_image|truncated"),
    "dataset=image_folder dataset.root={text_image} loader.batch_size=2": (r"7\.png", "on_bad_image|not an image"),
    "dataset=cifar10 dataset.download=false dataset.root={empty_folder}": (
        r"dataset\.root={empty_folder}",
        r"cifar-10-python\.tar\.gz",
    ),
    "dataset=cifar10 dataset.resolution=64": (r"dataset\.resolution=64", "32"),
    "dataset=celeba dataset.download=false dataset.root={empty_folder}": (
        r"dataset\.root={empty_folder}",
        r"img_align_celeba\.zip",
    ),
    "dataset.name=none_such": (r"dataset\.name=none_such", "digits"),
    "dataset=7": ("dataset=7", "option", "--help"),
    "optimizer=[adam,7]": (r"optimizer=\[adam,7\]", "option"),
    "schedule.num_timesteps=10000000000": ("schedule", "num_timesteps", "10000000000", "at most 1000000"),
    "schedule.beta_start=-1": ("schedule", "beta_start=-1", "0 <"),
    "schedule.beta_start=nan": ("schedule", "beta_start=nan", "0 <"),
    "denoiser.resolution=9": ("denoiser", "resolution 9", "divisible by 2"),
    "denoiser.base_channels=3200000": ("denoiser", "parameters need", "GB", r"lower denoiser\.base_channels"),
    "denoiser.num_res_blocks=1000000000": ("denoiser", "num_res_blocks", "1000000000", "at most 100"),
    "trainer.devices=99": (r"trainer\.devices=99", "99 processes", r"take at most trainer\.devices=\d"),
    "trainer.devices=-2": (r"trainer\.devices=-2", "int > 0"),
    "trainer.num_sanity_val_steps=text": (r"trainer\.num_sanity_val_steps=text", WHOLE),
    "trainer.inference_mode=1": (r"trainer\.inference_mode=1", "true or false"),
    "trainer.max_epochs=-7": (r"^trainer\.max_epochs=-7", "non-negative"),
    "trainer.limit_val_batches=-3": (r"^trainer\.limit_val_batches=-3", r"\[0\.0, 1\.0\]"),
    "trainer.gradient_clip_val=text": (r"trainer\.gradient_clip_val=text", "number"),
    "trainer.max_time=soon": (r"^trainer\.max_time=soon", "DD:HH:MM:SS"),
    "logger=wandb logger.project=a/b": (r"logger\.project='a/b'", "none of them /"),
    "logger=wandb logger.tags=['']": (r"logger\.tags=\[''\]", "1 to 64"),
    "logger=wandb logger.mode=online": (r"logger\.mode=online", "wandb login", "offline"),
    f"logger=wandb logger.tags={'x' * 65}": (r"^logger\.tags=\['x+'\]", "1 to 64"),
    "tags=['']": (r"^tags=\[''\]", "1 to 64"),
    "tags=null": (r"^tags=null", "not possible"),
    "trainer.profiler=none_such": (r"trainer\.profiler=none_such", "simple"),
    "debug=7": ("debug=7", "option"),
    "logger=wandb logger.notes=[1,2]": (r"logger\.notes", "text|string|str"),
    "logger=wandb logger.group=''": (r"logger\.group=''", "1 to 128"),
    "logger=wandb logger.log_model=perhaps": (r"logger\.log_model", "perhaps"),
    "dataset=image_folder dataset.root={images} dataset.resolution=30 loader.batch_size=2": (
        "resolution 30",
        "divisible by 8",
    ),
    "dataset=image_folder dataset.root={images} dataset.on_bad_image=perhaps": (
        r"dataset\.on_bad_image=perhaps",
        "error, skip",
    ),
    "dataset=image_folder dataset.root={truncated_jpeg} loader.batch_size=2": (r"7\.jpg", "truncated", "on_bad_image"),
    "dataset=image_folder dataset.root={too_long}": (r"dataset\.root='x+", "File name too long", "path"),
    "resume={too_long}": ("resume=x+", "File name too long", "path"),
    "resume={no_loops}": ("{no_loops}", "loops", "evaluated"),
}

EVALUATION: dict[str, tuple[str, ...]] = {
    "sampler.steps=0": (r"sampler\.steps=0", "from 1 to 1000"),
    "sampler.steps=-5": (r"sampler\.steps=-5", "from 1 to 1000"),
    "sampler.steps=1.5": (r"sampler\.steps=1\.5", "from 1 to 1000"),
    "sampler.steps=2000": (r"sampler\.steps=2000", "from 1 to 1000"),
    "sampler.steps=ten": (r"sampler\.steps=ten", "from 1 to 1000"),
    "sampler.steps=[]": (r"sampler\.steps=\[\]", "at least one"),
    "sampler.steps=null": (r"sampler\.steps=None|sampler\.steps=null", "from 1 to 1000"),
    "sampler.steps=true": (r"(?i)sampler\.steps=true", "from 1 to 1000"),
    "sampler.steps=10,0": (r"sampler\.steps=0", "from 1 to 1000"),
    "sampler.steps=10,10": (r"sampler\.steps=\[10, 10\]", "twice"),
    "sampler.eta=-0.1": (r"sampler\.eta=-0\.1", "from 0 to 1"),
    "sampler.eta=1.5": (r"sampler\.eta=1\.5", "from 0 to 1"),
    "sampler.eta=0,1.5": (r"sampler\.eta=1\.5", "from 0 to 1"),
    "sampler.eta=nan": (r"sampler\.eta=nan", "from 0 to 1"),
    "sampler.eta=text": (r"sampler\.eta=text", "sigma_hat"),
    "sampler.eta=[]": (r"sampler\.eta=\[\]", "at least one"),
    "sampler.eta=null": (r"sampler\.eta=None|sampler\.eta=null", "from 0 to 1"),
    "sampler.tau=none_such": (r"sampler\.tau=none_such", "quadratic"),
    "sampler.tau=[10,5]": (r"sampler\.tau=\[10, 5\]", "increas"),
    "sampler.tau=[5,5]": (r"sampler\.tau=\[5, 5\]", "increas"),
    "sampler.tau=[0,1000]": (r"sampler\.tau=\[0, 1000\]", "999"),
    "sampler.tau=[-1,5]": (r"sampler\.tau=\[-1, 5\]", "999"),
    "sampler.tau=[0.5]": (r"sampler\.tau=\[0\.5\]", "integer"),
    "sampler.tau=[]": (r"sampler\.tau=\[\]", "at least one"),
    "sampler.tau=7": (r"sampler\.tau=7", "list"),
    "sampler.tau=null": (r"sampler\.tau=None|sampler\.tau=null", "list"),
    "sampler.tau=gits sampler.steps=1": (r"sampler\.steps=1", r"sampler\.tau=gits", "from 2 to 62 timesteps"),
    "sampler.tau=linear,elbo sampler.steps=5,100": (r"sampler\.steps=100", r"sampler\.tau=elbo", "from 2 to 62"),
    "sampler.tau=gits sampler.nfe=1": (r"sampler\.nfe=1", r"sampler\.tau=gits", "at least 2"),
    "sampler.tau=[gits,5]": (r"sampler\.tau=\['gits', 5\]", "integer"),
    "sampler.eps_scale=0": (r"sampler\.eps_scale=0", "above 0"),
    "sampler.eps_scale=nan": (r"sampler\.eps_scale=nan", "finite number"),
    "sampler.eps_scale=inf": (r"sampler\.eps_scale=inf", "finite number"),
    "sampler.eps_scale=much": (r"sampler\.eps_scale", "much", "(?i)number|float"),
    "sampler.eps_slope=-0.1": (r"sampler\.eps_slope=-0\.1", "finite number >= 0"),
    "sampler.nfe=0": (r"^sampler\.nfe=0 ", "at least 1"),
    "sampler.nfe=5,2.5": (r"^sampler\.nfe=2\.5 ", "whole number"),
    "sampler.nfe=5,5": (r"^sampler\.nfe=\[5, 5\]", "twice"),
    "sampler.nfe=5 sampler.tau=[0,100]": (r"^sampler\.nfe=5 ", r"sampler\.tau=\[0, 100\]", "spacing"),
    "sampler=restart sampler.nfe=1": (r"^sampler\.nfe=1 ", "restart"),
    "sampler=restart sampler.nfe=8": (r"^sampler\.nfe=8 ", "too few", "restart", "fewest are 9"),
    "sampler=restart sampler.solver=none_such sampler.nfe=20": ("solver", "'none_such'", "heun"),
    "sampler=deis sampler.order=9": (r"^sampler\.order=9 ", r"\[1, 4\]"),
    "sampler=deis sampler.interpolates=foo": (r"^sampler\.interpolates=foo ", "x0"),
    "sampler=deis sampler.eta=0.5": (r"^sampler\.eta=0\.5 ", "deis", "take 0"),
    "sampler.name=ddim,foo": (r"^sampler\.name=foo ", "not known", "deis"),
    "sampler=ddim,foo": (r"^sampler\.name=foo ", "not known", "deis"),
    "sampler=[ddim,ddpm]": (r"^sampler\.name=ddpm ", "not known", "ddim"),
    "sampler=ddim,ddim": (r"^sampler\.name=", "twice"),
    "sampler=ddim,deis sampler.corrector=false": (r"^sampler\.corrector=False ", "no option", "deis"),
    "sampler=ddim sampler.order=2": (r"^sampler\.order=2 ", "no option", "ddim"),
    "sampler=deis sampler.name=heun": (r"^sampler\.(order|interpolates)=", "no option", "heun"),
    "evaluation.seeds=-1": (r"^evaluation\.seeds=-1 ", "from 0"),
    "evaluation.seeds=0,0": (r"^evaluation\.seeds=\[0, 0\]", "twice"),
    "evaluation.seeds=1.5": (r"^evaluation\.seeds=1\.5 ", "whole"),
    "evaluation.uncertainty=perhaps": (r"evaluation\.uncertainty", "perhaps", "(?i)bool|true"),
    "sampler.clip_denoised=perhaps": (r"sampler\.clip_denoised", "perhaps", "(?i)bool|true"),
    "+sampler.none_such=1": (r"sampler\.?.*none_such",),
    "evaluation.num_samples=0": (r"evaluation\.num_samples=0", "at least 2"),
    "evaluation.num_samples=1": (r"evaluation\.num_samples=1", "at least 2"),
    "evaluation.num_samples=2.5": (r"evaluation\.num_samples", r"2\.5", WHOLE),
    "evaluation.batch_size=0": (r"evaluation\.batch_size=0", "at least 1"),
    "evaluation.loss_images=0": (r"evaluation\.loss_images=0", "at least 1"),
    "evaluation.grid_images=0": (r"evaluation\.grid_images=0", "at least 1"),
    "evaluation.features=none_such": (r"evaluation\.features=none_such", "pixels"),
    "evaluation.metrics=[none_such]": (r"evaluation\.metrics", "none_such", "frechet_distance"),
    "evaluation.metrics=fid": (r"evaluation\.metrics=fid", "frechet_distance"),
    "evaluation.weights=none_such": (r"evaluation\.weights=none_such", "raw"),
    "evaluation.reference_split=none_such": (r"evaluation\.reference_split=none_such", "train"),
    "evaluation.parts=none_such": (r"evaluation\.parts=none_such", "grid", "reconstruction"),
    "dataset.label=cifar10": (r"dataset\.label=cifar10", "another data set"),
    "evaluation=consistency sampler.tau=[0,100,999]": (r"sampler\.tau=\[0, 100, 999\]", "one sequence"),
    "evaluation.parts=[]": (r"evaluation\.parts=\[\]", "grid"),
    "evaluation.parts=grid,grid": (r"evaluation\.parts", "twice"),
    "evaluation=reconstruction evaluation.reconstruction.num_images=0": (r"num_images=0", "at least 1"),
    "evaluation=reconstruction evaluation.reconstruction.num_images=361": (r"num_images=361", "360"),
    "evaluation=consistency sampler.steps=10": (r"sampler\.steps=10", "at least two"),
    "evaluation=consistency evaluation.consistency.eta=2": (r"evaluation\.consistency\.eta=2", "0 to 1"),
    "evaluation=consistency evaluation.consistency.num_images=0": (r"num_images=0", "at least"),
    "evaluation=interpolation evaluation.interpolation.points=2": (r"interpolation\.points=2", "at least 3"),
    "evaluation=interpolation evaluation.interpolation.steps=2000": (r"interpolation\.steps=2000", "1 to 1000"),
    "evaluation=trajectory evaluation.trajectory.shown=1": (r"trajectory\.shown=1", "at least 2"),
    "evaluation=trajectory evaluation.trajectory.eta=nan": (r"trajectory\.eta", "0 to 1"),
    "evaluation=diversity evaluation.diversity.steps=0": (r"diversity\.steps=0", "at least 1"),
    "tags=['',x]": (r"^tags=\['', 'x'\]", "1 to 64"),
    "table=cifar10_table1 sampler.tau=none_such": (r"sampler\.tau=none_such", "quadratic"),
    "evaluation.reference=nowhere.npz": (r"evaluation\.reference=nowhere\.npz", "mu and sigma"),
    "evaluation.reference={text}": (r"evaluation\.reference", "{text}", "mu"),
    "evaluation.reference={wrong_dimension}": (r"evaluation\.reference", "{wrong_dimension}", "3", "128|features"),
    "evaluation.reference={no_sigma}": (r"evaluation\.reference", "{no_sigma}", "sigma"),
    "evaluation.reference={payload_npz}": (r"evaluation\.reference", "{payload_npz}"),
    "checkpoint=nowhere": ("checkpoint", "nowhere", "run directory"),
    "checkpoint={empty}": ("checkpoint", "{empty}", "empty"),
    "checkpoint={text}": ("checkpoint", "{text}", r"\.ckpt"),
    "checkpoint={truncated}": ("checkpoint", "{truncated}", "complete|intact"),
    "checkpoint={flipped}": ("checkpoint", "{flipped}", "intact"),
    "checkpoint={empty_folder}": ("{empty_folder}", r"last\.ckpt", "run directory"),
    "checkpoint={foreign}": ("checkpoint", "{foreign}"),
    "checkpoint={payload}": ("checkpoint", "{payload}"),
    "checkpoint={payload_pickle}": ("checkpoint", "{payload_pickle}"),
    "checkpoint={other_format}": ("checkpoint", "{other_format}", "99"),
    "checkpoint={no_schedule}": ("checkpoint", "{no_schedule}", "schedule"),
    "checkpoint={no_weights}": ("{no_weights}", "weights"),
    "checkpoint={without_ema}": ("{without_ema}", r"evaluation\.weights=raw"),
    "checkpoint=null": ("checkpoint", "null|None"),
    "denoiser.base_channels=16": ("denoiser", "16"),
    "denoiser.in_channels=3": ("denoiser", "3"),
    "denoiser.resolution=large": ("denoiser", "resolution", "large"),
    "schedule.num_timesteps=0": ("schedule", "num_timesteps", ">= 1|at least 1"),
    "schedule.name=none_such": ("schedule", "none_such", "cosine"),
    "dataset.none_such=1": (r"dataset\.none_such", "random_flip"),
    "dataset=image_folder dataset.root=nowhere": (r"dataset\.root=nowhere", "does not exist"),
    "dataset.resolution=0": (r"dataset\.resolution", "0"),
    "trainer.precision=12": (r"trainer\.precision=12", "32-true"),
    "trainer.none_such=1": (r"trainer\.none_such=1", "Trainer"),
    "trainer.accelerator=none_such": ("trainer", "accelerator", "none_such", "cpu"),
    "seed=-1": ("seed=-1", "from 0"),
    "logger=wandb logger.mode=maybe": (r"logger\.mode=maybe", "auto"),
    "table=7": ("table=7", "option"),
    "table=cifar10_table1 sampler.steps=2000": (r"sampler\.steps=2000", "from 1 to 1000"),
    "evaluation.parts=7": (r"evaluation\.parts=7", "grid"),
    "evaluation.parts=null": (r"evaluation\.parts=(None|null)", "grid"),
    "evaluation.parts=[[grid]]": (r"evaluation\.parts=\['grid'\]", "grid"),
    "evaluation.num_samples=many": (r"evaluation\.num_samples", "many", WHOLE),
    "evaluation.num_samples=[10]": (r"evaluation\.num_samples", r"10", "(?i)" + WHOLE + "|list"),
    "evaluation.metrics=[]": (r"evaluation\.metrics=\[\]", "frechet_distance"),
    "evaluation.reference={too_long}": (r"evaluation\.reference='x+", "File name too long"),
    "evaluation.reference={not_finite}": (r"evaluation\.reference", "{not_finite}", "not finite"),
    "evaluation.reference={enormous}": (r"evaluation\.reference", "{enormous}", "1000000000000", "64"),
    "trainer.devices=99": (r"trainer\.devices=99", "99 processes", r"take at most trainer\.devices=\d"),
    "checkpoint={too_long}": ("checkpoint=", "x+", "File name too long"),
    "checkpoint=owner/../name": ("checkpoint=", r"owner/\.\./name", "does not exist"),
    "checkpoint=owner/name@../../x": ("checkpoint=", r"owner/name@\.\./\.\./x", "does not exist"),
    "checkpoint={other_architecture}": ("{other_architecture}", "not a checkpoint of a known kind", "layer1"),
    "checkpoint={other_widths}": ("{other_widths}", "it describes", "shape", "instead of"),
    "checkpoint={lonely}": ("{lonely}", r"config\.json"),
    "checkpoint={transformer}": ("{transformer}", "Transformer2DModel", "UNet2DModel"),
    "dataset=image_folder dataset.root={images} dataset.resolution=8": (
        r"denoiser\.in_channels=1",
        r"dataset\.channels=3",
    ),
}


class Payload:
    """Pickled, it asks whoever unpickles it to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def largest_record(checkpoint: Path) -> int:
    """Where the bytes of the largest weight begin in the file: its local header is 30 bytes, a name and a padding."""
    with zipfile.ZipFile(checkpoint) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    header = checkpoint.read_bytes()[entry.header_offset :][:30]
    return entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))


def save_images(folder: Path, count: int, suffix: str = "png") -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 36, 40, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels[number]).save(folder / f"{number}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> dict[str, Path]:
    """Name -> a file or folder with something wrong about it (`run` and `images` are good ones)."""
    folder = tmp_path_factory.mktemp("bad")
    good = trained_run / "checkpoints" / "last.ckpt"
    content = good.read_bytes()
    paths = {
        name: folder / f"{name}.ckpt"
        for name in ("stray", "empty", "text", "truncated", "flipped", "foreign", "payload", "payload_pickle")
    }
    shutil.copy(good, paths["stray"])
    paths["empty"].touch()
    paths["text"].write_text("not a checkpoint\n" * 40)
    paths["truncated"].write_bytes(content[: len(content) // 2])
    weight = largest_record(good)
    paths["flipped"].write_bytes(content[:weight] + bytes([content[weight] ^ 1]) + content[weight + 1 :])
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, paths["foreign"])
    payload = Payload(folder / "executed")
    torch.save({"ddim": {"format": 1}, "state_dict": payload}, paths["payload"])
    paths["payload_pickle"].write_bytes(pickle.dumps(payload))

    for name in ("other_format", "no_schedule", "no_weights", "without_ema", "other_widths"):
        checkpoint = torch.load(good, weights_only=True)
        if name == "other_format":
            checkpoint["ddim"]["format"] = 99
        elif name == "no_schedule":
            del checkpoint["ddim"]["config"]["schedule"]
        elif name == "no_weights":
            checkpoint["state_dict"] = {}
        elif name == "other_widths":
            checkpoint["ddim"]["config"]["denoiser"]["base_channels"] = 16
        else:
            checkpoint["state_dict"] = checkpoint.pop("current_model_state")
        paths[name] = folder / f"{name}.ckpt"
        torch.save(checkpoint, paths[name])

    for name, arrays in (
        ("wrong_dimension", {"mu": np.zeros(3), "sigma": np.eye(3)}),
        ("no_sigma", {"mu": np.zeros(128)}),
        ("not_finite", {"mu": np.full(64, np.nan), "sigma": np.eye(64)}),
        ("payload_npz", {"mu": np.array([payload], dtype=object), "sigma": np.eye(3)}),
    ):
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], **arrays)

    for name in ("empty_folder", "imageless"):
        paths[name] = folder / name
        paths[name].mkdir()
    (paths["imageless"] / "notes.txt").write_text("no picture")
    paths["one_image"] = save_images(folder / "one_image", 1)
    with zipfile.ZipFile(folder / "enormous.npz", "w") as archive:
        # A header of a few bytes that claims eight terabytes.
        for name in ("mu", "sigma"):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    paths["enormous"] = folder / "enormous.npz"
    paths["too_long"] = Path("x" * 300)
    paths["zeros"] = Path("0" * 400)
    paths["other_architecture"] = folder / "resnet.pt"
    torch.save({"conv1.weight": torch.zeros(2), "layer1.0.conv1.weight": torch.zeros(2)}, paths["other_architecture"])
    paths["lonely"] = folder / "lonely.safetensors"
    save_file({"conv_in.weight": torch.zeros(2)}, paths["lonely"])
    paths["transformer"] = folder / "transformer"
    paths["transformer"].mkdir()
    (paths["transformer"] / "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    save_file({"conv_in.weight": torch.zeros(2)}, paths["transformer"] / "diffusion_pytorch_model.safetensors")
    paths["truncated_jpeg"] = save_images(folder / "truncated_jpeg", 12, "jpg")
    image = paths["truncated_jpeg"] / "7.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    for name in ("images", "truncated_image", "text_image"):
        paths[name] = save_images(folder / name, 12)
    image = paths["truncated_image"] / "7.png"
    image.write_bytes(image.read_bytes()[:500])
    (paths["text_image"] / "7.png").write_text("not an image")
    paths["run"] = folder / "outputs" / "train" / "run"
    shutil.copytree(trained_run, paths["run"])
    paths["no_loops"] = folder / "outputs" / "train" / "no_loops"
    shutil.copytree(trained_run, paths["no_loops"])
    checkpoint = torch.load(good, weights_only=True)
    del checkpoint["loops"]
    torch.save(checkpoint, paths["no_loops"] / "checkpoints" / "last.ckpt")
    return paths


def results_of_work(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Checkpoints, results and pictures below the folders, with what tells whether they were written again."""
    patterns = ("*.ckpt", "results.*", "samples*.png")
    found = [path for folder in folders for pattern in patterns for path in folder.rglob(pattern)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


@pytest.fixture
def check(run_script, workplace, bad_files, monkeypatch):
    """Runs a script and holds what it says against patterns in which {name} stands for a bad file's path.

    The cache is empty: reference statistics that are computed before the mistake is found would be seen on stderr.
    """
    monkeypatch.setenv("DDIM_CACHE_DIR", str(workplace / "cache"))

    def run_and_check(script: str, arguments: list[str], patterns: tuple[str, ...]) -> None:
        folder = bad_files["run"].parents[2]
        before = results_of_work(workplace, folder)
        outcome = run_script(script, *(argument.format(**bad_files) for argument in arguments))
        assert outcome.status == 2, f"status {outcome.status}: {outcome.errors or outcome.output}"
        lines = outcome.errors.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), outcome.errors
        assert "Traceback" not in outcome.output
        for pattern in patterns:
            literal = re.sub(r"\{(\w+)\}", lambda match: re.escape(str(bad_files[match[1]])), pattern)
            assert re.search(literal, lines[0].removeprefix("error: ")), f"no {pattern!r} in: {lines[0]}"
        assert results_of_work(workplace, folder) == before
        assert not (folder / "executed").exists(), "the payload was executed"

    return run_and_check


# What is not under test, small: a case that is wrongly accepted must not train for minutes.
TINY = [
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "trainer.accelerator=cpu",
    "denoiser.base_channels=8",
    "denoiser.norm_groups=4",
    "callbacks=minimal",
    "logger=none",
]


def with_defaults(arguments: str, defaults: list[str]) -> list[str]:
    given = arguments.split()
    keys = {argument.partition("=")[0] for argument in given}
    return [*(default for default in defaults if default.partition("=")[0] not in keys), *given]


@pytest.mark.parametrize("arguments", TRAINING)
def test_training_refuses(check, arguments):
    defaults = TINY
    if "resume={" in arguments:
        defaults = []
    elif "base_channels=30" in arguments:
        defaults = [*TINY[:3], "denoiser.norm_groups=16", *TINY[-2:]]
    elif "callbacks.evaluation" in arguments or "callbacks.sample_grid" in arguments:
        defaults = [default for default in TINY if default != "callbacks=minimal"]
    check("train.py", with_defaults(arguments, defaults), TRAINING[arguments])


@pytest.mark.parametrize("arguments", EVALUATION)
def test_evaluation_refuses(check, trained_run, arguments):
    defaults = [
        f"checkpoint={trained_run}",
        "evaluation.num_samples=70",
        "evaluation.grid_images=4",
        "sampler.steps=2",
        "sampler.eta=0",
        "logger=none",
    ]
    check("evaluate.py", with_defaults(arguments, defaults), EVALUATION[arguments])


def test_evaluation_without_any_run(check):
    check("evaluate.py", [], ("checkpoint=PATH", "outputs", r"train\.py"))


def test_bad_images_are_left_out_on_request(run_script, bad_files, workplace):
    arguments = ["dataset=image_folder", f"dataset.root={bad_files['truncated_jpeg']}", "dataset.resolution=8"]
    more = ["dataset.on_bad_image=skip", "loader.batch_size=2", "loader.num_workers=0"]
    outcome = run_script("train.py", *arguments, *more, *TINY)
    assert outcome.status == 0, outcome.errors
    (said,) = [line for line in outcome.output.splitlines() if "skipped" in line]
    assert re.search(r"^1 of \d+ images skipped, the first is 7\.jpg: .*truncated", said)


@pytest.mark.parametrize(("num_samples", "warnings"), [(64, 1), (65, 0)])
def test_fewer_samples_than_dimensions_is_said_once(run_script, trained_run, num_samples, warnings):
    arguments = [f"checkpoint={trained_run}", "logger=none", "sampler.steps=1,2", "sampler.eta=0", "seed=3"]
    outcome = run_script("evaluate.py", *arguments, f"evaluation.num_samples={num_samples}", "evaluation.floor=false")
    assert outcome.status == 0, outcome.errors
    said = [line for line in (outcome.output + outcome.errors).splitlines() if "singular" in line]
    assert len(said) == warnings
    if said:
        assert re.match(r"evaluation\.num_samples=64 .*64 dimensions of digits-cnn.*biased upwards", said[0])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions do not bind root, so that root becomes somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
@pytest.mark.parametrize("closed", ["root", "subfolder"])
def test_a_folder_that_may_not_be_read(closed, mode):
    # Not below pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        root = save_images(Path(place) / "root", 12)
        save_images(root / "subfolder", 2)
        folder = root if closed == "root" else root / "subfolder"
        config = {"name": "image_folder", "root": str(root), "resolution": 8}
        sizes = {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
        folder.chmod(mode)
        try:
            with as_nobody(), pytest.raises(UserError) as caught:
                module = build_datamodule(config, **sizes, seed=0, cache_dir=Path(place) / "cache")
                module.prepare_data()
                module.setup()
        finally:
            folder.chmod(0o755)
        assert re.search(rf"{re.escape(str(folder))}.*Permission denied.*(permissions|repair)", str(caught.value))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_an_accelerator_that_is_not_there(check, trained_run, script):
    more = [f"checkpoint={trained_run}"] if script == "evaluate.py" else []
    check(script, [*more, "trainer.accelerator=gpu", "logger=none"], (r"trainer\.accelerator=gpu", "cpu"))


@pytest.mark.parametrize(
    ("script", "argument", "hint"),
    [
        ("train.py", "dataset=none_such", "digits"),
        ("train.py", "denoiser=none_such", "unet_digits"),
        ("train.py", "optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("evaluate.py", "sampler=none_such", "generalized"),
        ("evaluate.py", "evaluation.none_such=1", "evaluation.none_such"),
    ],
)
def test_what_hydra_refuses_names_the_choices_without_a_traceback(run_script, workplace, script, argument, hint):
    outcome = run_script(script, argument)
    assert outcome.status != 0
    assert argument.partition("=")[0] in outcome.errors and hint in outcome.errors, outcome.errors
    assert "Traceback" not in outcome.errors + outcome.output
    assert not results_of_work(workplace)


@pytest.mark.parametrize(
    "argument",
    ["trainer.log_every_n_steps=0", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"],
)
def test_what_lightning_accepts_is_not_refused(run_script, argument):
    outcome = run_script(
        "train.py", *with_defaults(f"{argument} trainer.max_steps=2 trainer.val_check_interval=2", TINY)
    )
    assert outcome.status == 0, outcome.errors
