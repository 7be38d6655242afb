"""Runs whose adapters begin, learn or sit in other ways: asked as their base, killed and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.runs.control.client import ControlClient
from core.runs.record.events import EvalEvent, NoticeEvent, SampleEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from tests.families.tiny import write_family

from . import workers as e2e
from .workers import Workers

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
#: A CPU that passes for a device without room for experts, where HOST_EXPERTS is set.
ON_HOST = e2e.import_hook(
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


def train_twice(
    workers: Workers, variables: dict[str, str] | None = None, **sections: dict[str, Any]
) -> tuple[Run, Run]:
    """A run, and one that is asked as its base, killed and continued, and ends bit-equal.

    Args:
        workers: Starts them.
        variables: Of the second one until it is killed.
        sections: Changed options.
    """
    undisturbed = workers.finished("undisturbed", **sections)
    run = workers.start("killed", e2e.held_at(0, 7) | (variables or {}), **sections)
    e2e.wait_until_listening(run)
    answer = ControlClient(run).request("generate", messages=QUESTION, source="base", max_new_tokens=4)
    assert answer["source"] == "base"
    e2e.kill_and_finish(workers, run, 7)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(undisturbed)
    history, expected = read_history(run), read_history(undisturbed)
    assert list(history.loss.values) == list(expected.loss.values)
    assert [(event.step, event.loss) for event in history.evals] == [
        (event.step, event.loss) for event in expected.evals
    ]
    return undisturbed, run


@pytest.mark.parametrize("way", ["loftq", pytest.param("pissa", marks=pytest.mark.long)])
def test_a_killed_run_ends_bit_equal(workers: Workers, way: str) -> None:
    method, train = WAYS[way]
    _, run = train_twice(
        workers,
        method={"dropout": 0.0 if way == "pissa" else 0.1, **method},
        train={"max_steps": 14, **train},
        eval={"exact_match": False},
    )
    tensors = load_file(run.adapter_path / "adapter_model.safetensors")
    layers = {name.rpartition(".lora_A.")[0] for name in tensors if ".lora_A." in name}
    assert len(layers) == (14 if way == "pissa" else 10)
    if way == "loftq":
        told = [event.message for event in e2e.only(NoticeEvent, run) if event.code == "adapters"]
        assert told[0] == "10 layers have adapters: q_proj 2, v_proj 2, gate_proj 2, up_proj 2, down_proj 2."


@pytest.mark.parametrize("init", ["default", pytest.param("pissa", marks=pytest.mark.long)])
def test_a_finished_adapter_is_trained_further(workers: Workers, init: str) -> None:
    method = {"init": init, "dropout": 0.0}
    short: dict[str, dict[str, Any]] = {"train": {"max_steps": 10}, "eval": {"exact_match": False, "samples": 1}}
    parent = workers.finished("parent", method=method, **short)
    begun = {"model": {"base": str(workers.model), "adapter": str(parent.adapter_path)}}
    further = short | begun | {"eval": short["eval"] | {"baseline": True}, "method": method}
    undisturbed = workers.finished("further", **further)
    first, last = e2e.only(EvalEvent, undisturbed)[0], e2e.only(EvalEvent, parent)[-1]
    assert first.step == 0
    assert first.loss == pytest.approx(last.loss, rel=1e-5)
    assert e2e.only(SampleEvent, undisturbed)[0].source == "step-0"
    assert e2e.losses(undisturbed)[0] < e2e.losses(parent)[0] - 0.2
    assert e2e.adapter_bytes(undisturbed) != e2e.adapter_bytes(parent)

    run = workers.start("killed", e2e.held_at(7), **further)
    e2e.wait_until_step(run, 7)
    e2e.kill(run)
    away = parent.path.rename(parent.path.with_name("away"))
    workers.complete(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(undisturbed), "a checkpoint needs the parent no longer"

    for target, said in (
        ({"method": method | {"rank": 8}}, "was trained with method.rank = 4, and method.rank is 8."),
        ({"method": method | {"target_modules": ["q_proj"]}}, "has other layers or ranks than this run"),
    ):
        begun["model"]["adapter"] = str(away / "adapter")
        refused = workers.start("refused", **further | begun | target)
        assert said in e2e.failure(refused).reason


@pytest.fixture
def mixture(workers: Workers, tmp_path: Path) -> Workers:
    workers.model = write_family("qwen3_moe", tmp_path / "mixture")
    return workers


def sections(**method: Any) -> dict[str, dict[str, Any]]:
    return {
        "method": {"dropout": 0.1, **method},
        "train": {"max_steps": 12},
        "eval": {"exact_match": False},
        "memory": {"gradient_checkpointing": "on"},
    }


@pytest.mark.long
def test_a_killed_run_ends_bit_equal_with_adapters_on_experts(mixture: Workers) -> None:
    undisturbed, run = train_twice(mixture, **sections(target_experts="on"))
    losses = e2e.losses(undisturbed)
    assert losses[-1] < losses[0] - 0.3
    tensors = load_file(run.adapter_path / "adapter_model.safetensors")
    assert sum("experts" in name for name in tensors) == 8
    assert "experts" not in e2e.notice_codes(run)


@pytest.mark.long
def test_a_killed_run_with_experts_on_the_host_is_bit_equal(mixture: Workers, tmp_path: Path) -> None:
    on_host = e2e.hooked(tmp_path / "injected", ON_HOST, HOST_EXPERTS="1")
    # It goes on with its experts on the device, as a larger card would have it.
    here, there = train_twice(
        mixture, on_host, **sections(target_experts="on") | {"eval": {"exact_match": True, "every_steps": 5}}
    )
    assert "offload_experts" in e2e.notice_codes(there)
    assert "offload_experts" not in e2e.notice_codes(here)
