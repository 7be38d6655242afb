from __future__ import annotations

import json
from pathlib import Path

from core.models.quantization_config import find_counterpart
from tests.cases import cases


@cases(
    ("card", "found"),
    [
        ("---\nlicense: mit\nbase_model: Qwen/Qwen3-8B\n---\nText", "Qwen/Qwen3-8B"),
        ("---\nbase_model:\n- Qwen/Qwen3-8B\n- other/one\n---\n", "Qwen/Qwen3-8B"),
        ("---\r\nbase_model: 'Qwen/Qwen3-8B'\r\n---\r\n", "Qwen/Qwen3-8B"),
        ("base_model: Qwen/Qwen3-8B", ""),
        ("---\nbase_model: ../../etc\n---\n", ""),
        ("---\nlicense: mit\n---\nbase_model: a/b\n", ""),
    ],
)
def test_the_card_names_the_model_that_it_was_made_from(tmp_path: Path, card: str, found: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "README.md").write_bytes(card.encode())
    assert find_counterpart(directory) == found


@cases(
    ("name", "shorter"),
    [
        ("Qwen3-8B-AWQ", "Qwen3-8B"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B-Instruct"),
        ("Llama-3.1-8B-Instruct-FP8-dynamic", "Llama-3.1-8B-Instruct"),
        ("Llama-3.1-8B-Instruct-quantized.w4a16", "Llama-3.1-8B-Instruct"),
        ("gemma-3-27b-it-unsloth-bnb-4bit", "gemma-3-27b-it"),
        ("Qwen3-30B-A3B-NVFP4", "Qwen3-30B-A3B"),
        ("Mistral-7B-hqq", "Mistral-7B"),
    ],
)
def test_else_the_name_without_what_was_put_behind_it_is_a_guess(tmp_path: Path, name: str, shorter: str) -> None:
    guess = "the model as it was before, which may be named "
    directory = tmp_path / name
    directory.mkdir()
    assert find_counterpart(directory) == guess + shorter
    snapshot = tmp_path / "hub" / f"models--Some--{name}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert find_counterpart(snapshot) == f"{guess}Some/{shorter}"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_name_or_path": f"Some/{name}"}))
    assert find_counterpart(other) == f"{guess}Some/{shorter}"


@cases("name", ["Qwen3-8B", "model", "AWQ", "block"])
def test_a_name_that_tells_nothing_is_none(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    assert find_counterpart(directory) == ""
