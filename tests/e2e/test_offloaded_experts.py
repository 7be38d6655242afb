"""Runs whose experts live in host memory, on a CPU whose lanes copy into buffers: the same run, to the last bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from core.launch.launcher import worker_environment
from core.runs.control.client import ControlClient
from core.runs.record.events import EvalEvent, NoticeEvent
from core.runs.record.history import read_history
from tests.families.tiny import write_family

from .workers import (
    Workers,
    adapter_bytes,
    finish,
    held_at,
    import_hook,
    kill,
    only,
    wait_until_listening,
    wait_until_step,
)

ROOT = Path(__file__).parents[2]
QUESTION = [{"role": "user", "content": "ticket login printer"}]
#: A CPU that passes for a device without room for experts, where HOST_EXPERTS is set.
ON_HOST = import_hook(
    "HOST_EXPERTS",
    "core.worker.setup.build",
    """
    from core.worker.model import model
    from core.worker.model.expert_offload import ExpertOffload
    from tests.core.worker.model.lanes import PromptDevice
    model.cuda_offload = lambda device: ExpertOffload(PromptDevice(), device)
    module.decide_experts = lambda *_: (True, "Experts are kept in the machine's memory.")
    """,
)


@pytest.fixture
def on_host(tmp_path: Path) -> dict[str, str]:
    """Variables of a worker that keeps its experts on the host."""
    folder = tmp_path / "injected"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ON_HOST)
    before = worker_environment().get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), str(ROOT), before])), "HOST_EXPERTS": "1"}


def sections(**memory: Any) -> dict[str, dict[str, Any]]:
    return {
        "method": {"dropout": 0.1, "target_experts": "on"},
        "train": {"max_steps": 10},
        "eval": {"exact_match": True, "every_steps": 5},
        "memory": {"gradient_checkpointing": "on", **memory},
    }


@pytest.mark.long
def test_a_run_with_experts_on_the_host_is_bit_equal_killed_asked_and_continued(
    workers: Workers, tmp_path: Path, on_host: dict[str, str]
) -> None:
    workers.model = write_family("qwen3_moe", tmp_path / "mixture")
    here = workers.start("here", **sections())
    finish(here)

    there = workers.start("there", on_host | held_at(0, 7), **sections())
    wait_until_listening(there)
    answer = ControlClient(there).request("generate", messages=QUESTION, source="base", max_new_tokens=4)
    assert answer["source"] == "base"
    wait_until_step(there, 7)
    kill(there)
    # It goes on with its experts on the device, as a larger card would have it.
    workers.resume(there)
    finish(there)

    codes = [event.code for event in only(NoticeEvent, there)]
    assert "offload_experts" in codes
    assert "resumed" in codes
    assert "offload_experts" not in [event.code for event in only(NoticeEvent, here)]
    assert adapter_bytes(there) == adapter_bytes(here)
    assert list(read_history(there).loss.values) == list(read_history(here).loss.values)
    measured = [[(event.step, event.loss) for event in only(EvalEvent, run)] for run in (here, there)]
    assert dict(measured[0]) == dict(measured[1])
