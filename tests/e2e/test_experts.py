"""Runs on mixtures of experts: killed and continued, asked, planned as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.evaluation.record import read_record
from core.runs.control.client import ControlClient
from core.runs.record.events import NoticeEvent
from core.runs.record.history import read_history
from tests.families.tiny import write_family
from tests.forking import Forks

from .test_serving import serving
from .workers import (
    Workers,
    adapter_bytes,
    finish,
    held_at,
    kill,
    notice_codes,
    only,
    steps,
    wait_until_listening,
    wait_until_step,
)

STEPS = 12
QUESTION = [{"role": "user", "content": "ticket login printer"}]


@pytest.fixture
def mixture(workers: Workers, tmp_path: Path) -> Workers:
    workers.model = write_family("qwen3_moe", tmp_path / "mixture")
    return workers


def sections(**method: Any) -> dict[str, dict[str, Any]]:
    return {
        "method": {"dropout": 0.1, **method},
        "train": {"max_steps": STEPS},
        "eval": {"exact_match": False},
        "memory": {"gradient_checkpointing": "on"},
    }


@pytest.mark.long
def test_a_killed_run_ends_bit_equal_with_adapters_on_experts(mixture: Workers) -> None:
    undisturbed = mixture.start("undisturbed", **sections(target_experts="on"))
    finish(undisturbed)
    losses = [event.loss for event in steps(undisturbed)]
    assert losses[-1] < losses[0] - 0.3

    run = mixture.start("killed", held_at(0, 7), **sections(target_experts="on"))
    wait_until_listening(run)
    answer = ControlClient(run).request("generate", messages=QUESTION, source="base", max_new_tokens=4)
    assert answer["source"] == "base"
    wait_until_step(run, 7)
    kill(run)
    mixture.resume(run)
    finish(run)
    assert "resumed" in notice_codes(run)
    assert adapter_bytes(run) == adapter_bytes(undisturbed)
    assert list(read_history(run).loss.values) == list(read_history(undisturbed).loss.values)
    tensors = load_file(run.adapter_path / "adapter_model.safetensors")
    assert sum("experts" in name for name in tensors) == 8
    assert "experts" not in notice_codes(run)


@pytest.mark.long
def test_a_run_says_why_its_experts_have_no_adapters(mixture: Workers) -> None:
    run = mixture.start("auto", **sections())
    finish(run)
    told = [event.message for event in only(NoticeEvent, run) if event.code == "experts"]
    assert told[0].startswith("The experts get no adapters: at rank 4 ")
    assert not any("experts" in name for name in load_file(run.adapter_path / "adapter_model.safetensors"))


@pytest.mark.long
def test_a_finished_run_with_adapters_on_experts_is_served_chatted_with_and_evaluated(
    forks: Forks, mixture: Workers
) -> None:
    run = mixture.start("asked", **sections(target_experts="on", dropout=0.0))
    finish(run)

    with serving(forks, mixture, run.id, "--port", "0") as server:
        answers = [
            server.client().chat.completions.create(model=name, messages=QUESTION, max_tokens=8, temperature=0)
            for name in (run.id, mixture.model.name)
        ]
    assert [answer.system_fingerprint for answer in answers] == ["adapter", "base"]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[0] != texts[1], "the adapters are in use"

    def command(*words: str) -> Any:
        with mixture.environment():
            done = forks.run([sys.executable, "-m", "tui", *words, "--json"])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    chatted = command("chat", run.id, "--prompt", QUESTION[0]["content"], "--max-new-tokens", "8", "--temperature", "0")
    assert chatted["answer"] == texts[0]
    told = command("eval", run.id, "--against", "base", "--limit", "3", "--max-new-tokens", "8")
    assert (told["items"], told["state"]) == (3, "done")
    answered = read_record(Path(told["path"])).answers
    assert all(answer is not None for name in (run.id, "base") for answer in answered[name])
    assert answered[run.id] != answered["base"]
