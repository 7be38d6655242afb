"""``label``: names, tags and notes of runs, and the lists that show them."""

from __future__ import annotations

import pytest

from core.runs.record.store import Labels, Run, create_run, read_labels
from tests.core.runs.helpers import config_for
from tests.tui.harness import FORBIDDEN, HOSTILE

from .conftest import CommandLine


@pytest.fixture
def runs(cli: CommandLine) -> list[Run]:
    return [create_run(config_for(cli.home), name) for name in ("first", "second")]


def test_labels_are_given_shown_and_taken_away(cli: CommandLine, runs: list[Run]) -> None:
    first, _ = runs
    result = cli("label", "first", "--name", "more data", "--tag", "keep", "--tag", "#v2", "--note", " best so far ")
    assert result.out == f"{first.id}  more data  #keep #v2  best so far\n"
    assert read_labels(first.path) == Labels("more data", ("keep", "v2"), "best so far")
    (shown,) = cli("label", "more data", "--json").json
    assert shown == {
        "run": first.id, "name": "more data", "tags": ["keep", "v2"], "note": "best so far", "archived": False,
        "result": None,
    }  # fmt: skip
    cli("label", "first", "--untag", "keep", "--note", "", "--name", "")
    assert read_labels(first.path) == Labels(tags=("v2",))


def test_archived_runs_are_listed_only_when_asked_for(cli: CommandLine, runs: list[Run]) -> None:
    first, second = runs
    cli("label", "first", "--archive", "--tag", "old")
    assert [row["id"] for row in cli("runs", "--json").json] == [second.id]
    assert {row["id"] for row in cli("runs", "--all", "--json").json} == {first.id, second.id}
    result = cli("runs", "--filter", "#old")
    assert (result.out, "1 of 2 are archived" in result.err) == ("", True)
    cli("label", "first", "--unarchive")
    (row,) = cli("runs", "--filter", "#old", "--json").json
    assert (row["tags"], row["archived"]) == (["old"], False)


def test_what_cannot_be_a_label_is_refused(cli: CommandLine, runs: list[Run]) -> None:
    for words, said in (
        (("first", "--tag", "x" * 40), "is no tag"),
        (("first", "--note", "x" * 3000), "The note has 3000 characters."),
        (("first", "second", "--name", "both"), "A name is for one run."),
        (("first", "--result", "85"), "has no adapter of its own."),
        (("nothing",), "There is no run called nothing."),
        (("first", "--tag", "keep", "--untag", "#keep"), "The tag keep is to be added and taken away."),
    ):
        cli.refused(said, "label", *words)
    assert all(read_labels(run.path) == Labels() for run in runs)
    cli("label", "first", "second", "--tag", "sweep")
    assert all(read_labels(run.path).tags == ("sweep",) for run in runs)


def test_hostile_labels_are_safe_to_show(cli: CommandLine, runs: list[Run]) -> None:
    cli("label", "first", "--name", HOSTILE.replace("\x00", ""), "--note", HOSTILE.replace("\x00", ""))
    for words in (("runs",), ("runs", "--json"), ("label", "first"), ("label", "first", "--json")):
        shown = cli(*words).out.replace("\n", "")
        assert shown
        assert not FORBIDDEN & set(shown), words


def test_the_list_is_sorted_and_has_units(cli: CommandLine) -> None:
    cli.train("short", steps=2)
    cli.train("long", steps=4, demo=True)
    for flags, wanted in (([], ["long", "short"]), (["--reverse"], ["short", "long"])):
        rows = cli("runs", "--sort", "step", *flags, "--json").json
        assert [row["id"].rpartition("-")[2] for row in rows] == wanted
    (row,) = cli("runs", "--filter", "long", "--json").json
    assert row["tokens_per_second"] == pytest.approx(200)
    assert all(row[name] > 0 for name in ("tokens", "working_seconds", "size"))
    assert (row["method"], row["data"]) == ("qlora", ["data.jsonl"])
    assert row["best_loss"] is not None
    heading, line = cli("runs", "--filter", "long").out.splitlines()
    assert heading.split()[:6] == ["RUN", "STATE", "STEP", "LOSS", "BEST", "SPEED"]
    assert " tok/s " in line
    assert " kB" in line
    assert cli("runs", "--sort", "beauty").code == 2
