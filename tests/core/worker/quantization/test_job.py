from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.errors import UserError
from core.models.tensors import read_weights
from core.worker.quantization import job
from core.worker.quantization.job import needed_bytes, refuse_beside_run
from tests.core.worker.crowded import end_run, run_on_cpu
from tests.families.tiny import write_family

CPU = torch.device("cpu")


def test_what_would_take_the_memory_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_family("llama", tmp_path / "llama")
    needed = needed_bytes(read_weights(base), 4)
    # Both layers, and the tensors outside them: the whole model.
    assert needed - needed_bytes({}, 4) == 4 * sum(tensor.elements for tensor in read_weights(base).values())
    run = run_on_cpu()
    monkeypatch.setattr(job, "free_bytes", lambda _: needed)
    refuse_beside_run(base, CPU, torch.float32)
    monkeypatch.setattr(job, "free_bytes", lambda _: needed - 1)
    with pytest.raises(UserError, match=f"Run {run.id} trains on the same device"):
        refuse_beside_run(base, CPU, torch.float32)
    end_run(run)
    refuse_beside_run(base, CPU, torch.float32)
