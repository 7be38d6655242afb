"""Snapshots of the app: runs and their ends, answers, the queue, configurations, forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.hardware.card import Card
from core.queue import store
from core.queue.entry import QueueEntry
from core.queue.status import RunnerStatus
from core.runs.outlook.estimate import Estimate
from core.runs.record import events
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, create_run, write_labels
from tests.core.queue.helpers import config_for
from tests.short_list import long_but
from tests.snapshots.conftest import MOMENT, Compare, cells, make_app, settle, steps, until, when
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tests.tui.panes.test_train import script_run
from tests.tui.screens.opening import shows_rows
from tests.tui.scripted_run import GPU, ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.start_facts import StartPlan
from tui.widgets.charts.plan_bar import PlanView
from tui.widgets.lists.log_view import LogView

SIZES = ("80x24", "200x50")
THEMES = ("localtune-dark", "localtune-light")
#: Keys that leave only the Train pane on the screen.
ZOOM = {"80x24": (), "200x50": ("3",)}


@pytest.fixture
def run(private_home: Path) -> ScriptedRun:
    """The run of the snapshots: 64 of 120 steps, on a clock of its own."""
    return ScriptedRun(private_home, start=MOMENT).train_to(64)


@pytest.mark.parametrize(
    ("size", "theme"),
    long_but([("80x24", "localtune-light"), ("200x50", "localtune-dark")], itertools.product(SIZES, THEMES)),
)
def test_train(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, size: str, theme: str) -> None:
    app.theme = theme
    assert snap_compare(app, terminal_size=cells(size), run_before=until("64/120", *ZOOM[size]))


@pytest.mark.parametrize("size", long_but(["160x45"], ["120x30", "160x45", "200x50"]))
def test_live_panes(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, size: str) -> None:
    assert snap_compare(app, terminal_size=cells(size), run_before=until("64/120", "0" if size == "120x30" else "4"))


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_empty(snap_compare: Compare, app: LocaltuneApp, size: str) -> None:
    assert snap_compare(app, terminal_size=cells(size), run_before=until("No run yet.", *ZOOM[size]))


def test_no_runs(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, run_before=until("No runs yet.", "5"))


@pytest.fixture
def _fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real sizes have the number of the process in them.
    monkeypatch.setattr("core.runs.catalog.rows.directory_size", lambda _: 78_000_000)


def ended_run(home: Path, number: int, name: str, state: str, reason: str, config: str = "") -> Run:
    script = ScriptedRun(home, f"2026112{number}-090000-tickets-{name}", start=MOMENT)
    script.run.config_path.write_text(script.run.config_path.read_text() + config)
    script.train_to(40 * (number + 1)).end(state, reason)
    script.write_state(updated=MOMENT - 86400.0 * (3 - number))
    return script.run


@pytest.mark.usefixtures("_fixed_size")
def test_runs(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    for number, state in enumerate(("finished", "stopped", "failed")):
        ended_run(private_home, number, state, state, "as asked")
    assert snap_compare(app, terminal_size=(120, 34), run_before=until("2m 33s of work", "5"))


def test_starting(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    script = ScriptedRun(private_home, start=MOMENT)
    script.write_state(state="starting")
    script.phase("importing", 0).phase("loading_model", 3.1).phase("rehearsing", 2.2, detail="8×212", done=1, total=3)
    app.clock = lambda: MOMENT + 7.5
    assert snap_compare(app, run_before=until("▸ rehearsing"))


def test_failed(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun) -> None:
    run.end("failed", "The device ran out of memory at step 65.", "Set train.max_length to 1024 or less.")
    app._run_name = "latest"
    assert snap_compare(app, run_before=until("failed at step 64"))


def test_help(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, run_before=until("Help · Train", "question_mark"))


def test_quit(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun) -> None:
    assert snap_compare(app, run_before=steps(until("64/120"), until("leave it running", "q")))


@pytest.mark.parametrize(
    ("keys", "text"),
    [("x", "keep training"), ("xk", "leave it alone"), ("e", "esc cancel")],
    ids=["stop", "kill", "settings"],
)
def test_control(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, keys: str, text: str) -> None:
    run.write_state(pid=4711, host="ws1")

    async def log_painted(pilot: Pilot[Any]) -> None:
        """The log at its end, as it stays below the dialog."""
        log = app.main.query_one(LogView)
        await wait_for(pilot, lambda: log.max_scroll_y and log.scroll_y == log.max_scroll_y)
        await settle(pilot)

    begun = until("64/120"), log_painted
    assert snap_compare(app, run_before=steps(*begun, *(until("", key) for key in keys), until(text)))


def test_too_small(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, terminal_size=(50, 15), run_before=until("too small"))


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "120x30"]))
def test_start_card(
    snap_compare: Compare, app: LocaltuneApp, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, size: str
) -> None:
    plan = StartPlan(135_000_000, 1_500_000_000, 22_900_000_000, True, estimate=Estimate(61.0, 90, None, "", "guess"))
    monkeypatch.setattr("tui.screens.start_facts.find_plan", lambda *_: plan)
    rows = "".join(f"What is {number} plus {number}?,{2 * number}\n" for number in range(200))
    (tmp_path / "faq.csv").write_text("question,answer\n" + rows)
    base = tmp_path / "SmolLM2-135M-Instruct"
    base.symlink_to(tiny_model_dir)
    text = f'model.base = "{base}"\n[data]\ntrain = "faq.csv"\neval_share = 0.1\n[train]\nbatch_size = 2\n'
    (tmp_path / "faq.toml").write_text(text)
    app._config_path = tmp_path / "faq.toml"

    async def run(pilot: Pilot[Any]) -> None:
        await until("No run yet.", "3")(pilot)
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None and pane_of(app, "data").view.analysis)
        await until("✓ fits", "r")(pilot)

    assert snap_compare(app, terminal_size=cells(size), run_before=run)


@pytest.fixture
def forms_config(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A configuration with a model, and rows whose columns no format has."""
    header, row = "frage;antwort;persona", "Wie geht das?;So geht das.;Du hilfst gern."
    (tmp_path / "mine.csv").write_text(f"{header}\n{row}\nUnd das?;Auch so.;Du hilfst gern.\nWas?;;\n")
    columns = 'columns = {user = "frage", assistant = "antwort"}'
    text = f'[model]\nbase = "{tiny_model_dir}"\n\n[data]\ntrain = "mine.csv"\n{columns}\n'
    (tmp_path / "c.toml").write_text(text)
    return tmp_path / "c.toml"


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_templates(snap_compare: Compare, app: LocaltuneApp, forms_config: Path, size: str) -> None:
    forms_config.write_text(forms_config.read_text().replace("mine.csv", "rows.jsonl").partition("columns")[0])
    (forms_config.parent / "rows.jsonl").write_text('{"prompt": "ask", "completion": "a reply\\nin two lines"}\n')
    app._config_path = forms_config

    async def run(pilot: Pilot[Any]) -> None:
        await wait_for(pilot, lambda: shows_rows(app))
        await press(pilot, "1", "T", until=lambda: getattr(app.screen, "templates", None) is not None)
        screen: Any = app.screen
        await wait_for(pilot, lambda: len(screen.previews) == len(screen.templates.entries))
        await press(pilot, "j", until="chatml · 27 lines")

    assert snap_compare(app, terminal_size=cells(size), run_before=run)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_columns(snap_compare: Compare, app: LocaltuneApp, forms_config: Path, size: str) -> None:
    app._config_path = forms_config

    shown = steps(when(lambda: shows_rows(app)), until("2 of the first 3 rows", "1", "vertical_line"))
    assert snap_compare(app, terminal_size=cells(size), run_before=shown)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_trash(
    snap_compare: Compare, app: LocaltuneApp, private_home: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    sizes = {
        "old": 1_270_000_000,
        "tickets": 78_000_000,
        "faq-with-a-longer-name-than-there-is-room-for-in-a-narrow-terminal": 78_000_000,
    }
    monkeypatch.setattr("core.runs.catalog.removal.directory_size", lambda path: sizes[path.name.split("-", 2)[2]])
    monkeypatch.setattr("tui.screens.trash.free_bytes", lambda: 214_000_000_000)
    for day, name in enumerate(sizes):
        (private_home / f"trash/202611{20 + day}-0{day}3000/202611{10 + day}-090000-{name}").mkdir(parents=True)
    assert snap_compare(app, terminal_size=cells(size), run_before=until("3 runs, ", "5", "U"))


@pytest.mark.usefixtures("_fixed_size")
def test_runs_with_notes_and_costs(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    tariff = '\n[hardware]\ntariff = 32.0\ncurrency = "EUR"\n'
    for number, note in enumerate(("", "best so far, but the answers are too long", "baseline")):
        run = ended_run(private_home, number, str(number), "finished", "all steps done", tariff)
        write_labels(run.path, Labels(note=note))
    assert snap_compare(app, terminal_size=cells("200x50"), run_before=until("2m 33s of work", "5"))


# The end of a run, and its answers over time.


@pytest.fixture
def finished(private_home: Path) -> None:
    """A finished run with answers."""
    script_run(private_home, start=MOMENT).hardware(energy_wh=9.1).end("finished")


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "120x34", "200x50"]))
def test_finished(snap_compare: Compare, app: LocaltuneApp, finished: None, size: str) -> None:
    app._run_name = "latest"
    assert snap_compare(app, terminal_size=cells(size), run_before=until("use it elsewhere", "3"))


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
    script = ScriptedRun(private_home, total=120, start=MOMENT).begin()
    for number, step in enumerate((0, 30, 60)):
        if step:
            script.steps(step - 29, step)
        script.evaluate(step, 4.11 / (1 + 3 * number), number / 3)
        for prompt, (wanted, texts) in ANSWERS.items():
            text = texts[number]
            marks: dict[str, Any] = {"expected": wanted, "exact_match": text == wanted, "valid_json": text[0] == "{"}
            script.sample(step, prompt, text, **(marks if wanted else {}))
    script.hardware()


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "200x50"]))
def test_answers(snap_compare: Compare, app: LocaltuneApp, answered: None, size: str) -> None:
    app._run_name = "latest"
    # A wide pane shows them beside the curve without being asked.
    shown = until("(30 ✗)[60 ✓]", "3", *("a" * (size == "80x24")))
    assert snap_compare(app, terminal_size=cells(size), run_before=steps(until("eval loss"), shown))


