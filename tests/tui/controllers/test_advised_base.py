"""Advised values of a saved configuration follow its base model, and the user's own stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.families.published_models import published_config
from tests.tui.config_panes import type_value
from tests.tui.controllers.whole_app import ready, value
from tests.tui.harness import pane_of, screen_text, wait_for
from tui.app import LocaltuneApp


@pytest.mark.long
async def test_another_base_brings_its_own_advice_as_one_edit(tmp_path: Path, home: Path) -> None:
    for name, config in (("gemma-3-4b-it", "Gemma-3-4B"), ("LFM2-1.2B", "LFM2-1.2B"), ("mine", "Llama-3.2-1B")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(published_config(config)))
    (tmp_path / "rows.jsonl").write_text('{"text": "row"}\n' * 3)
    path = tmp_path / "mine.toml"
    text = '[model]\nbase = "gemma-3-4b-it"\n\n[data]\ntrain = "rows.jsonl"\n\n'
    path.write_text(text + "[chat]\ntemperature = 1.0\ntop_p = 0.8\ntop_k = 64\n")
    app = LocaltuneApp(path)
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot, app)
        app.main.show_pane("config")
        pane = pane_of(app, "config")
        await type_value(pilot, pane, "model.base", "LFM2-1.2B")
        await wait_for(pilot, lambda: value(app, "chat.temperature") == 0.3, 30)
        assert (value(app, "chat.top_k"), value(app, "chat.min_p")) == (None, 0.15)
        assert value(app, "chat.top_p") == 0.8, "the user's own stays"
        assert "As advised for LFM2-1.2B: chat.temperature" in " ".join(screen_text(app).replace("│", " ").split())

        await pilot.press("u")
        await wait_for(pilot, lambda: value(app, "chat.temperature") == 1.0, 30)
        assert (value(app, "model.base"), value(app, "chat.top_k")) == ("LFM2-1.2B", 64), "undone by itself"
        await pilot.press("u")
        await wait_for(pilot, lambda: value(app, "model.base") == "gemma-3-4b-it", 30)
        assert value(app, "chat.top_k") == 64

        await type_value(pilot, pane, "model.base", "mine")
        await wait_for(pilot, lambda: value(app, "chat.temperature") is None, 30)
        assert (value(app, "chat.top_k"), value(app, "chat.top_p")) == (None, 0.8)
        assert "Advised for the former base, and gone: chat" in " ".join(screen_text(app).replace("│", " ").split())
