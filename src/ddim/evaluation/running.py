"""The studies of an evaluation, at the end of `trainer.test`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.study import Progress, Study
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.parts import PARTS
from ddim.findings.telling import Audience, Findings, Row


class Running(pl.Callback):
    """Asks the studies, one after the other, of the network that is tested.

    Args:
        sampling: where samples come from.
        identity: what every row says of the network.
        kept: what an earlier attempt has finished.
        audiences: who is told on the first process.
        progress: makes the bar of a study.
        context: goes beside the rows of every part.
        completed: the studies again, with what had to be found with the network before they could start; None where
            nothing had to.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        sampling: Sampling,
        identity: Mapping[str, Any],
        kept: Kept,
        audiences: Sequence[Audience],
        progress: Progress,
        context: Mapping[str, Any],
        completed: Callable[[Subject], Sequence[Study]] | None = None,
    ) -> None:
        self.studies = list(studies)
        self.sampling = sampling
        self.identity = dict(identity)
        self.kept = kept
        self.audiences = list(audiences)
        self.progress = progress
        self.context = dict(context)
        self.completed = completed
        self.findings: list[Findings] = []

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        subject = Subject.of(trainer, pl_module, self.sampling, self.identity)
        if self.completed is not None:
            self.studies = list(self.completed(subject))
        for study in self.studies:
            say = Findings(PARTS[study.name], self.audiences if subject.first else (), self.context)
            self.findings.append(say)
            study.run(subject, self.kept, say, self.progress)

    @property
    def rows(self) -> list[Row]:
        """Everything that was found, in the order of the studies."""
        return [row for say in self.findings for row in say.rows]
