"""Whole runs of processes that have met already, one after another, so that libraries are imported once for all."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.config.document import dump_config
from core.config.schema import Config
from core.runs.control.client import ControlClient
from core.runs.record.events import EvalEvent, StepEvent
from core.runs.record.store import Run
from core.worker.distributed.ranks import Ranks
from core.worker.follower import follow
from core.worker.process.control import Controls, ControlServer
from core.worker.process.recorder import Recorder
from core.worker.train import train
from tests.e2e.workers import only

#: Queries a live run; the result is kept.
Ask = Callable[[ControlClient], Any]


def write_rows(path: Path) -> Path:
    """Conversations of different length."""
    with path.open("w") as file:
        for number in range(30):
            words = ("high low " * (1 + number % 9)).strip()
            answer = ("area " + "normal " * (1 + number % 4)).strip()
            messages = [{"role": "user", "content": f"ticket {words}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def merged(values: dict[str, dict[str, Any]], sections: dict[str, dict[str, Any]]) -> Config:
    """Configuration of some options with others in their place."""
    both = {name: values.get(name, {}) | sections.get(name, {}) for name in values | sections}
    return Config.model_validate(both)


#: Adam makes steps of the same length from gradients that are almost zero.
CLOSE = 1e-4
FULL: dict[str, Any] = {"method": {"name": "full"}, "memory": {"optimizer_in_backward": "off"}}


def options_of(directory: Path, base: Path) -> dict[str, dict[str, Any]]:
    """Options of all runs of a sharded strategy."""
    return {
        "model": {"base": str(base)},
        "data": {"train": str(directory / "rows.jsonl"), "eval_share": 0.2},
        "method": {"name": "qlora", "rank": 4, "alpha": 8, "dropout": 0.0},
        "train": {"max_steps": 4, "batch_size": 5, "precision": "fp32", "learning_rate": 1e-3},
        "eval": {"every_steps": 2, "samples": 0, "probe": False},
        "checkpoint": {"every_steps": 1, "keep": 10},
        "hardware": {"device": "cpu"},
        "chat": {"max_new_tokens": 8},
    }


def ask_both(client: ControlClient) -> list[str]:
    """Answers of a run with its trained weights and without."""
    asked = {"messages": [{"role": "user", "content": "ticket high low"}], "temperature": 0.0}
    return [str(list(client.generate({**asked, "source": source}))[-1]["text"]) for source in ("tuned", "base")]


@dataclass(frozen=True)
class Trained:
    """Finished runs, and their answers."""

    runs: Path
    answers: dict[str, Any]

    def run(self, name: str) -> Run:
        """A run by its name."""
        return Run(self.runs / name)

    def events(self, name: str, kind: type[Any]) -> list[Any]:
        """Its events of one kind."""
        return only(kind, self.run(name))

    def assert_equal(self, name: str, other: str, limit: float = 0.0) -> None:
        """The results of two runs differ by less than a limit, or not at all."""
        difference = largest_difference(result(self.run(name)), result(self.run(other)))
        assert difference < limit or difference == limit == 0.0

    def assert_learned_alike(self, name: str, alone: str) -> None:
        """A run of two processes has learned the same as a run of one."""
        one, two = (self.events(run, StepEvent) for run in (alone, name))
        assert [event.step for event in two] == [1, 2, 3, 4]
        for mine, theirs in zip(two, one, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        self.assert_equal(name, alone, CLOSE)

    def assert_continues(self, name: str) -> None:
        """A run of two processes continues exactly where it was, and with another number of processes."""
        self.assert_equal(name, f"{name}-again")
        for way in ("two-one", "one-two"):
            self.assert_equal(name, f"{name}-{way}", CLOSE)

    def assert_measured_alike(self, name: str, alone: str) -> None:
        """A run of two processes was measured and answered between two steps like a run of one."""
        assert self.answers[name] == self.answers[alone]
        assert len(self.answers[name]) == 2
        one, two = (self.events(run, EvalEvent) for run in (alone, name))
        assert [event.step for event in two] == [2, 4]
        assert [event.loss for event in two] == pytest.approx([event.loss for event in one], abs=1e-5)


class Trainings:
    """Runs in one directory, by processes that have met.

    Args:
        directory: Where runs go; the same in all processes.
        options: Of all runs: section to its options.
        ranks: The processes.
    """

    def __init__(self, directory: Path, options: dict[str, dict[str, Any]], ranks: Ranks) -> None:
        self._directory, self._options, self._ranks = directory, options, ranks

    def run(
        self, name: str, *, together: bool, resume_of: str | None = None, ask: Ask | None = None, **sections: Any
    ) -> Any:
        """Do a run to its end.

        Args:
            name: Of the run.
            together: By all processes; else by the first one alone, while the others go on.
            resume_of: The run that it goes on from, as that was after two steps.
            ask: Asks the run while it is paused at its beginning.
            sections: Options of this run.

        Returns:
            Result of ``ask``, in rank 0.
        """
        run = Run(self._directory / name)
        if self._ranks.is_first:
            self._write(run, resume_of, sections)
        self._ranks.any([False])
        if together and not self._ranks.is_first:
            follow(run.config(), Recorder(run, keeps=False), self._ranks, resume=resume_of is not None)
        elif self._ranks.is_first:
            return _lead(run, self._ranks if together else None, ask, resume=resume_of is not None)
        return None

    def _write(self, run: Run, resume_of: str | None, sections: dict[str, dict[str, Any]]) -> None:
        if resume_of is not None:
            shutil.copytree(self._directory / resume_of, run.path)
            for path in run.checkpoints_path.iterdir():
                if int(path.name.removeprefix("step-")) > 2:
                    shutil.rmtree(path)
            for left in (run.adapter_path, run.model_path):
                shutil.rmtree(left, ignore_errors=True)
        else:
            run.path.mkdir(parents=True)
        run.config_path.write_text(dump_config(merged(self._options, sections)))


def _lead(run: Run, ranks: Ranks | None, ask: Ask | None, *, resume: bool) -> Any:
    controls = Controls()
    recorder = Recorder(run, resume=resume)
    found: list[Any] = []
    server = ControlServer(run.socket_path, controls, dict)
    asker = threading.Thread(target=lambda: found.append(_ask(run, ask)))
    with contextlib.ExitStack() as closing:
        closing.callback(server.close)
        if ask is not None:
            asker.start()
            closing.callback(asker.join)
        done = train(run.config(), recorder, controls, resume=resume, paused=ask is not None, ranks=ranks)
        recorder.close("finished", done.reason, done)
    return found[0] if found else None


def _ask(run: Run, ask: Ask | None) -> Any:
    client = ControlClient(run)
    try:
        return None if ask is None else ask(client)
    finally:
        client.request("resume")


def result(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of a run's result."""
    (path,) = [*run.adapter_path.glob("*.safetensors"), *run.model_path.glob("*.safetensors")]
    found: dict[str, torch.Tensor] = load_file(path)
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of two sets of tensors with the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
