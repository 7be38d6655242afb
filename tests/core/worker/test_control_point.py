from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.config.schema import Config, DataSection
from core.hardware import cpu
from core.runs.control.protocol import Request
from core.runs.record.events import ControlEvent, NoticeEvent, StoppedEvent
from core.runs.record.store import create_run
from core.worker.control_point import ControlPoint
from core.worker.distributed.strategy import single
from core.worker.model.model import load_model
from core.worker.process.control import Command, Controls
from core.worker.process.recorder import Recorder
from tests.core.worker.steps.stepper import NoGovernor, make_state
from tests.e2e.workers import only

QUESTION = Request("1", "generate", {"messages": [{"role": "user", "content": "the ticket"}], "max_new_tokens": 3})


@pytest.fixture
def control_point(tiny_model_dir: Path) -> Iterator[ControlPoint]:
    """That of a run on the tiny model, whose checkpointer holds only its parts."""
    config = Config(data=DataSection(train="rows.jsonl"))
    loaded = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu")
    recorder = Recorder(create_run(config, "test"))
    parts: Any = SimpleNamespace(
        config=config, loaded=loaded, template=None, state=make_state(), recorder=recorder, strategy=single()
    )
    yield ControlPoint(parts, nullcontext, Controls(), NoGovernor())
    recorder.close("stopped", "", StoppedEvent(reason="", step=0))


def ask(point: ControlPoint) -> dict[str, Any]:
    """The last line of the answer to a question."""
    told: list[dict[str, Any]] = []
    point.controls.put(Command(QUESTION, told.append))
    point.attend()
    return told[-1]


def test_a_question_without_room_is_refused(control_point: ControlPoint, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = cpu.memory
    monkeypatch.setattr(cpu, "memory", lambda: (0, 1000))
    answer = ask(control_point)
    assert answer["ok"] is False
    assert answer["error"].startswith("The answer takes up to ")
    assert answer["error"].endswith("1.0 kB are free on this machine beside the training.")
    monkeypatch.setattr(cpu, "memory", memory)
    assert ask(control_point)["tokens"] == 3, "the next one is answered"
    run = control_point.recorder.run
    (notice,) = [event for event in only(NoticeEvent, run) if event.code == "memory_chat"]
    assert answer["error"] in notice.message
    assert only(ControlEvent, run)[0].result == f"refused: {answer['error']}"
