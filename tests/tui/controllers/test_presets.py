"""Presets of a new configuration, and advised values that follow its base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.presets import begin
from tests.families.published_models import published_config
from tests.tui.config_panes import type_value
from tests.tui.harness import document_of, has_form, opened, pane_of, press, running, screen_text, wait_for
from tui.app import LocaltuneApp
from tui.panes.config.form import help_facts


def value(app: LocaltuneApp, name: str) -> Any:
    """An option of the configuration, as it is written; None where it is not."""
    return document_of(app).get(name)


@pytest.fixture(autouse=True)
def _quick_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(begin, "sample_lengths", lambda _: [40])


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(count)))
    return path


async def settled(pilot: Pilot[Any], app: LocaltuneApp) -> None:
    await wait_for(pilot, lambda: not app.configuration.presets.is_pending, 30)
    await pilot.pause()


async def test_t_brings_a_preset_and_held_out_rows_as_one_edit(tmp_path: Path, home: Path) -> None:
    async with running(size=(120, 34), notifications=True, until=has_form) as (app, pilot):
        app.configuration.use_dataset(write_rows(tmp_path / "faq.jsonl", 200))
        await wait_for(pilot, lambda: value(app, "train.learning_rate") == 5e-4, 30)
        # One notice for one action, also for the same again.
        app.configuration.use_dataset(tmp_path / "faq.jsonl")
        told = ["faq.jsonl is used for training; r starts."]
        await wait_for(pilot, lambda: [note.message for note in app._notifications] == told)
        assert value(app, "data.eval_share") == 0.1
        assert value(app, "eval.every_epochs") is None, "a run so short is measured at its end"
        await press(pilot, "2", until="at the end")
        # The notice lies on the line below.
        app.clear_notifications()
        said = "✓ preset cpu-small · 3 for the rows · 20 of 200 rows held out · P shows why · u undoes"
        await wait_for(pilot, lambda: said in " ".join(screen_text(app).replace("│", " ").split()))
        assert "preset cpu-small" in pane_of(app, "config").border_title
        assert "changed" not in pane_of(app, "config").border_title, "the user has changed nothing"
        assert not [field for field in pane_of(app, "config").form.fields if field.is_changed]
        # The presets say why, value by value.
        await press(pilot, "P", until=("auto: cpu-small", "=  data.eval_share 0.1  20 of 200 rows held out; 0 to"))
        assert "=  eval.baseline true  For comparison: it takes a few" in screen_text(app)
        assert "=  eval.probe false  It would take more than a tenth" in screen_text(app)
        await press(pilot, "escape", until="for the rows")
        await pilot.press("u")
        assert value(app, "train.learning_rate") is None
        assert value(app, "data.eval_share") is None
        assert value(app, "eval.every_epochs") is None
        assert value(app, "data.train") is not None
        # Taken back once, it does not come again.
        app.configuration.use_dataset(write_rows(tmp_path / "other.jsonl", 300), "add")
        await wait_for(pilot, lambda: isinstance(value(app, "data.train"), list))
        await settled(pilot, app)
        assert value(app, "train.learning_rate") is None


async def test_values_of_the_user_stay(tmp_path: Path, home: Path) -> None:
    async with opened() as (app, pilot):
        app.main.show_pane("config")
        pane = pane_of(app, "config")
        await type_value(pilot, pane, "train.learning_rate", "7e-5")
        await type_value(pilot, pane, "data.eval_share", "0.3")
        app.configuration.use_dataset(write_rows(tmp_path / "faq.jsonl", 200))
        await wait_for(pilot, lambda: value(app, "train.batch_size") == 4, 30)
        assert (value(app, "train.learning_rate"), value(app, "data.eval_share")) == (7e-5, 0.3)


async def test_other_data_is_chosen_for_anew(tmp_path: Path, home: Path) -> None:
    async with opened() as (app, pilot):
        app.configuration.use_dataset(write_rows(tmp_path / "few.jsonl", 12))
        await wait_for(pilot, lambda: value(app, "train.batch_size") == 4, 30)
        assert value(app, "data.eval_share") is None
        app.configuration.use_dataset(write_rows(tmp_path / "large.jsonl", 3988), "add")
        await wait_for(pilot, lambda: value(app, "data.eval_share") == 0.05, 30)
        assert value(app, "train.batch_size") == 4


async def test_a_held_out_file_takes_the_place_of_the_share(tmp_path: Path, home: Path) -> None:
    async with opened() as (app, pilot):
        app.configuration.use_dataset(write_rows(tmp_path / "faq.jsonl", 200))
        await wait_for(pilot, lambda: value(app, "data.eval_share") == 0.1, 30)
        app.configuration.use_dataset(write_rows(tmp_path / "eval.jsonl", 9), "eval")
        await wait_for(pilot, lambda: value(app, "data.eval") is not None)
        assert value(app, "data.eval_share") is None
        assert not pane_of(app, "config").check()


async def test_the_advice_for_the_model_is_written_and_goes_with_the_model(tmp_path: Path, home: Path) -> None:
    for name, config in (("Qwen3-4B", "Qwen3-4B"), ("mine", "Llama-3.2-1B")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(published_config(config)))
    async with opened(size=(120, 40)) as (app, pilot):
        app.main.show_pane("config")
        pane = pane_of(app, "config")
        await type_value(pilot, pane, "chat.temperature", "0.5")
        await type_value(pilot, pane, "model.base", str(tmp_path / "Qwen3-4B"))
        app.configuration.use_dataset(write_rows(tmp_path / "faq.jsonl", 200))
        await wait_for(pilot, lambda: value(app, "chat.top_k") == 20, 30)
        await settled(pilot, app)
        assert (value(app, "chat.top_p"), value(app, "chat.temperature")) == (0.95, 0.5), "the user's own stays"
        assert "as advised for Qwen3" in " ".join(screen_text(app).replace("│", " ").split())
        await wait_for(pilot, lambda: pane.known.advice)
        field = next(field for field in pane.form.fields if field.option.name == "chat.top_k")
        told = dict(help_facts(field, None, "", pane.known.advice))
        assert told["advised"].startswith(
            "20 for Qwen3: Qwen's own, with reasoning or without. (https://huggingface.co/Qwen/"
        )
        await type_value(pilot, pane, "model.base", str(tmp_path / "mine"))
        await wait_for(pilot, lambda: value(app, "chat.top_k") is None, 30)
        await settled(pilot, app)
        assert (value(app, "chat.top_p"), value(app, "chat.temperature")) == (None, 0.5)
        await wait_for(pilot, lambda: not pane.known.advice)
