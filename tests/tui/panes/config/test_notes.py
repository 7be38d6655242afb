"""Notes of the config pane next to the values: warnings, last run, long help, plan, reasons against a start."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.config.schema import options
from core.hardware.card import Card
from core.runs.record.store import create_run, list_runs
from tests.tui.config_panes import config_pane, flat, go_to, opened, type_value, write_config
from tests.tui.harness import has_form, pane_of, press, resize, running, screen_lines, screen_text, shown, wait_for
from tui.app import LocaltuneApp
from tui.panes.config.form import difference_notes
from tui.panes.config.pane import ConfigPane
from tui.widgets.charts.plan_bar import PlanBar, PlanView
from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionHelp

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 512,
}


async def show_help(pilot: Pilot[None], pane: ConfigPane, name: str) -> None:
    """Move the cursor to an option, and show its long help."""
    await go_to(pilot, pane, name)
    await wait_for(pilot, lambda: str(pane.query_one(OptionHelp).border_title) == name)
    key = name.partition(".")[2]
    await wait_for(pilot, lambda: any("▸" in row and key in row for row in screen_lines(pilot.app)))


async def test_a_warning_stands_below_its_option_and_goes_when_it_is_mended(tmp_path: Path) -> None:
    path = write_config(tmp_path, '[data]\ntrain = "rows.jsonl"\n[train]\nlearning_rate = 1e-6\nmax_length = 16\n')
    async with config_pane(path, size=(80, 24)) as (pilot, pane):
        field = await go_to(pilot, pane, "train.learning_rate")
        assert any("▸! learning_rate" in line for line in screen_lines(pilot.app))
        usual = "too low for adapters. 1e-4 to 3e-4 is usual."
        await wait_for(pilot, lambda: usual in flat(screen_text(pilot.app)))
        await wait_for(pilot, lambda: "warning" in screen_lines(pilot.app)[0])
        await type_value(pilot, pane, "train.epochs", "2")
        assert ".toml •edited · " in screen_lines(pilot.app)[0]
        await resize(pilot, 56, 24)
        assert re.search(r"\.toml · \d changed · \d warnings? ─", screen_lines(pilot.app)[0]), "the header has the rest"
        await resize(pilot, 80, 24)
        await pilot.press("exclamation_mark")
        await wait_for(
            pilot, lambda: pane.form.current is field or bool(pane.form.current and pane.form.current.warning)
        )
        assert pane.check() == {}
        await type_value(pilot, pane, "train.learning_rate", "2e-4")
        assert field.warning == ""


async def test_model_card_and_disk_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setattr("core.hardware.card.find_card", lambda **_: Card("GTX 1080", 8 << 30, (6, 1)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10, used=9, free=1))
    text = '[model]\nbase = "model"\n[data]\ntrain = "rows.jsonl"\n[train]\nprecision = "bf16"\nmax_length = 1024\n'
    async with config_pane(write_config(tmp_path, text), size=(120, 40)) as (pilot, pane):
        await wait_for(pilot, lambda: "train.precision" in pane.problems)
        assert "which this card does not have" in pane.problems["train.precision"]
        await wait_for(pilot, lambda: "checkpoint.keep" in pane.problems)
        assert "the disk of the runs has 1 B free" in pane.problems["checkpoint.keep"]
        field = pane.form.field("train.max_length")
        assert field is not None
        await wait_for(pilot, lambda: "made for rows of 512 tokens" in field.warning)
        # Rows are known once they are counted: three, and a step takes eight.
        batch = pane.form.field("train.batch_size")
        assert batch is not None
        await wait_for(pilot, lambda: "there are 3 rows" in batch.warning)


async def test_the_card_is_that_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {None: Card("RTX 4090", 24 << 30, (8, 9)), "1": Card("GTX 1080", 8 << 30, (6, 1)), "7": None}
    monkeypatch.setattr("core.hardware.card.find_card", lambda gpu=None, **_: cards[gpu])
    async with config_pane(write_config(tmp_path, '[data]\ntrain = "rows.jsonl"\n'), size=(120, 40)) as (pilot, pane):
        await wait_for(pilot, lambda: pane.known.facts.device_bytes == 24 << 30)
        await type_value(pilot, pane, "hardware.gpu", "1")
        await wait_for(pilot, lambda: (pane.known.facts.device_bytes, pane.known.facts.bf16) == (8 << 30, False))
        await type_value(pilot, pane, "hardware.gpu", "7")
        await wait_for(pilot, lambda: pane.known.facts.device_bytes is None)


async def test_what_differs_from_the_last_run_is_marked(tmp_path: Path, home: Path) -> None:
    path = write_config(tmp_path)
    document = ConfigDocument.load(path)
    document.set("train.learning_rate", 1e-3)
    document.set("method.dora", True)
    create_run(document.validate(), "tickets")
    async with config_pane(path) as (pilot, pane):
        await wait_for(pilot, lambda: pane.known.last_run is not None)
        await pilot.press("f")
        shown = [field.option.name for field in pane.form.shown]
        assert shown == ["method.dora", "train.epochs", "train.learning_rate"]
        await wait_for(pilot, lambda: any("≠ last run 0.001" in line for line in screen_lines(pilot.app)))
        assert any("≠ last run true" in line for line in screen_lines(pilot.app))
        assert not any("rows.jsonl" in note for field in pane.form.fields for note in field.notes)
        await type_value(pilot, pane, "train.learning_rate", "1e-3")
        assert pane.form.field("train.learning_rate").notes == ()  # type: ignore[union-attr]


@pytest.mark.long
async def test_the_long_help_is_beside_or_below_and_scrolls(tmp_path: Path) -> None:
    async with config_pane(write_config(tmp_path), size=(60, 20)) as (pilot, pane):
        await pilot.press("A", "G", "h")
        panel = pane.query_one(OptionHelp)
        await wait_for(pilot, lambda: panel.display and panel.size.height > 0)
        for name in ("train.learning_rate", "model.base", "method.rank"):
            await show_help(pilot, pane, name)
        await wait_for(pilot, lambda: "^d read on" in screen_lines(pilot.app)[-1])
        top = panel.scroll_y
        assert top == 0
        await press(pilot, "ctrl+d", until=lambda: panel.scroll_y > 0)
        await press(pilot, "ctrl+u", until=lambda: panel.scroll_y == 0)
        text = flat(
            "".join(line.text for line in panel.render_lines(panel.region.reset_offset)) + screen_text(pilot.app)
        )
        assert "rank" in text
        panel.focus()
        await press(pilot, "j", "escape", until=lambda: pane.form.has_focus)
        await pilot.press("h")
        assert not panel.display
        assert all(len(line) == 60 for line in screen_lines(pilot.app))
        await pilot.press("h")
        # A wide terminal has room for all of it, beside the options.
        await pilot.resize_terminal(200, 50)
        await wait_for(pilot, lambda: panel.region.x > pane.form.region.x)
        await show_help(pilot, pane, "method.rslora")
        text = flat(screen_text(pilot.app))
        for part in ("accepts true or false", "default false", "source", "rule"):
            assert part in text
        assert all(len(line) == 200 for line in screen_lines(pilot.app))
        assert "read on" not in screen_lines(pilot.app)[-1]


async def test_a_start_with_errors_goes_to_the_first_and_says_how_many(tmp_path: Path, home: Path) -> None:
    text = '[data]\ntrain = "rows.jsonl"\n[method]\ndropout = 3.0\n[train]\nepochs = -1\n[chat]\ntop_p = 9.0\n'
    path = write_config(tmp_path, text)
    async with running(LocaltuneApp(path), (80, 24), notifications=True, until=has_form) as (app, pilot):
        app.main.show_pane("runs")
        await pilot.press("r")
        pane = pane_of(app, "config")
        await wait_for(pilot, lambda: "✗ Not started. 1 of 3 problems (! next): method.dropout" in screen_text(app))
        await wait_for(pilot, lambda: pane.form.has_focus)
        assert pane.form.current is pane.form.field("method.dropout")
        await wait_for(pilot, lambda: any("▸✗ dropout" in line for line in screen_lines(app)))
        await press(pilot, "exclamation_mark", until=lambda: pane.form.current is pane.form.field("train.epochs"))
    assert list_runs() == []


async def test_the_plan_is_made_anew_with_every_edit(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def planner(document: ConfigDocument, measures: bool) -> PlanView | None:
        assert not measures, "nothing of it is rough"
        rank = document.get("method.rank") or 16
        seen.append((rank, threading.current_thread() is threading.main_thread()))
        total = 3_000_000_000 + rank * 1_000_000
        parts = (("weights", 3_000_000_000), ("adapters", rank * 1_000_000))
        return PlanView(parts, total, 3_100_000_000, total < 3_100_000_000, ("method.rank = 8 saves memory",))

    async with config_pane(size=(80, 24)) as (pilot, pane):
        pane.planner = planner
        await opened(pilot, pane, write_config(tmp_path))
        await shown(pilot, "✓ fits", "→ method.rank = 8 saves memory")
        await type_value(pilot, pane, "method.rank", "512")
        await shown(pilot, "✗ does not fit", "┃")
        assert not any(in_main for _, in_main in seen)
        await press(pilot, "d", until=lambda: "Memory plan" in screen_text(pilot.app))
        await shown(pilot, "adapters", "512 MB")
        await press(pilot, "escape", until=lambda: "Memory plan" not in screen_text(pilot.app))
        pane.query_one(PlanBar).show(None)
        await pilot.pause()
        assert "does not fit" not in screen_text(pilot.app)


async def test_a_rough_plan_is_shown_until_the_model_is_measured(tmp_path: Path) -> None:
    is_measured = threading.Event()

    def planner(_document: ConfigDocument, measures: bool) -> PlanView | None:
        if not measures:
            return PlanView((("weights", 3 << 30),), 3 << 30, 2 << 30, False, ("less",), is_rough=True)
        is_measured.wait(60)
        return PlanView((("weights", 1 << 30),), 1 << 30, 2 << 30, True)

    async with config_pane(size=(80, 24)) as (pilot, pane):
        pane.planner = planner
        await opened(pilot, pane, write_config(tmp_path))
        await shown(pilot, "roughly 3.2 GB of 2.1 GB free", "→ measuring the model")
        assert "fit" not in screen_text(pilot.app).split("roughly")[1].splitlines()[0]
        is_measured.set()
        await wait_for(pilot, lambda: "✓ fits" in screen_text(pilot.app))
        assert "roughly" not in screen_text(pilot.app)


async def test_small_numbers_are_shown_as_people_write_them_and_stay_as_they_were_written(tmp_path: Path) -> None:
    text = '[data]\ntrain = "rows.jsonl"\n\n[train]\nlearning_rate = 0.0001 # slow\n'
    path = write_config(tmp_path, text)
    async with config_pane(path, size=(80, 24)) as (pilot, pane):
        field = await go_to(pilot, pane, "train.learning_rate")
        assert "1e-4" in flat(screen_text(pilot.app))
        assert "0.0001" not in screen_text(pilot.app)
        # Visited and left unchanged.
        await press(pilot, "enter", "enter", until=lambda: pane.form.has_focus)
        assert pane.document.dumps() == text
        await type_value(pilot, pane, "train.learning_rate", "3e-4")
        assert field.value == 3e-4
        assert "learning_rate = 3e-4 # slow" in pane.document.dumps()


def test_paths_that_differ_in_their_directory_show_it() -> None:
    option = next(option for option in options() if option.name == "data.train")
    field = OptionField(option, base=Path("/"), suffixes=(".jsonl",))
    field.set_reactive(OptionField.value, ["/a/new/t.jsonl", "/a/more.jsonl"])
    notes = difference_notes(field, None, {"data.train": ["/a/old/t.jsonl"]})
    assert "old/t.jsonl" in notes[0]
    notes = difference_notes(field, None, {"data.train": ["/a/old/other.jsonl"]})
    assert "old" not in notes[0]
    notes = difference_notes(field, None, {"data.train": ["/a/tickets_of_the_last_three_years.jsonl"]})
    assert notes == ("≠ last run tickets_of_the_last_three_years.jsonl",)
