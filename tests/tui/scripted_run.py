"""A scripted run: a run directory written event by event, for tests and measurements of the app: real files, no worker.

Also a program: ``python -m tests.tui.scripted_run HOME`` writes a run that trains for a while.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import tomli

from core.hardware.snapshot import Device, Host
from core.runs.record import events
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run

CONFIG = """\
[model]
base = "SmolLM2-135M-Instruct"
[data]
train = "/data/tickets_train.jsonl"
[method]
name = "qlora"
rank = 16
"""
_MACHINE = tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
GPU, HOST = Device(**_MACHINE["gpu"]), Host(**_MACHINE["host"])


class ScriptedRun:
    """A writer of a run as its worker would write it; this process stands in for the worker.

    Args:
        home: The home of localtune.
        identity: The run's id.
        total: Steps of the run.
        start: Unix time of its first event; events then follow each other on a clock of their own. None: the real time.
    """

    def __init__(
        self, home: Path, identity: str = "20261124-143600-tickets", *, total: int = 120, start: float | None = None
    ) -> None:
        self.run = Run(home / "runs" / identity)
        self.run.path.mkdir(parents=True)
        self.run.config_path.write_text(CONFIG, encoding="utf-8")
        self.total = total
        self.now = start
        self.heartbeat: float | None = None
        """The heartbeat to write, in Unix seconds; None for the present."""
        self._random = random.Random(7)
        pid, started = own_identity()
        self.state = RunState(
            state="queued", pid=pid, pid_started=started, host=hostname(), total_steps=total, updated=time.time()
        )
        self.write_state()

    def pass_time(self, seconds: float) -> float:
        """Advance the run's own clock; returns its present."""
        if self.now is None:
            return time.time()
        self.now += seconds
        return self.now

    def write_state(self, **changes: Any) -> None:
        """Write the state, with the present as heartbeat unless another one is set."""
        beat = time.time() if self.heartbeat is None else self.heartbeat
        self.state = replace(self.state, **{"updated": beat, **changes})
        self.state.write(self.run.state_path)

    def write(self, *new: events.Event) -> None:
        """Append events to the run's file."""
        with self.run.events_path.open("a", encoding="utf-8") as file:
            for event in new:
                file.write(events.encode_event(event))

    def phase(self, name: str, seconds: float = 1.0, **fields: Any) -> Self:
        """Write the event of a phase."""
        self.write(events.PhaseEvent(t=self.pass_time(seconds), name=name, **fields))
        return self

    def begin(self) -> Self:
        """Write all phases up to the first step."""
        self.write_state(state="starting")
        for name, seconds in (("importing", 0.0), ("preparing_data", 3.1), ("loading_model", 2.2)):
            self.phase(name, seconds)
        self.write(
            events.DataEvent(
                t=self.pass_time(0.4), rows=412, used=412, dropped={}, tokens=39552, supervised_tokens=9888, longest=212
            )
        )
        self.phase("rehearsing", 0.6, detail="longest batch 8×212")
        self.write(
            events.MemoryEvent(
                t=self.pass_time(0.0),
                device="cuda:0",
                predicted_bytes={"weights": 16_000_000_000, "activations": 3_100_000_000},
                limit_bytes=23_600_000_000,
            )
        )
        self.phase("training", 1.5)
        self.write_state(state="training")
        return self

    def loss_at(self, step: int) -> float:
        """A loss curve as in training: steep, then flat, and noisy."""
        noise = self._random.gauss(0, 0.05) * math.exp(-step / self.total)
        return 2.0 * math.exp(-step / (self.total / 8)) + 0.38 + noise

    def steps(self, first: int, last: int, *, seconds: float = 1.1, **fields: Any) -> Self:
        """Write optimizer steps, ``last`` included."""
        for step in range(first, last + 1):
            values: dict[str, Any] = {
                "loss": self.loss_at(step),
                "lr": 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / self.total)),
                "grad_norm": 0.5 + abs(self._random.gauss(0, 0.1)),
                **fields,
            }
            self.write(
                events.StepEvent(
                    t=self.pass_time(seconds),
                    step=step,
                    epoch=step / 52,
                    tokens=350,
                    supervised_tokens=88,
                    seconds=seconds,
                    tokens_per_second=350 / seconds,
                    **values,
                )
            )
        self.write_state(step=last)
        return self

    def evaluate(
        self, step: int, loss: float, exact_match: float | None = None, valid_json: float | None = None
    ) -> Self:
        """Write the event of an evaluation."""
        self.write(
            events.EvalEvent(
                t=self.pass_time(2.0),
                step=step,
                loss=loss,
                perplexity=math.exp(loss),
                seconds=2.0,
                exact_match=exact_match,
                valid_json=valid_json,
                rows=60,
            )
        )
        return self

    def sample(self, step: int, prompt: str, text: str, **marks: Any) -> Self:
        """Answer a question."""
        self.write(
            events.SampleEvent(
                t=self.pass_time(0.1), step=step, prompt=prompt, text=text, source=f"step-{step}", **marks
            )
        )
        return self

    def checkpoint(self, step: int) -> Self:
        """Write a checkpoint: its event, and an empty directory with a manifest."""
        name = f"checkpoints/step-{step:08d}"
        (self.run.path / name).mkdir(parents=True, exist_ok=True)
        (self.run.path / name / "manifest.json").write_text("{}", encoding="utf-8")
        self.write(events.CheckpointEvent(t=self.pass_time(1.2), step=step, path=name, bytes=39_000_000, seconds=1.2))
        return self

    def hardware(self, *devices: Device, energy_wh: float | None = 1.9) -> Self:
        """Write a sample of the devices."""
        shown = devices or (GPU,)
        self.write(
            events.HardwareEvent(
                t=self.pass_time(0.0),
                devices=[device.to_dict() for device in shown],
                energy_wh=energy_wh,
                host=HOST.to_dict(),
            )
        )
        return self

    def train_to(self, step: int) -> Self:
        """Write everything up to a step, with an evaluation, a checkpoint and a notice at plausible steps."""
        self.begin()
        for first in range(1, step + 1, 30):
            last = min(first + 29, step)
            self.steps(first, last)
            if last % 30 == 0:
                self.checkpoint(last)
                self.evaluate(last, 0.41 + 1.4 * math.exp(-last / 20), 0.83)
        self.hardware()
        return self

    def end(self, state: str, reason: str = "", hint: str = "") -> Self:
        """Write the end, as the worker does."""
        adapter = self.run.path / "adapter" / "adapter_model.safetensors"
        adapter.parent.mkdir(exist_ok=True)
        adapter.write_bytes(bytes(1900))
        kind = {"finished": events.FinishedEvent, "stopped": events.StoppedEvent, "failed": events.FailedEvent}[state]
        self.write(kind(t=self.pass_time(0.5), reason=reason, step=self.state.step, adapter="adapter", hint=hint))
        self.write_state(state=state, reason=reason)
        return self


def main() -> None:
    """Write a run in real time."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--total", type=int, default=600)
    parser.add_argument("--before", type=int, default=0, help="steps that are there at once")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds a step")
    parser.add_argument("--id", default="")
    arguments = parser.parse_args()
    script = ScriptedRun(
        arguments.home, arguments.id or f"{time.strftime('%Y%m%d-%H%M%S')}-tickets", total=arguments.total
    )
    script.begin()
    if arguments.before:
        script.steps(1, arguments.before)
    watched = os.getppid()
    for step in range(arguments.before + 1, arguments.total + 1):
        if os.getppid() != watched:
            return
        time.sleep(arguments.seconds)
        script.steps(step, step, seconds=arguments.seconds)
        if step % 30 == 0:
            script.checkpoint(step)
            script.evaluate(step, script.loss_at(step) + 0.03, 0.8)
        temperature = 70 + 4 * math.sin(step / 9)
        script.hardware(replace(GPU, temperature_c=round(temperature), power_w=300 + 20 * math.sin(step / 5)))
    script.end("finished")


if __name__ == "__main__":
    main()
