"""Trainings of the checks: runs that are built by the worker's own code in this process and driven step by step, and
runs of workers in processes of their own."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_checks.models import ModelShape, make_model, tiny
from core.atomic import write_atomic
from core.config.document import ConfigDocument, dump_config
from core.config.schema import Config
from core.runs.record.events import StepEvent, StoppedEvent
from core.runs.record.state import EventTail, RunState, hostname
from core.runs.record.store import Run
from core.selftest.sizes import Shape, Sizes
from core.worker.selftest.check import Bench
from core.worker.selftest.worker_run import WorkerRun

#: Tokens of rows, which every model has.
_FIRST_TOKEN, _TOKENS = 100, 5000


@dataclass(frozen=True)
class Stand:
    """All that a check is given.

    Args:
        work: A directory of its own.
        models: The directory of the models.
        tiny: Whether shapes are tiny.
        device: Facts about the device.
        kept: What checks in one process leave for those after them.
    """

    work: Path
    models: Path
    tiny: bool
    device: dict[str, Any]
    kept: dict[str, Any]

    @property
    def is_cuda(self) -> bool:
        """True if torch computes on a card."""
        return self.device.get("kind") == "cuda"

    @property
    def length(self) -> int:
        """Tokens of a long row."""
        return 48 if self.tiny else 2048

    def shape(self, shape: ModelShape) -> ModelShape:
        """The shape of a model, or the tiny one in its place."""
        return tiny(shape) if self.tiny else shape

    def model(self, shape: ModelShape) -> Path:
        """The directory of a model."""
        return make_model(self.shape(shape), self.models)

    def bench(self, shape: ModelShape) -> Bench:
        """A bench of the self-test, whose runs train a model.

        Args:
            shape: The model.
        """
        sizes = Sizes.of(str(self.device.get("kind") or "cpu"))
        sizes = Sizes(
            model=str(self.model(shape)),
            speed=Shape(2, 64) if self.tiny else sizes.speed,
            matrix=256 if self.tiny else sizes.matrix,
            resume_steps=6 if self.tiny else 20,
        )
        work = Path(tempfile.mkdtemp(dir=self.work))
        return Bench(work, sizes, self.device, lambda *_: None)

    def rows(self, lengths: Sequence[int], *, shared: int = 0) -> Path:
        """A file of rows of random tokens.

        Args:
            lengths: Tokens of each.
            shared: Tokens that all of them begin with, which are not learned.
        """
        drawn = random.Random(1)

        def draw(count: int) -> list[int]:
            return [drawn.randrange(_FIRST_TOKEN, _TOKENS) for _ in range(count)]

        beginning = draw(shared)
        rows = []
        for length in lengths:
            rest = draw(length - shared)
            rows.append({"input_ids": beginning + rest, "labels": [-100] * max(shared, 1) + rest[shared == 0 :]})
        return self.jsonl(rows)

    def jsonl(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """A file of rows."""
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", dir=self.work, delete=False) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return Path(file.name)

    def config(self, shape: ModelShape, rows: Path, options: Mapping[str, Any]) -> Config:
        """A configuration.

        Args:
            shape: The model.
            rows: The training rows.
            options: Options that are different.
        """
        document = ConfigDocument()
        settings: dict[str, Any] = {
            "model.base": str(self.model(shape)),
            "data.train": str(rows),
            # Random rows do not end as answers do.
            "data.allow": ["stop_untrained", "template_missing", "nothing_supervised", "format_ambiguous"],
            "train.max_length": 8192,
            "train.max_steps": 1000,
            "train.scheduler": "constant",
            "train.warmup": 0.0,
            "eval.samples": 0,
            "checkpoint.every_steps": 1_000_000,
            **options,
        }
        for name, value in settings.items():
            document.set(name, value)
        return document.validate()

    def worker(self, name: str, config: Config, bench: Bench) -> WorkerRun:
        """A run that a worker carries out in a process of its own."""
        return WorkerRun(bench, name, config)


class Trainer:
    """A run that is built in this process, and driven step by step.

    Args:
        stand: Of the check.
        config: Of the run.
    """

    def __init__(self, stand: Stand, config: Config) -> None:
        from accelerate.state import AcceleratorState

        from core.worker.process.control import Controls
        from core.worker.process.recorder import Recorder
        from core.worker.setup.build import build
        from core.worker.train import FinetuneRecipe

        # A worker has one precision in all its life, and this process several.
        AcceleratorState._reset_state()
        self.config = config
        self._run = Run(Path(tempfile.mkdtemp(dir=stand.work)))
        write_atomic(self._run.config_path, dump_config(config))
        RunState(state="queued", host=hostname(), updated=time.time()).write(self._run.state_path)
        self._recorder, controls = Recorder(self._run), Controls()
        self._tail = EventTail(self._run.events_path)
        self.parts = build(config, self._recorder, controls, None)
        self.recipe = FinetuneRecipe(config, self._recorder, controls, self.parts)

    def step(self) -> StepEvent:
        """Take an optimizer step."""
        self.recipe.step()
        return [event for event in self._tail.read_all() if isinstance(event, StepEvent)][-1]

    def steps(self, count: int) -> list[StepEvent]:
        """Optimizer steps."""
        return [self.step() for _ in range(count)]

    def close(self) -> None:
        """End it; its model goes when nobody refers to it."""
        self._recorder.close(
            "stopped", "measured", StoppedEvent(reason="measured", step=self.parts.state.step, hint="")
        )


@contextlib.contextmanager
def trainer(stand: Stand, config: Config) -> Iterator[Trainer]:
    """A :class:`Trainer` whose memory is free again behind the context."""
    from core.worker.oom.retry import release

    made = Trainer(stand, config)
    try:
        yield made
    finally:
        made.close()
        # Names of the caller keep the object, and it keeps the model.
        vars(made).clear()
        release()


def tokens_per_second(steps: Sequence[StepEvent]) -> float:
    """Tokens a second of steps."""
    return sum(step.tokens for step in steps) / max(sum(step.seconds for step in steps), 1e-9)
