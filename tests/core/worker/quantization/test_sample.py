from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.errors import UserError
from core.models.tensors import read_weights
from core.worker.quantization import sample
from core.worker.quantization.sample import choose_sample, needed_bytes, refuse_beside_run
from tests.core.worker.crowded import end_run, run_on_cpu
from tests.core.worker.quantization.hurt import write_rows
from tests.families.tiny import write_family


def test_rows_are_spread_and_within_the_budget() -> None:
    rows = write_rows(*range(20, 120))
    sample = choose_sample(rows, 10, 10_000, "eval")
    assert [len(row) for row in sample.rows] == [20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert sample.data == "eval"
    fewer = choose_sample(rows, 10, 200, "eval")
    assert [len(row) for row in fewer.rows] == [20, 30, 40], "four of 56 tokens with padding are too many"
    assert [len(row) for row in choose_sample(rows[:3], 10, 10_000, "eval").rows] == [20, 21, 22]


def test_a_row_that_is_longer_than_the_budget_is_cut() -> None:
    assert [len(row) for row in choose_sample(write_rows(300), 4, 200, "training").rows] == [200]


def test_rows_of_which_nothing_would_be_measured_are_refused() -> None:
    with pytest.raises(UserError, match="Nothing is learned in the first 100 tokens"):
        choose_sample(write_rows(300), 4, 100, "training")


CPU = torch.device("cpu")


def test_what_would_take_the_memory_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_family("llama", tmp_path / "llama")
    needed = needed_bytes(read_weights(base), 4)
    # Two of the two layers, and what is outside of them: the whole model.
    assert needed - needed_bytes({}, 4) == 4 * sum(tensor.elements for tensor in read_weights(base).values())
    run = run_on_cpu()
    monkeypatch.setattr(sample, "free_bytes", lambda _: needed)
    refuse_beside_run(base, CPU, torch.float32)
    monkeypatch.setattr(sample, "free_bytes", lambda _: needed - 1)
    with pytest.raises(UserError, match=f"Run {run.id} trains on the same device"):
        refuse_beside_run(base, CPU, torch.float32)
    end_run(run)
    refuse_beside_run(base, CPU, torch.float32)
