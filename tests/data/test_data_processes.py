"""Two real processes under Lightning's DDP: no training image twice in an epoch, each test image exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
from ddim.data import build_datamodule

torch.set_num_threads(1)
folder = Path(sys.argv[1])


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.tested = [], []

    def training_step(self, batch, batch_idx):
        self.trained += batch["index"].tolist()
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.tested += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = build_datamodule(
    {"name": "image_folder", "root": str(folder / "images"), "resolution": 8},
    batch_size=2, eval_batch_size=2, num_workers=0, seed=0, cache_dir=folder / "cache",
)
recorder = Recorder()
pl.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    default_root_dir=folder,
).fit(recorder, data)
(folder / f"rank{recorder.global_rank}.json").write_text(json.dumps([recorder.trained, recorder.tested]))
"""


def test_two_processes_share_the_images(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    image_tree({"train": 13, "test": 5})
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC_"))}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    trained = [index for rank in ranks for index in rank[0]]
    assert len(trained) == len(set(trained)) == 12
    assert [tested for _, tested in ranks] == [[0, 2, 4], [1, 3]]
