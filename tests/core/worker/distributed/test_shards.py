"""Shares of tensors, gathered and cut, and forward passes that one process does alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from core.config.schema import MethodSection
from core.worker.distributed.fsdp2 import ShardedModel, gather_rows, own_rows
from core.worker.distributed.ranks import Ranks
from core.worker.model.full_weights import choose_weights
from core.worker.model.model import load_model

from .pairs import needs_fsdp2, run_pair


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_any_number_of_rows_is_cut_and_joined(tmp_path: Path, rows: int) -> None:
    whole = torch.arange(rows * 2, dtype=torch.bfloat16).view(rows, 2)

    def work(ranks: Ranks) -> Any:
        found = gather_rows(whole[own_rows(rows)], rows)
        return None if found is None else found.tolist()

    # Three processes: with one row, two of them have none.
    assert run_pair(tmp_path, work, count=3) == [whole.tolist(), None, None]


@needs_fsdp2
@pytest.mark.slow
def test_a_forward_that_fails_in_one_process_leaves_no_process_waiting(tmp_path: Path, tiny_model_dir: Path) -> None:
    ids = torch.arange(3, 20)[None]

    def work(ranks: Ranks) -> Any:
        method = MethodSection(name="full")
        loaded = load_model(tiny_model_dir, method="full", precision="fp32", device="cpu", for_training=True)
        model = choose_weights(loaded.model, method, seed=0)
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits
        sharded = ShardedModel(model, init_device_mesh("cpu", (ranks.count,)), torch.device("cpu"))
        sharded.begin()
        if not ranks.is_first:
            while ranks.broadcast()["forward"]:
                sharded.lend()
            return sharded.collectives.issued

        def announce() -> None:
            ranks.broadcast({"forward": True})

        def fail(issued: int) -> None:
            if issued == 2:
                sharded.collectives.before = lambda _: None
                raise torch.OutOfMemoryError("CUDA out of memory, injected")

        with torch.no_grad(), sharded.leading(announce):
            sharded.collectives.before = fail
            with pytest.raises(torch.OutOfMemoryError):
                model(input_ids=ids, use_cache=False)
            found = model(input_ids=ids, use_cache=False).logits
        ranks.broadcast({"forward": False})
        return float((found - wanted).abs().max())

    difference, issued = run_pair(tmp_path, work)
    assert difference < 1e-5
    # Embeddings and head, and each of the two layers.
    assert issued == 3
