"""`best.ckpt`: the checkpoint with the best monitored value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, with a state from a checkpoint that can only name files of this run.

    Lightning deletes the file that its state names when a better one is saved, and a state may come from a stranger:
    `<run>/checkpoints/../../anything` and addresses of remote file systems would pass its own check.
    """

    @property
    def state_key(self) -> str:
        # As Lightning calls it, so that checkpoints do not depend on the name of this class.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over scores and paths; where a path is not a file name in `dirpath`, the scores so far are forgotten."""
        paths = [
            *(state_dict.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")),
            *(state_dict.get("best_k_models") or {}),
        ]
        if all(not path or self._is_own(path) for path in paths):
            super().load_state_dict(state_dict)

    def _is_own(self, path: Any) -> bool:
        assert self.dirpath is not None
        name = Path(path).name if isinstance(path, str) else ""
        return name not in ("", "..") and path == str(Path(self.dirpath) / name)
