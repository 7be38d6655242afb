"""Runs of the self-test: executed by real workers, in directories apart from the user's runs."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core.atomic import write_atomic
from core.config.document import dump_config
from core.config.schema import Config
from core.errors import UserError
from core.helper import describe_end, start_attached
from core.runs.record.events import Event, FailedEvent, FinishedEvent, NoticeEvent, PhaseEvent, StepEvent
from core.runs.record.sentences import phase_name
from core.runs.record.state import EventTail, RunState, hostname
from core.runs.record.store import Run
from core.selftest.sizes import Shape
from core.text import last_line, one_line
from core.worker.selftest.check import Bench

#: Seconds between two looks at a worker.
_INTERVAL = 0.02
#: Range of the random tokens in rows of exact length: every vocabulary has them, and hardly any as special tokens.
_FIRST_TOKEN, _TOKENS = 100, 300


class WorkerRun:
    """A run in a bench's directory.

    Args:
        bench: The bench.
        name: Its name, for the directory and progress.
        config: Its configuration.
        how: How the worker is wrapped: ``measured``, ``starved`` or ``counted``; empty for not at all.
    """

    def __init__(self, bench: Bench, name: str, config: Config, how: str = "") -> None:
        self._bench, self._name = bench, name
        self._command = ["core.worker.selftest.wrapped", how] if how else ["core.worker"]
        self.run = Run(bench.work / name.replace(" ", "-"))
        self.run.path.mkdir(mode=0o700)
        write_atomic(self.run.config_path, dump_config(config))
        RunState(state="queued", host=hostname(), updated=time.time()).write(self.run.state_path)
        self._total = config.train.max_steps
        self._tail = EventTail(self.run.events_path)
        self.events: list[Event] = []

    def train(self, *, resume: bool = False, stop_when: Callable[[Sequence[StepEvent]], bool] | None = None) -> str:
        """Run a worker to its end.

        Args:
            resume: Resume from its newest checkpoint.
            stop_when: Says after some steps whether to stop it; None to run it to its end.

        Returns:
            Its state: ``finished`` or ``stopped``.

        Raises:
            UserError: If it fails, or its process dies.
        """
        begun = len(self.events)
        command = [sys.executable, "-m", *self._command, str(self.run.path), *(["--resume"] if resume else [])]
        with open(self.run.log_path, "ab") as log:
            child = start_attached(command, log=log.fileno(), cwd=self.run.path)
        while True:
            has_ended = child.poll() is not None
            found = self._tail.read_all()
            self.events += found
            self._tell(found, self._total if stop_when is None else None)
            if has_ended:
                break
            if stop_when is not None and stop_when(self.steps):
                child.send_signal(signal.SIGTERM)
                stop_when = None
            time.sleep(_INTERVAL)
        ends = [event for event in self.events[begun:] if isinstance(event, FinishedEvent)]
        if not ends:
            raise UserError(f"The worker {describe_end(child.returncode)}{self._last_words()}.")
        if isinstance(ends[-1], FailedEvent):
            raise UserError(f"The run failed: {one_line(ends[-1].reason, 300)}")
        return ends[-1].type

    @property
    def steps(self) -> list[StepEvent]:
        """Its steps."""
        return [event for event in self.events if isinstance(event, StepEvent)]

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [event.loss for event in self.steps]

    @property
    def notices(self) -> list[NoticeEvent]:
        """Its notices."""
        return [event for event in self.events if isinstance(event, NoticeEvent)]

    def _tell(self, events: Sequence[Event], total: int | None) -> None:
        for event in events:
            if isinstance(event, StepEvent):
                self._bench.tell(f"{self._name}: step", event.step, total)
            elif isinstance(event, PhaseEvent) and event.name != "training":
                self._bench.tell(f"{self._name}: {phase_name(event.name)}", None, None)

    def _last_words(self) -> str:
        try:
            last = last_line(self.run.log_path.read_text(encoding="utf-8", errors="replace"), 200)
        except OSError:
            return ""
        return f"; the last it said: {last}" if last else ""


def rows_of(bench: Bench, shape: Shape, steps: int) -> Path:
    """A file of random rows in a shape's length, enough for a number of steps."""
    path = bench.work / f"rows-{shape.rows}-{shape.length}.jsonl"
    drawn = random.Random(1)  # noqa: S311 - the same rows each time
    with path.open("w", encoding="utf-8") as file:
        for _ in range(shape.rows * steps):
            ids = [drawn.randrange(_FIRST_TOKEN, _TOKENS) for _ in range(shape.length)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return path


def shape_config(bench: Bench, shape: Shape, steps: int) -> Config:
    """The configuration of a run with a shape's batches."""
    return Config.model_validate(
        {
            "model": {"base": bench.sizes.model},
            "data": {
                "train": str(rows_of(bench, shape, steps)),
                "format": "tokens",
                "allow": ["nothing_supervised", "stop_untrained", "template_missing", "format_ambiguous"],
            },
            "method": {"name": shape.method, "rank": 16},
            "train": {
                "max_steps": steps,
                "batch_size": shape.rows,
                "micro_batch_size": shape.rows,
                "max_length": shape.length,
                "learning_rate": 1e-4,
                "warmup": 0.0,
                "scheduler": "constant",
            },
            "memory": {"gradient_checkpointing": "on" if shape.recompute else "off"},
            "eval": {"samples": 0},
            "checkpoint": {"every_steps": steps, "keep": 1},
            "hardware": {"device": bench.sizes.device},
        }
    )
