"""The chat pane with a fake session: streaming, stopping, comparing, errors, hostile text."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.runs.store import Run
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import FORBIDDEN, HOSTILE, PaneApp, paste, screen_lines, screen_text, wait_for
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


@pytest.mark.parametrize("size", SIZES)
async def test_without_a_target_the_pane_says_how_to_get_one(size: tuple[int, int]) -> None:
    pane = ChatPane(factory(fake()))
    async with PaneApp(pane).run_test(size=size) as pilot:
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "Nothing to talk to yet." in text
        assert "r   Start a run" in text
        await pilot.press("i", "x")
        assert not pane.dialogue.exchanges


@pytest.mark.parametrize("size", SIZES)
async def test_a_question_is_answered_with_its_source_and_speed(tmp_path: Path, size: tuple[int, int]) -> None:
    session = fake(step=34)
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=size) as pilot:
        pane.set_target(make_run(tmp_path), live=True)
        assert session.prepared == 0
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        lines = screen_lines(pilot.app)
        assert "model in training, step 34 · tuned" in lines[0]
        assert any("you       hello" in line for line in lines)
        assert any("step 34   short and tuned" in line for line in lines)
        assert any("3 tokens · first 0.16 s · 21 tok/s" in line for line in lines)
        assert all(len(line) == size[0] for line in lines)


async def test_the_run_decides_system_prompt_and_settings(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "one")
        await finished(pilot, pane)
        await ask(pilot, pane, "two")
        await finished(pilot, pane)
        source, messages, settings = session.asked[1]
        assert source == "tuned"
        assert [(message["role"], message["content"]) for message in messages] == [
            ("system", "Be brief."),
            ("user", "one"),
            ("assistant", "short and tuned"),
            ("user", "two"),
        ]
        assert settings == GenerationSettings(max_new_tokens=77, temperature=0.5, top_p=1.0)


async def test_tokens_appear_while_they_come(tmp_path: Path) -> None:
    session = fake()
    session.gate = threading.Semaphore(0)
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        session.gate.release()
        await wait_for(pilot, lambda: "short▌" in screen_text(pilot.app))
        session.gate.release()
        await wait_for(pilot, lambda: "short and▌" in screen_text(pilot.app))
        assert pane.is_answering
        session.gate.release(10)
        await finished(pilot, pane)
        assert "short and tuned" in screen_text(pilot.app)
        assert "▌" not in "".join(line for line in screen_lines(pilot.app) if "short and tuned" in line)


async def test_esc_stops_the_answer_and_the_next_question_works(tmp_path: Path) -> None:
    session = fake()
    session.gate = threading.Semaphore(0)
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        session.gate.release()
        await wait_for(pilot, lambda: "short▌" in screen_text(pilot.app))
        await pilot.press("escape")
        await wait_for(pilot, lambda: "■ stopped" in screen_text(pilot.app))
        assert not pane.is_answering
        assert session.cancelled.is_set()
        await wait_for(pilot, lambda: "1 token" in screen_text(pilot.app))
        session.gate = None
        await ask(pilot, pane, "again")
        await finished(pilot, pane)
        assert "short and tuned" in screen_text(pilot.app)
        assert session.asked[1][1][2]["content"] == "short", "what had been said is part of the conversation"


async def test_a_second_question_waits_for_the_first_answer(tmp_path: Path) -> None:
    session = fake()
    session.gate = threading.Semaphore(0)
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "first")
        await ask(pilot, pane, "second")
        assert len(pane.dialogue.exchanges) == 1
        assert pane.prompt.text == "second"
        assert "still answering" in screen_text(pilot.app)
        session.gate.release(10)
        await finished(pilot, pane)
        await pilot.press("enter")
        await wait_for(pilot, lambda: len(pane.dialogue.exchanges) == 2)


async def test_loading_is_shown_and_can_be_cancelled(tmp_path: Path) -> None:
    session = fake()
    session.load_gate = threading.Event()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await wait_for(pilot, lambda: "loading the weights 25%" in screen_text(pilot.app))
        await pilot.press("escape")
        await pilot.pause()
        assert "■ stopped" in screen_text(pilot.app)
        session.load_gate.set()
        await ask(pilot, pane, "again")
        await finished(pilot, pane)
        assert [messages[-1]["content"] for _, messages, _ in session.asked] == ["again"]


async def test_switching_between_tuned_and_base(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        pane.prompt.focus()
        await pilot.press("b")
        assert pane.prompt.text == "b", "a letter in the prompt is a letter"
        await pilot.press("backspace", "ctrl+t")
        assert pane.sources == ("base",)
        assert "· base" in screen_lines(pilot.app)[0]
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert "base      long and basic" in screen_text(pilot.app)
        await pilot.press("escape", "b")
        assert pane.sources == ("tuned",)
        assert session.prepared == 1
        await pilot.press("i")
        assert pane.prompt.has_focus


@pytest.mark.parametrize(("width", "beside"), [(80, False), (140, True)])
async def test_both_answer_one_question(tmp_path: Path, width: int, beside: bool) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(width, 30)) as pilot:
        pane.set_target(make_run(tmp_path))
        await pilot.pause()
        await pilot.press("escape", "vertical_line")
        assert "tuned and base" in screen_lines(pilot.app)[0]
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert [source for source, _, _ in session.asked] == ["tuned", "base"]
        together = [line for line in screen_lines(pilot.app) if "short and tuned" in line and "long and basic" in line]
        assert bool(together) is beside
        assert "long and basic" in screen_text(pilot.app)
        await ask(pilot, pane, "more")
        await finished(pilot, pane)
        answers = {source: messages[2]["content"] for source, messages, _ in session.asked[2:]}
        assert answers == {"tuned": "short and tuned", "base": "long and basic"}


async def test_an_error_is_one_sentence_and_the_next_question_gets_a_new_session(tmp_path: Path) -> None:
    broken, good = fake(), fake()
    broken.error = UserError("The chat engine was killed by signal 9.", "The machine may be out of memory.")
    pane = ChatPane(factory(broken, good))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert "✗ The chat engine was killed by signal 9." in screen_text(pilot.app)
        assert "The machine may be out of memory." in screen_text(pilot.app)
        assert broken.closed
        await ask(pilot, pane, "again")
        await finished(pilot, pane)
        assert "short and tuned" in screen_text(pilot.app)
        assert [message["content"] for message in good.asked[0][1]] == ["Be brief.", "again"]


async def test_a_session_that_cannot_be_opened_is_explained(tmp_path: Path) -> None:
    def refuse(_: object) -> FakeSession:
        raise UserError("Run x has neither an adapter nor a whole checkpoint.", "Let it go on.")

    pane = ChatPane(refuse)
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert "✗ Run x has neither an adapter" in screen_text(pilot.app)


async def test_copying_the_last_answer(tmp_path: Path) -> None:
    pane = ChatPane(factory(fake()))
    app = PaneApp(pane)
    async with app.run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await pilot.pause()
        await pilot.press("ctrl+y")
        assert "no answer to copy" in screen_text(pilot.app)
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        await pilot.press("ctrl+y")
        await pilot.pause()
        assert app.copied == ["short and tuned"]
        assert "15 characters" in screen_text(pilot.app)
        await pilot.press("escape", "ctrl+y")
        assert len(app.copied) == 2


async def test_clearing_begins_a_new_conversation(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert "hello" not in screen_text(pilot.app)
        await ask(pilot, pane, "again")
        await finished(pilot, pane)
        assert [message["content"] for message in session.asked[1][1]] == ["Be brief.", "again"]
        assert session.prepared == 2
        assert not session.closed


async def test_a_cleared_conversation_comes_back(tmp_path: Path) -> None:
    pane = ChatPane(factory(fake()))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await pilot.press("ctrl+l")
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert "^l again brings the former one back" in screen_text(pilot.app)
        await pilot.press("ctrl+l")
        await wait_for(pilot, lambda: "you       hello" in screen_text(pilot.app))
        await ask(pilot, pane, "and then?")
        await finished(pilot, pane)
        assert [exchange.question for exchange in pane.dialogue.exchanges] == ["hello", "and then?"]


async def test_lines_are_broken_and_pages_turned_in_the_prompt(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        for number in range(8):
            await ask(pilot, pane, f"question {number}")
            await finished(pilot, pane)
        await wait_for(pilot, lambda: pane.transcript.scroll_y > 10)
        bottom = pane.transcript.scroll_y
        await pilot.press("a", "ctrl+n", "b", "pageup")
        await wait_for(pilot, lambda: pane.transcript.scroll_y < bottom - 5)
        assert pane.prompt.text == "a\nb"
        await pilot.press("pagedown", "enter")
        await finished(pilot, pane)
        assert session.asked[-1][1][-1]["content"] == "a\nb"


async def test_a_run_that_saved_nothing_is_not_offered(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.adapter_path.rmdir()
    pane = ChatPane(factory(fake()))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(run)
        await pilot.pause()
        text = screen_text(pilot.app)
        assert "ended before it saved anything" in text
        assert "Ask the tuned" not in text
        await pilot.press("i", "x")
        assert not pane.prompt.display
        pane.set_target(run, live=True)
        await wait_for(pilot, lambda: pane.prompt.display)


async def test_settings_are_chosen_in_the_pane(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(100, 30)) as pilot:
        pane.set_target(make_run(tmp_path))
        await pilot.pause()
        pane.query_one("#chat-empty").focus()
        await pilot.press("e", *"Rhyme", "tab", *"warm", "enter")
        await wait_for(pilot, lambda: "must be a number" in screen_text(pilot.app))
        await pilot.press(*["backspace"] * 4, *"0.7", "tab", "tab", *"9", "enter")
        await wait_for(pilot, lambda: len(pilot.app.screen_stack) == 1)
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert session.asked[0][1][0] == {"role": "system", "content": "Rhyme"}
        assert session.asked[0][2] == GenerationSettings(max_new_tokens=9, temperature=0.7)
        pane.set_target(make_run(tmp_path, "20261124-143700-other"))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert session.asked[1][1][0]["content"] == "Be brief."


async def test_up_recalls_earlier_prompts(tmp_path: Path) -> None:
    pane = ChatPane(factory(fake()))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        for text in ("one", "two"):
            await ask(pilot, pane, text)
            await finished(pilot, pane)
        await paste(pilot, "unsent")
        await pilot.press("up")
        assert pane.prompt.text == "two"
        await pilot.press("up", "up")
        assert pane.prompt.text == "one"
        await pilot.press("down", "down")
        assert pane.prompt.text == "unsent"


async def test_pasted_lines_stay_lines_and_enter_sends_them(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "first line\nsecond line\r\nthird\n")
        await finished(pilot, pane)
        assert session.asked[0][1][-1]["content"] == "first line\nsecond line\nthird"


async def test_another_target_closes_the_session_and_frees_its_memory(tmp_path: Path) -> None:
    first, second = fake(), fake(step=2)
    pane = ChatPane(factory(first, second))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        pane.set_target(make_run(tmp_path, "20261124-150000-other"), live=True)
        await wait_for(pilot, lambda: first.closed)
        await pilot.pause()
        assert "hello" not in screen_text(pilot.app)
        assert second.prepared == 0
        await ask(pilot, pane, "and you?")
        await finished(pilot, pane)
        assert len(second.asked) == 1


async def test_the_same_run_keeps_its_conversation_when_it_ends(tmp_path: Path) -> None:
    live, ended = fake(step=3), fake()
    pane = ChatPane(factory(live, ended))
    run = make_run(tmp_path)
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(run, live=True)
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        pane.set_target(run, live=False)
        await wait_for(pilot, lambda: live.closed)
        assert "hello" in screen_text(pilot.app)
        assert run.id in screen_lines(pilot.app)[0]
        await ask(pilot, pane, "still there?")
        await finished(pilot, pane)
        assert [message["content"] for message in ended.asked[0][1]][1:3] == ["hello", "short and tuned"]


async def test_a_target_change_in_mid_answer_stops_it(tmp_path: Path) -> None:
    session = fake()
    session.gate = threading.Semaphore(0)
    pane = ChatPane(factory(session))
    run = make_run(tmp_path)
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(run, live=True)
        await ask(pilot, pane, "hello")
        session.gate.release()
        await wait_for(pilot, lambda: "short▌" in screen_text(pilot.app))
        pane.set_target(run, live=False)
        await wait_for(pilot, lambda: session.closed)
        assert not pane.is_answering
        assert "■ stopped" in screen_text(pilot.app)


async def test_release_waits_until_the_memory_is_free(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        await pane.release()
        assert session.closed


async def test_leaving_the_app_closes_the_session(tmp_path: Path) -> None:
    session = fake()
    session.gate = threading.Semaphore(0)
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await wait_for(pilot, lambda: session.asked)
    assert session.closed


async def test_a_model_without_adapter_is_its_base(tmp_path: Path) -> None:
    session = fake()
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target("smollm2-135m-instruct")
        await pilot.pause()
        assert "smollm2-135m-instruct · base" in screen_lines(pilot.app)[0]
        await pilot.press("ctrl+t")
        assert "has no adapter" in screen_text(pilot.app)
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        assert session.asked[0][0] == "base"


async def test_hostile_text_never_reaches_a_strip(tmp_path: Path) -> None:
    session = FakeSession({"tuned": [*HOSTILE], "base": [HOSTILE]})
    pane = ChatPane(factory(session))
    app = PaneApp(pane)
    async with app.run_test(size=(80, 30)) as pilot:
        pane.set_target(make_run(tmp_path))
        await pilot.press("f3")
        pane.prompt.focus()
        await paste(pilot, HOSTILE)
        assert not FORBIDDEN & set(screen_text(app))
        await pilot.press("enter")
        await finished(pilot, pane)
        assert "[/]i[bold]j" in screen_text(app)
        assert not FORBIDDEN & set(screen_text(app))
        session.error = UserError(HOSTILE, HOSTILE)
        await ask(pilot, pane, "again")
        await finished(pilot, pane)
        assert not FORBIDDEN & set(screen_text(app))
        await pilot.press("ctrl+y")
        await pilot.pause()
        assert not FORBIDDEN & set("".join(app.copied))
        assert not FORBIDDEN & set(screen_text(app))


async def test_long_conversations_scroll_and_resize(tmp_path: Path) -> None:
    session = FakeSession({"tuned": [f"word{number} " for number in range(300)], "base": [""]})
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(200, 50)) as pilot:
        pane.set_target(make_run(tmp_path))
        for number in range(3):
            await ask(pilot, pane, f"question {number}")
            await finished(pilot, pane)
        for size in [(60, 20), (160, 45), (80, 24)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert all(len(line) == size[0] for line in screen_lines(pilot.app))
        await pilot.press("escape", "G")
        await pilot.pause()
        assert "word299" in screen_text(pilot.app)
        await pilot.press("g")
        await pilot.pause()
        assert "question 0" in screen_text(pilot.app)


async def test_a_model_that_does_not_end_does_not_keep_the_pane(tmp_path: Path) -> None:
    session, gate = fake(), threading.Event()

    def close() -> None:
        gate.wait(60)

    session.close = close  # type: ignore[method-assign]
    pane = ChatPane(factory(session))
    async with PaneApp(pane).run_test(size=(80, 22)) as pilot:
        pane.set_target(make_run(tmp_path))
        await ask(pilot, pane, "hello")
        await finished(pilot, pane)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    gate.set()
