"""The start of the app: its first pane, its focus, and its refusals."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument
from tests.tui.harness import pane_of, press, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.files import data_paths, path_text
from tui.panes.config.model import ConfigModel


async def test_without_a_live_run_the_newest_one_is_shown(home: Path) -> None:
    script = ScriptedRun(home).train_to(30).end("stopped", "stopped on request after step 30")
    async with running(size=(120, 34), until="stopped on request after step 30") as (app, pilot):
        assert "No run yet." not in screen_text(app)
        assert app.leaving.line() is None, "a run that was only found says nothing when the app is left"
        await wait_for(pilot, lambda: pane_of(app, "chat") is not None and pane_of(app, "chat").target == script.run)


async def test_the_prompt_takes_the_keys_only_when_asked(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    app = LocaltuneApp()
    async with app.run_test(size=(160, 45)) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "chat") is not None and pane_of(app, "chat").target == script.run)
        await press(pilot, "4", until=lambda: app.main.current == "chat")
        prompt = pane_of(app, "chat").prompt
        assert not prompt.has_focus
        await press(pilot, "0", "4", "i", until=lambda: prompt.has_focus)
        await wait_for(pilot, lambda: "leaves the prompt" in screen_text(app).splitlines()[-1])
        await press(pilot, "escape", "0", until=lambda: not prompt.has_focus and app.main.is_tiled)
        assert prompt.text == ""


def test_paths_beside_the_configuration_are_relative(tmp_path: Path) -> None:
    document = ConfigDocument("", tmp_path / "mine.toml")
    assert path_text(document, tmp_path / "data" / "rows.jsonl") == "data/rows.jsonl"
    assert path_text(document, tmp_path.parent / "rows.jsonl") == str(tmp_path.parent / "rows.jsonl")
    document.set("data.train", "data/rows.jsonl")
    assert data_paths(document, "train") == [(tmp_path / "data" / "rows.jsonl").resolve()]


def test_steps_are_estimated_as_the_worker_counts_them(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n", encoding="utf-8")
    for text, expected in (
        *(("epochs = 1.5\nbatch_size = 8", "about 2 steps"), ("max_steps = 7", "7 steps")),
        *(("max_steps = -7", ""), ("epochs = -1", "")),
    ):
        document = ConfigDocument(f'[data]\ntrain = "rows.jsonl"\n[train]\n{text}\n', tmp_path / "mine.toml")
        summary = ConfigModel(document).summary({rows: 8})
        assert expected in summary
        assert "step" in summary or not expected
        assert "-" not in summary.rpartition("batch")[2]
