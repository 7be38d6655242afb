"""A run whose result is an adapter on the tiny model: trained by nobody, and far from its base all the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

from core.config.schema import Config, DataSection, HardwareSection, MethodSection, ModelSection, TrainSection
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.tiny_model import write_tiny_adapter

ANSWERS = ("high", "low", "normal", "null")


def write_rows(path: Path, count: int = 12) -> Path:
    """Rows of a conversation each."""
    lines = []
    for number in range(count):
        question = f"the ticket {number} of area {number * 7 % 5} – urgency? äöü {'!' * (number % 3)}"
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"urgency {ANSWERS[number % 4]} ref {number}"},
        ]
        if number % 3 == 0:
            turns.insert(0, {"role": "system", "content": "Say area and urgency."})
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def make_trained_run(
    base: Path,
    data: Path,
    *,
    method: Literal["lora", "qlora"] = "lora",
    eval_data: Path | None = None,
    eval_share: float = 0,
    shapes: Path | None = None,
) -> Run:
    """A finished run with an adapter that changes the base's answers.

    Args:
        base: The base.
        data: Its rows.
        method: Its method.
        eval_data: Held-out rows.
        eval_share: The share of the rows that is held out without these.
        shapes: A base of the same shapes that plain transformers reads, to make the adapter from; ``base`` by default.
    """
    config = Config(
        model=ModelSection(base=str(base)),
        data=DataSection(train=str(data), eval=None if eval_data is None else str(eval_data), eval_share=eval_share),
        method=MethodSection(name=method),
        train=TrainSection(precision="fp32"),
        hardware=HardwareSection(device="cpu"),
    )
    run = create_run(config, "tickets")
    RunState(state="finished", updated=time.time()).write(run.state_path)
    write_adapter(shapes or base, run.adapter_path)
    return run


def write_adapter(base: Path, directory: Path, *, strength: float = 0.2) -> Path:
    """An adapter with random factors on all linear layers, with the files of the tokenizer."""
    from transformers import AutoTokenizer

    write_tiny_adapter(base, directory, alpha=16, std=strength)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


def merged_model(base: Path, adapter: Path | None) -> tuple[Any, Any]:
    """The base in fp32 with an adapter merged into it, and its tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model, AutoTokenizer.from_pretrained(base)
