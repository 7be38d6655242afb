"""``status``: one line of a run, and metrics of all live ones; ``watch --plain``."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from core.commands.status import exposition, status_line
from core.runs.catalog.rows import live_runs, read_status
from core.runs.record.events import EvalEvent, HardwareEvent, PhaseEvent, RanksEvent, encode_event
from core.runs.record.state import Rank, RunState, hostname, own_identity, write_ranks
from core.runs.record.store import Labels, Run, create_run, write_labels
from tests.cases import cases
from tests.core.runs.helpers import config_for

from .conftest import CommandLine, a_step

DEVICE = {
    "index": 0, "kind": "cuda", "name": 'RTX "4090"\\', "temperature_c": 71.4, "memory_used": 18_200_000_000,
    "memory_total": 24_000_000_000, "utilization": 98.0, "power_w": 312.0,
}  # fmt: skip
#: A line of the text format: name, labels with escapes, number.
_SAMPLE = re.compile(
    r'(localtune_\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (NaN|[+-]Inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)'
)


@pytest.fixture
def live(cli: CommandLine) -> Iterator[Run]:
    """A run whose process is that of the tests."""
    run = create_run(config_for(cli.home), "tickets")
    now = time.time()
    events = [PhaseEvent(t=now - 60, name="importing"), PhaseEvent(t=now - 50, name="training")]
    steps = [a_step(step, t=now - 40 + step, loss=2.0 / step, tokens_per_second=318.0) for step in range(1, 35)]
    more = [
        EvalEvent(t=now - 5, step=30, loss=0.455, perplexity=1.5, seconds=1.0),
        HardwareEvent(t=now - 4, devices=[DEVICE], energy_wh=1.94),
    ]
    run.events_path.write_text("".join(map(encode_event, [*events, *steps, *more])), encoding="utf-8")
    write_state(run, "training")
    yield run
    # The process of the tests is no worker that could be ended with the home.
    RunState(state="stopped", updated=now).write(run.state_path)


def write_state(run: Run, state: str, **fields: Any) -> None:
    """The run is in a state at step 34 of 120, and its process is that of the tests."""
    pid, started = own_identity()
    whole = {"pid": pid, "pid_started": started, "host": hostname(), "step": 34, "total_steps": 120}
    RunState(state=state, updated=time.time(), **{**whole, **fields}).write(run.state_path)


def test_a_line_for_a_status_bar_and_its_figures_as_json(cli: CommandLine, live: Run) -> None:
    line = cli("status", "--width", "200").out
    identity = live.id.partition("-")[2]
    assert line.startswith(f"training 34/120 28%  {identity}  loss 0.0588  eval 0.455  318 tok/s  ETA ")
    assert line.endswith("71 °C  18.2 GB of 24.0 GB  1.9 Wh\n")
    status = cli("status", "--json").json
    assert (status["run"], status["state"], status["step"], status["total_steps"]) == (live.id, "training", 34, 120)
    assert (status["eval_loss"], status["tokens_per_second"], status["energy_wh"]) == (0.455, 318.0, 1.94)
    assert 0 < status["remaining_seconds"] < 1000
    assert status["devices"][0]["temperature_c"] == 71.4
    write_labels(live.path, Labels(name="more data"))
    assert "  more data  " in cli("status", "latest", "--width", "200").out


@cases("width", [5, 20, 40, 60, 80, 120])
def test_the_line_is_never_wider_and_no_part_is_cut(live: Run, width: int) -> None:
    status = read_status(live, time.time())
    whole = status_line(status, 500).split("  ")
    line = status_line(status, width)
    assert len(line) <= width
    if width >= 20:
        assert set(line.split("  ")) <= set(whole)
        assert line.startswith("training 34/120 28%")
    assert ("ETA" in line) == (width >= 40)


def test_the_processes_of_a_run_and_one_that_is_silent(cli: CommandLine, live: Run) -> None:
    now = time.time()
    ranks = [Rank(rank=0, host="head", pid=1, device="cpu", heard=now), Rank(rank=1, host="tower", heard=now - 20)]
    with live.events_path.open("a") as file:
        file.write(encode_event(RanksEvent(ranks=[rank.to_dict() for rank in ranks])))
    write_ranks(live.path, ranks)
    shown = cli("status", live.id, "--json").json["ranks"]
    assert [(rank["rank"], rank["host"], rank["pid"], rank["heard"]) for rank in shown] == [
        (0, "head", 1, now),
        (1, "tower", None, now - 20),
    ]
    assert "no sign of life for 20s: 1 on tower" in status_line(read_status(live, now), 80)


def test_a_bar_without_runs_stays_empty(cli: CommandLine) -> None:
    assert cli("status").out == ""
    assert (cli("status").code, cli("status", "nothing").code) == (0, 1)
    assert cli("status", "--prometheus").out.splitlines()[-1] == "localtune_live_runs 0"


def test_a_run_that_waits_for_a_process_does_not_hide_the_one_that_trains(cli: CommandLine, live: Run) -> None:
    waiting = create_run(config_for(cli.home), "zzz")
    assert [run.id for run in live_runs()] == [waiting.id, live.id]
    assert cli("status").out.startswith("training 34/120")
    write_state(live, "finished", total_steps=34)
    assert cli("status").out.startswith("queued")


def test_a_parked_run_is_called_so_and_an_ended_one_has_no_time_left(cli: CommandLine, live: Run) -> None:
    write_state(live, "paused", parked="on request")
    assert cli("status").out.startswith("parked 34/120")
    assert "parked" in cli("runs").out.splitlines()[1]
    write_state(live, "finished", total_steps=34)
    assert "ETA" not in cli("status").out
    assert cli("status").out.startswith("finished 34/34 100%")
    assert live_runs() == []


def test_metrics_are_in_the_text_format(cli: CommandLine, live: Run) -> None:
    write_labels(live.path, Labels(name='a "b" \\c'))
    text = cli("status", "--prometheus").out
    assert text.endswith("\n")
    values: dict[str, float] = {}
    declared: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            assert len(line.split(" ", 3)) == 4
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in declared
            declared[name] = kind
        else:
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found[1] in declared
            values[found[1]] = float(found[3])
    assert values["localtune_live_runs"] == 1
    assert values["localtune_run_step"] == 34
    assert values["localtune_run_steps"] == 120
    assert values["localtune_run_energy_joules_total"] == pytest.approx(1.94 * 3600)
    assert declared["localtune_run_energy_joules_total"] == "counter"
    assert values["localtune_device_utilization_ratio"] == pytest.approx(0.98)
    assert values["localtune_device_memory_used_bytes"] == 18_200_000_000
    assert f'run="{live.id}"' in text
    assert 'display_name="a \\"b\\" \\\\c"' in text
    assert 'name="RTX \\"4090\\"\\\\"' in text
    # Values that the device does not report have no line.
    assert "localtune_device_fan_ratio" not in text


def test_a_loss_that_is_no_number_is_one_of_the_format(live: Run) -> None:
    with live.events_path.open("a") as file:
        file.write(encode_event(a_step(35, loss=math.nan, grad_norm=math.inf)))
    text = exposition([read_status(live, time.time())])
    assert f'localtune_run_loss{{run="{live.id}"}} NaN\n' in text
    assert f'localtune_run_gradient_norm{{run="{live.id}"}} +Inf\n' in text


def test_plain_lines_have_no_control_characters_on_a_terminal(cli: CommandLine) -> None:
    cli.script(steps=3, demo=True)
    cli("train", str(cli.config()))
    for words, term in ((["--plain"], "xterm-256color"), ([], "dumb")):
        with cli.terminal("watch", "latest", *words, TERM=term) as terminal:
            assert terminal.wait_for_end() == 0
        shown = terminal.output
        assert b"\x1b" not in shown
        assert b"step 2/3" in shown
        # A carriage return is only that of the end of a line.
        assert re.search(rb"\r(?!\n)", shown.replace(b"\r\r\n", b"\r\n")) is None
