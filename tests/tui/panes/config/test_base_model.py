"""The base model in the config pane: chosen from the list, and a problem where it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot

from core import paths
from core.models.find import STARTER_NAME
from tests.core.models.spoiling import copy_model, edit_json
from tests.tui.config_panes import config_pane, edits, flat, go_to, opened, write_config
from tests.tui.harness import PaneApp, press, screen_text, wait_for
from tui.panes.config.model import NamedBase, check_base, find_missing
from tui.screens.models import ModelScreen
from tui.widgets.forms.inputs import SafeInput


@pytest.fixture(autouse=True)
def _no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan is made of a model: measuring one for it takes long, and the pane is not left before it has ended."""
    monkeypatch.setattr("tui.panes.config.facts.plan_document", lambda *_: None)


def configuration(directory: Path, base: str, more: str = "") -> Path:
    return write_config(directory, f'[model]\nbase = "{base}"\n[data]\ntrain = "rows.jsonl"\n{more}')


async def list_opened(pilot: Pilot[Any]) -> None:
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, ModelScreen))
    await wait_for(pilot, lambda: "on this machine" in screen_text(pilot.app))


async def test_a_model_that_is_not_here_is_a_problem_with_a_way_out(tmp_path: Path) -> None:
    said = {
        "smolxyz": f"There is no model smolxyz here (did you mean {STARTER_NAME}?); enter picks one.",
        "Qwen/Qwen2.5-0.5B-Instruct": "There is no model Qwen/Qwen2.5-0.5B-Instruct here; enter picks one or fetches "
        "it, as 'localtune-tui fetch hf://Qwen/Qwen2.5-0.5B-Instruct' does.",
        "../models/none": "There is no model ../models/none here; enter picks one.",
    }
    async with config_pane(size=(120, 34)) as (pilot, pane):
        for base, says in said.items():
            await opened(pilot, pane, configuration(tmp_path, base))
            await wait_for(pilot, lambda: pane.problems.get("model.base") == says)  # noqa: B023
            await wait_for(pilot, lambda: "1 problem" in screen_text(pilot.app))
            await wait_for(pilot, lambda: says in flat(screen_text(pilot.app)))  # noqa: B023


@pytest.mark.long
async def test_a_model_that_a_run_would_refuse_is_a_problem_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    edit_json(model / "config.json", model_type="bert", architectures=["BertModel"])
    async with config_pane(configuration(tmp_path, "model"), size=(100, 30)) as (pilot, pane):
        await wait_for(pilot, lambda: "is an encoder (BertModel)" in pane.problems.get("model.base", ""))
        # It is looked at again once the user wants to start, as it may have been mended.
        edit_json(model / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
        assert pane.check()
        await wait_for(pilot, lambda: not pane.problems)


async def test_a_model_that_has_come_or_gone_is_seen_at_the_start(tmp_path: Path, tiny_model_dir: Path) -> None:
    async with config_pane(configuration(tmp_path, "model"), size=(100, 30)) as (pilot, pane):
        await wait_for(pilot, lambda: "model.base" in pane.problems)
        copied = copy_model(tiny_model_dir, tmp_path / "model")
        assert pane.check() == {}
        copied.rename(tmp_path / "elsewhere")
        assert "model.base" in pane.check()


def test_the_check_agrees_with_the_lookup_by_names(tmp_path: Path, tiny_model_dir: Path) -> None:
    copy_model(tiny_model_dir, tmp_path / "model")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    here, missing = ("model", STARTER_NAME, "a.gguf"), ("none", "a\0b")
    for name in (*here, *missing):
        base, is_missing = NamedBase(name, tmp_path), name in missing
        assert (find_missing(base, "enter") is not None) == is_missing
        assert check_base(base, "enter").is_missing == is_missing
    assert "damaged or cut short" in check_base(NamedBase("a.gguf", tmp_path), "enter").sentence
    packed = copy_model(tiny_model_dir, tmp_path / "packed")
    edit_json(packed / "config.json", quantization_config={"quant_method": "fp8"})
    assert check_base(NamedBase("packed", tmp_path), "enter").sentence == ""
    edit_json(packed / "config.json", quantization_config={"quant_method": "hqq"})
    assert "saved quantized (HQQ)" in check_base(NamedBase("packed", tmp_path), "enter").sentence


async def test_the_model_is_chosen_from_the_list_and_undone(tmp_path: Path, tiny_model_dir: Path) -> None:
    copy_model(tiny_model_dir, paths.models_dir() / "mine")
    copy_model(tiny_model_dir, tmp_path / "models" / "own")
    async with config_pane(write_config(tmp_path), size=(100, 30)) as (pilot, pane):
        app = pilot.app
        assert isinstance(app, PaneApp)
        before = pane.document.dumps()
        for key in ("enter", "M"):
            await go_to(pilot, pane, "model.base")
            app.requests.clear()
            await pilot.press(key)
            await list_opened(pilot)
            await press(pilot, "m", "i", "n", "e", "enter", until=lambda: pane.document.get("model.base") == "mine")
            assert "# mine" in pane.document.dumps()
            await wait_for(pilot, lambda: edits(pilot) and pane.form.has_focus)
            assert "✓ model.base is mine" in screen_text(pilot.app)
            await pilot.press("u")
            assert pane.document.dumps() == before
        # A directory is written as seen from the file.
        await pilot.press("enter")
        await list_opened(pilot)
        await press(pilot, "o", "w", "n", "enter", until=lambda: pane.document.get("model.base") == "models/own")
        assert pane.check() == {}


async def test_the_present_choice_changes_nothing(tmp_path: Path) -> None:
    async with config_pane(write_config(tmp_path), size=(100, 30)) as (pilot, pane):
        await go_to(pilot, pane, "model.base")
        for last in ("enter", "escape"):
            await pilot.press("enter")
            await list_opened(pilot)
            await press(pilot, last, until=lambda: not isinstance(pilot.app.screen, ModelScreen))
        await pilot.pause()
        assert not pane.model.is_edited
        assert edits(pilot) == []
        # What is typed behind enter is searched for.
        before = pane.document.dumps()
        pilot.app.post_message(Key("enter", None))
        for character in "dux":
            pilot.app.post_message(Key(character, character))
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, ModelScreen))
        await wait_for(pilot, lambda: pilot.app.screen.query_one(SafeInput).value == "dux")
        assert pane.document.dumps() == before
        assert not pane.filter.shows_expert
