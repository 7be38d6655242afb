"""Tokenized rows for comparing trainings, so that every program learns exactly the same."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Tokens of a full row.
FULL_LENGTH = 512
SEED = 42


@dataclass(frozen=True)
class Case:
    """A comparison.

    Args:
        name: The name in the table.
        train: Rows in the order of training, each ``input_ids`` and ``labels``.
        held_out: Rows for the held-out loss.
        batch_size: Rows in an optimizer step.
        steps: Optimizer steps.
        learning_rate: The peak.
    """

    name: str
    train: list[dict[str, list[int]]]
    held_out: list[dict[str, list[int]]]
    batch_size: int
    steps: int
    learning_rate: float

    @property
    def tokens(self) -> list[int]:
        """Tokens of each step, without padding."""
        lengths = [len(row["input_ids"]) for row in self.train]
        return [sum(lengths[at : at + self.batch_size]) for at in range(0, len(lengths), self.batch_size)]


def _row(input_ids: Any, supervised: Any) -> dict[str, list[int]]:
    ids = [int(token) for token in input_ids]
    return {"input_ids": ids, "labels": [t if learned else -100 for t, learned in zip(ids, supervised, strict=True)]}


def tickets(model: Path, steps: int) -> Case:
    """The sample tickets: short conversations, a quarter of the tokens supervised."""
    from transformers import AutoTokenizer

    from core.config.schema import Config
    from core.worker.data.batches import DataOrder
    from core.worker.data.dataset import Loader
    from core.worker.data.encode import Encoder

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    data = ROOT / "sample_data"
    config = Config.model_validate({"data": {"train": str(data / "tickets_train.jsonl")}})
    rows = Loader(config, encoder).load(str(data / "tickets_train.jsonl")).rows
    held_out = Loader(config, encoder).load(str(data / "tickets_eval.jsonl")).rows
    # The rows that our data order takes; they then are the data, and every program keeps their order.
    order = DataOrder([len(row) for row in rows], 8, SEED)
    chosen = [rows[place] for step in range(steps) for place in order.window(step)]
    return Case(
        "tickets",
        [_row(row.input_ids, row.supervised) for row in chosen],
        [_row(row.input_ids, row.supervised) for row in held_out],
        8,
        steps,
        1e-3,
    )


def full_rows(model: Path, steps: int) -> Case:
    """Prose in rows of 512 tokens, all of them supervised."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [path.read_text() for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])]
    tokens = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
    rows = [tokens[at : at + FULL_LENGTH] for at in range(0, len(tokens) - FULL_LENGTH, FULL_LENGTH)]
    random.Random(SEED).shuffle(rows)
    wanted = 4 * steps
    if len(rows) < wanted + 8:
        raise SystemExit(f"The documentation makes {len(rows)} rows of {FULL_LENGTH} tokens; {wanted + 8} are needed.")
    made = [_row(row, [place > 0 for place in range(FULL_LENGTH)]) for row in rows[: wanted + 8]]
    return Case("full rows of 512", made[:wanted], made[wanted:], 4, steps, 2e-4)


def write_jsonl(rows: list[dict[str, list[int]]], path: Path) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
