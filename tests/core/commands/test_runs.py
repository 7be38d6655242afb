"""``runs``, ``watch``, ``pause``, ``resume``, ``checkpoint`` and ``stop`` with a scripted training process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import unicodedata
from pathlib import Path

import pytest

from core.runs.record.events import HardwareEvent, NoticeEvent, decode_event, encode_event
from core.runs.record.state import EventTail
from core.runs.record.store import complete_checkpoints, find_run, list_runs

from .conftest import CommandLine, wait_for
from .scripted_worker import LONG_STEP


def test_runs_lists_what_each_came_to(cli: CommandLine) -> None:
    assert cli("runs", "--json").json == []
    assert "no runs yet" in cli.ok("runs").err
    cli.train("first", steps=2, end="failed")
    cli.train("second", steps=4)
    rows = {row["id"].rpartition("-")[2]: row for row in cli("runs", "--json").json}
    assert (rows["second"]["state"], rows["second"]["step"], rows["second"]["total_steps"]) == ("finished", 4, 4)
    assert rows["second"]["loss"] == pytest.approx(0.25)
    assert (rows["first"]["state"], rows["first"]["loss"]) == ("failed", "NaN")
    assert rows["second"]["model"] == "smollm2-135m-instruct"
    assert rows["first"]["started"] <= rows["first"]["updated"]
    table = cli("runs").out.splitlines()
    assert len(table) == 3
    assert "4/4" in table[1] + table[2]
    assert "NaN" in table[1] + table[2]
    damaged = find_run("second")
    damaged.config_path.write_text("= nonsense")
    damaged.state_path.write_text("{")
    row = next(row for row in cli("runs", "--json").json if row["id"] == damaged.id)
    assert (row["state"], row["model"], row["step"]) == ("lost", None, 4)


def test_hostile_texts_of_a_run_stay_texts(cli: CommandLine) -> None:
    hostile = "\x1b]52;c;eA==\x07\x9b31m\u202e\x00[/]"
    run = cli.train()
    state = json.loads(run.state_path.read_bytes())
    run.state_path.write_text(json.dumps({**state, "state": "failed", "reason": hostile}))
    with run.events_path.open("a") as file:
        file.write(encode_event(NoticeEvent(t=1.0, level="info", code="", message=hostile)))
    foreign = run.path.with_name(f"x{hostile[:-1].replace(chr(0), '').replace('/', '')}")
    run.path.rename(foreign)
    named = [[command, str(foreign)] for command in ("watch", "stop", "continue")]
    for words in (["runs"], ["runs", "--json"], *named, [*named[0], "--json"]):
        result = cli(*words)
        shown = (result.out + result.err).replace("\n", "")
        assert shown
        assert not [letter for letter in shown if unicodedata.category(letter) == "Cc" or letter == "\u202e"], words
    assert json.loads(cli("watch", str(foreign), "--json").out.splitlines()[-1])["message"] == hostile


def test_stop_reaches_a_run_that_was_started_just_now(cli: CommandLine) -> None:
    cli.script(steps=10_000, pace=0.02, delay=1.0)
    run = find_run(cli("train", str(cli.config()), "--detach").out.strip())
    assert run.state().state == "queued"
    assert cli("stop", run.id, "--timeout", "20").code == 0
    assert run.state().state == "stopped"


def test_watch_prints_events_as_json_lines_or_a_log_that_is_safe(cli: CommandLine) -> None:
    cli.train(steps=3, demo=True)
    result = cli.ok("watch", "latest", "--json")
    types = [event.type for event in map(decode_event, result.out.splitlines()) if event]
    assert [kind for kind in types if kind in ("step", "finished")] == ["step"] * 3 + ["finished"]
    assert '"loss": "NaN"' in result.out
    result = cli("watch", "latest")
    assert "step 2/3  loss NaN" in result.out
    assert 'base to "ticket 0": base says 0' in result.out
    assert "\x1b" not in result.out
    lines = result.out.splitlines()
    steps = [number for number, line in enumerate(lines) if " step " in line]
    warning = next(number for number, line in enumerate(lines) if "warning:" in line)
    assert steps[0] < warning < steps[1]
    cli.train(end="failed")
    assert cli("watch", "latest", "--json").code == 4


def test_ctrl_c_in_watch_only_detaches(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    process = cli.spawn("watch", run.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"watch {run.id}".encode() in err
    step = run.state().step
    wait_for(lambda: run.state().step > step, "the run to go on")


def test_nobody_reads_any_more(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.01)
    process = cli.spawn("watch", run.id, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_pause_resume_checkpoint_stop(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    paused = cli("pause", run.id, "--json").json
    assert (paused["run"], paused["state"]) == (run.id, "paused")
    assert cli("checkpoint", run.id, "--json").json["checkpoint"].startswith("checkpoints/step-")
    assert cli("resume", run.id, "--json").json["state"] == "training"
    wait_for(lambda: run.state().step > paused["step"], "the run to go on")
    stopped = cli("stop", run.id)
    assert stopped.code == 0
    assert "stopped" in stopped.out
    assert f"continue {run.id}" in stopped.out
    assert run.state().state == "stopped"


def test_stop_signals_a_worker_that_does_not_listen(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02, deaf=True)
    result = cli("stop", run.id, "--json")
    assert (result.code, result.json["state"]) == (0, "stopped")
    assert "signal" in result.err


def test_set_changes_options_of_a_live_run(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    result = cli.ok("set", run.id, "train.learning_rate=1e-5", "eval.every_steps = 7", "--json")
    assert result.json["set"] == {"train.learning_rate": "1e-5", "eval.every_steps": "7"}
    assert "eval.every_steps = 9 after step" in cli("set", run.id, "eval.every_steps=9").out
    assert cli("set", run.id, "eval.every_steps=none", "--json").json["set"] == {"eval.every_steps": None}
    for wrong in ("eval.every_steps", "=3", "eval.every_steps="):
        cli.refused("is no change", "set", run.id, wrong)


def test_stop_by_force_says_what_is_lost_kills_and_records_it(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    assert cli("checkpoint", run.id).code == 0
    saved = int(complete_checkpoints(run)[-1].name.removeprefix("step-"))
    state = run.state()
    assert state.pid is not None
    os.kill(state.pid, signal.SIGSTOP)
    with run.events_path.open("a") as file:
        file.write('{"half a li')
    cli.refused(f"stop --force {run.id}", "stop", run.id, "--timeout", "0.5", lines=cli.ANY)
    result = cli("stop", run.id, "--force", "--json")
    assert (result.code, result.json["state"]) == (0, "stopped")
    assert f"process {state.pid} of {run.id} is killed" in result.err
    assert f"what it did after step {saved} is lost" in result.err
    *_, control, end = EventTail(run.events_path).read_all()
    assert (control.type, end.type) == ("control", "stopped")
    assert "stopped by SIGKILL" in cli("watch", run.id).out
    assert cli("stop", run.id, "--force").code == 1


def test_commands_to_an_ended_run_are_refused(cli: CommandLine) -> None:
    cli.train()
    for command in ("pause", "resume", "checkpoint", "stop"):
        cli.refused("is finished", command, "latest", "--json")
    unknown = "localtune-tui: There is no run called nothing-like-it. 'localtune-tui runs' lists them.\n"
    assert cli.refused("no run called", "watch", "nothing-like-it").err == unknown


@pytest.mark.long
def test_a_pause_that_takes_too_long_says_so(cli: CommandLine) -> None:
    run = cli.start(steps=5, pace=60)
    wait_for((run.path / LONG_STEP).exists, "the worker to be in its step")
    result = cli("pause", run.id, "--timeout", "2")
    assert result.code == 1
    assert "2 s" in result.err


def test_demo_reports_before_and_after(cli: CommandLine) -> None:
    cli.script(steps=3, demo=True)
    found = cli.ok("demo", "--json").json
    assert found["run"] == find_run("latest").id
    assert found["before"] == {"exact_match": 0.0, "valid_json": 0.0, "n": 60}
    assert found["after"] == {"exact_match": 0.9, "valid_json": 0.9, "n": 60}
    assert {"importing", "training", "evaluating"} <= found["phases"].keys()
    assert all(seconds >= 0 for seconds in found["phases"].values())
    assert found["tokens_per_second"] == pytest.approx(200)
    assert found["peak_rss_bytes"] > 0
    assert Path(found["adapter"]).parent.name == found["run"]
    out = cli("demo").out
    assert out.count("ticket    ticket ") == 3
    assert "before  base says 0" in out
    assert "after   step-3 says 0" in out
    assert "90%" in out


def test_demo_joins_the_sample_run_that_is_on(cli: CommandLine) -> None:
    cli.script(steps=60, pace=0.05, demo=True)
    first = cli.spawn("demo", "--json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(Path(os.environ["LOCALTUNE_HOME"]).glob("runs/*/state.json"))) == 1, "the first run")
    result = cli("demo", "--json")
    out, _ = first.communicate(timeout=30)
    assert result.json["run"] == json.loads(out)["run"]
    assert "joining" in result.err


def test_the_list_has_what_the_energy_costs_by_the_runs_own_tariff(cli: CommandLine) -> None:
    cli.train("with", "--set", "hardware.tariff=0.5", "--set", "hardware.currency=EUR")
    cli.train("without")
    assert "COST" not in cli("runs").out, "no device has told its energy"
    for run in list_runs():
        with run.events_path.open("a", encoding="utf-8") as file:
            for t in (1.0, 2.0):
                file.write(encode_event(HardwareEvent(t=4e9 + t, devices=[], energy_wh=640.0)))
    rows = {row["id"].rpartition("-")[2]: row for row in cli("runs", "--json").json}
    assert (rows["with"]["energy_wh"], rows["with"]["cost"], rows["with"]["currency"]) == (640.0, 0.32, "EUR")
    assert (rows["without"]["cost"], rows["without"]["currency"]) == (None, "")
    heading, *lines = cli("runs").out.splitlines()
    assert "COST" in heading
    assert ["0.32 EUR" in line for line in lines] == [line.split()[0].endswith("-with") for line in lines]
