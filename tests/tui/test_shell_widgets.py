"""Widgets of the shell, each by itself: meters, lines, header, log and list."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.content import Content

from core.config.document import ConfigDocument
from core.hardware.snapshot import Device
from core.runs.catalog.rows import RunRow
from core.runs.outlook.energy import Tariff
from core.runs.outlook.time_left import Eta
from core.runs.record import events
from core.runs.record.history import LogLine, read_history
from core.runs.record.sentences import slug_of
from core.runs.record.state import Rank, RunState, StepProgress
from core.runs.record.store import Run
from tests.cases import cases
from tests.tui.conftest import CPU
from tests.tui.harness import Stage, press, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import GPU, HOST, ScriptedRun
from tui import meters
from tui.glyphs import ASCII, BRAILLE
from tui.keys import KeyTable
from tui.settings import load_settings, resolve_glyphs, save_setting
from tui.state import AppState, RunView
from tui.widgets import run_lines
from tui.widgets.charts.device_panel import device_lines, host_line
from tui.widgets.lists.log_view import LogView
from tui.widgets.lists.run_list import RunList
from tui.widgets.status_bar import Segment, fit, header_segments
from tui.widgets.text_block import TextBlock, clip, flow, hang


def view_of(script: ScriptedRun) -> RunView:
    """A view of a run, read from its files."""
    return RunView(script.run, script.run.state(), read_history(script.run), "SmolLM2 · qlora r16")


@cases(
    ("temperature", "limit", "word"),
    [
        *((71, 83, "ok"), (77.6, 83, "! near limit"), (82.6, 83, "! at limit"), (80, 127, "! near limit")),
        *((80, None, "! near limit"), (None, 83, "")),
    ],
)
def test_a_temperature_is_near_its_limit_at_it_or_ok(temperature: float | None, limit: float | None, word: str) -> None:
    assert meters.temperature_word(replace(GPU, temperature_c=temperature, temperature_limit_c=limit)) == word


def test_the_share_of_json_is_shown_beside_exact_match_where_there_is_room(home: Path) -> None:
    script = ScriptedRun(home).train_to(30).evaluate(30, 0.455, exact_match=0.83, valid_json=0.97)
    view = view_of(script)
    assert "exact 0.83   JSON 0.97" in run_lines.numbers(view, 120).plain
    assert "JSON" not in run_lines.numbers(view, 100).plain


def test_a_nan_loss_and_rewards_are_shown(home: Path) -> None:
    script = ScriptedRun(home).begin().steps(1, 3, loss=math.nan)
    plain = run_lines.numbers(view_of(script), 100).plain
    assert plain.startswith("loss     NaN")
    assert "margin" not in plain
    script.steps(4, 4, reward_margin=0.25, reward_accuracy=0.875)
    shown = run_lines.numbers(view_of(script), 100).plain
    assert "margin  0.250" in shown
    assert "acc 0.88" in shown


def test_the_header_drops_what_matters_least() -> None:
    segments = [
        Segment(Content("important"), 0),
        Segment(Content("long form"), 1, Content("short")),
        Segment(Content("least"), 2, right=True),
    ]
    assert fit(segments, 40).plain == "important  long form" + " " * 15 + "least"
    assert fit(segments, 24).plain.split() == ["important", "short", "least"]
    assert fit(segments, 17).plain.split() == ["important", "short"]
    assert fit(segments, 10).plain.strip() == "important"
    long = [Segment(Content("important"), 0), Segment(Content("a long one"), 1), Segment(Content("least"), 2)]
    assert fit(long, 20).plain.strip() == "important  least", "there is room for it where the long one is left out"


def test_the_header_keeps_state_and_heat_at_every_size(home: Path) -> None:
    script = ScriptedRun(home).train_to(64)
    for parts in (("71 °C ok", "76%", "tickets"), ("71", "°C ok", "76%")):
        state = AppState(view=view_of(script), host="ws1")
        for width in (78, 118, 198):
            line = fit(header_segments(state, 1e9), width)
            assert line.cell_length <= width
            assert all(part in line.plain for part in ("● training  64/120", "ETA", *parts))
        script.hardware(GPU, replace(GPU, index=1, temperature_c=64.0))


@cases("device", [GPU, CPU, replace(GPU, memory_used=23_900_000_000)])
def test_the_parts_of_the_header_stay_while_the_word_of_the_state_changes(tmp_path: Path, device: Device) -> None:
    script = ScriptedRun(tmp_path / device.kind / str(device.memory_used)).train_to(64).hardware(device)
    view = view_of(script)
    training = AppState(view=view, host="ws1")
    others = [
        AppState(view=replace(view, state=replace(view.state, state="paused")), host="ws1"),
        AppState(view=replace(view, state=replace(view.state, pending=("checkpoint",))), host="ws1"),
        AppState(view=view_of(script.phase("evaluating", done=3, total=12)), host="ws1"),
    ]
    for width in (58, 78, 118):
        before = fit(header_segments(training, time.time()), width).plain
        assert "● training  64/120    ETA" in before
        for other in others:
            line = fit(header_segments(other, time.time()), width).plain
            if other is not others[1]:
                assert line.find("ETA") in (-1, before.index("ETA")), (before, line)
            for part in ("tickets", "loss", " °C", "CPU", "%", "! ", "ws1"):
                assert (part in line) == (part in before), (width, before, line)


def test_the_room_of_the_loss_is_kept_before_the_first_step(home: Path) -> None:
    script = ScriptedRun(home).begin().hardware()
    for loss in ("loss –    ", "loss 2."):
        header = fit(header_segments(AppState(view=view_of(script), host="ws1"), time.time()), 78).plain
        assert loss in header
        assert header.rstrip().endswith("71 °C ok  VRAM 76% ok"), header
        script.steps(1, 1)


def test_old_readings_of_a_run_are_dim_with_their_age_and_a_parked_run_has_none(home: Path) -> None:
    view = view_of(ScriptedRun(home).train_to(64))
    state, read = AppState(view=view, host="ws1", devices=[CPU]), view.history.devices_read
    assert read is not None
    fresh = fit(header_segments(state, read + 14), 78)
    assert "71 °C ok" in fresh.plain
    assert "old" not in fresh.plain
    for age, told in ((16, "15s"), (59, "55s"), (150, "2m")):
        line = fit(header_segments(state, read + age), 58)
        assert f"  71°C {told}" in line.plain
        at = line.plain.index("71°C")
        assert [span.style for span in line.spans if span.start <= at < span.end][-1] == "$muted"
    view.state = replace(view.state, state="paused", parked="on request")
    assert "RAM 12% ok" in fit(header_segments(state, read + 150), 78).plain


def test_the_name_that_configuration_and_run_share_is_reported_once(home: Path) -> None:
    script = ScriptedRun(home).train_to(64)
    name = slug_of(script.run.id)
    document = ConfigDocument()
    document.set("data.train", f"/data/{name}.csv")
    state = AppState(view=view_of(script), host="ws1", document=document)
    for width in (80, 120, 200):
        line = fit(header_segments(state, 1e9), width).plain
        assert (f"{name} •not saved" in line) == (width > 80)
        assert line.replace(script.run.id, "").count(name) == (1 if width > 80 else 0)
        assert "64/120" in line
    # The run of another configuration has its name at every width.
    document.set("data.train", "/data/mine.csv")
    for width in (60, 80, 200):
        line = fit(header_segments(state, 1e9), width).plain
        assert re.search(rf"run \S*{name}  \S.* 64/120", line), line


def test_a_run_of_another_configuration_is_reported_behind_a_line(home: Path) -> None:
    script = ScriptedRun(home).train_to(64)
    script.write_state(state="finished")
    view = view_of(script)
    document = ConfigDocument()
    document.set("data.train", "/data/mine.csv")
    state = AppState(view=view, document=document)
    for width, told in ((78, "tickets, finished"), (140, "-tickets, finished"), (40, "")):
        line = fit(header_segments(state, view.state.updated + 300), width).plain
        assert "mine" in line
        assert ("│ other run: " in line) == bool(told)
        assert told in line
        assert not told or "finished 5 min ago" in line
    view.is_leftover = True
    last = fit(header_segments(state, view.state.updated), 140)
    assert "│ last run: " in last.plain
    assert any(span.style == "$muted" for span in last.spans if "last run" in last.plain[span.start : span.end])


async def test_the_log_follows_its_end_until_it_is_scrolled() -> None:
    log = LogView()
    app = Stage(log)
    async with app.run_test(size=(40, 6)) as pilot:
        log.append(LogLine(float(i), "info", f"line {i}") for i in range(50))
        await wait_for(pilot, lambda: "line 49" in screen_text(app))
        log.focus()
        await press(pilot, "up", "up", until=lambda: "line 49" not in screen_text(app))
        log.append([LogLine(0.0, "error", "line 50 " + "x" * 80)])
        await pilot.pause()
        assert "line 50" not in screen_text(app)
        log.follow()
        await wait_for(pilot, lambda: "✗ line 50" in screen_text(app))
        assert screen_lines(app)[-1].rstrip().rstrip("▁▂▃▄▅▆▇█ ").endswith("…")


async def test_long_lines_of_the_log_are_unfolded() -> None:
    log = LogView()
    app = Stage(log)
    async with app.run_test(size=(40, 8)) as pilot:
        log.append([LogLine(0.0, "info", "short"), LogLine(0.0, "error", f"long {'word ' * 20}end")])
        await wait_for(pilot, lambda: "✗ long" in screen_text(app))
        assert "end" not in screen_text(app)
        log.toggle_unfolded()
        await wait_for(pilot, lambda: "end" in screen_text(app))
        assert sum("word" in line for line in screen_lines(app)) > 2
        await pilot.resize_terminal(60, 8)
        await wait_for(pilot, lambda: 1 < sum("word" in line for line in screen_lines(app)) < 4)
        log.append([LogLine(0.0, "info", "newer")])
        await wait_for(pilot, lambda: "newer" in screen_text(app))
        log.toggle_unfolded()
        await wait_for(pilot, lambda: "…" in screen_text(app))


def rows(count: int) -> list[RunRow]:
    """Rows of the list of runs."""
    return [
        RunRow(run=Run(Path(f"/runs/20261124-{100000 + i}-run{i}")), state="finished", step=i, total_steps=count)
        for i in range(count)
    ]


async def test_the_list_keeps_its_cursor_on_its_run() -> None:
    run_list = RunList(lambda: 0.0)
    app = Stage(run_list)
    async with app.run_test(size=(120, 10)) as pilot:
        run_list.show(rows(40))
        run_list.move(30)
        await wait_for(pilot, lambda: "▸" in screen_text(app))
        chosen = run_list.selected
        assert chosen is not None
        run_list.show(rows(40)[5:])
        assert run_list.selected == chosen
        await wait_for(pilot, lambda: any("▸" in line and "run30" in line for line in screen_lines(app)))
        run_list.move(-100)
        await wait_for(pilot, lambda: any("▸" in line and "run5 " in line for line in screen_lines(app)))


def test_settings_with_mistakes_keep_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('theme = 3\nglyphs = "ascii"\nanimations = "yes"\nfont = "x"\nrefresh = 2\n', encoding="utf-8")
    settings, problems = load_settings(path)
    assert (settings.theme, settings.glyphs, settings.animations, settings.pace) == ("", "ascii", False, 1.0)
    assert len(problems) == 4
    path.write_text('refresh = "half"\n', encoding="utf-8")
    assert load_settings(path)[0].pace == 2.0
    assert load_settings(tmp_path / "none.toml")[1] == []


def test_a_theme_is_remembered_beside_comments(tmp_path: Path) -> None:
    path = tmp_path / "new" / "settings.toml"
    save_setting(path, "theme", "one")
    path.write_text("# mine\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    save_setting(path, "theme", "two")
    assert path.read_text(encoding="utf-8") == '# mine\ntheme = "two"\n'


@cases(("encoding", "glyphs"), [("UTF-8", "braille"), ("ANSI_X3.4-1968", "ascii")])
def test_glyphs_follow_the_locale(monkeypatch: pytest.MonkeyPatch, encoding: str, glyphs: str) -> None:
    monkeypatch.setattr("locale.nl_langinfo", lambda _: encoding)
    assert resolve_glyphs("auto") == glyphs
    assert resolve_glyphs("block") == "block"


def test_a_run_that_is_queued_has_no_numbers_yet(home: Path) -> None:
    script = ScriptedRun(home)
    view = view_of(script)
    assert run_lines.numbers(view, 80).plain == ""
    assert "the worker is starting" in run_lines.phases(view, 0.0, 80, BRAILLE).plain
    ended = RunView(view.run, RunState(state="lost"), view.history)
    assert run_lines.phases(ended, 0.0, 80, BRAILLE).plain == ""
    silent = "no sign of life for 31 s"
    for state, reason, text in (
        *(("paused", "", "‖ paused"), ("stalled", "", "! no sign of life"), ("training", "", "")),
        ("stalled", silent, f"! {silent}"),
    ):
        shown = RunView(view.run, RunState(state=state, reason=reason), view.history)
        assert run_lines.banner(shown, KeyTable()).plain.partition("\n")[0] == text


def test_a_parked_run_has_nothing_under_way(home: Path) -> None:
    script = ScriptedRun(home)
    script.write(
        events.PhaseEvent(t=1.0, name="importing"),
        events.PhaseEvent(t=2.0, name="training"),
        events.PhaseEvent(t=2.0, name="saving", detail="checkpoint"),
    )
    view = view_of(script)
    shown = RunView(view.run, RunState(state="paused", parked="on request"), view.history)
    plain = run_lines.phases(shown, 9.0, 80, BRAILLE).plain
    assert "▸" not in plain
    assert "saving" not in plain
    assert "✓ importing" in plain
    assert "✓ training" not in plain, "it is still to come"


def test_what_the_governor_does_is_in_the_banner(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    slow = events.GovernorEvent(action="slow", cause="temperature", value=81, limit=80, duty=0.6)
    script.write(slow)
    keys = KeyTable()
    assert run_lines.banner(view_of(script), keys).plain == "slowed to 60 % to hold 80 °C"
    script.write(events.NightEvent(cause="measured", finish=2e9, promised_finish=2e9, duty=0.6, quiet_duty=0.0))
    both = run_lines.banner(view_of(script), keys).plain.splitlines()
    assert both[0] == "slowed to 60 % to hold 80 °C"
    assert both[1].startswith("done by ")
    late = events.NightEvent(
        cause="given_up", finish=2e9, promised_finish=2e9, duty=1.0, quiet_duty=0.0, deadline=2e9 - 6000,
        energy_kwh=0.8, promised_energy_kwh=0.8, energy_limit_kwh=0.5, nearest_energy_kwh=0.82,
    )  # fmt: skip
    script.write(late)
    given_up = run_lines.banner(view_of(script), keys).plain.splitlines()
    assert given_up[2] == "! 0.82 kWh in place of 0.50 kWh, which cannot be met"
    script.write_state(state="paused", reason="the device is at 86 °C (limit 80 °C)")
    paused = run_lines.banner(view_of(script), keys).plain
    assert paused == "‖ paused at step 30: the device is at 86 °C (limit 80 °C)."


def test_a_cpu_is_not_blamed_for_having_no_fan() -> None:
    cpu = Device(
        index=0, kind="cpu", name="CPU", utilization=70.0, clock=2600.0, memory_used=10**9, memory_total=10**10
    )
    second = device_lines(cpu, 106, BRAILLE)[1].plain
    assert second.split() == ["util", "70%", "2,600", "MHz"]


def test_the_header_shows_all_cards_and_says_when_they_are_lost_or_their_values_are_old() -> None:
    second = replace(GPU, index=1, temperature_c=82.0, memory_used=int(23.5e9))
    other = replace(second, name="NVIDIA RTX A6000", memory_total=48_000_000_000)
    for devices, told in (
        ([GPU], "RTX 4090  71 °C ok"),
        ([replace(GPU, age_s=3.0)], "RTX 4090  71 °C ok"),
        ([replace(GPU, age_s=23.0)], "RTX 4090  71 °C 20s old  18.2/24 GB 76%"),
        ([replace(GPU, temperature_c=None, age_s=200.0)], "RTX 4090  98%  18.2/24 GB 76% 3m old"),
        ([replace(GPU, temperature_c=None, memory_used=None, problem="it is gone")], "RTX 4090  cannot be read"),
        ([GPU, second], "2× RTX 4090  71·82 °C ! near   18.2·23.5/24 GB 98% ! limit"),
        ([GPU, other], "2 cards  71·82 °C ! near   41.7/72 GB 76% ok"),
        ([GPU, *[second] * 5], "6× RTX 4090  71–82 °C ! near   18.2–23.5/24 GB 98% ! limit"),
        ([GPU, replace(second, age_s=23.0)], "2× RTX 4090  71·82 °C 20s old  18.2·23.5/24 GB 98%"),
        ([GPU, replace(second, problem="it is gone")], "2× RTX 4090  1 of 2 cannot be read"),
        ([replace(GPU, temperature_c=None, utilization=9.0)] * 2, "2× RTX 4090     9·9%"),
    ):
        assert told in fit(header_segments(AppState(devices=devices), 1e9), 120).plain
    narrow = fit(header_segments(AppState(devices=[GPU, second]), 1e9), 45).plain
    assert "82 °C !   VRAM 98% !!" in narrow


def test_the_line_of_processes_shows_where_each_is_also_where_it_is_narrow() -> None:
    hosts = ["tower", "tower", "a-long-name.example.org", "a-long-name.example.org"]
    found = [Rank(rank=rank, host=host, device=f"cuda:{rank % 2}", heard=99.0) for rank, host in enumerate(hosts)]
    whole = "4 processes  tower 0 cuda:0, 1 cuda:1 · a-long-name.example.org 2 cuda:0, 3 cuda:1"
    assert run_lines.ranks(found, 100, 100.0).plain == whole
    assert run_lines.ranks(found, 76, 100.0).plain == "4 processes  tower 0, 1 · a-long-name.example.org 2, 3"
    found[3] = replace(found[3], heard=57.0)
    silent = run_lines.ranks(found, 76, 100.0).plain
    assert silent == "4 processes  no sign of life for 43s: 3 on a-long-name.example.org"
    assert run_lines.ranks(found[:1], 76, 100.0).plain == ""


def test_energy_has_its_cost_where_the_price_is_known(home: Path) -> None:
    script = ScriptedRun(home).train_to(30).hardware(energy_wh=4100.0)
    view = view_of(script)
    assert run_lines.numbers(view, 120).plain.endswith("   4100.0 Wh")
    view.tariff = Tariff(0.32, "EUR")
    assert run_lines.numbers(view, 120).plain.endswith("   4100.0 Wh   1.31 EUR")
    # The cost is the first to go.
    whole = run_lines.numbers(view, 120).cell_length
    assert run_lines.numbers(view, whole - 1).plain.endswith("   4100.0 Wh")
    state = AppState(view=view)
    assert "4100.0 Wh  1.31 EUR" in fit(header_segments(state, 1e9), 180).plain


#: Times left, in seconds, just above and below a change of their digits.
TIMES = (7300.0, 3601.0, 3599.0, 601.0, 599.0, 61.0, 59.0, 10.0, 9.0, 1.0)


@pytest.fixture
def views(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunView]:
    """A run at the steps where its figures get a digit more."""
    view = view_of(ScriptedRun(home, start=1e9, total=1200).begin().steps(1, 3).evaluate(3, 0.45).hardware())
    left = TIMES[0]
    monkeypatch.setattr(type(view), "eta", lambda *_: Eta(left, 0.0, 0.0, is_rough=left > 600))

    def walk() -> Iterator[RunView]:
        nonlocal left
        steps = (8, 9, 10, 11, 99, 100, 101, 999, 1000, 1200)
        for seconds, step, rate in zip(TIMES, steps, (99, 999, 1000, 9999) * 3, strict=False):
            left = seconds
            view.state = replace(view.state, step=step)
            last = view.history.last_step
            assert last is not None
            view.history.last_step = replace(last, tokens_per_second=float(rate))
            yield view

    return walk()


def places(line: str, *marks: str) -> tuple[int, ...]:
    """The columns of texts in a line."""
    found = tuple(line.find(mark) for mark in marks)
    assert -1 not in found, line
    return found


def test_the_progress_of_a_run_and_the_header_stay_in_their_columns(views: Iterator[RunView]) -> None:
    found: dict[int, set[tuple[int, ...]]] = {}
    for view in views:
        segments = header_segments(AppState(view=view, host="ws1"), 1e9)
        for width in (76, 98, 150):
            line, header = run_lines.progress(view, width, ASCII, 1e9).plain, fit(segments, width + 2).plain
            marks = *places(line, "/1200", "%", "ETA"), *places(header, "/1200", "ETA", "loss", "°C", "%")
            # Whatever it is, and guessed or not, the time left ends in its column.
            ends = [left.end() for text in (line, header) for left in re.finditer(r"ETA +\S+( \S+)?", text)]
            marks = (*marks, *ends)
            found.setdefault(width, set()).add(marks)
    assert all(len(columns) == 1 for columns in found.values()), found


def test_the_parts_and_rows_of_an_evaluation_move_nothing(home: Path) -> None:
    script = ScriptedRun(home).train_to(64).phase("evaluating", total=120).hardware(replace(GPU, temperature_c=80.0))
    view = view_of(script)
    began = view.history.updated
    assert view.history.phase is not None
    assert began is not None
    found: dict[int, set[tuple[object, ...]]] = {}
    parts = (
        *((None, None), (StepProgress("evaluation", 9, 120), 9), (StepProgress("evaluation", 120, 120), 120)),
        *(
            (StepProgress("answers", 0, 80), 120),
            (StepProgress("answers", 80, 80), 120),
            (StepProgress("samples"), 120),
        ),
        *((StepProgress("samples", 1, 3), 120), (StepProgress("probe", 19, 40), 120)),
    )
    for (progress, done), seconds in zip(parts, (5.4, 9.9, 59.0, 60.0, 119.0, 120.0, 599.0, 601.0), strict=True):
        view.history.phase = replace(view.history.phase, done=done)
        view.state = replace(view.state, progress=progress)
        segments = header_segments(AppState(view=view, host="ws1"), began)
        for width in (56, 76, 78, 116, 150, 196):
            line, header = run_lines.progress(view, width, ASCII, began + seconds).plain, fit(segments, width + 2).plain
            columns = (
                *(line.find(mark) for mark in ("%", "ETA")),
                *(header.find(mark) for mark in ("ETA", "°C", "near")),
            )
            found.setdefault(width, set()).add(columns)
    assert all(len(columns) == 1 for columns in found.values()), found
    assert all("ETA" in run_lines.progress(view, width, ASCII, began + 5).plain for width in (76, 116)), "there is room"
    view.state = replace(view.state, progress=StepProgress("answers", 64, 80))
    for width in (76, 116):
        assert " answers   64/80 " in run_lines.progress(view, width, ASCII, began + 5).plain
    view.state = replace(view.state, progress=None)
    view.history.phase = replace(view.history.phase, done=18)
    assert " loss     18/120 " in run_lines.progress(view, 76, ASCII, began + 5).plain
    # Before the first step.
    view.history.phase = view.history.phases["evaluating"] = replace(view.history.phase, detail="answers", done=0)
    line = run_lines.phases(view, began + 5, 76, ASCII).plain.splitlines()[-1]
    assert line.endswith(" answers   0/120"), line
    view.state = replace(view.state, progress=StepProgress("answers", 64, 80))
    assert "evaluating   64/80 " in fit(header_segments(AppState(view=view), began), 78).plain


def test_nothing_moves_when_the_time_left_and_the_number_of_steps_get_known(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, set[tuple[int, ...]]] = {}
    headers: dict[int, set[int]] = {}
    for total, eta in ((0, None), (60, None), (60, 114.0)):
        script = ScriptedRun(home / f"{total} {eta}", total=total).phase("evaluating", total=80)
        script.write_state(state="training")
        view = view_of(script)
        view.history.phase = view.history.phases["evaluating"] = replace(view.history.phases["evaluating"], done=18)
        left = None if eta is None else Eta(eta, 0.0, 0.0)
        monkeypatch.setattr(view, "eta", lambda _, left=left: left)
        segments = header_segments(AppState(view=view, host="ws1"), 1e9)
        for width in (56, 76, 116, 196):
            header = fit(segments, width + 2).plain
            headers.setdefault(width, set()).update({header.find("loss")} - {-1})
            if total:
                line = run_lines.progress(view, width, ASCII, 1e9).plain
                found.setdefault(width, set()).add((line.find("%"), line.find("loss ")))
    assert all(len(columns) == 1 for columns in found.values()), found
    assert all(len(columns) == 1 for columns in headers.values()), headers


def test_answers_and_savings_leave_the_bar_in_its_columns(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(ScriptedRun(home).train_to(64))
    found: dict[int, set[tuple[int, int]]] = {}
    for saving, evaluation, awaited in ((0.0, 46.0, False), (1.0, 46.0, False), (0.0, 0.0, False), (1.0, 46.0, True)):
        left = Eta(188.0, evaluation, saving)
        monkeypatch.setattr(view, "eta", lambda _, left=left: left)
        for width in (56, 76, 96, 116, 196):
            line = run_lines.progress(view, width, ASCII, 1e9, answer_awaited=awaited).plain
            assert ("answer" in line) == awaited
            found.setdefault(width, set()).add((line.find("%"), len(line)))
    assert all(len(columns) == 1 for columns in found.values()), found


def test_readings_and_losses_move_nothing_in_the_header(home: Path) -> None:
    script = ScriptedRun(home).train_to(64)
    found: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    marks = ("tickets", "SmolLM2", "ETA", "loss", "RTX", "GB", "%", "ws1")
    readings = (
        *((71.0, 9.96, 0.0, 0.113), (71.0, 18.2, 0.0, 0.0957), (80.0, 18.2, 0.0, 1.05), (84.0, 23.9, 0.0, 12.3)),
        *((99.0, 23.9, 20.0, 0.0123), (100.0, 24.0, 0.0, 0.999), (71.0, 9.9, 4e4, 5e-4), (71.0, 9.9, 0.0, 2e6)),
    )
    for heat, used, age, loss in readings:
        card = replace(GPU, temperature_c=heat, memory_used=round(used * 1e9), age_s=age)
        for cards in ([card], [card, replace(card, index=1, temperature_c=64.0)]):
            script.hardware(*cards)
            view = view_of(script)
            assert view.history.last_step is not None
            view.history.last_step = replace(view.history.last_step, loss=loss)
            segments = header_segments(AppState(view=view, host="ws1"), 1e9)
            for width in (58, 78, 98, 118, 138, 198):
                line = fit(segments, width).plain
                found.setdefault((len(cards), width), set()).add(
                    tuple(line.find(mark) for mark in (*marks, f"{heat:.0f}"))
                )
    assert all(len(columns) == 1 for columns in found.values()), found


def test_numbers_stay_in_their_columns(views: Iterator[RunView]) -> None:
    lines = []
    for view, at in zip(views, (9, 10, 99, 100, 999, 1000), strict=False):
        view.history.evals[-1] = replace(view.history.evals[-1], step=at)
        lines.append(run_lines.numbers(view, 110).plain)
    assert len({places(line, "eval", "grad", "lr", "tok/s") for line in lines}) == 1, lines


@cases("width", [60, 78, 110, 190])
def test_a_device_stays_in_its_columns(width: int) -> None:
    values = ((9.0, 9.0, 0.5, 9.0, 300.0), (99.0, 99.0, 9.96, 99.0, 999.0), (100.0, 100.0, 23.0, 100.0, 2520.0))
    found: set[tuple[int, ...]] = set()
    for heat, load, used, power, clock in values:
        # Far from its limits, whose words have a length of their own.
        device = replace(
            GPU,
            temperature_c=heat,
            temperature_limit_c=110.0,
            utilization=load,
            memory_used=round(used * 1e9),
            memory_total=80_000_000_000,
            power_w=power,
            clock=clock,
            throttle_reasons=[],
        )
        lines: list[Content] = device_lines(device, width, BRAILLE)
        text = "\n".join(line.plain for line in lines)
        found.add(places(text, "°C", "VRAM", "GB", " W", *(("%",) if width > 60 else ())))
    assert len(found) == 1, found


def test_the_machine_stays_in_its_columns() -> None:
    lines = [
        host_line(replace(HOST, ram_used=round(used * 1e9), load=load), BRAILLE, 150).plain
        for used, load in ((0.9, 0.1), (9.9, 9.9), (10.1, 10.0), (63.9, 16.0))
    ]
    assert len({places(line, "cores", "RAM", "swap", "disk", "CPU") for line in lines}) == 1, lines


def test_what_wraps_stays_in_the_column_of_its_text() -> None:
    text = "A sentence that is longer than a line.\n\n  ^r U   Make the edit again that was undone\n  x      short"
    assert hang(Content(text), 30).plain.split("\n") == [
        "A sentence that is longer than",
        "a line.",
        "",
        "  ^r U   Make the edit again",
        "         that was undone",
        "  x      short",
    ]


def test_pieces_flow_into_lines_and_are_never_cut_in_two() -> None:
    pieces = [Content(text) for text in ("a one", "b two", "c three")]
    assert [line.plain for line in flow(pieces, 13)] == ["a one   b two", "c three"]
    assert flow([], 10) == []


def test_what_has_no_room_ends_in_an_ellipsis() -> None:
    text = "one two three four five six"
    assert clip(Content(text), 14, 2).plain == text
    assert clip(Content(text), 10, 2).plain == "one two\nthree fou…"


async def test_a_block_that_changes_again_after_a_layout_has_the_height_of_the_last_change() -> None:
    block = TextBlock(Content("one"))
    async with Stage(block).run_test() as pilot:
        await wait_for(pilot, lambda: block.size.height == 1)
        block.show(Content("one\ntwo"))
        pilot.app.screen._refresh_layout()
        block.show(Content("one\ntwo\nthree"))
        await wait_for(pilot, lambda: block.size.height == 3)


async def test_a_block_that_its_owner_has_hidden_stays_hidden_when_its_text_changes() -> None:
    block = TextBlock(Content("one"))
    async with Stage(block).run_test():
        block.display = False
        block.show(Content("two"))
        assert not block.display
        block.show(Content(""))
        block.show(Content("three"))
        assert block.display
