"""Training the model's own weights: whole models come out, and a kill changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.chat.request import GenerationSettings
from core.chat.session import Answer, open_session
from core.runs.record.store import Run
from core.worker.model.model import load_model

from .workers import Workers, ending, finish, held_at, kill, notice_codes, wait_until_step

SETTINGS = GenerationSettings(max_new_tokens=6)
MESSAGES = [{"role": "user", "content": "ticket printer"}]


def start(
    workers: Workers,
    name: str,
    method: dict[str, Any],
    steps: int = 12,
    variables: dict[str, str] | None = None,
    **sections: Any,
) -> Run:
    train = {"max_steps": steps, "learning_rate": 1e-3, "precision": "bf16", **sections.pop("train", {})}
    return workers.start(
        name,
        variables,
        method={"name": name, "dropout": 0.0, **method},
        train=train,
        eval={"every_steps": 6},
        checkpoint={"every_steps": 4},
        **sections,
    )


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def ask(run: Run) -> Answer:
    session = open_session(run)
    try:
        *_, answer = session.generate(MESSAGES, "tuned", SETTINGS)
    finally:
        session.close()
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize("name", ["full", pytest.param("freeze", marks=pytest.mark.long)])
def test_a_whole_model_comes_out_and_a_kill_changes_nothing(workers: Workers, name: str) -> None:
    # The reference ends first: two that train at once only slow each other.
    reference = start(workers, name, {"trainable_layers": 1}, train={"optimizer": "adamw_8bit"})
    finish(reference)
    assert ending(reference).adapter == "model"
    run = start(workers, name, {"trainable_layers": 1}, variables=held_at(6), train={"optimizer": "adamw_8bit"})
    wait_until_step(run, 6)
    kill(run)
    with workers.environment():
        assert ask(run).source.startswith("step-"), "the newest checkpoint answers"
    workers.complete(run)
    assert "resumed" in notice_codes(run)
    trained, expected, base = (tensors(path) for path in (run.model_path, reference.model_path, workers.model))
    assert trained.keys() == base.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trained.items())
    changed = {key for key, tensor in trained.items() if not torch.equal(tensor, base[key])}
    last_layer = {key for key in base if key.startswith("model.layers.1.")}
    assert changed == (set(base) if name == "full" else last_layer)
    with workers.environment():
        assert ask(run).source == "model"
    loaded = load_model(run.model_path, method="lora", precision="bf16", device="cpu")
    assert loaded.tokenizer.chat_template