def test_answers_without_color(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, private_home: Path, answered: None
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(private_home)
    app._run_name = "latest"
    assert snap_compare(app, run_before=steps(until("eval loss"), until("(30)[60]", "3", "a", "n")))


def test_stopped(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    script = ScriptedRun(private_home, total=25, start=MOMENT).begin().steps(1, 15).checkpoint(15)
    script.end("stopped", "stopped on request after step 15")
    app._run_name = "latest"
    assert snap_compare(app, run_before=until("The checkpoint of step"))


@pytest.mark.parametrize("size", long_but(["80x24"], ["80x24", "200x50"]))
def test_two_curves_and_a_cursor(snap_compare: Compare, app: LocaltuneApp, private_home: Path, size: str) -> None:
    script = ScriptedRun(private_home, total=120, start=MOMENT).begin()
    for step in range(1, 81):
        script.steps(step, step, **({"loss": math.nan} if 50 <= step < 56 else {}))
        script.hardware(replace(GPU, temperature_c=round(76 - 26 * math.exp(-step / 20))))
        if step % 20 == 0:
            script.checkpoint(step)
    for command in ("pause", "resume"):
        script.write(events.ControlEvent(t=script.pass_time(1), command=command, sender="socket", result="ok"))
    script.end("stopped", "stopped on request after step 80")
    app._run_name = "latest"
    shown = until("temperature ", "3", *"yyyy", "left", "left", "left")
    assert snap_compare(app, terminal_size=cells(size), run_before=steps(until("The checkpoint of step"), shown))


# The queue.


def fill(home: Path) -> None:
    """A night's work."""
    script = ScriptedRun(home, start=MOMENT).train_to(40)
    config = config_for(train={"max_steps": 100})
    names: list[dict[str, Any]] = [
        {"name": "tickets"},
        {"name": "faq with a longer name than there is room for in a narrow terminal, and then some"},
        {"name": "x", "values": {"train.learning_rate": 1e-4, "method.rank": 8}, "sweep": "s1"},
        {"name": "x", "values": {"train.learning_rate": 2e-4, "method.rank": 16}, "sweep": "s1"},
        {"name": "summaries"},
        {"name": "letters"},
        {"name": "old"},
    ]
    store.add([(QueueEntry(id=1, **values), config) for values in names])

    def how(queue: Any) -> Any:
        queue = queue.with_entry(queue.entry(1).moved("starting", run=script.run.id, begun=MOMENT))
        queue = queue.with_entry(replace(queue.entry(1), state="running"))
        queue = queue.held(4)
        ends = {"ended": MOMENT - 600.0, "outcome": "finished"}
        queue = queue.with_entry(replace(queue.entry(5), state="done", run="r5", **ends))
        failed = {"ended": MOMENT - 900.0, "outcome": "failed", "reason": "the loss has not been finite for 5 steps"}
        queue = queue.with_entry(replace(queue.entry(6), state="failed", run="r6", **failed))
        return queue.with_entry(replace(queue.entry(7), state="skipped", reason="7.toml cannot be read"))

    store.change(how)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_queue(snap_compare: Compare, private_home: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    app = make_app(private_home)
    fill(private_home)
    runner = RunnerStatus(pid=1, pid_started="x", doing="follows 20261124-143600-tickets, which is training")
    monkeypatch.setattr("core.queue.view.read_status", lambda: runner)

    # The line of the run comes first.
    shown = steps(when(lambda: app.state.live_run is not None), until("letters", "3", "Q"))
    assert snap_compare(app, terminal_size=cells(size), run_before=shown)


def test_empty_queue(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, run_before=until("The queue is empty.", "Q"))


# The Config pane: presets, differences, warnings, the long help, a comparison.

GB = 1_000_000_000


def plan(_: ConfigDocument, _measures: bool) -> PlanView:
    """A memory plan that barely fits."""
    parts = (("weights", 5_700_000_000), ("adapters", 600_000_000), ("activations", 12 * GB), ("loss", GB))
    return PlanView(parts, 19_300_000_000, 22_900_000_000, True, ("train.micro_batch_size = 2 halves the activations",))


@pytest.fixture
def config(tmp_path: Path, private_home: Path, app: LocaltuneApp, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with a preset in force, changes, a warning, and a run before it."""
    monkeypatch.setattr("core.hardware.card.find_card", lambda **_: Card("RTX 4090", 24 << 30, (8, 9)))
    rows = '{"prompt": "ask", "completion": "a reply"}\n'
    (tmp_path / "rows.jsonl").write_text(rows * 400)
    path = tmp_path / "tickets.toml"
    text = "# preset: 24gb-7b\n[data]\ntrain = 'rows.jsonl'\n[method]\nrank = 16\nalpha = 64.0\n[train]\n"
    text += "epochs = 1.0\nbatch_size = 16\nmax_length = 4096\nlearning_rate = 2e-2 # high\n"
    path.write_text(text)
    used = ConfigDocument(text.replace("2e-2", "1e-4").replace("epochs = 1.0", "epochs = 2.0"), path).validate()
    run = Run(create_run(used, "tickets").path.rename(private_home / "runs" / "20261120-090000-tickets"))
    RunState(state="finished", host="ws1", updated=MOMENT - 86400.0).write(run.state_path)
    app._config_path = path
    return path


async def ready(pilot: Pilot[Any], app: LocaltuneApp) -> None:
    """The pane alone on the screen, with all of its facts."""
    await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)
    pane = pane_of(app, "config")
    # The number of steps is exact once the Data pane has analyzed the rows, which it does on the screen.
    if app.size.width < 100:
        await until("400 used", "1")(pilot)
    await pilot.press("2")
    exact = "· 25 steps" if app.size.width >= 100 else " 25 steps"
    await wait_for(
        pilot,
        lambda: pane.known.last_run is not None and pane.known.card is not None and exact in screen_text(app),
    )


@pytest.mark.parametrize("size", SIZES)
def test_config(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)
        pane_of(app, "config").planner = plan
        await ready(pilot, app)
        pane_of(app, "config").refresh_plan()
        await pilot.press("h")
        pane_of(app, "config").go_to_option("train.learning_rate")
        await wait_for(pilot, lambda: "✓ fits" in screen_text(app))
        await until("The highest learning rate")(pilot)

    assert snap_compare(app, terminal_size=cells(size), run_before=run)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_presets(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    shown = steps(partial(ready, app=app), until("● 24gb-7b", "P"), until("24gb-small-long-context", "k", "k"))
    assert snap_compare(app, terminal_size=cells(size), run_before=shown)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_compare(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await ready(pilot, app)
        pane = pane_of(app, "config")
        pane.document.set("train.learning_rate", 1e-4)
        pane.edited()
        await until("tickets.toml •edited")(pilot)
        await pilot.press("c", "f")
        await until("- learning_rate = 2e-2 # high")(pilot)

    assert snap_compare(app, terminal_size=cells(size), run_before=run)
