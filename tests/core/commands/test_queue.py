"""``queue`` and ``notify``: the command lines, with a model that is only described."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.commands.starting import tell_total
from core.hardware.snapshot import Device
from core.queue import status, store
from core.queue.estimate import total_of
from core.queue.unit import unit_path
from core.runs.outlook.estimate import EarlyEnd, Estimate, NoEstimate
from core.runs.record.events import EvalEvent, encode_event
from core.runs.record.store import create_run
from core.units import format_duration
from tests.cases import cases, tables
from tests.core.models.architecture import published
from tests.core.queue.helpers import add, states

from .conftest import CommandLine, a_step, record_run

TABLES = tables(__file__)
CUT = EarlyEnd("train.max_hours", 6.0, 1200, 3000)
CARD = Device(index=0, kind="cuda", name="NVIDIA GeForce RTX 4090", memory_total=24_000_000_000, power_limit_w=450.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that may be added."""
    monkeypatch.setattr("core.commands.train.check_model", lambda _: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    path = tmp_path / "faq.toml"
    path.write_text('[data]\ntrain = "rows.jsonl"\n[hardware]\ndevice = "cpu"\n')
    return path


def test_a_run_is_added_with_its_configuration_as_it_is_now(cli: CommandLine, config: Path) -> None:
    result = cli("queue", "add", str(config), "--set", "method.rank=32", "--json")
    unknown = dict.fromkeys(("seconds_expected", "watt_hours_expected", "expected_by", "early_end"))
    assert result.json == {"entry": 1, "state": "waiting", "runner": False, **unknown}
    assert (
        "1 run; how long it takes is not known, as no earlier run has this model, method and device, and " in result.err
    )
    assert "queue start" in result.err
    config.unlink()
    entry = store.read_queue().entry(1)
    assert store.read_entry_config(entry).method.rank == 32
    assert (entry.name, entry.overrides, entry.source) == ("faq", ("method.rank=32",), str(config))
    assert cli("queue", "add", str(config)).code == 1


def test_a_preset_and_what_the_check_may_find_are_taken_as_train_takes_them(cli: CommandLine, config: Path) -> None:
    result = cli.ok("queue", "add", str(config), "--preset", "cpu-small", "--allow", "stop_untrained", "--json")
    assert "preset cpu-small" in result.err
    kept = store.read_entry_config(store.read_queue().entry(1))
    assert kept.data.allow == ["stop_untrained"]
    assert kept.train.max_length != type(kept.train)().max_length, "the preset says it"
    assert cli("queue", "add", str(config), "--preset", "nothing-like-it").code == 1


def test_what_would_be_refused_at_its_start_is_not_added(cli: CommandLine, config: Path) -> None:
    assert cli("queue", "add", str(config), "--set", "train.batch_size=0").code == 1
    (config.parent / "rows.jsonl").unlink()
    assert "rows.jsonl" in cli("queue", "add", str(config)).err
    assert store.read_queue().entries == ()


def test_entries_are_held_released_moved_removed_and_cleared(cli: CommandLine, config: Path) -> None:
    add("a", "b", "c")
    assert cli("queue", "hold", "2", "--json").json == {"entry": 2, "state": "held", "place": 2}
    assert cli("queue", "release", "2").out == "2: waiting, place 2\n"
    assert cli("queue", "move", "3").out == "3: waiting, place 1\n"
    assert cli("queue", "move", "3", "9", "--json").json["place"] == 3
    assert cli("queue", "remove", "1").out == "1: removed\n"
    assert states() == {1: "removed", 2: "waiting", 3: "waiting"}
    cli.refused("Entry 2 is waiting already.", "queue", "release", "2")
    store.change(lambda queue: queue.with_entry(queue.entry(2).moved("skipped")))
    assert cli("queue", "clear", "--json").json == {"cleared": 1}
    assert states() == {3: "waiting"}


def test_the_list_has_what_waits_in_order(cli: CommandLine, config: Path) -> None:
    assert "The queue is empty" in cli("queue").err
    add("a", "b")
    lines = cli("queue", "list").out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["1", "waiting", "a"], ["2", "waiting", "b"]]
    listed = cli("queue", "--json").json
    assert listed["runner"] is None
    assert [entry["place"] for entry in listed["entries"]] == [1, 2]


