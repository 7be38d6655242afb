"""Runs without a model: the commands are real, the training process is ``scripted_worker``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.config.document import load_config
from core.launch import launcher
from core.runs.record.events import StepEvent, encode_event
from core.runs.record.store import Run, create_run, find_run, list_runs
from tests import waiting
from tests.forking import Forks
from tests.tui.terminal import Terminal
from tui.__main__ import main

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).parent / "scripted_worker.py"
DEADLINE = 120.0
PYTHON = sys.executable


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds, and fail if it does not in time."""
    waiting.wait_for(condition, DEADLINE, what, interval=0.02)


@dataclass
class Result:
    """The outcome of a command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one line of JSON."""
        assert self.out.count("\n") == 1, self.out

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is not JSON")

        return json.loads(self.out, parse_constant=refuse)


@dataclass
class Call:
    """Runs command lines in this process."""

    capsys: pytest.CaptureFixture[str]
    #: Any number of lines.
    ANY: ClassVar[int] = -1

    def __call__(self, *words: str) -> Result:
        """Run a command line."""
        self.capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *self.capsys.readouterr())

    def ok(self, *words: str) -> Result:
        """Run a command line that must succeed."""
        result = self(*words)
        assert result.code == 0, (words, result)
        return result

    def refused(self, said: str, *words: str, code: int = 1, lines: int = 1) -> Result:
        """Run a command line that must end with an error and no output.

        Args:
            said: Part of the error.
            words: The command line.
            code: Its exit code.
            lines: Lines on standard error; ``ANY`` for wrong usage, which comes with the usage.
        """
        result = self(*words)
        assert (result.code, result.out) == (code, ""), (words, result)
        assert result.err.count("\n") == lines or lines == self.ANY or code == 2, (words, result)
        assert said in result.err, (words, result)
        return result


@dataclass
class CommandLine(Call):
    """Runs command lines, and sets how their training process behaves."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    python: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def script(self, **behavior: Any) -> None:
        """Set the behavior of the training processes to come."""
        self.monkeypatch.setenv("SCRIPT", json.dumps(behavior))

    def spawn(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command line in a process of its own."""
        process = subprocess.Popen([*self._program, *words], cwd=ROOT, **options)
        self.processes.append(process)
        return process

    def terminal(self, *words: str, **variables: str) -> Terminal:
        """Start a command line in a terminal of its own."""
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **variables}
        return Terminal([*self._program, *words], environment=environment)

    @property
    def _program(self) -> list[str]:
        program = f"import sys; sys.executable = {str(self.python)!r}; from tui.__main__ import main; sys.exit(main())"
        return [PYTHON, "-c", program]

    def config(self, **lines: str) -> Path:
        """A configuration with a data file beside it."""
        (self.home / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
        path = self.home / "small.toml"
        path.write_text(
            '[data]\ntrain = "data.jsonl"\n' + "\n".join(f"{key} = {value}" for key, value in lines.items())
        )
        return path

    def train(self, name: str = "", *words: str, **behavior: Any) -> Run:
        """Train a run of one step, or as the script says, to its end, whatever that is."""
        self.script(**{"steps": 1, **behavior})
        self("train", str(self.config()), *(["--name", name] if name else []), *words)
        return find_run("latest")

    def start(self, **behavior: Any) -> Run:
        """Start a run and wait until it trains."""
        self.script(**behavior)
        result = self("train", str(self.config()), "--detach", "--json")
        assert result.code == 0, result.err
        run = next(run for run in list_runs() if run.id == result.json["run"])
        wait_for(lambda: run.state().state not in ("queued", "starting"), "the run to train")
        return run


def scripted_command(run: Run, *, resume: bool = False) -> list[str]:
    """The command line of a scripted worker, which is forked."""
    return [PYTHON, "-m", "tests.core.commands.scripted_worker", str(run.path), *(["--resume"] if resume else [])]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs command lines that start no training."""
    return Call(capsys)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forks: Forks
) -> Iterator[CommandLine]:
    """Command lines with a home of their own; processes that they start end with the test."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("LOCALTUNE_HOME", str(home))
    # A Python that runs the scripted worker where the launcher of another process asks for the real one.
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'if [ "$1 $2" = "-m core.worker" ]; then\n'
        f'  shift 2; PYTHONPATH="{ROOT}" exec "{sys.executable}" "{WORKER}" "$@"\n'
        "fi\n"
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(forks, "stand_ins", {str(python)})
    monkeypatch.setattr(launcher, "worker_command", scripted_command)
    line = CommandLine(capsys, home, monkeypatch, python)
    yield line
    for process in line.processes:
        process.kill()
        process.wait()
    for run in list_runs():
        state = run.state()
        if state.pid is not None and not state.is_over:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself at this moment
                os.kill(state.pid, signal.SIGKILL)


def record_run(config: Path, *, seconds: float) -> Run:
    """An earlier run of a configuration, with four steps of so many seconds each."""
    run = create_run(load_config(config), "earlier")
    run.events_path.write_text("".join(encode_event(a_step(number, seconds=seconds)) for number in range(1, 5)))
    replace(run.state(), state="finished").write(run.state_path)
    return run


def a_step(step: int, **fields: Any) -> StepEvent:
    """A step with some values."""
    values: dict[str, Any] = {"epoch": 0.1, "loss": 1.0, "lr": 1e-4, "grad_norm": 1.0, "seconds": 1.0}
    counts = {"tokens": 100, "supervised_tokens": 50, "tokens_per_second": 50.0}
    return StepEvent(step=step, **{**values, **counts, **fields})
