"""Answers to held-out rows that are kept with a run, as its evaluations go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from core.evaluation.held_out import FOLDER, kept_steps
from core.evaluation.prompt_set import PromptItem
from core.runs.record.events import EvalEvent, Event
from core.runs.record.store import create_run
from core.worker.distributed.strategy import single
from core.worker.evaluate.evaluations import Evaluations
from core.worker.progress.state import BestStep
from tests.core.runs.helpers import config_for

LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}


class Measured:
    """An evaluator with a right answer to a single row, and a loss by step."""

    items = (PromptItem("rows.jsonl:1", ({"role": "user", "content": "a"},), "yes"),)
    rows, max_new_tokens = 1, 9

    def measure(self, step: int, _: Callable[..., None]) -> tuple[EvalEvent, list[Event], list[str]]:
        """The event, no samples, and the answer."""
        return EvalEvent(step=step, loss=LOSSES[step], perplexity=None, seconds=0.0), [], ["yes"]


class Log:
    """A recorder that keeps what it is given."""

    keeps = True

    def __init__(self, run: object) -> None:
        self.run = run
        self.events: list[Event] = []
        self.warnings: list[str] = []
        self.event = self.events.append
        self.phase = self.progress = self.end_progress = lambda *_, **__: None

    def warn(self, code: str, message: str, _: str) -> None:
        """Keep the code and the message."""
        self.warnings.append(f"{code} {message}")

    def reporter(self, *_: object) -> Callable[..., None]:
        """Nothing to report to."""
        return lambda *_: None


def test_a_directory_that_cannot_be_written_costs_one_warning_and_no_evaluation(private_home: Path) -> None:
    run = create_run(config_for(private_home), "tickets")
    state = SimpleNamespace(
        step=0, evaluated=None, skipping=False, paused_seconds=0.0, best=BestStep(),
        spikes=SimpleNamespace(is_trusted=True),
    )  # fmt: skip
    log, saved = Log(run), []
    checkpointer: Any = SimpleNamespace(
        state=state, recorder=log, strategy=single(), save=lambda: saved.append(state.step)
    )
    samples: Any = SimpleNamespace(is_needed=False, write=lambda *_: [])
    measured: Any = Measured()
    evaluations = Evaluations(measured, None, samples, checkpointer, lambda: None)
    elsewhere = private_home / "elsewhere"
    elsewhere.mkdir(parents=True)
    link = run.path / FOLDER
    link.symlink_to(elsewhere)
    for step in (1, 2):
        state.step = step
        evaluations.evaluate()
    assert [message for message in log.warnings if "is a link" in message] == log.warnings
    assert len(log.warnings) == 1
    assert not list(elsewhere.iterdir()), "a run does not say where this program writes"
    link.unlink()
    for step in (3, 4):
        state.step = step
        evaluations.evaluate()
    assert [event.loss for event in log.events if isinstance(event, EvalEvent)] == list(LOSSES.values())
    assert kept_steps(run) == [3, 4]
    assert saved == [1, 2]
