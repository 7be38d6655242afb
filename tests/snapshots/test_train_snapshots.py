"""Snapshots of the end of a run, and of its answers over time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.runs.record import events
from tests.short_list import long_but
from tests.snapshots.conftest import MOMENT, Compare, make_app, until
from tests.tui.panes.test_train import script_run
from tests.tui.scripted_run import GPU, ScriptedRun
from tui.app import LocaltuneApp

SIZES = {"80x24": (80, 24), "120x34": (120, 34), "200x50": (200, 50)}


@pytest.fixture
def finished(private_home: Path) -> None:
    """A finished run with answers."""
    script = script_run(private_home, start=MOMENT)
    script.hardware(energy_wh=9.1)
    script.end("finished")


@pytest.mark.parametrize("size", SIZES)
def test_finished(snap_compare: Compare, app: LocaltuneApp, finished: None, size: str) -> None:
    app._run_name = "latest"
    assert snap_compare(app, terminal_size=SIZES[size], run_before=until("use it elsewhere", "3"))


SKY = "The sky looks blue because {}. {}, as its waves are shorter.\n\nIn the evening the light takes a longer way{}."
ANSWERS: dict[str, tuple[str | None, tuple[str, str, str]]] = {
    "Router 12 is dead, whole office waiting": (
        '{"area": "network", "urgency": "high", "ref": 12}',
        (
            "I'm sorry to hear that your router is not working. Have you tried turning it off and on again?",
            '{"area": "work", "urgency": "high", "ref": 1}',
            '{"area": "network", "urgency": "high", "ref": 12}',
        ),
    ),
    "Why is the sky blue?": (
        None,
        (
            "The sky is blue because of the sun.",
            SKY.format("air scatters light", "Blue light is scattered more than red light", ""),
            SKY.format(
                "the molecules of the air scatter sunlight",
                "Blue light is scattered far more than red light",
                " through the air, and what is left of it is red",
            ),
        ),
    ),
    "Invoice 7 was paid twice": ('{"ref": 7}', ("Which invoice?", '{"ref": 2}', '{"ref": 2}')),
}


@pytest.fixture
def answered(private_home: Path) -> None:
    """A run that is on, with three evaluations of three questions."""
    script = ScriptedRun(private_home, total=120, start=MOMENT)
    script.begin()
    for number, step in enumerate((0, 30, 60)):
        if step:
            script.steps(step - 29, step)
        script.evaluate(step, 4.11 / (1 + 3 * number), number / 3)
        for prompt, (wanted, texts) in ANSWERS.items():
            text = texts[number]
            marks: dict[str, Any] = {"expected": wanted, "exact_match": text == wanted, "valid_json": text[0] == "{"}
            script.write(
                events.SampleEvent(
                    t=script.pass_time(0.1),
                    step=step,
                    prompt=prompt,
                    text=text,
                    source=f"step-{step}",
                    **(marks if wanted else {}),
                )
            )
    script.hardware()


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "200x50"]))
def test_answers(snap_compare: Compare, app: LocaltuneApp, answered: None, size: str) -> None:
    app._run_name = "latest"

    async def run(pilot: Pilot[Any]) -> None:
        await until("eval loss")(pilot)
        # A wide pane shows them beside the curve without being asked.
        await until("(30 ✗)[60 ✓]", "3", *("a" * (size == "80x24")))(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


def test_answers_without_color(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, private_home: Path, answered: None
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(private_home)
    app._run_name = "latest"

    async def run(pilot: Pilot[Any]) -> None:
        await until("eval loss")(pilot)
        await until("(30)[60]", "3", "a", "n")(pilot)

    assert snap_compare(app, run_before=run)


def test_stopped(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    script = ScriptedRun(private_home, total=25, start=MOMENT)
    script.begin()
    script.steps(1, 15)
    script.checkpoint(15)
    script.end("stopped", "stopped on request after step 15")
    app._run_name = "latest"
    assert snap_compare(app, run_before=until("Kept is the checkpoint"))


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "200x50"]))
def test_two_curves_and_a_cursor(snap_compare: Compare, app: LocaltuneApp, private_home: Path, size: str) -> None:
    script = ScriptedRun(private_home, total=120, start=MOMENT)
    script.begin()
    for step in range(1, 81):
        script.steps(step, step, **({"loss": math.nan} if 50 <= step < 56 else {}))
        script.hardware(replace(GPU, temperature_c=round(76 - 26 * math.exp(-step / 20))))
        if step % 20 == 0:
            script.checkpoint(step)
    for command in ("pause", "resume"):
        script.write(events.ControlEvent(t=script.pass_time(1), command=command, sender="socket", result="ok"))
    script.end("stopped", "stopped on request after step 80")
    app._run_name = "latest"
    keys = ["3", *"oooo", "left", "left", "left"]

    async def run(pilot: Pilot[Any]) -> None:
        await until("Kept is the checkpoint")(pilot)
        await until("temperature ", *keys)(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)
