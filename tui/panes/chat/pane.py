"""Chat pane: a conversation with a model in training, a tuned model or a base model."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from core.chat.dialogue import Dialogue, Exchange, Reply
from core.chat.request import BASE, TUNED
from core.errors import UserError
from core.paths import shown_path, user_path, working_directory
from core.text import one_line
from tui.datasets.summary import counted
from tui.files import save_text
from tui.keys import bindings, display_key
from tui.messages import AskWhy
from tui.panes.base import Pane
from tui.panes.chat.partner import Partner, SessionHolder
from tui.shell import copy_text
from tui.widgets.empty_state import EmptyState
from tui.widgets.forms.inputs import PromptInput
from tui.widgets.strips import style_of
from tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from core.chat.corrections import Correction
    from core.chat.request import GenerationSettings, Source
    from core.chat.session import Answer
    from core.runs.record.store import Run
    from tui.panes.chat.partner import SessionFactory, Target
    from tui.screens.chat import KeptAnswer

#: Seconds between two updates of an answer, which are fast enough for reading and leave the link free for keys.
_FLUSH_SECONDS = 0.1
#: Seconds to wait for the model's process when the pane is closed.
_RELEASE_SECONDS = 0.2


class ChatPane(Pane):
    """Pane of a conversation.

    Args:
        open_session: Opens a session on a target; by default the real one.
    """

    DEFAULT_CSS = style_of("ChatPane")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("chat")]

    def __init__(self, open_session: SessionFactory | None = None) -> None:
        super().__init__()
        self.dialogue = Dialogue()
        self.sources: tuple[Source, ...] = ("tuned",)
        """The sources that answer the next question."""
        self.partner = Partner()
        """The partner of the conversation."""
        self._step: int | None = None
        self._phase = ""
        self._is_waiting = False
        self._taken_up = ""
        self._former: Dialogue | None = None
        self._pointed_at: Exchange | None = None
        self._edited: Exchange | None = None
        self._set_aside = ""
        self._current: Exchange | None = None
        self._instead: Exchange | None = None
        self._is_reading = False
        self._alone: bool | None = False  # None until the rows are read
        self._said, self._can_empty = "", False
        self._corrections = 0
        self._holder = SessionHolder(open_session, lambda action, run: self.keys.way(action, run))
        self._flush: Timer | None = None

    def compose(self) -> ComposeResult:
        """The empty state or the transcript, a status line, and the prompt."""
        yield EmptyState(id="chat-empty", can_focus=True)
        yield Transcript(id="chat-transcript")
        yield Static(id="chat-status", markup=False)
        yield PromptInput(id="chat-prompt")

    def on_mount(self) -> None:
        """Show the partner of the conversation."""
        self._flush = self.set_interval(_FLUSH_SECONDS * self.shell.pace, self._flush_pending, pause=True)
        self._show_target()
        self._show_taken_up()
        self.watch(self.transcript, "scroll_y", self._scrolled, init=False)

    def on_unmount(self) -> None:
        """Close the session; a busy model ends when it loses this process."""
        closing = threading.Thread(target=self._holder.release, daemon=True)
        closing.start()
        closing.join(_RELEASE_SECONDS)

    def on_resize(self, event: events.Resize) -> None:
        """Lay out answers side by side if they fit."""
        self.transcript.fit(event.size.width)

    # The target.

    def set_target(self, run: Target | None, live: bool = False) -> None:
        """Set the target: a run, live or ended, or a model's name or directory.

        Closes the session on the previous target, which frees its memory. The first question opens a new session.
        """
        if run == self.target and live == self.is_live:
            return
        same_run = run == self.target
        self._stop_answer()
        self.partner = Partner.of(run, live=live)
        if not same_run:
            self._step = None
            self._former = None
            self._leave_edit()
            if self.is_mounted and self.prompt.text and not self.prompt.has_focus:
                # It was meant for the former model; the draft of that conversation has it, and so has the history.
                self._empty_prompt()
            self._begin_anew()
            self._is_reading = False
            self._corrections = 0
            self._alone = False if self.partner.run is None else None
        self._holder.set_target(run)
        if self.is_mounted:
            self.run_worker(self._holder.close_retired, group="chat-release", thread=True)
        if not self.partner.has_adapter:
            self.sources = (BASE,)
        elif not same_run:
            self.sources = (TUNED,)
        if self.is_mounted:
            self._show_target()

    @property
    def subject(self) -> str:
        """The subject of the conversation: the directory of the run, or the model; empty without a target."""
        return self.partner.subject

    @property
    def target(self) -> Target | None:
        """The target: a run, a model, or None."""
        return self.partner.target

    @property
    def is_live(self) -> bool:
        """True if the target is a live run."""
        return self.partner.is_live

    @property
    def unsent(self) -> str:
        """The text in the prompt; while an earlier question is edited there, the text before that."""
        if self._edited is not None:
            return self._set_aside
        return self.prompt.text if self.is_mounted else self._taken_up

    @property
    def system(self) -> str:
        """The system prompt of new questions."""
        return self._holder.settings()[0]

    def take_up(self, dialogue: Dialogue, unsent: str) -> None:
        """Resume a conversation of an earlier app.

        Args:
            dialogue: The conversation.
            unsent: The text of the prompt; a present text is not replaced.
        """
        self._stop_answer()
        self._begin_anew()
        self.dialogue, self._taken_up = dialogue, unsent
        if self.is_mounted:
            self._show_taken_up()

    def _show_taken_up(self) -> None:
        exchanges, unsent = self.dialogue.exchanges, self._taken_up
        self._taken_up = ""
        for exchange in exchanges:
            self.prompt.remember(exchange.question)
        if unsent and not self.prompt.text:
            self.prompt.insert(unsent)
        if exchanges:
            self._show_path()
        self._refresh()

    def note_step(self, step: int) -> None:
        """Note the step of the live run, for the title."""
        if step != self._step and self.is_live:
            self._step = step
            self._refresh_title()

    def note_phase(self, name: str) -> None:
        """Note the phase of the live run, for a pending question; empty if unknown."""
        if name != self._phase:
            self._phase = name
            if self._is_waiting and self.is_live:
                self._say_waiting()

    async def release(self) -> None:
        """Close the session and wait until its memory is free; called before a run starts."""
        self._stop_answer()
        await self.run_worker(self._holder.release, group="chat-release", thread=True).wait()

    @property
    def prompt(self) -> PromptInput:
        """The prompt."""
        return self.query_one("#chat-prompt", PromptInput)

    @property
    def transcript(self) -> Transcript:
        """The transcript."""
        return self.query_one("#chat-transcript", Transcript)

    @property
    def _reader(self) -> Widget:
        """The widget to focus when the prompt is left."""
        return self.transcript if self.transcript.display else self.query_one("#chat-empty")

    def _begin_anew(self) -> None:
        self.dialogue = Dialogue()
        self._pointed_at = self._edited = None
        if self.is_mounted:
            self.transcript.remove_children()

    def _show_target(self) -> None:
        if (run := self.partner.run) is not None:
            self._count_corrections(run)
        self.query_one("#chat-empty", EmptyState).say(*self.partner.invitation(self.keys))
        self._refresh()

    def _refresh(self) -> None:
        """Update title and hints, and show or hide the parts."""
        can_ask = self.partner.can_answer
        blank = not self.dialogue.exchanges
        empty = self.query_one("#chat-empty", EmptyState)
        reader = empty if blank else self.transcript
        had_keys = self.has_focus_within and not self.prompt.has_focus
        empty.display = blank
        self.transcript.display = not blank
        self.prompt.display = can_ask
        # The prompt takes every letter, so it is focused only on demand.
        for widget in (empty, self.transcript):
            widget.set_class(widget is reader, "-first-focus")
        if had_keys or (self.prompt.has_focus and not can_ask):
            reader.focus()
        self._refresh_hints()
        self._refresh_title()
        if not self._said:
            self._say("")

    def on_descendant_focus(self) -> None:
        """Update the hints: single-letter keys work only outside the prompt."""
        self._refresh_hints()
        if self.prompt.has_focus:
            if self._can_empty:
                self._say("")
            if self._alone is None and not self._is_reading:
                # Early, so that the rows are known before the second question.
                self._look_up()

    def on_descendant_blur(self) -> None:
        """Update the hints when the focus leaves the pane."""
        self._refresh_hints()

    def _scrolled(self, before: float, now: float) -> None:
        """Name the key that goes back as soon as something is out of sight, and at the top the one that goes on."""
        if (before > 0) != (now > 0):
            self._refresh_hints()

    def _refresh_hints(self) -> None:
        prompt = self.prompt
        cancel = self.keys["chat.cancel"].display
        leave = "stops the answer" if self.is_answering else "leaves the prompt"
        if prompt.has_focus and self._edited is not None:
            prompt.placeholder = f"the question in other words  ·  enter asks it  ·  {cancel} cancels"
        elif prompt.has_focus:
            prompt.placeholder = f"ask {self._mode}  ·  enter sends  ·  {cancel} {leave}"
        else:
            prompt.placeholder = f"{self.keys['chat.write'].display} writes a question to {self._mode}"
        if not self.partner.can_answer:
            self.set_hints(["app.start", "app.runs"])
            return
        new = self.keys["chat.clear"]
        begins = [(new.display, new.description)] if self.dialogue.exchanges else []
        toggles = ["chat.source", "chat.both"] if self.partner.has_adapter else []
        keys = [(self._key_while_writing(name), self.keys[name].description) for name in toggles]
        offered = ((cancel, leave), ("enter", "sends"), ("^n", "breaks the line"), *keys, ("↑", "earlier questions"))
        if offered != prompt.footer_keys:
            prompt.footer_keys = offered
            # Updates the key bar.
            self.refresh_bindings()
        hidden: list[tuple[str, str]] = []
        if self.transcript.max_scroll_y > 0:
            way, label = ("up", "earlier") if self.transcript.scroll_y > 0 else ("down", "later")
            hidden = [(self.keys[f"chat.page_{way}"].display, label)]
        if not prompt.has_focus:
            stop = [(cancel, "stop")] if self.is_answering else []
            begun, more = (["chat.clear", "chat.again"], ["chat.edit", "chat.keep"]) if begins else ([], [])
            if self.partner.run is not None and begins:
                why = [] if self.is_live else ["chat.why"]
                begun = [*why, "chat.correct", *(["chat.continue"] if self._corrections else []), *begun]
            toggles = [*(["chat.compare"] if self.partner.run is not None else []), *toggles]
            self.set_hints(["chat.write", *begun, *toggles, "chat.settings", *more], [*stop, *hidden])
            return
        ending = (cancel, leave.partition(" ")[0][:-1])
        self.show_hints([("enter", "send"), ending, *hidden, *begins, *keys, ("^n", "line break")])

    def _key_while_writing(self, identity: str) -> str:
        """An action's first key that types no text; else its first key."""
        keys = self.keys[identity].keys.split(",")
        pressable = (key for key in keys if key.startswith("ctrl+") or (key[0] == "f" and key[1:].isdecimal()))
        return display_key(next(pressable, keys[0]))

    @property
    def _mode(self) -> str:
        return self.partner.all_of(self.sources)

    def _refresh_title(self) -> None:
        waiting = [f"{counted(self._corrections, 'correction')} to learn"] if self._corrections else []
        if self.target is None:
            self.set_title("4 Chat")
        elif self.is_live:
            step = f", step {self._step}" if self._step is not None else ""
            self.set_title("4 Chat", f"model in training{step}", self._mode, *waiting)
        else:
            self.set_title("4 Chat", self.partner.name, self._mode, *waiting)

    def _say(self, text: str, style: str = "") -> None:
        """Show a message; empty for the way in which questions are asked."""
        line = self.query_one("#chat-status", Static)
        self._said, self._can_empty = text, False
        if not text and self._alone is not None and (self._alone or self.dialogue.exchanges):
            before, key = "with what was said before", self.keys["chat.alone"].display
            text = f"alone · {key}: {before}" if self._alone else f"{before} · {key}: alone"
        line.display = bool(text)
        line.update(Content.styled(one_line(text), style))

    # Asking.

    @property
    def is_answering(self) -> bool:
        """True while an answer is being generated."""
        return self._current is not None

    @on(PromptInput.Submitted)
    def _submitted(self, message: PromptInput.Submitted) -> None:
        message.stop()
        if not self.partner.can_answer:
            return
        if self.is_answering:
            self._say(f"The model is still answering; {self.keys['chat.cancel'].display} stops it.", "$near")
            return
        question = message.text.strip()
        self.prompt.remember(question)
        edited = self._edited
        self._leave_edit()
        if edited is None:
            self.prompt.clear()
        self._ask(question, edited)

    def _ask(self, question: str, instead: Exchange | None = None) -> None:
        """Ask a question at the end of the conversation, or in place of an earlier one."""
        if instead is not None:
            exchange = self.dialogue.ask_again(instead, question, self.sources)
        else:
            exchange = self.dialogue.ask(question, self.sources)
        for reply in exchange.replies:
            if reply.source not in (TUNED, BASE):
                reply.speaker = self.partner.name_of(reply.source)
        self._current, self._instead, self._pointed_at = exchange, instead, None
        self._refresh()
        self._show_path()
        self._is_waiting = True
        if self.is_live:
            self.shell.runs.await_answer(True)
        if self._flush is not None:
            self._flush.resume()
        self._say_waiting()
        self._look_up(exchange)
        talk = partial(self._talk, self.dialogue, exchange, self._holder.epoch)
        self.run_worker(talk, group="chat-talk", thread=True)

    def _look_up(self, exchange: Exchange | None = None) -> None:
        """Read the rows of the run, and look for a question among them, in a thread that nothing waits for."""
        from core.chat.rows import look_up

        self._is_reading, run = True, self.partner.run

        def look() -> None:
            found = look_up(run, exchange.question if exchange else "")
            with suppress(RuntimeError):  # the app may have ended meanwhile
                self.call_later(self._looked_up, run, exchange, *found)

        threading.Thread(target=look, daemon=True).start()

    def _looked_up(self, run: Run | None, exchange: Exchange | None, alone: bool, wanted: str) -> None:
        if exchange is not None:
            exchange.wanted = wanted
            self.transcript.fit(self.size.width)
        if run == self.partner.run and self._alone is None:
            self._alone = alone
            if self._is_waiting:
                self._say_waiting()
            self._refresh()

    def _talk(self, dialogue: Dialogue, exchange: Exchange, epoch: int) -> None:
        """Generate the replies of an exchange, up to the first error; blocks.

        Tokens are appended to each reply's ``pending``, which the pane polls.

        Args:
            dialogue: The conversation, which ends with the exchange.
            exchange: The question and its replies.
            epoch: The epoch of the session at the time of the question.
        """
        from core.chat.rows import look_up
        from core.chat.session import Answer

        def progress(detail: str, done: int | None, total: int | None) -> None:
            self.call_later(self._loading, detail, done, total)

        reply = exchange.replies[0]
        try:
            system, settings = self._holder.settings()
            if exchange not in dialogue.exchanges[:1]:
                exchange.alone = look_up(self.partner.run)[0] if self._alone is None else self._alone
            for reply in exchange.replies:
                answer: Answer | None = None
                messages = dialogue.messages(reply.source, system, exchange)
                for item in self._holder.answer(messages, reply.source, settings, epoch, progress):
                    if isinstance(item, Answer):
                        answer = item
                    else:
                        if not reply.pending and not reply.text:
                            self.call_later(self._speaking)
                        reply.pending.append(item.text)
                self.call_later(self._answered, exchange, reply, answer)
        except UserError as error:
            self.call_later(self._failed, reply, error)
        self.call_later(self._turn_ended, exchange)

    def _show_path(self) -> None:
        self.transcript.show(self.dialogue, self.size.width, self._pointed_at)

    def _say_waiting(self) -> None:
        """Show why the question waits."""
        asked = self._current.replies[0].source if self._current is not None else TUNED
        if self._alone is None and self._current is not self.dialogue.exchanges[0]:
            waiting = "reading the run's rows, to ask as they do …"
        elif not self.is_live or asked not in (TUNED, BASE):
            waiting = "" if self._holder.is_loaded else "loading the model …"
        elif self._phase == "evaluating":
            waiting = "the run is evaluating; the answer comes after that …"
        elif self._phase in ("training", ""):
            waiting = "waiting for the end of a step …"
        else:
            waiting = "the run is still starting; the answer comes after that …"
        self._say(f"{waiting} {self.keys['chat.cancel'].display} cancels" if waiting else "")

    def _loading(self, detail: str, done: int | None, total: int | None) -> None:
        if self.is_live:
            # Connecting to the worker is quick; the wait for the end of a step is shown instead.
            return
        if self.is_answering:
            share = f" {done / total:.0%}" if done is not None and total else ""
            self._say(f"{detail}{share} … {self.keys['chat.cancel'].display} cancels")

    def _speaking(self) -> None:
        self._is_waiting = False
        self._say("")

    def _flush_pending(self) -> None:
        exchange = self._current
        if exchange is None:
            return
        for reply in exchange.replies:
            if reply.is_open and reply.take_pending():
                self.transcript.refresh_reply(reply)

    def _answered(self, exchange: Exchange, reply: Reply, answer: Answer | None) -> None:
        """Show the end of an answer; None if it was canceled before it began."""
        reply.take_pending()
        if answer is None and reply.is_open:
            reply.state = "stopped"
        if answer is not None:
            reply.take_answer(answer, alone=exchange.alone)
            if reply.source in (TUNED, BASE):
                reply.speaker = self.partner.name_of(answer.source)
            if answer.source.startswith("step-") and answer.source[5:].isdecimal():
                self.note_step(int(answer.source[5:]))
        self.transcript.refresh_reply(reply)

    def _failed(self, reply: Reply, error: UserError) -> None:
        if reply.is_open:
            reply.take_pending()
            reply.state, reply.error, reply.hint = "failed", error.message, error.hint
        self.transcript.refresh_reply(reply)

    def _turn_ended(self, exchange: Exchange) -> None:
        if exchange is self._current:
            self._finish_turn()

    def _finish_turn(self) -> None:
        exchange, self._current = self._current, None
        self._is_waiting = False
        if self.is_attached:
            # On exit, the other panes have no widgets left.
            self.shell.runs.await_answer(False)
        if self._flush is not None:
            self._flush.pause()
        self._say("")
        self._refresh_hints()
        for reply in exchange.replies if exchange is not None else []:
            if reply.is_open:
                reply.take_pending()
                reply.state = "stopped"
                self.transcript.refresh_reply(reply)

    def _stop_answer(self) -> None:
        """Cancel the answer in progress; its statistics may still arrive. A question without answer is taken back."""
        if (exchange := self._current) is None:
            return
        self._holder.cancel()
        is_blank = all(reply.state == "waiting" and not reply.pending for reply in exchange.replies)
        self._finish_turn()
        if is_blank:
            self._take_back(exchange, self._instead)

    def _take_back(self, exchange: Exchange, instead: Exchange | None) -> None:
        """Remove a question; the one in whose place it was asked is back, or its text in the prompt."""
        self.dialogue.remove(exchange)
        if instead is not None:
            self.dialogue.turn(instead, 0)
        self._show_path()
        if (instead is None or instead.question != exchange.question) and not self.prompt.text:
            self.prompt.insert(exchange.question)
        self._refresh()

    # Keys.

    def action_write(self) -> None:
        """Focus the prompt."""
        if self.partner.can_answer:
            # Unlike focus(), at once: keys typed ahead are text of the prompt.
            self.screen.set_focus(self.prompt)

    def action_cancel(self) -> None:
        """Cancel the answer; else leave the edit, the prompt or the selected question; twice, empty the prompt."""
        can_empty, says = False, ""
        if self.is_answering:
            self._stop_answer()
        elif self._edited is not None:
            self._leave_edit()
            self._reader.focus()
        elif self.prompt.has_focus:
            self._reader.focus()
            if can_empty := bool(self.prompt.text):
                says = f"{self.keys['chat.cancel'].display} again empties the prompt."
        elif self._can_empty and self.prompt.text:
            self._empty_prompt()
            says = "The prompt is empty; ↑ in it brings the text back."
        elif self._pointed_at is not None:
            self._point_at(None)
        self._say(says)
        self._can_empty = can_empty

    def _empty_prompt(self) -> None:
        self.prompt.remember(self.prompt.text)
        self.prompt.clear()

    def action_toggle_alone(self) -> None:
        """Ask the next questions alone, or with what was said before."""
        if self.partner.can_answer:
            self._alone = not self._alone
            self._say("")

    def action_toggle_source(self) -> None:
        """Switch between the base and the tuned model."""
        self._set_sources((TUNED,) if self.sources == (BASE,) else (BASE,))

    def action_toggle_both(self) -> None:
        """Switch between both models and the tuned model alone."""
        self._set_sources((TUNED,) if len(self.sources) > 1 else (TUNED, BASE))

    def action_compare(self) -> None:
        """Choose the sources of the answers: checkpoints, the base, other runs on the same base."""
        if self.partner.run is None or not self.partner.can_answer:
            self._say("No run is open whose checkpoints could answer.", "$near")
            return
        self._choose_sources(self.partner.run)

    @work(group="chat-find", exclusive=True)
    async def _choose_sources(self, run: Run) -> None:
        from core.chat.candidates import find_candidates
        from tui.screens.chat import ChatSources

        candidates = await asyncio.to_thread(find_candidates, run)
        if run != self.target:
            return
        sources = await self.app.push_screen_wait(ChatSources(candidates, self.sources))
        if sources and run == self.target:
            self.sources = sources
            self._say(f"The next question goes to {self._mode}.")
            self._refresh()

    def _set_sources(self, sources: tuple[Source, ...]) -> None:
        if self.target is None:
            return
        if not self.partner.has_adapter:
            trained = self.partner.run is not None
            self._say(
                "This run trains all weights, so there is no base to switch to."
                if trained
                else "This model has no adapter: it is the base.",
                "$near",
            )
            return
        self.sources = sources
        self._say("")
        self._refresh()

    def action_export(self) -> None:
        """Export the first trained source."""
        try:
            wanted = self.partner.exported(self.sources, self.keys["chat.source"].display)
        except UserError as error:
            self._say(f"✗ {error.message}", "$limit")
            return
        if isinstance(wanted, str):
            self._say(wanted, "$near")
        else:
            self.shell.runs.export(*wanted)

    def action_clear(self) -> None:
        """Start a new conversation with the same model; in an empty one, bring back the previous one."""
        self._stop_answer()
        self._leave_edit()
        former, key = self._former, self.keys["chat.clear"].display
        if self.dialogue.exchanges:
            self._former = self.dialogue
            self._begin_anew()
            self._say(f"A new conversation; {key} again brings the previous one back.")
        elif former is not None:
            self._former = None
            self.take_up(former, "")
            self._say("The previous conversation is back.")
        self._refresh()

    def action_change_settings(self) -> None:
        """Change the settings of the next answers."""
        from tui.screens.chat import ChatSettings

        def changed(chosen: tuple[str, GenerationSettings] | None) -> None:
            if chosen is not None:
                self._holder.chosen = chosen
                self._say("The next answers use these settings; the run's configuration is unchanged.")

        if self.partner.can_answer:
            # Pushed directly, as keys typed ahead are its text.
            self.app.push_screen(ChatSettings(*self._holder.settings()), changed)

    # Branches.

    @property
    def _chosen(self) -> Exchange | None:
        """The question that actions apply to: the selected or the last one."""
        path = self.dialogue.exchanges
        if self._pointed_at in path:
            return self._pointed_at
        return path[-1] if path else None

    def _point_at(self, exchange: Exchange | None) -> None:
        self._pointed_at = exchange
        self.transcript.mark(self.dialogue, exchange)

    def action_point(self, step: int) -> None:
        """Select the next or previous question."""
        path, chosen = self.dialogue.exchanges, self._chosen
        if chosen is None:
            return
        place = min(max(path.index(chosen) + step, 0), len(path) - 1)
        self._point_at(path[place] if place < len(path) - 1 else None)
        self.transcript.go_to(path[place])

    def action_again(self) -> None:
        """Ask the question again; the present answer becomes another branch."""
        if (chosen := self._free_to_ask()) is not None:
            self._ask(chosen.question, chosen)

    def action_edit(self) -> None:
        """Edit a question in the prompt; the conversation branches there."""
        if (chosen := self._free_to_ask()) is not None:
            if self._edited is None:
                self._set_aside = self.prompt.text
            self._edited = chosen
            self.prompt.load_text(chosen.question)
            self.prompt.move_cursor(self.prompt.document.end)
            self.screen.set_focus(self.prompt)
            self._refresh_hints()

    def _leave_edit(self) -> None:
        if self._edited is not None:
            self._edited = None
            self.prompt.load_text(self._set_aside)
            self._refresh_hints()

    def _free_to_ask(self) -> Exchange | None:
        chosen = self._chosen if self.partner.can_answer else None
        if self.is_answering:
            self._say(f"The model is still answering; {self.keys['chat.cancel'].display} stops it.", "$near")
            return None
        if chosen is None:
            self._say("No question has been asked yet.", "$near")
        return chosen

    def action_turn(self, step: int) -> None:
        """Switch to another branch of the conversation at the question."""
        chosen = self._free_to_ask()
        if chosen is None:
            return
        if self.dialogue.variants(chosen)[1] < 2:
            again, edit = (self.keys[name].display for name in ("chat.again", "chat.edit"))
            self._say(f"This question has one answer; {again} asks it again, {edit} in other words.", "$near")
            return
        turned = self.dialogue.turn(chosen, step)
        self._pointed_at = turned if turned is not self.dialogue.exchanges[-1] else None
        self._show_path()

    def action_why(self) -> None:
        """Ask for the training rows behind the answer."""
        chosen = self._free_to_ask()
        if chosen is None:
            return
        whole = [each for each in chosen.replies if each.text.strip() and each.state in ("done", "stopped")]
        reply = next((each for each in whole if each.source != BASE or not self.partner.has_adapter), None)
        if reply is None:
            key = self.keys["chat.source"].display
            self._say(f"No trained model has answered this question; {key} switches to the tuned one.", "$near")
            return
        try:
            run, step = self.partner.origin(reply.source)
        except UserError as error:
            self._say(f"✗ {error}", "$limit")
            return
        # The answer of the question's own row, else that of the base.
        from core.chat.rows import OR

        known = [chosen.wanted.split(OR)[0], *(each.as_written for each in whole if each.source == BASE)]
        wanted = next((text for text in known if text.strip() not in ("", reply.as_written.strip())), "")
        messages = self.dialogue.messages(reply.source, self.system, chosen)
        self.post_message(AskWhy(run, step, messages, reply.as_written, wanted))

    def _answer_to_keep(self) -> tuple[Reply, list[dict[str, str]]] | None:
        """The answer that the keys act on, and its question with the conversation before it; None without one."""
        chosen = self._free_to_ask()
        if chosen is None:
            return None
        reply = next((each for each in chosen.replies if each.text and each.state != "failed"), None)
        if reply is None:
            self._say("This question has no answer to keep.", "$near")
            return None
        return reply, self.dialogue.messages(reply.source, self.system, chosen)

    async def action_correct(self) -> None:
        """Edit the answer, or its correction, and keep it as a correction of the run."""
        run, found = self.partner.run, self._answer_to_keep()
        if found is None:
            return
        if run is None:
            keep = self.keys["chat.keep"].display
            self._say(f"Corrections are kept for a run, and no run is open; {keep} appends to a dataset.", "$near")
            return
        from core.chat.corrections import Correction, corrections_file, read_corrections
        from tui.screens.chat import KeepAnswer

        reply, messages = found
        try:
            before = await asyncio.to_thread(read_corrections, corrections_file(run))
        except UserError as error:
            self._say(f"✗ {error.message} {error.hint}", "$limit")
            return
        answer = next((each.answer for each in before if each.asks(messages)), reply.as_written)

        def answered(kept: KeptAnswer | None) -> None:
            if kept is not None:
                self._keep_correction(run, Correction(tuple(messages), kept.text, reply.as_written))

        question, verb = messages[-1]["content"], "keep the correction"
        screen = KeepAnswer(question, answer, None, title="Correct this answer", verb=verb)
        self.app.push_screen(screen, answered)

    @work(group="chat-keep")
    async def _keep_correction(self, run: Run, correction: Correction) -> None:
        from core.chat.corrections import corrections_file, keep_correction

        try:
            # In a thread: it waits for the disk and the file lock.
            await asyncio.to_thread(keep_correction, corrections_file(run), correction)
        except UserError as error:
            self._say(f"✗ {error.message} {error.hint}", "$limit")
            return
        undo, learn = (self.keys[f"chat.{name}"].display for name in ("undo", "continue"))
        self._say(f"✓ correction kept · {learn} trains the run further on it · {undo} takes it back")
        self._count_corrections(run)

    @work(group="chat-keep")
    async def action_undo(self) -> None:
        """Remove the correction of the answer."""
        run, found = self.partner.run, self._answer_to_keep()
        if found is None or run is None:
            return
        from core.chat.corrections import corrections_file, remove_correction

        try:
            was_there = await asyncio.to_thread(remove_correction, corrections_file(run), found[1])
        except UserError as error:
            self._say(f"✗ {error.message} {error.hint}", "$limit")
            return
        self._say("The correction is taken back." if was_there else "This answer has no correction.")
        self._count_corrections(run)

    @work(group="chat-corrections", exclusive=True)
    async def _count_corrections(self, run: Run) -> None:
        """Show how many corrections the run has not learned."""
        from core.chat.corrections import waiting_corrections

        try:
            count = len(await asyncio.to_thread(waiting_corrections, run))
        except UserError:
            # A correction or a start says so.
            count = 0
        if run == self.partner.run and count != self._corrections:
            self._corrections = count
            self._refresh_title()
            self._refresh_hints()

    def action_learn(self) -> None:
        """Offer to train the run further on its corrections."""
        if self.partner.run is None or not self._corrections:
            correct = self.keys["chat.correct"].display
            self._say(f"No correction waits; {correct} corrects an answer.", "$near")
        elif self.is_live:
            self._say("The run is live; it is trained further once it has ended.", "$near")
        else:
            self.shell.starting.learn_corrections(self.partner.run)

    def action_keep(self) -> None:
        """Append the answer to a dataset, after a dialog for editing it."""
        if (found := self._answer_to_keep()) is None:
            return
        from core.chat.answer_rows import remembered_file
        from tui.screens.chat import KeepAnswer

        reply, messages = found

        def answered(kept: KeptAnswer | None) -> None:
            if kept is not None:
                self._append(kept, messages)

        file = remembered_file()
        shown = shown_path(file) if file is not None else ""
        self.app.push_screen(KeepAnswer(messages[-1]["content"], reply.as_written, shown), answered)

    @work(group="chat-keep")
    async def _append(self, kept: KeptAnswer, messages: list[dict[str, str]]) -> None:
        from core.chat.answer_rows import append_row, remember_file

        path = working_directory() / user_path(kept.file)
        try:
            # In a thread: it waits for the disk and the file lock.
            await asyncio.to_thread(append_row, path, [*messages, {"role": "assistant", "content": kept.text}])
        except UserError as error:
            self._say(f"✗ {error.message} {error.hint}", "$limit")
            return
        remember_file(path)
        self._say(f"✓ appended to {shown_path(path)}")

    def action_toggle_markdown(self) -> None:
        """Toggle the rendering of answers as Markdown."""
        self.transcript.toggle_markdown()
        how = "as Markdown" if self.transcript.markdown else "as they were written"
        self._say(f"Answers are shown {how}.")

    def action_open_former(self) -> None:
        """Open a conversation that is kept with the run."""
        if self.partner.run is None:
            self._say("Conversations are kept with a run, and no run is open.", "$near")
            return
        self._choose_transcript(self.partner.run)

    @work(group="chat-find", exclusive=True)
    async def _choose_transcript(self, run: Run) -> None:
        from core.chat.transcripts import list_transcripts, remove_transcript
        from tui.screens.pick import Discard, Pick, PickScreen

        by_id = {one.id: one for one in await asyncio.to_thread(list_transcripts, run)}

        def discard(identity: str) -> None:
            try:
                remove_transcript(by_id[identity])
            except UserError as error:
                self._say(str(error), "$error")

        if run != self.target:
            return
        if not by_id:
            self._say("This run has no saved conversations yet.", "$near")
            return
        picks = [Pick(one.id, one.title, one.when) for one in by_id.values()]
        # The open conversation would be written again.
        others = Discard(frozenset(by_id) - {self.dialogue.id}, discard)
        screen = PickScreen("Conversations of this run", picks, self.dialogue.id, discard=others)
        identity = await self.app.push_screen_wait(screen)
        if identity in by_id and run == self.target:
            self.take_up(by_id[identity].dialogue(), "")
            self._say(f"The conversation of {by_id[identity].when} is back.")

    @on(PromptInput.PageWanted)
    def _page_wanted(self, message: PromptInput.PageWanted) -> None:
        message.stop()
        self.action_move_page(message.direction)

    @on(PromptInput.CopyWanted)
    def action_copy(self) -> None:
        """Copy the last answer to the terminal's clipboard."""
        reply = self.dialogue.last_answer()
        if reply is None:
            self._say("There is no answer to copy yet.", "$near")
            return
        text = reply.as_written.strip()
        self._say(copy_text(self, text, f"answer of {reply.label}", counted(len(text), "character")))

    def action_serve(self) -> None:
        """Serve the first trained source to other programs."""
        if self.target is not None:
            source = self.partner.trained_one(self.sources)
            self.shell.serving.request(self.target if source in (None, TUNED) else source)

    def action_save(self) -> None:
        """Save the conversation as a Markdown file."""
        if not self.dialogue.exchanges:
            self._say("There is no conversation to save yet.", "$near")
            return
        try:
            path = save_text("localtune-chat", ".md", self.dialogue.to_markdown(one_line(Path(self.subject).name, 200)))
        except UserError as error:
            self._say(f"✗ {error.message}", "$limit")
            return
        self._say(f"✓ saved in {path}")

    def action_move(self, rows: int) -> None:
        """Scroll by lines."""
        self.transcript.scroll_relative(y=rows, animate=False)

    def action_move_page(self, direction: int) -> None:
        """Scroll by pages."""
        self.transcript.scroll_relative(y=direction * max(1, self.transcript.size.height - 1), animate=False)

    def action_move_end(self, direction: int) -> None:
        """Scroll to the beginning or the end."""
        (self.transcript.scroll_home if direction < 0 else self.transcript.scroll_end)(animate=False)
