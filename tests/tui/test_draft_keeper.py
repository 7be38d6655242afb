"""Drafts come back: edits, the conversation, an unsent prompt, text that is no configuration yet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core import paths
from core.chat.dialogue import Dialogue, Reply
from core.chat.transcripts import chats_dir, list_transcripts
from core.drafts import list_drafts
from core.runs.record.store import Run
from tests.tui.config_panes import write_config
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import HOSTILE, document_of, has_run, pane_of, paste, press, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.panes.chat.pane import ChatPane
from tui.panes.config.pane import ConfigPane
from tui.session import forget_session


def leave_behind() -> None:
    """Mark all drafts as left by a process that has ended."""
    for path in paths.drafts_dir().glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "another boot"}))


@asynccontextmanager
async def chatting() -> AsyncIterator[tuple[LocaltuneApp, Pilot[Any], ChatPane]]:
    """The app with its Chat pane, a run as its target and a fake session."""
    async with running(size=(100, 30), until=has_run) as (app, pilot):
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "chat").target is not None)
        pane = pane_of(app, "chat")
        pane._holder._factory = factory(FakeSession({"tuned": ["forty", "-two"], "base": ["I", " see"]}))
        await pilot.press("4")
        yield app, pilot, pane


async def test_a_conversation_comes_back_with_what_was_half_written(home: Path) -> None:
    ScriptedRun(home).end("finished")
    async with chatting() as (app, pilot, pane):
        await pilot.press("i")
        await paste(pilot, f"what is it {HOSTILE}")
        await press(pilot, "enter", until=lambda: pane.dialogue.exchanges and not pane.is_answering)
        await paste(pilot, "and why")
        app.drafts.look()
        assert app.drafts.kept == "the conversation is kept"
        run = pane.target
        assert isinstance(run, Run)
        (kept,) = list_transcripts(run)
        assert kept.dialogue().to_data() == pane.dialogue.to_data()
        app.leaving.leave()
    leave_behind()

    async with chatting() as (app, pilot, pane):
        await wait_for(pilot, lambda: "forty-two" in screen_text(app))
        assert "what is it" in screen_text(app)
        assert pane.prompt.text == "and why"
        app.drafts.look()
        assert [one.id for one in list_transcripts(run)] == [kept.id], "it goes on in the file where it is kept"
        assert [reply.state for exchange in pane.dialogue.exchanges for reply in exchange.replies] == ["done"]
        assert "is back in the Chat pane" in " ".join(note.message for note in app._notifications)
        await pilot.press("escape", "ctrl+l")
        pane.prompt.clear()
        await wait_for(pilot, lambda: not pane.dialogue.exchanges)
        app.drafts.look()
        assert not list_drafts("chat")
        assert [one.id for one in list_transcripts(run)] == [kept.id], "with its run it stays"


async def test_a_prompt_that_was_only_typed_comes_back_without_a_word(home: Path) -> None:
    ScriptedRun(home).end("finished")
    async with chatting() as (app, pilot, pane):
        pane.take_up(Dialogue(), "and why")
        app.leaving.leave()
    leave_behind()
    async with chatting() as (app, pilot, pane):
        await wait_for(pilot, lambda: pane.prompt.text == "and why")
        assert "is back in the Chat pane" not in " ".join(note.message for note in app._notifications)


@pytest.mark.long
async def test_leaving_by_choice_keeps_the_conversation_and_says_nothing(home: Path) -> None:
    ScriptedRun(home).end("finished")
    async with chatting() as (app, pilot, pane):
        pane.take_up(dialogue(), "half")
        await press(pilot, "5", "q", until=lambda: not app.is_running)
    assert [draft.is_released for draft in list_drafts("chat")] == [True]
    async with chatting() as (app, pilot, pane):
        await wait_for(pilot, lambda: pane.dialogue.exchanges)
        assert pane.prompt.text == "half"
        assert not [note for note in app._notifications if "is back" in note.message]


async def test_the_conversation_is_not_kept_where_nothing_is_to_be_remembered(home: Path) -> None:
    directory = paths.config_dir()
    directory.mkdir(parents=True)
    (directory / "settings.toml").write_text("remember = false\n")
    ScriptedRun(home).end("finished")
    async with chatting() as (app, pilot, pane):
        pane.take_up(dialogue(), "half")
        app.drafts.look()
        assert list_drafts("chat")
        run = pane.target
        assert isinstance(run, Run)
        assert not chats_dir(run).exists()
        await press(pilot, "5", "q", until=lambda: not app.is_running)
    assert not list_drafts("chat")


async def test_each_run_has_its_own_conversation(home: Path) -> None:
    names = "20261124-100000-first", "20261124-110000-second"
    first, second = (ScriptedRun(home, name).end("finished") for name in names)
    async with chatting() as (app, pilot, pane):
        assert pane.target == second.run
        pane.take_up(dialogue(), "half")
        for script, count in ((first, 0), (second, 1)):
            run = script.run
            app.runs.open(run)
            await wait_for(pilot, lambda run=run: pane.target == run)  # type: ignore[misc]
            await pilot.pause()
            assert (len(pane.dialogue.exchanges), pane.prompt.text) == (count, "half" * count)


async def test_a_configuration_without_a_file_comes_back_with_its_paths(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "rows.jsonl").write_text('{"text": "one"}\n')
    monkeypatch.chdir(tmp_path / "here")
    async with running(size=(100, 30)) as (app, pilot):
        app.configuration.set_options({"train.epochs": 7.0, "data.train": "rows.jsonl"})
        app.leaving.leave()
    leave_behind()
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with running(size=(100, 30)) as (app, pilot):
        document = document_of(app)
        assert (document.path, document.get("train.epochs")) == (None, 7.0)
        assert document.get("data.train") == str(tmp_path / "here" / "rows.jsonl")
        await wait_for(pilot, lambda: pane_of(app, "config").form.fields)
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None)


async def test_what_was_not_saved_comes_back_in_its_directory_without_a_session(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    async with running(size=(100, 30)) as (app, pilot):
        app.configuration.set_options({"train.epochs": 7.0})
        app.leaving.leave()
    leave_behind()
    for name, expected in (("elsewhere", None), ("here", 7.0)):
        forget_session()
        monkeypatch.chdir(tmp_path / name)
        async with running(size=(100, 30)) as (app, pilot):
            await pilot.pause()
            document = document_of(app)
            assert document.get("train.epochs") == expected
            assert document.path is None


async def test_text_that_is_no_configuration_yet_comes_back(home: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    async with running(LocaltuneApp(config_path=path), (100, 30)) as (app, pilot):
        pane = pane_of(app, "config")
        pane._take_edited("", "[data\n# half a line")
        app.leaving.leave()
    leave_behind()
    async with running(LocaltuneApp(config_path=path), (100, 30)) as (app, pilot):
        pane = pane_of(app, "config")
        assert isinstance(pane, ConfigPane)
        await wait_for(pilot, lambda: pane.unread_text == "[data\n# half a line")
        assert "is not valid TOML yet" in screen_text(app)
    assert "half a line" not in path.read_text()


def dialogue() -> Dialogue:
    found = Dialogue()
    found.ask("what", ()).replies = [Reply("tuned", "that", "done", "tuned", "1 token")]
    return found
