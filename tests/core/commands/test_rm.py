"""``rm``: shows the runs, asks, and deletes no others."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from core.runs.record.state import RunState, own_identity
from core.runs.record.store import Run, create_run, list_runs
from tests.cases import cases
from tests.core.runs.helpers import config_for

from .conftest import CommandLine


class Keyboard(io.StringIO):
    """A terminal at which someone has typed."""

    def isatty(self) -> bool:
        return True


def ended(cli: CommandLine, name: str, state: str = "finished") -> Run:
    run = create_run(config_for(cli.home), name)
    RunState(state=state, step=3, total_steps=10, updated=time.time()).write(run.state_path)
    return run


def test_nothing_goes_without_a_terminal_and_without_yes(cli: CommandLine) -> None:
    run = ended(cli, "tickets")
    result = cli("rm", "latest")
    assert (result.code, result.out) == (1, "")
    assert run.id in result.err
    assert "kB" in result.err
    assert "Add --yes" in result.err
    assert list_runs() == [run]


@cases(("typed", "code", "left"), [("y\n", 0, 0), ("yes\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1), ("", 1, 1)])
def test_a_question_is_asked_at_a_terminal(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, left: int
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    ended(cli, "tickets")
    monkeypatch.setattr("sys.stdin", Keyboard(typed))
    result = cli("rm", "tickets")
    assert (result.code, len(list_runs())) == (code, left)
    assert "[y/N]" in result.err


def test_several_runs_each_once(cli: CommandLine) -> None:
    first, second, third = (ended(cli, name) for name in ("first", "second", "third"))
    result = cli("rm", "first", first.id, str(second.path), "--yes", "--json")
    assert result.code == 0
    assert {entry["run"] for entry in result.json["removed"]} == {first.id, second.id}
    assert result.json["bytes"] == sum(entry["bytes"] for entry in result.json["removed"]) > 0
    assert result.json["left"] == []
    assert list_runs() == [third]


def test_the_failed_ones(cli: CommandLine) -> None:
    kept = [ended(cli, "good"), ended(cli, "halted", "stopped")]
    for name in ("one", "two"):
        ended(cli, name, "failed")
    assert cli("rm", "--failed", "--yes").code == 0
    assert {run.id for run in list_runs()} == {run.id for run in kept}
    result = cli("rm", "--failed")
    assert (result.code, result.out) == (0, "No run has failed; nothing deleted.\n")


def test_what_is_deleted_can_be_had_back_until_the_trash_is_emptied(cli: CommandLine) -> None:
    run = ended(cli, "tickets")
    result = cli("rm", "tickets", "--yes")
    assert "Moved to the trash: 1 run, " in result.out
    assert "'localtune-tui trash empty' frees " in result.out
    assert "Free on this disk: " in result.out
    listed = cli("trash", "list", "--json").json
    assert [entry["run"] for entry in listed["runs"]] == [run.id]
    assert listed["bytes"] == listed["runs"][0]["bytes"] > 0
    assert run.id in cli("trash", "list").out
    assert cli("trash").out == cli("trash", "list").out
    assert cli("trash", "--json").json["runs"] == listed["runs"]
    assert cli("trash", "restore", "tickets", "--json").json == {"restored": [run.id], "left": []}
    assert list_runs() == [run]
    cli("rm", "tickets", "--yes")
    refused = cli("trash", "empty")
    assert (refused.code, "Add --yes" in refused.err) == (1, True)
    emptied = cli("trash", "empty", "--yes", "--json").json
    assert (emptied["removed"], emptied["left"]) == ([run.id], [])
    assert emptied["bytes"] == listed["bytes"]
    assert "The trash is empty" in cli("trash", "empty").out
    assert cli("trash", "restore").code == 1
    assert "There is no run called tickets in the trash." in cli("trash", "restore", "tickets").err
    ended(cli, "other")
    assert cli("rm", "other", "--now", "--yes").out.startswith("Deleted 1 run, ")
    assert cli("trash", "list", "--json").json["runs"] == list_runs() == []


def test_one_live_run_among_them_keeps_all(cli: CommandLine) -> None:
    ended(cli, "good")
    pid, started = own_identity()
    live = create_run(config_for(cli.home), "live")
    RunState(state="training", pid=pid, pid_started=started, updated=time.time()).write(live.state_path)
    result = cli("rm", "good", "live", "--yes")
    assert result.code == 1
    # The process of the tests is no worker that could be ended with this one.
    RunState(state="stopped", updated=time.time()).write(live.state_path)
    assert f"Stop it first with 'localtune-tui stop {live.id}'" in result.err
    assert len(list_runs()) == 2


def test_what_cannot_be_deleted_is_reported_and_the_others_go(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ended(cli, "first"), ended(cli, "second")
    rename = os.rename

    def refuse(source: str, target: str) -> None:
        if os.fspath(source) == str(first.path):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    result = cli("rm", "first", "second", "--yes", "--json")
    assert result.code == 1
    assert [entry["run"] for entry in result.json["removed"]] == [second.id]
    assert result.json["left"][0]["run"] == first.id
    assert list_runs() == [first]


def test_names_of_no_run_are_refused_and_a_mistyped_one_is_guessed(cli: CommandLine) -> None:
    run = ended(cli, "tickets")
    for words, said in (((), "No run is named."), (("nothing",), "There is no run called nothing.")):
        cli.refused(said, "rm", *words, "--yes")
    assert list_runs() == [run]
    assert f"Did you mean {run.id}?" in cli("watch", "tikets").err
    assert f"Did you mean {run.id}?" in cli("watch", f"{run.id[:-1]}x").err
