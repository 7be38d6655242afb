"""A tiny model with adapters that do something, and rows to compare answers on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.config.schema import Config
from core.worker.data.batches import collate
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import AdapterOffReference, Objective, make_objective
from core.worker.model.model import make_accelerator, trainable_parameters
from tests.core.worker.steps.stepper import Stepper, adapted


def make_rows(objective: str) -> list[TokenizedRow]:
    """Rows of an objective, the same ones each time; all of different lengths."""
    random = np.random.default_rng(0)

    def row(prompt: Any, length: int) -> TokenizedRow:
        answer = random.integers(5, 250, length)
        ids = np.concatenate([prompt, answer]).astype(np.int32)
        return TokenizedRow(ids, np.arange(len(ids)) >= len(prompt))

    rows = []
    for number in range(8):
        prompt = random.integers(5, 250, random.integers(3, 20))
        better, worse = (row(prompt, int(length)) for length in random.integers(1, 25, 2))
        rejected = worse if objective in ("dpo", "orpo") else None
        label = number % 3 != 0 if objective == "kto" else None
        rows.append(TokenizedRow(better.input_ids, better.supervised, rejected=rejected, label=label))
    return rows


class Bench:
    """Model, objective and windows."""

    def __init__(self, directory: Path, *, dropout: float = 0.0, **train: Any) -> None:
        self.loaded = adapted(directory, std=0.1, seed=1, dropout=dropout)
        model = self.loaded.model
        self.loss = SupervisedLoss(model)
        self.config = Config.model_validate({"data": {"train": "x"}, "train": {"max_length": 64, **train}})
        self.rows = make_rows(self.config.train.objective)
        self.accelerator = make_accelerator(self.loaded)
        reference, autocast = AdapterOffReference(model, self.loss), self.accelerator.autocast
        self.objective: Objective = make_objective(self.config, self.loss, self.rows, reference, self.loaded, autocast)
        self.windows = Stepper(self.loaded, self.loss, self.rows, objective=self.objective)

    def learn(self, rows: list[TokenizedRow]) -> None:
        """Make some answers likelier than they were for the base."""
        batch = collate(rows, 0, self.loaded.device)
        before = AdapterOffReference(self.loaded.model, self.loss)(rows, *batch).sum()
        optimizer = torch.optim.Adam(trainable_parameters(self.loaded.model), lr=0.01)
        for _ in range(60):
            likelihood = self.loss.log_probabilities(*batch).sum()
            if likelihood > before + len(rows):
                break
            optimizer.zero_grad()
            (-likelihood).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.loaded.model.zero_grad()
