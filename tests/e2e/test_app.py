"""The main job through the app itself: a real terminal, a real worker, both killed and left in the ways that happen."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

from core.config.document import dump_config
from core.launch import launcher
from core.runs.record.history import read_history
from core.runs.record.state import RunState
from core.runs.record.store import Run, list_runs
from tests.tui.harness import HOSTILE
from tests.tui.terminal import Terminal
from tests.waiting import wait_for

from .workers import PATIENCE, Workers

#: Bytes of the hostile text that a terminal would act on.
ACTED_ON = (b"\x1b]52", b"\xc2\x9b", b"\x9b2J", b"\x00", b"\x7f", b"\xc2\x85", "\u202e".encode(), "\u2066".encode())

#: A run that goes on until it is stopped.
ENDLESS: dict[str, Any] = {
    "train": {"max_steps": 100_000},
    "eval": {"every_steps": 1_000_000},
    "checkpoint": {"every_steps": 1000},
}


@pytest.fixture
def environment(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Environment to share a home between the app and this test."""
    monkeypatch.setenv("LOCALTUNE_HOME", str(workers.home))
    return {
        "LOCALTUNE_HOME": str(workers.home),
        "XDG_CONFIG_HOME": str(workers.directory / "config"),
        "OMP_NUM_THREADS": "1",
    }


def shown_step(terminal: Terminal) -> int:
    """The step in the header."""
    found = re.search(r"(?:training|paused) +(\d+)/", terminal.text)
    return int(found[1]) if found else 0


def answer(terminal: Terminal, key: str, question: str) -> None:
    """Press a key until a question is gone: pressed before the question could be read, it is no answer."""

    def is_gone() -> bool:
        if question in terminal.text:
            terminal.press(key)
        return question not in terminal.text

    terminal.wait_for(is_gone)


def recorded_step(run: Run) -> int:
    recorded = RunState.read(run.state_path)
    return recorded.step if recorded else 0


def test_a_run_outlives_its_app_and_is_stopped_from_the_next(workers: Workers, environment: dict[str, str]) -> None:
    config = workers.directory / "mine.toml"
    config.write_text(dump_config(workers.config(**ENDLESS)))
    workers.measure(workers.config(**ENDLESS))
    size = (120, 34)

    with Terminal.app(str(config), environment=environment, size=size) as terminal:
        terminal.wait_for_text("mine.toml")
        terminal.press("3")
        terminal.wait_for_text("start a run of the configuration")
        terminal.press("r")
        terminal.wait_for_text("enter start")
        terminal.press("\r")
        terminal.wait_for(lambda: shown_step(terminal) >= 3, PATIENCE)
        (run,) = list_runs()
        terminal.signal(signal.SIGKILL)
        terminal.wait_for_end()
    at_kill = recorded_step(run)
    wait_for(lambda: recorded_step(run) > at_kill + 5, PATIENCE, "the run to go on without the app")

    with Terminal.app(environment=environment, size=size) as terminal:
        terminal.wait_for_text(f"3 Train · {run.id}")
        terminal.wait_for(lambda: shown_step(terminal) > at_kill, PATIENCE)
        terminal.press("3")
        terminal.press("e7e-5\t5000\r")
        terminal.wait_for_text("changed on request: learning rate 7e-5, evaluation every 5000 steps", PATIENCE)
        assert read_history(run).settings == {"train.learning_rate": 7e-5, "eval.every_steps": 5000}
        terminal.hang_up()
        terminal.wait_for_end()
    at_hang_up = recorded_step(run)
    wait_for(lambda: recorded_step(run) > at_hang_up + 5, PATIENCE, "the run to go on without a terminal")

    with Terminal.app(environment=environment, size=size) as terminal:
        terminal.wait_for_text(f"3 Train · {run.id}")
        terminal.press("3")
        terminal.press("p")
        wait_for(lambda: run.state().state == "paused", PATIENCE, "the pause")
        terminal.wait_for_text("paused")
        terminal.press("p")
        wait_for(lambda: run.state().state == "training", PATIENCE, "the run to go on")
        terminal.press("q")
        terminal.wait_for_text("leave it running")
        answer(terminal, "x", "leave it running")
        assert terminal.wait_for_end(PATIENCE) == 0
        assert f"localtune-tui continue {run.id}".encode() in terminal.output
    ended = launcher.wait_until(run, lambda state: state.state == "stopped", PATIENCE)
    assert (run.checkpoints_path / f"step-{ended.step:08d}" / "manifest.json").is_file()


@pytest.mark.long
def test_no_controls_of_a_hostile_row_reach_the_terminal(workers: Workers, environment: dict[str, str]) -> None:
    hostile = workers.directory / "hostile.jsonl"
    turns = [{"role": "user", "content": f"visible {HOSTILE}"}, {"role": "assistant", "content": f"answer {HOSTILE}"}]
    hostile.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(3)))
    config = workers.directory / "hostile.toml"
    config.write_text(f'data.train = "{hostile}"\nmodel.base = "{workers.model}"\n')
    with Terminal.app(str(config), environment=environment, size=(120, 34)) as terminal:
        terminal.wait_for_text("hostile.toml")
        terminal.press("1")
        terminal.wait_for_text("visible a")
        # Where the line breaks between the two depends on how wide the columns of the tokens have become.
        terminal.wait_for(lambda: "[/]i" in terminal.text and "[bold]j" in terminal.text)
        terminal.press("jjk")
        terminal.press("q")
        terminal.wait_for_end()
        shown = terminal.output
    for sequence in ACTED_ON:
        assert sequence not in shown
