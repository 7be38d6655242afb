"""The summary of a run at its end, whatever its record holds."""

from __future__ import annotations

from pathlib import Path

from core.commands.follow import Followed
from core.commands.summary import summarize, summary_lines
from core.runs.record.events import EvalEvent, FinishedEvent, HardwareEvent, PhaseEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.cases import cases

from .conftest import a_step


@cases("adapter", ["adapter", "checkpoints/step-1/adapter", "/etc", "../other/adapter", "a/../../b", "a\0b", "", None])
def test_an_adapter_is_in_its_run(tmp_path: Path, adapter: str | None) -> None:
    followed = Followed(Run(tmp_path), RunState(state="finished"))
    followed.apply(FinishedEvent(reason="", step=1, adapter=adapter))
    told = str(tmp_path / adapter) if adapter and adapter.endswith("adapter") and ".." not in adapter else None
    assert summarize(followed)["adapter"] == told


def test_the_end_says_what_was_gained_and_what_it_took(tmp_path: Path) -> None:
    before, after = _evaluation(0, 4.0, 0.0), _evaluation(2, 0.1, 0.35)
    begin, energy = PhaseEvent(t=0.0, name="training"), HardwareEvent(t=61.0, devices=[], energy_wh=1.3)
    for events, wanted in (
        ((begin, before, after, energy), ["gained    exact match 0.00 → 0.35", "gained    eval loss 4.00 → 0.100"]),
        ((after,), ["measured  exact match 0.35", "measured  eval loss 0.100"]),
    ):
        followed = Followed(Run(tmp_path), RunState(state="finished", step=2, total_steps=2))
        for event in (*events, FinishedEvent(t=90.0, reason="all steps done", step=2)):
            followed.apply(event)
        followed.history.last_step = a_step(2, loss=0.1)
        lines = summary_lines(followed, summarize(followed))
        assert [line for line in lines if line.startswith(("gained", "measured"))] == wanted
        assert ("took      1m 30s, 1.3 Wh" in lines) == (energy in events)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    RunState(state="queued").write(tmp_path / "state.json")
    followed = Followed(Run(tmp_path), RunState(state="lost", reason="its process never started"))
    assert summary_lines(followed, summarize(followed)) == [
        f"run       {tmp_path.name}",
        "state     lost (its process never started)",
        f"next      It saved no checkpoint; start it again with 'localtune-tui train {tmp_path}/run.toml'.",
    ]


def _evaluation(step: int, loss: float, exact: float) -> EvalEvent:
    return EvalEvent(t=float(step), step=step, loss=loss, perplexity=1.0, seconds=1.0, exact_match=exact)
