from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.worker.generate import room
from core.worker.generate.generate import prepare_prompt
from core.worker.generate.room import ask_for_room, free_bytes, needed_bytes
from core.worker.model.model import LoadedModel, load_model
from core.worker.oom.retry import MemoryShortageError

ASK = [{"role": "user", "content": "the ticket " * 20}]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path) -> LoadedModel:
    return load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu")


def test_what_is_asked_for_covers_what_an_answer_holds(tiny: LoadedModel) -> None:
    prompt = prepare_prompt(tiny.model, tiny.tokenizer, ASK, 100)
    needed = needed_bytes(prompt, torch.float32)
    assert needed is not None
    # Keys and values of two layers with two heads of 16 features, for every token.
    kept = 2 * 2 * 2 * 16 * 4 * (len(prompt.tokens) + 100)
    assert kept < needed < 20 * kept
    assert needed_bytes(prompt, torch.bfloat16) < needed  # type: ignore[operator]
    assert free_bytes(tiny.device) > 1 << 20
    ask_for_room(prompt, torch.float32, tiny.device)


def test_a_question_without_room_is_refused_before_anything_is_computed(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prepare_prompt(tiny.model, tiny.tokenizer, ASK, 100)
    needed = needed_bytes(prompt, torch.float32)
    assert needed is not None
    given_up: list[bool] = []
    monkeypatch.setattr(room, "free_bytes", lambda _: needed if given_up else needed - 1)
    # Dropping caches makes room.
    ask_for_room(prompt, torch.float32, tiny.device, give_up=lambda: given_up.append(True))
    assert given_up
    monkeypatch.setattr(room, "free_bytes", lambda _: needed - 1)
    with pytest.raises(MemoryShortageError, match=r"The answer takes up to .* are free on this machine beside run x"):
        ask_for_room(prompt, torch.float32, tiny.device, beside="run x")


def test_an_architecture_that_is_not_known_is_not_refused(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prepare_prompt(tiny.model, tiny.tokenizer, ASK, 100)
    monkeypatch.setattr(prompt.network.config, "to_dict", lambda: {"model_type": "mamba", "state_size": 16})
    monkeypatch.setattr(room, "free_bytes", lambda _: 0)
    assert needed_bytes(prompt, torch.float32) is None
    ask_for_room(prompt, torch.float32, tiny.device)
