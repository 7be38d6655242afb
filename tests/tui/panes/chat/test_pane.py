"""The chat pane with a fake session: streaming, stopping, comparing, errors, hostile text."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from textual.pilot import Pilot

from core.chat.candidates import Candidate
from core.chat.corrections import corrections_file, read_corrections
from core.chat.dialogue import Dialogue
from core.chat.request import GenerationSettings
from core.chat.rows import OR
from core.chat.session import ChatSession
from core.chat.transcripts import keep_transcript, list_transcripts
from core.errors import UserError
from core.export.result import ExportedFile, ExportResult
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.cases import cases
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import (
    FORBIDDEN,
    HOSTILE,
    PaneApp,
    paste,
    press,
    requested,
    resize,
    screen_lines,
    screen_text,
    shown,
    wait_for,
)
from tui.messages import AskWhy
from tui.panes.chat.pane import ChatPane

SIZES = [(60, 20), (80, 22), (92, 30), (200, 50)]


def make_run(tmp_path: Path, name: str = "20261124-143600-tickets") -> Run:
    run = Run(tmp_path / name)
    run.adapter_path.mkdir(parents=True)
    run.config_path.write_text(
        '[data]\ntrain = "rows.jsonl"\n[chat]\nsystem = "Be brief."\nmax_new_tokens = 77\ntemperature = 0.5\n'
    )
    return run


def fake(*, step: int | None = None) -> FakeSession:
    return FakeSession({"tuned": ["short", " and", " tuned"], "base": ["long", " and", " basic"]}, step=step)


async def ask(pilot: Pilot[None], pane: ChatPane, text: str) -> None:
    pane.prompt.focus()
    await paste(pilot, text)
    await pilot.press("enter")


async def finished(pilot: Pilot[None], pane: ChatPane) -> None:
    await wait_for(pilot, lambda: not pane.is_answering)
    await pilot.pause()


async def said(pilot: Pilot[None], pane: ChatPane, *questions: str) -> None:
    """Ask questions, each after the answer before."""
    for question in questions:
        await ask(pilot, pane, question)
        await finished(pilot, pane)


async def press_outside(pilot: Pilot[None], pane: ChatPane, *keys: str, until: str = "") -> None:
    """Press keys with the focus outside the prompt."""
    await pilot.pause()
    pane.query_one("#chat-empty").focus()
    await press(pilot, *keys, until=until)


@asynccontextmanager
async def chatting(
    target: Path | Run | str, *sessions: FakeSession, size: tuple[int, int] = (80, 22), live: bool = False
) -> AsyncIterator[tuple[Pilot[None], ChatPane, FakeSession]]:
    """The pane with a model or a run as its target, which is made where a directory is given."""
    sessions = sessions or (fake(),)
    pane = ChatPane(factory(*sessions))
    async with PaneApp(pane).run_test(size=size) as pilot:
        pane.set_target(make_run(target) if isinstance(target, Path) else target, live=live)
        yield pilot, pane, sessions[0]


async def test_without_a_target_the_pane_says_how_to_get_one() -> None:
    pane = ChatPane(factory(fake()))
    async with PaneApp(pane).run_test(size=SIZES[0]) as pilot:
        for size in SIZES:
            await resize(pilot, *size)
            await shown(pilot, "Nothing to talk to yet.", "r   Start a run")
        await pilot.press("i", "x")
        assert not pane.dialogue.exchanges


async def test_a_question_is_answered_with_its_source_and_speed(tmp_path: Path) -> None:
    async with chatting(tmp_path, fake(step=34), size=SIZES[0], live=True) as (pilot, pane, session):
        assert session.prepared == 0
        await said(pilot, pane, "hello")
        assert session.asked[0][2] == GenerationSettings(max_new_tokens=77, temperature=0.5), "as the run says"
        for size in SIZES:
            await resize(pilot, *size)
            lines = screen_lines(pilot.app)
            assert "model in training, step 34 · tuned" in lines[0]
            assert any("you       hello" in line for line in lines)
            assert any("step 34   short and tuned" in line for line in lines)
            assert any("3 tokens · first 0.16 s · 21 tok/s" in line for line in lines)
            assert all(len(line) == size[0] for line in lines)


async def test_tokens_appear_while_they_come_and_esc_stops_them(tmp_path: Path) -> None:
    session = fake()
    session.gate = gate = threading.Semaphore(0)
    async with chatting(tmp_path, session) as (pilot, pane, _):
        await ask(pilot, pane, "hello")
        gate.release()
        await shown(pilot, "short▌")
        await press(pilot, "escape", until="■ stopped")
        assert not pane.is_answering
        assert session.cancelled.is_set()
        await shown(pilot, "1 token")
        await ask(pilot, pane, "again")
        gate.release(2)
        await shown(pilot, "short and▌")
        assert session.asked[1][1][2]["content"] == "short", "what had been said is part of the conversation"
        # Another question waits.
        await ask(pilot, pane, "third")
        assert len(pane.dialogue.exchanges) == 2
        assert pane.prompt.text == "third"
        assert "still answering" in screen_text(pilot.app)
        gate.release(10)
        await finished(pilot, pane)
        assert "short and tuned" in screen_text(pilot.app)
        assert "▌" not in "".join(line for line in screen_lines(pilot.app) if "short and tuned" in line)
        await press(pilot, "enter", until=lambda: len(pane.dialogue.exchanges) == 3)


async def test_loading_is_shown_and_can_be_cancelled(tmp_path: Path) -> None:
    session = fake()
    session.load_gate = loading = threading.Event()
    async with chatting(tmp_path, session) as (pilot, pane, _):
        await ask(pilot, pane, "hello")
        await shown(pilot, "loading the weights 25%")
        await press(pilot, "escape", until=lambda: pane.prompt.text == "hello")
        assert not pane.dialogue.exchanges, "a question without an answer is back in the prompt"
        loading.set()
        pane.prompt.clear()
        await said(pilot, pane, "again")
        assert [messages[-1]["content"] for _, messages, _ in session.asked] == ["again"]


async def test_switching_between_tuned_and_base(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (pilot, pane, session):
        pane.prompt.focus()
        await pilot.press("b")
        assert pane.prompt.text == "b", "a letter in the prompt is a letter"
        await pilot.press("backspace", "ctrl+t")
        assert pane.sources == ("base",)
        assert "· base" in screen_lines(pilot.app)[0]
        await said(pilot, pane, "hello")
        assert "base      long and basic" in screen_text(pilot.app)
        await pilot.press("escape", "b")
        assert pane.sources == ("tuned",)
        assert session.prepared == 1
        await pilot.press("i")
        assert pane.prompt.has_focus


async def test_both_answer_one_question(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(140, 30)) as (pilot, pane, session):
        await pilot.pause()
        await pilot.press("escape", "vertical_line")
        assert "tuned and base" in screen_lines(pilot.app)[0]
        await said(pilot, pane, "hello")
        assert [source for source, _, _ in session.asked] == ["tuned", "base"]
        for width, beside in ((140, True), (80, False)):
            await resize(pilot, width, 30)
            lines = screen_lines(pilot.app)
            together = [line for line in lines if "short and tuned" in line and "long and basic" in line]
            assert bool(together) is beside
            assert any("long and basic" in line for line in lines)
        await said(pilot, pane, "more")
        answers = {source: messages[2]["content"] for source, messages, _ in session.asked[2:]}
        assert answers == {"tuned": "short and tuned", "base": "long and basic"}


async def test_an_error_is_one_sentence_and_the_next_question_gets_a_new_session(tmp_path: Path) -> None:
    broken, good = fake(), fake()
    broken.error = UserError("The chat engine was killed by signal 9.", "The machine may be out of memory.")
    open_next, refusals = factory(broken, good), [UserError("Run x has neither an adapter nor a checkpoint.", "Wait.")]

    def open_session(target: Run | Path | str) -> ChatSession:
        if refusals:
            raise refusals.pop()
        return open_next(target)

    pane = ChatPane(open_session)
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await said(pilot, pane, "hello")
        assert "✗ Run x has neither an adapter" in screen_text(pilot.app)
        await pilot.press("ctrl+l")
        await said(pilot, pane, "hello")
        await shown(pilot, "✗ The chat engine was killed by signal 9.", "The machine may be out of memory.")
        assert broken.closed
        await said(pilot, pane, "again")
        assert "short and tuned" in screen_text(pilot.app)
        assert [message["content"] for message in good.asked[0][1]] == ["Be brief.", "again"]


async def test_a_conversation_is_copied_saved_and_cleared_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    async with chatting(tmp_path, size=(100, 30)) as (pilot, pane, session):
        app = pilot.app
        assert isinstance(app, PaneApp)
        await pilot.pause()
        await press(pilot, "ctrl+y", until="no answer to copy")
        await press(pilot, "ctrl+s", until="no conversation to save")
        await pilot.press("ctrl+l")
        await said(pilot, pane, "hello")
        await press(pilot, "ctrl+y", until="15 characters")
        await pilot.press("escape", "ctrl+y")
        assert app.copied == ["short and tuned"] * 2
        await press(pilot, "ctrl+s", until="✓ saved in")
        (file,) = (tmp_path / "here").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# 20261124-143600-tickets\n\n## you\n\nhello\n\n## tuned\n\nshort and tuned\n")
        await press(pilot, "ctrl+l", until="^l again brings the previous one back")
        assert "hello" not in screen_text(pilot.app)
        await press(pilot, "ctrl+l", until="you       hello")
        await said(pilot, pane, "and then?")
        assert [exchange.question for exchange in pane.dialogue.exchanges] == ["hello", "and then?"]
        await pilot.press("ctrl+l")
        await said(pilot, pane, "again")
        assert [message["content"] for message in session.asked[-1][1]] == ["Be brief.", "again"]
        assert not session.closed


async def test_prompts_are_pasted_broken_into_lines_and_recalled_and_pages_turned_in_them(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (pilot, pane, session):
        await said(pilot, pane, "one", "two")
        await paste(pilot, "unsent")
        await pilot.press("up")
        assert pane.prompt.text == "two"
        await pilot.press("up", "up")
        assert pane.prompt.text == "one"
        await pilot.press("down", "down")
        assert pane.prompt.text == "unsent"
        pane.prompt.clear()
        await said(pilot, pane, "first line\nsecond line\r\nthird\n")
        assert session.asked[-1][1][-1]["content"] == "first line\nsecond line\nthird"
        for number in range(8):
            await said(pilot, pane, f"question {number}")
        await wait_for(pilot, lambda: pane.transcript.scroll_y > 10)
        await wait_for(pilot, lambda: "enter send  esc leave  pgup earlier" in screen_lines(pilot.app)[-1])
        bottom = pane.transcript.scroll_y
        await press(pilot, "a", "ctrl+n", "b", "pageup", until=lambda: pane.transcript.scroll_y < bottom - 5)
        assert pane.prompt.text == "a\nb"
        await press(pilot, *["pageup"] * 9, until=lambda: "pgdn later" in screen_lines(pilot.app)[-1])
        await pilot.press("pagedown", "enter")
        await finished(pilot, pane)
        assert session.asked[-1][1][-1]["content"] == "a\nb"


async def test_the_prompt_is_emptied_by_esc_twice_and_is_not_for_another_run(tmp_path: Path) -> None:
    async with chatting(tmp_path) as (pilot, pane, _):
        await wait_for(pilot, lambda: pane.prompt.display)
        await press(pilot, "i", *"one", "ctrl+n", *"two", "escape", until="esc again empties the prompt")
        await press(pilot, "i", "escape", until="esc again")
        assert pane.prompt.text == "one\ntwo"
        await press(pilot, "escape", until=lambda: pane.prompt.text == "")
        await pilot.press("i", "up")
        assert pane.prompt.text == "one\ntwo", "nothing typed is lost"
        pane.set_target(make_run(tmp_path, "20261124-143700-other"))
        assert pane.prompt.text == "one\ntwo", "it is being written"
        await press(pilot, "escape", until="esc again")
        pane.set_target(make_run(tmp_path, "20261124-143800-third"))
        assert pane.prompt.text == ""


async def test_questions_go_alone_where_no_row_has_a_second_turn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.config_path.write_text(f'[data]\ntrain = "{tmp_path}/rows.csv"\n')
    (tmp_path / "rows.csv").write_text("question,answer\nWhere is it?,In the [b]shed\x1b[2J\nWho?,Ann\n")
    async with chatting(run, size=(80, 24)) as (pilot, pane, session):
        await said(pilot, pane, "one", "where IS it?")
        await shown(pilot, "tok/s · alone", "wanted    In the [b]shed", "alone · ^o: with what was said before")
        await press(pilot, "ctrl+o", until="with what was said before · ^o: alone")
        await said(pilot, pane, "three")
        asked = [[each["content"] for each in messages] for _, messages, _ in session.asked]
        answer = "short and tuned"
        assert asked == [["one"], ["where IS it?"], ["one", answer, "where IS it?", answer, "three"]]
        assert [exchange.wanted for exchange in pane.dialogue.exchanges][::2] == ["", ""]
        await resize(pilot, 140, 30)
        await wait_for(
            pilot, lambda: any("short and tuned" in line and "wanted" in line for line in screen_lines(pilot.app))
        )
        await press(pilot, "escape", until="w why  e correct  ^l new  ^r again")


async def test_a_run_that_saved_nothing_is_not_offered(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.adapter_path.rmdir()
    async with chatting(run) as (pilot, pane, _):
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "ended before it saved anything" in text
        assert "Ask the tuned" not in text
        await pilot.press("i", "x")
        assert not pane.prompt.display
        pane.set_target(run, live=True)
        await wait_for(pilot, lambda: pane.prompt.display)


async def test_settings_are_chosen_in_the_pane(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(100, 30)) as (pilot, pane, session):
        await press_outside(pilot, pane, "comma", *"Rhyme", "tab", *"warm", "enter", until="must be a number")
        await pilot.press(*["backspace"] * 4, *"0.7", "tab", "tab", *"9", "enter")
        await wait_for(pilot, lambda: len(pilot.app.screen_stack) == 1)
        await said(pilot, pane, "hello")
        assert session.asked[0][1][0] == {"role": "system", "content": "Rhyme"}
        assert session.asked[0][2] == GenerationSettings(max_new_tokens=9, temperature=0.7)
        pane.set_target(make_run(tmp_path, "20261124-143700-other"))
        await said(pilot, pane, "hello")
        assert session.asked[1][1][0]["content"] == "Be brief."


async def test_another_target_closes_the_session_and_frees_its_memory(tmp_path: Path) -> None:
    first, second = fake(), fake(step=2)
    async with chatting(tmp_path, first, second) as (pilot, pane, _):
        await said(pilot, pane, "hello")
        pane.set_target(make_run(tmp_path, "20261124-150000-other"), live=True)
        await wait_for(pilot, lambda: first.closed)
        await pilot.pause()
        assert "hello" not in screen_text(pilot.app)
        assert second.prepared == 0
        await said(pilot, pane, "and you?")
        assert len(second.asked) == 1
        await pane.release()
        assert second.closed


async def test_a_run_that_ends_in_mid_answer_stops_it_and_keeps_the_conversation(tmp_path: Path) -> None:
    live, ended = fake(step=3), fake()
    run = make_run(tmp_path)
    async with chatting(run, live, ended, live=True) as (pilot, pane, _):
        await said(pilot, pane, "hello")
        live.gate = threading.Semaphore(1)
        await ask(pilot, pane, "more")
        await shown(pilot, "short▌")
        pane.set_target(run, live=False)
        await wait_for(pilot, lambda: live.closed)
        assert not pane.is_answering
        await shown(pilot, "■ stopped", "hello")
        assert run.id in screen_lines(pilot.app)[0]
        await said(pilot, pane, "still there?")
        assert [message["content"] for message in ended.asked[0][1]][1:3] == ["hello", "short and tuned"]


async def test_a_model_without_adapter_is_its_base(tmp_path: Path) -> None:
    async with chatting("smollm2-135m-instruct") as (pilot, pane, session):
        await pilot.pause()
        assert "smollm2-135m-instruct · base" in screen_lines(pilot.app)[0]
        await pilot.press("ctrl+t")
        assert "has no adapter" in screen_text(pilot.app)
        await said(pilot, pane, "hello")
        assert session.asked[0][0] == "base"


async def test_hostile_text_never_reaches_a_strip(tmp_path: Path) -> None:
    session = FakeSession({"tuned": [*HOSTILE], "base": [HOSTILE]})
    async with chatting(tmp_path, session, size=(80, 30)) as (pilot, pane, _):
        app = pilot.app
        assert isinstance(app, PaneApp)
        await pilot.press("f3")
        pane.prompt.focus()
        await paste(pilot, HOSTILE)
        assert not FORBIDDEN & set(screen_text(app))
        await pilot.press("enter")
        await finished(pilot, pane)
        assert "[/]i[bold]j" in screen_text(app)
        assert not FORBIDDEN & set(screen_text(app))
        session.error = UserError(HOSTILE, HOSTILE)
        await said(pilot, pane, "again")
        assert not FORBIDDEN & set(screen_text(app))
        await press(pilot, "ctrl+y")
        # The clipboard gets the model's own text; text pasted from there is sanitized again.
        assert app.copied == [HOSTILE]
        pane.prompt.focus()
        app._clipboard = HOSTILE
        await pilot.press("ctrl+v")
        assert "[/]i[bold]j" in pane.prompt.text
        assert not FORBIDDEN & set(pane.prompt.text)
        assert not FORBIDDEN & set(screen_text(app))


async def test_leaving_closes_the_session_and_does_not_wait_for_a_model_that_does_not_end(tmp_path: Path) -> None:
    session, gate, closing = fake(), threading.Event(), threading.Event()

    def close() -> None:
        closing.set()
        gate.wait(60)

    session.close = close  # type: ignore[method-assign]
    async with chatting(tmp_path, session) as (pilot, pane, _):
        await said(pilot, pane, "hello")
        began = time.monotonic()
    assert closing.is_set()
    assert time.monotonic() - began < 30
    gate.set()


async def talked(pilot: Pilot[None], pane: ChatPane, *questions: str) -> None:
    await said(pilot, pane, *questions)
    await pilot.press("escape")


async def test_a_question_is_asked_again_and_both_answers_stay(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(80, 24)) as (pilot, pane, session):
        await talked(pilot, pane, "hello")
        session.script["tuned"] = ["second answer"]
        await pilot.press("ctrl+r")
        await finished(pilot, pane)
        assert "second answer" in (text := screen_text(pilot.app))
        assert "short and tuned" not in text
        assert "hello  ‹2 of 2›" in text
        await press(pilot, "left_square_bracket", until=("hello  ‹1 of 2›", "short and tuned"))
        session.script["tuned"] = ["third answer"]
        await talked(pilot, pane, "and then")
        asked = [each["content"] for each in session.asked[-1][1]]
        assert asked == ["Be brief.", "hello", "short and tuned", "and then"]
        session.gate = threading.Semaphore(0)
        await press(pilot, "N", "ctrl+r", until=lambda: pane.is_answering)
        await press(pilot, "escape", until=("short and tuned", "‹1 of 2›", "and then"))
        assert pane.prompt.text == "", "only the answer that was there is back"
        session.gate = None
        await press(pilot, "N", "right_square_bracket", until="second answer")
        assert "and then" not in screen_text(pilot.app)
        await press(pilot, "right_square_bracket", until="and then")


async def test_an_earlier_question_is_asked_in_other_words(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(80, 24)) as (pilot, pane, session):
        await talked(pilot, pane, "one", "two")
        pane.prompt.insert("half written")
        await press(pilot, "N", until="▸ you     one")
        await pilot.press("R")
        assert pane.prompt.text == "one"
        assert pane.unsent == "half written"
        await pilot.press("escape")
        assert pane.prompt.text == "half written", "leaving it changes nothing"
        await pilot.press("R", "!", "enter")
        await finished(pilot, pane)
        assert [exchange.question for exchange in pane.dialogue.exchanges] == ["one!"]
        assert pane.prompt.text == "half written"
        assert [each["content"] for each in session.asked[-1][1]] == ["Be brief.", "one!"]
        assert "one!  ‹2 of 2›" in screen_text(pilot.app)


async def test_answers_are_markdown_or_as_they_were_written(tmp_path: Path) -> None:
    session = fake()
    session.script["tuned"] = ["# Head\n\n", "some **bold**\n\n", "- one\n- two"]
    async with chatting(tmp_path, session, size=(80, 24)) as (pilot, pane, session):
        await talked(pilot, pane, "hello")
        await shown(pilot, "some bold", "• one")
        await press(pilot, "m", until=("some **bold**", "# Head"))
        await press(pilot, "m", until="• two")


async def test_a_good_answer_becomes_a_row_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    session = fake()
    session.script["tuned"] = ["raw\x1b[2J"]
    async with chatting(tmp_path, session, size=(90, 30)) as (pilot, pane, session):
        await talked(pilot, pane, "hello")
        await press(pilot, "K", until="Add this answer")
        await press(pilot, "ctrl+s", until="Name a file")
        await press(pilot, *"good.jsonl", "enter", until="appended to")
        await press(pilot, "K", until="Add this answer")
        await press(pilot, "x", "ctrl+s", until=lambda: len(pilot.app.screen_stack) == 1)
        rows = [json.loads(line) for line in (tmp_path / "good.jsonl").read_text().splitlines()]
    front = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    # An unedited answer is the model's own text; an edited one is the text of the screen.
    assert [row["messages"][:-1] for row in rows] == [front, front]
    assert [row["messages"][-1]["content"] for row in rows] == ["raw\x1b[2J", "xraw\ufffd[2J"]


async def test_an_answer_is_corrected_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    run = make_run(tmp_path)
    async with chatting(run, size=(100, 30)) as (pilot, pane, _):
        await talked(pilot, pane, "hello")
        await press(pilot, "C", until="No correction waits")
        await press(pilot, "e", until="Correct this answer")
        await press(pilot, "ctrl+s", until=lambda: len(pilot.app.screen_stack) == 1)
        await shown(pilot, "correction kept", "1 correction to learn")
        await press(pilot, "e", until="Correct this answer")
        await press(pilot, "x", "ctrl+s", until=lambda: len(pilot.app.screen_stack) == 1)
        file = corrections_file(run)
        await wait_for(pilot, lambda: [one.answer for one in read_corrections(file)] == ["xshort and tuned"])
        (kept,) = read_corrections(file)
        assert kept.rejected == "short and tuned"
        assert [turn["content"] for turn in kept.messages] == ["Be brief.", "hello"]
        await press(pilot, "e", until="xshort and tuned")
        await press(pilot, "escape", until=lambda: len(pilot.app.screen_stack) == 1)
        await press(pilot, "C", until=lambda: bool(requested(pilot, "starting.learn_corrections")))
        await press(pilot, "u", until="taken back")
        await press(pilot, "u", until="This answer has no correction")
        assert read_corrections(file) == []
        await wait_for(pilot, lambda: "to learn" not in screen_text(pilot.app))


async def test_a_model_without_a_run_keeps_no_corrections(tmp_path: Path) -> None:
    async with chatting("smollm2-135m-instruct") as (pilot, pane, _):
        await talked(pilot, pane, "hello")
        await press(pilot, "e", until="no run is open")


async def test_checkpoints_are_chosen_and_answer_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    found = [
        Candidate("tuned", "tuned", "result"),
        Candidate("base", "base", ""),
        Candidate(f"{run.path}@30", "step 30", "held-out loss 0.455"),
        Candidate("20261124-143700-other@9", "20261124-143700-other@9", "checkpoint"),
    ]
    monkeypatch.setattr("core.chat.candidates.find_candidates", lambda _: found)
    session = fake()
    session.script |= {found[2].source: ["of thirty"], found[3].source: ["of another"]}
    async with chatting(run, session, size=(150, 30)) as (pilot, pane, _):
        await press_outside(pilot, pane, "c", until="held-out loss 0.455")
        await press(pilot, "j", "j", "space", "down", "space", "k", "up", "space", until="At most 3")
        await press(pilot, "enter", until=lambda: len(pilot.app.screen_stack) == 1)
        assert pane.sources == ("tuned", found[2].source, found[3].source)
        assert "tuned, step 30 and other@9" in screen_lines(pilot.app)[0]
        await said(pilot, pane, "hello")
        assert any(
            all(part in line for part in ("short and tuned", "of thirty", "of another"))
            for line in screen_lines(pilot.app)
        )
        assert [source for source, _, _ in session.asked] == list(pane.sources)
        await press(pilot, "escape", "c", until="Who answers")
        await pilot.press("space", "down", "down", "space", "down", "space", "up", "up", "enter")
        await wait_for(pilot, lambda: pane.sources == ("base",))
        # The lines that use an export outlast the job that made it.
        assert "use it elsewhere" not in screen_text(pilot.app)
        files = (ExportedFile("tickets-Q8_0.gguf", 9, "ab"),)
        made = ExportResult(tmp_path, "gguf", "Q8_0", "tickets", None, "base", None, None, files, None, (), 1.0, 1.0)
        (tmp_path / "export.json").write_text(json.dumps(made.to_dict(), default=str))
        found.insert(0, Candidate(str(tmp_path / "tickets-Q8_0.gguf"), "export Q8_0", ""))
        await press(pilot, "c", until="h use it elsewhere")
        await press(pilot, "h", until="Only an export")
        await press(pilot, "k", "k", "h", until=("Export tickets as Q8_0", "c curl"))
        await press(pilot, "escape", until="Who answers")
        await press(pilot, "escape", until=lambda: len(pilot.app.screen_stack) == 1)


async def test_what_answers_is_what_is_exported_and_served(tmp_path: Path) -> None:
    run, other = make_run(tmp_path), make_run(tmp_path, "20261124-143700-other")
    written = tmp_path / "tickets-Q8_0.gguf"
    written.touch()
    async with chatting(run, size=(90, 24)) as (pilot, pane, _):
        await press_outside(pilot, pane)
        assert pane.partner.all_of(("tuned", str(written), f"{run.path}@30")) == "tuned, Q8_0 and step 30"
        wanted: list[tuple[Run, int | None]] = []
        for sources, found in (
            *((("tuned", "base"), (run, None)), (("base", f"{run.path}@30"), (run, 30))),
            *(((f"{other.path}@9", "tuned"), (other, 9)), ((str(other.path),), (other, None))),
        ):
            pane.sources = sources
            await pilot.press("X")
            wanted.append(found)
            await wait_for(pilot, lambda: [asked.args for asked in requested(pilot, "runs.export")] == wanted)
        for sources, said in (
            (("base",), "The base model answers, and it was not trained here; b"),
            ((str(written), "tuned"), "This is already an export: "),
            ((f"{tmp_path}/gone@9",), "✗ There are no runs"),
        ):
            pane.sources = sources
            await press(pilot, "X", until=said)
        assert [asked.args for asked in requested(pilot, "runs.export")] == wanted
        for sources in (("base",), ("tuned",), (str(written),), ("base", f"{run.path}@30")):
            pane.sources = sources
            await pilot.press("W")
        served = [run, run, str(written), f"{run.path}@30"]
        await wait_for(pilot, lambda: [asked.args[0] for asked in requested(pilot, "serving.request")] == served)
        RunState(state="finished", refused="loss is 2 and should be <= 1", updated=time.time()).write(other.state_path)
        pane.set_target(other)
        await wait_for(pilot, lambda: "other (result refused by eval.gate)" in screen_lines(pilot.app)[0])


async def test_a_conversation_of_the_run_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    dialogue = Dialogue()
    reply = dialogue.ask("an old question", ("tuned",)).replies[0]
    reply.text, reply.state = "an old answer", "done"
    keep_transcript(run, dialogue)
    async with chatting(run, size=(90, 26)) as (pilot, pane, session):
        await press_outside(pilot, pane, "o", until="Conversations of this run")
        await press(pilot, "enter", until="an old answer")
        assert pane.dialogue.id == dialogue.id
        await talked(pilot, pane, "and now")
        assert session.asked[0][1][2]["content"] == "an old answer"
        await press(pilot, "ctrl+l", "o", until="an old question")
        await press(pilot, "delete", "delete", until=lambda: list_transcripts(run) == [])


class WhyApp(PaneApp):
    """An app that notes requests for the rows behind an answer."""

    asked: ClassVar[list[AskWhy]] = []

    def on_ask_why(self, message: AskWhy) -> None:
        self.asked.append(message)


@cases(
    ("in_data", "wanted"),
    [("", "long and basic"), ("from the row", "from the row"), (f"short and tuned{OR}another", "long and basic")],
)
async def test_why_asks_about_the_tuned_answer_with_the_best_known_wanted_one(
    tmp_path: Path, in_data: str, wanted: str
) -> None:
    pane = ChatPane(factory(fake()))
    app = WhyApp(pane)
    app.asked.clear()
    async with app.run_test(size=(80, 22)) as pilot:
        run = make_run(tmp_path)
        pane.set_target(run)
        await press_outside(pilot, pane, "w", until="No question has been asked yet.")
        pane.sources = ("base",)
        await said(pilot, pane, "hello")
        await press_outside(pilot, pane, "w", until="No trained model has answered this question; b switches")
        pane.sources = ("tuned", "base")
        await said(pilot, pane, "hello")
        pane.dialogue.exchanges[-1].wanted = in_data
        await press_outside(pilot, pane, "w")
        await wait_for(pilot, lambda: app.asked)
    (asked,) = app.asked
    assert (asked.run, asked.step, asked.answer, asked.wanted) == (run, None, "short and tuned", wanted)
    assert (asked.messages[0], asked.messages[-1]) == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    )
