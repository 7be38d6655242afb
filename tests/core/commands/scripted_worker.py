"""Stands in for the training process: real events, state, socket and signals, without a model.

Called as the worker is (``RUN_DIR [--resume]``); ``SCRIPT`` in the environment says how it behaves, as a JSON object:
``steps``, ``pace`` (seconds a step), ``end`` (``finished``, ``failed`` or ``vanish``), ``demo`` (measure and answer
before and after), ``deaf`` (no control socket), ``delay`` (seconds before it says anything).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from core.runs.record.events import (
    CheckpointEvent,
    DataEvent,
    EvalEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    NoticeEvent,
    SampleEvent,
    StepEvent,
    StoppedEvent,
)
from core.runs.record.store import Run
from core.worker.process.control import Command, Controls, ControlServer, install_signals
from core.worker.process.recorder import Recorder

HOSTILE = "a \x1b]52;c;x\x07 word"
#: Is in the run directory from the first step on that takes a second or more: commands wait from then on.
LONG_STEP = "long-step"


class ScriptedWorker:
    """Steps through a run that a script describes."""

    def __init__(self, run: Run, script: dict[str, Any], *, resume: bool) -> None:
        self.run = run
        self.steps = int(script.get("steps", 5))
        self.pace = float(script.get("pace", 0.01))
        self.end = str(script.get("end", "finished"))
        self.demo = bool(script.get("demo"))
        # Whoever starts it has a moment before it says who it is.
        time.sleep(float(script.get("delay", 0)))
        self.controls = Controls()
        install_signals(self.controls)
        self.recorder = Recorder(run, resume=resume)
        self.server = None if script.get("deaf") else ControlServer(run.socket_path, self.controls, dict)
        saved = [int(path.name[5:]) for path in run.checkpoints_path.glob("step-*")]
        self.step = max(saved, default=0) if resume else 0

    def main(self) -> int:
        """Do it all; the exit code is the worker's."""
        for phase in ("importing", "preparing_data", "loading_model"):
            self.recorder.phase(phase)
        used = round(2 * (self.run.values().get("data.weights") or [1])[0])
        dropped = {"overlong": 1} | ({"not_sampled": 2 - used} if used < 2 else {})
        self._tell(DataEvent(rows=3, used=used, dropped=dropped, tokens=40, supervised_tokens=10, longest=24))
        self.recorder.update(total_steps=self.steps, state="training", step=self.step)
        if self.demo:
            self._measure(0, "base", 0.0)
        self.recorder.phase("training", done=self.step, total=self.steps)
        while self.step < self.steps:
            for command in self.controls.waiting():
                self._carry_out(command)
            if sender := self.controls.stop_sender:
                return self._close("stopped", StoppedEvent(reason=f"asked by {sender}", step=self.step))
            self._train()
        if self.end == "vanish":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end == "failed":
            event = FailedEvent(reason="The disk is full.", step=self.step, hint="Make room.")
            return self._close("failed", event)
        if self.demo:
            self._measure(self.step, f"step-{self.step}", 0.9)
        self.recorder.memory("cpu")
        return self._close("finished", FinishedEvent(reason="", step=self.step, adapter="adapter"))

    def _tell(self, event: Event) -> None:
        self.recorder.event(event)

    def _train(self) -> None:
        if self.pace >= 1:
            (self.run.path / LONG_STEP).touch()
        time.sleep(self.pace)
        self.step += 1
        loss = float("nan") if self.step == 2 else 1 / self.step
        self._tell(
            StepEvent(
                step=self.step, epoch=0.1, loss=loss, lr=1e-3, grad_norm=0.5, tokens=100, supervised_tokens=40,
                seconds=0.5, tokens_per_second=200.0,
            )
        )  # fmt: skip
        if self.step == 1:
            self._tell(NoticeEvent(level="warning", code="test", message=HOSTILE))
        self.recorder.update(step=self.step)

    def _carry_out(self, command: Command) -> None:
        name = command.request.command
        if name == "checkpoint":
            self._save()
            command.answer(step=self.step)
        elif name == "generate":
            self._generate(command)
        elif name == "set":
            command.answer(
                step=self.step, **{key.replace(".", "_"): value for key, value in command.request.args.items()}
            )
        elif name == "pause":
            self.recorder.update(state="paused")
            command.answer(state="paused")
            while (following := self.controls.wait(60)) is not None:
                self._carry_out(following)
                if following.request.command in ("resume", "stop"):
                    return
        else:
            self.recorder.update(state="training" if name == "resume" else "stopping")
            command.answer()

    def _generate(self, command: Command) -> None:
        """Answer with the number of messages and the last one; ``slow`` goes on until it is cancelled."""
        messages, source = command.request.args["messages"], command.request.args["source"]
        text = f"{len(messages)} {messages[0]['role']} {messages[-1]['content']} {HOSTILE}"
        for word in text.split(" "):
            command.token(word + " ", "step-4")
        while messages[-1]["content"] == "slow" and not command.cancelled.wait(0.05):
            command.token("and on ", "step-4")
        figures = {"tokens": 7, "first_token_seconds": 0.25, "tokens_per_second": 20.0, "finish": "stop"}
        command.answer(text=text, source="base" if source == "base" else f"step-{self.step}", **figures)

    def _save(self) -> None:
        directory = self.run.checkpoints_path / f"step-{self.step:08d}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "manifest.json").write_text("{}")
        path = str(directory.relative_to(self.run.path))
        self._tell(CheckpointEvent(step=self.step, path=path, bytes=2, seconds=0.01))

    def _measure(self, step: int, source: str, share: float) -> None:
        self.recorder.phase("evaluating")
        self._tell(
            EvalEvent(step=step, loss=1.0, perplexity=2.7, seconds=0.1, exact_match=share, valid_json=share, rows=60)
        )
        for number in range(4):
            self._tell(SampleEvent(step=step, prompt=f"ticket {number}", text=f"{source} says {number}", source=source))

    def _close(self, state: str, event: FinishedEvent) -> int:
        if state == "stopped":
            self._save()
        self.controls.close()
        if self.server is not None:
            self.server.close()
        self.recorder.close(state, event.reason, event)
        return {"finished": 0, "stopped": 3}.get(state, 4)


if __name__ == "__main__":
    directory = next(word for word in sys.argv[1:] if not re.match(r"--", word))
    script = json.loads(os.environ.get("SCRIPT", "{}"))
    sys.exit(ScriptedWorker(Run(Path(directory)), script, resume="--resume" in sys.argv).main())
