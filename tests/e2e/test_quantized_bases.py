"""Runs on quantized bases are those on the 16-bit models that they stand for: trained, continued, asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import ChatRequest, GenerationSettings
from tests.families.tiny import write_family
from tests.packers import quantize_checkpoint

from .workers import Workers, adapter_bytes, finish, held_at, kill, steps, wait_until_step

STEPS = 6


def sections(base: Path, method: str) -> dict[str, dict[str, Any]]:
    return {
        "model": {"base": str(base)},
        "method": {"name": method},
        "train": {"max_steps": STEPS},
        "eval": {"exact_match": False},
        "checkpoint": {"every_steps": 2},
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "name", "method"),
    [
        pytest.param("llama", "fp8", "lora", marks=pytest.mark.long),
        pytest.param("qwen3_moe", "ct_w4a16", "qlora", marks=pytest.mark.long),
        ("gpt_oss", "mxfp4", "qlora"),
    ],
)
def test_a_run_learns_what_it_learns_on_the_model_that_its_base_stands_for(
    workers: Workers, tmp_path: Path, family: str, name: str, method: str
) -> None:
    twins = quantize_checkpoint(write_family(family, tmp_path / "source"), tmp_path, name)
    runs = [workers.start(base.name, **sections(base, method)) for base in (twins.quantized, twins.plain)]
    for run in runs:
        finish(run)
    quantized, plain = runs
    losses = [event.loss for event in steps(quantized)]
    assert len(losses) == STEPS
    assert losses == [event.loss for event in steps(plain)]
    assert adapter_bytes(quantized) == adapter_bytes(plain)


@pytest.mark.long
def test_a_killed_run_goes_on_bit_equal_and_its_result_answers(workers: Workers, tmp_path: Path) -> None:
    twins = quantize_checkpoint(write_family("llama", tmp_path / "source"), tmp_path, "fp8")
    undisturbed = workers.start("undisturbed", **sections(twins.quantized, "qlora"))
    finish(undisturbed)
    run = workers.start("killed", held_at(4), **sections(twins.quantized, "qlora"))
    wait_until_step(run, 4)
    kill(run)
    workers.resume(run)
    finish(run)
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    with ChatEngine() as engine:
        spec = ModelSpec(str(twins.quantized), adapter=str(run.adapter_path), method="qlora", device="cpu")
        engine.load(spec, lambda _detail, _done, _total: None)
        asked = ChatRequest([{"role": "user", "content": "ticket"}], settings=GenerationSettings(4))
        assert list(engine.generate(asked))[-1]["tokens"] > 0
