"""Runs whose adapters begin or learn in other ways: asked as their base, killed and continued."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

from core.runs.control.client import ControlClient
from core.runs.record.events import NoticeEvent
from core.runs.record.history import read_history

from .workers import (
    Workers,
    adapter_bytes,
    finish,
    held_at,
    kill,
    notice_codes,
    only,
    wait_until_listening,
    wait_until_step,
)

STEPS = 14
QUESTION = [{"role": "user", "content": "ticket login printer"}]
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pissa": (
        {"init": "pissa", "loraplus_ratio": 4.0, "neftune_alpha": 5.0},
        {"optimizer": "adafactor", "learning_rate": 2e-3},
    ),
    "loftq": (
        {"init": "loftq", "rank": 16, "neftune_alpha": 5.0, "target_modules": ["mlp.*", r"re:.*\.(q|v)_proj"]},
        {"optimizer": "lion_8bit", "learning_rate": 1e-4},
    ),
}


@pytest.mark.parametrize("way", ["loftq", pytest.param("pissa", marks=pytest.mark.long)])
def test_a_killed_run_ends_bit_equal(workers: Workers, way: str) -> None:
    method, train = WAYS[way]
    sections = {
        "method": {"dropout": 0.0 if way == "pissa" else 0.1, **method},
        "train": {"max_steps": STEPS, **train},
        "eval": {"exact_match": False},
    }
    undisturbed = workers.start("undisturbed", **sections)
    finish(undisturbed)

    run = workers.start("killed", held_at(0, 7), **sections)
    wait_until_listening(run)
    answer = ControlClient(run).request("generate", messages=QUESTION, source="base", max_new_tokens=4)
    assert answer["source"] == "base"
    wait_until_step(run, 7)
    kill(run)
    workers.resume(run)
    finish(run)
    assert "resumed" in notice_codes(run)
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    history, expected = read_history(run), read_history(undisturbed)
    assert list(history.loss.values) == list(expected.loss.values)
    assert [event.loss for event in history.evals] == [event.loss for event in expected.evals]

    tensors = load_file(run.adapter_path / "adapter_model.safetensors")
    layers = {name.rpartition(".lora_A.")[0] for name in tensors if ".lora_A." in name}
    assert len(layers) == (14 if way == "pissa" else 10)
    if way == "loftq":
        told = [event.message for event in only(NoticeEvent, run) if event.code == "adapters"]
        assert told[0] == "10 layers have adapters: q_proj 2, v_proj 2, gate_proj 2, up_proj 2, down_proj 2."
