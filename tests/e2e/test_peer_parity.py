"""The same losses as TRL's SFTTrainer, step by step: same rows, same order, same initial adapter, fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.worker.data.batches import DataOrder
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder
from core.worker.optim.optim import warmup_steps

from .workers import Workers, exit_code, log, steps, write_rows

PEER = Path(__file__).with_name("peer_sft.py")
#: Whole windows only, as the peer takes eight rows at a time from one long list.
ROWS, BATCH_SIZE, STEPS = 56, 8, 50
TOLERANCE = 1e-3
#: A rate at which the model learns and rounding does not grow: at four times this rate, two of our own runs that differ
#: in nothing but the cut of their micro-batches drift apart by more than the tolerance.
LEARNING_RATE = 5e-3


def write_initial_adapter(workers: Workers, directory: Path) -> None:
    """The adapter that our run begins with."""
    from core.worker.checkpoint.checkpoint import save_adapter
    from core.worker.model.adapters import attach_adapters
    from core.worker.model.model import load_model

    config = workers.config(**OPTIONS)
    loaded = load_model(workers.model, method="lora", precision="fp32", device="cpu")
    save_adapter(attach_adapters(loaded.model, config.method, seed=config.train.seed), directory)


def tokenize(workers: Workers) -> Dataset:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workers.model)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    return Loader(workers.config(**OPTIONS), encoder).load(str(workers.train_data))


OPTIONS: dict[str, dict[str, Any]] = {
    "method": {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"},
    "train": {
        "max_steps": STEPS,
        "batch_size": BATCH_SIZE,
        "micro_batch_size": 3,
        "precision": "fp32",
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "scheduler": "cosine",
    },
    "eval": {"every_steps": None, "exact_match": False},
}


@pytest.mark.long
def test_losses_agree_with_sfttrainer_at_every_step(workers: Workers, tmp_path: Path) -> None:
    write_rows(workers.train_data, ROWS, seed=3)
    run = workers.start("ours", **OPTIONS)
    config = workers.config(**OPTIONS)
    write_initial_adapter(workers, tmp_path / "initial")
    dataset = tokenize(workers)
    order = DataOrder(dataset.lengths, BATCH_SIZE, config.train.seed)
    rows = [dataset.rows[row] for step in range(STEPS) for row in order.window(step)]
    spec = {
        "model": str(workers.model),
        "adapter": str(tmp_path / "initial"),
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "learning_rate": config.train.learning_rate,
        "warmup": warmup_steps(config.train.warmup, STEPS),
        "rows": [
            {"input_ids": row.input_ids.tolist(), "completion_mask": row.supervised.astype(int).tolist()}
            for row in rows
        ],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [sys.executable, str(PEER), str(tmp_path / "spec.json"), str(tmp_path / "peer.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert exit_code(run) == 0, log(run)
    peer = json.loads((tmp_path / "peer.json").read_text())
    ours = steps(run)
    assert [round(entry["step"]) for entry in peer] == [event.step for event in ours] == list(range(1, STEPS + 1))
    differences = [abs(entry["loss"] - event.loss) for entry, event in zip(peer, ours, strict=True)]
    assert max(differences) <= TOLERANCE, differences
    print(f"greatest difference of a loss: {max(differences):.2g}")  # noqa: T201 - shown when the test fails
    norms = [abs(entry["grad_norm"] - event.grad_norm) for entry, event in zip(peer, ours, strict=True)]
    assert max(norms) <= 0.02 * max(event.grad_norm for event in ours)
    # A comparison of two models that learn nothing would prove nothing.
    assert ours[-1].loss < 0.9 * ours[0].loss