def test_a_sweep_asks_and_adds_every_combination(cli: CommandLine, config: Path) -> None:
    over = ("--over", "train.learning_rate=1e-4,2e-4", "--over", "method.rank=8,16,32")
    refused = cli("queue", "sweep", str(config), *over)
    assert refused.code == 1
    assert "--yes" in refused.err
    assert "6 runs; how long they take is not known" in refused.err
    assert store.read_queue().entries == ()
    result = cli("queue", "sweep", str(config), *over, "--yes", "--json")
    assert result.json["entries"] == [1, 2, 3, 4, 5, 6]
    assert result.json["seconds_expected"] is None
    entries = store.read_queue().of_sweep("s1")
    assert [dict(entry.values) for entry in entries][:2] == [
        {"train.learning_rate": 1e-4, "method.rank": 8},
        {"train.learning_rate": 1e-4, "method.rank": 16},
    ]
    assert store.read_entry_config(entries[-1]).method.rank == 32
    some = cli("queue", "sweep", str(config), *over, "--random", "2", "--yes", "--json").json
    assert (some["sweep"], len(some["entries"])) == ("s2", 2)


@pytest.fixture
def on_a_card(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration with a card that is only described, and a model of 8 billion parameters that had no run."""
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CARD])
    monkeypatch.setattr("core.hardware.torch_check.obstacle_here", lambda _gpu: None)
    (config.parent / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    model = f'[model]\nbase = "{config.parent}"\n[train]\nmax_length = 512\n'
    config.write_text(config.read_text().replace('"cpu"', '"auto"') + model)
    return config


def test_the_first_runs_of_a_model_are_estimated_by_the_plan(
    cli: CommandLine, on_a_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = cli("queue", "add", str(on_a_card), "--json")
    alone = added.json["seconds_expected"]
    assert added.json["watt_hours_expected"] == pytest.approx(alone * 450 / 3600)
    assert added.json["expected_by"] == "plan"
    assumed = "(no run of this kind yet; rows of 512 tokens assumed), at most about 1 Wh by the power limit."
    assert f"1 run; about {format_duration(alone)} of steps by the plan {assumed}" in added.err
    over = ("--over", "train.learning_rate=1e-4,2e-4", "--over", "train.epochs=1,3", "--yes")
    result = cli("queue", "sweep", str(on_a_card), *over, "--json")
    assert result.json["expected_by"] == "plan"
    assert result.json["seconds_expected"] == pytest.approx(8 * alone)
    assert f"4 runs; about {format_duration(8 * alone)} of steps by the plan (no run of this kind yet" in result.err
    listed = cli("queue", "--json").json
    assert [entry["expected_by"] for entry in listed["entries"]] == ["plan"] * 5
    shown = cli("queue")
    assert re.search(r"epochs 3 +– +\d\d-\d\d \d\d:\d\d +~\d\d-\d\d \d\d:\d\d\*", shown.out)
    assert "* time from the plan, as there is no run of this kind yet" in shown.err
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [replace(CARD, power_limit_w=None)])
    added = cli("queue", "add", str(on_a_card), "--json")
    assert (added.json["seconds_expected"] > 0, added.json["watt_hours_expected"]) == (True, None)
    assert "energy not known, as the device tells no power limit." in added.err


@cases(("found", "said"), TABLES["what_runs_take"])
def test_what_runs_take_is_reported_with_its_basis(found: list[list[Any] | str], said: str) -> None:
    """Estimates are watt-hours, run, basis, and true where a limit ends the run early; a text is no estimate."""
    estimates: list[Estimate | NoEstimate] = []
    for row in found:
        if isinstance(row, str):
            estimates.append(NoEstimate(row))
        else:
            watt_hours, run, by, *cut = row
            estimates.append(Estimate(60.0, 5, watt_hours, run, by, early_end=CUT if cut else None))
    assert tell_total(len(estimates), total_of(estimates)).endswith(said)


@cases(("over", "said"), TABLES["a_sweep_that_makes_no_sense_adds_nothing"])
def test_a_sweep_that_makes_no_sense_adds_nothing(cli: CommandLine, config: Path, over: str, said: str) -> None:
    cli.refused(said, "queue", "sweep", str(config), "--over", over, "--yes")
    assert store.read_queue().entries == ()


def test_results_mark_the_lowest_held_out_loss(cli: CommandLine, config: Path) -> None:
    cli("queue", "sweep", str(config), "--over", "method.rank=8,16,32", "--yes")
    losses = {1: [2.0, 1.5, 1.7], 2: [2.1, 1.9]}
    for number, values in losses.items():
        entry = store.read_queue().entry(number)
        run = create_run(store.read_entry_config(entry), entry.name)
        events = [
            a_step(1, t=1.0, loss=3.0, seconds=2.0),
            *(EvalEvent(t=2.0, step=n, loss=v, perplexity=v, seconds=1.0) for n, v in enumerate([0.1, *values])),
        ]
        run.events_path.write_text("".join(encode_event(event) + "\n" for event in events))
        store.change(lambda queue, e=entry, r=run: queue.with_entry(e.moved("starting", run=r.id)))  # type: ignore[misc]
    variants = cli("queue", "results", "s1", "--json").json["variants"]
    assert [row["best_eval_loss"] for row in variants] == [1.5, 1.9, None]
    assert [row["best_step"] for row in variants] == [2, 2, None]
    assert [row["best"] for row in variants] == [True, False, False]
    assert variants[0]["tokens_per_second"] == 50.0
    table = cli("queue", "results", "s1").out.splitlines()
    assert table[1].startswith("*")
    assert "1.5" in table[1]
    assert cli("queue", "results", "s7").code == 1


def test_the_runner_is_started_and_ended(cli: CommandLine, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def asks(word: str, answer: object) -> object:
        asked.append(word)
        return answer

    started = (status.own_status(), True)
    monkeypatch.setattr(status, "start_runner", lambda: asks("start", started))
    monkeypatch.setattr(status, "stop_runner", lambda: asks("stop", False))
    assert cli("queue", "add", str(config), "--start", "--json").json["runner"] is True
    assert cli("queue", "start", "--json").json["started"] is True
    assert cli("queue", "stop", "--json").json == {"stopped": False, "run": None}
    assert asked == ["start", "start", "stop"]


def test_an_index_that_is_being_made_is_listed_and_given_up(cli: CommandLine, config: Path) -> None:
    cli.ok("queue", "add", str(config))
    waiting = store.read_queue().entry(1)
    run = create_run(store.read_entry_config(waiting), "faq").id
    entry = waiting.moved("starting", run=run).moved("running", outcome="finished", ended=2.0)
    store.change(lambda queue: queue.with_entry(entry))
    assert re.search(r"^1 +index +faq ", cli.ok("queue", "list").out, re.MULTILINE)
    assert f"The index of {run} is broken off, and goes on with the next runner." in cli.ok("queue", "stop").err
    assert cli.ok("queue", "remove", "1").out == "1: done\n"
    assert re.search(r"^1 +finished .* its index was given up; localtune-tui why ", cli.ok("queue", "list").out, re.M)


def test_the_unit_is_shown_and_written_only_after_a_yes(cli: CommandLine, config: Path) -> None:
    shown = cli("queue", "at-boot", "--json").json
    assert shown["written"] is False
    assert cli("queue", "at-boot").code == 1
    assert not unit_path().exists()
    assert "enable-linger" in cli.ok("queue", "at-boot", "--yes").out
    text = unit_path().read_text()
    assert text == shown["unit"]
    assert "KillMode=process" in text
    assert "core.queue" in text
    assert str(unit_path()).startswith(str(config.parent))


def test_a_test_notice_is_sent_and_its_failure_reported(cli: CommandLine, config: Path) -> None:
    assert "Nothing sent" in cli("notify").out
    directory = config.parent / "settings" / "localtune"
    directory.mkdir(parents=True)
    (directory / "notify.toml").write_text('command = ["sh", "-c", "echo no network >&2; exit 3"]\n')
    cli.refused("ended with code 3: no network", "notify")
    (directory / "notify.toml").write_text('command = ["true"]\n')
    assert cli("notify", "--json").json["problems"] == []


def test_a_wish_that_an_earlier_run_shows_to_be_too_much_needs_a_yes(cli: CommandLine, config: Path) -> None:
    earlier = record_run(config, seconds=36_000.0)
    wish = ("--set", "night.deadline=07:00", "--set", "train.max_steps=4")
    refused = cli("queue", "add", str(config), *wish)
    assert refused.code == 2
    assert f"07:00 cannot be met: at full speed, by the pace of {earlier.id}, it ends at " in refused.err
    assert "No time within a day can be met: take the deadline away, or train fewer steps." in refused.err
    assert "Add --yes to go on anyway" in refused.err
    assert store.read_queue().entries == ()
    cli.ok("queue", "add", str(config), *wish, "--hold")  # nobody knows when it begins
    assert "07:00 cannot be met" in cli.ok("queue", "add", str(config), *wish, "--yes").err
    swept = cli("queue", "sweep", str(config), "--set", "night.deadline=07:00", "--over", "method.rank=8", "--yes")
    assert "cannot be met" not in swept.err
