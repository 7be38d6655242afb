"""The ask bar: one line at the foot of a pane that asks for a text, a path, or one of a few keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea

from core.text import one_line
from tui.keys import display_key
from tui.widgets.forms.inputs import PathInput, SafeInput

#: Seconds after a wrong key within which no key is an answer: somebody is typing.
QUIET_SECONDS = 0.5
#: Keys that mean the whole app, whatever it asks.
LEAVING_KEYS = frozenset({"ctrl+c", "ctrl+q"})


class AnswerKeys:
    """The keys of a question that have been pressed, with their times."""

    def __init__(self) -> None:
        self._missed = float("-inf")

    def is_answer(self, is_offered: bool, time: float) -> bool:
        """Whether a key is an answer.

        Args:
            is_offered: Whether it is one of the keys of the question.
            time: The time at which it was pressed, in seconds.
        """
        if is_offered and time - self._missed >= QUIET_SECONDS:
            return True
        self._missed = time
        return False


def waiting_text(keys: Sequence[str]) -> Content:
    """The keys that a question waits for, for a reader who has pressed another one: ``press y or esc``."""
    shown = [display_key(key) for key in dict.fromkeys([*keys, "escape"])]
    listed = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    return Content.styled(f"press {listed}", "$near")


class KeyQuestion(Static, can_focus=True):
    """A question that one key answers."""

    DEFAULT_CSS = """
    KeyQuestion { width: 1fr; height: auto; background: $surface; &:focus { background: $panel; } }
    """

    @dataclass
    class Answered(Message):
        """The answer: one of the offered keys, or ``escape``."""

        key: str

    def __init__(self, question: str, answers: Mapping[str, str]) -> None:
        self.answers = dict(answers)
        self._question = one_line(question)
        self._keys = AnswerKeys()
        self._is_read = False
        super().__init__(self._content())

    def _content(self, hint: Content | None = None) -> Content:
        parts: list[tuple[str, str] | str | Content] = [(self._question, "bold $near"), "  "]
        if hint is not None:
            parts += [hint, ": "]
        for key, meaning in self.answers.items():
            parts += [(key, "bold $accent"), f" {meaning}  "]
        return Content.assemble(*parts, ("esc", "bold $accent"), " cancel")

    def on_mount(self) -> None:
        """Accept answers from the first paint on."""
        self.call_after_refresh(self._painted)

    def _painted(self) -> None:
        self._is_read = True

    def on_key(self, event: events.Key) -> None:
        """Handle the offered keys and ``esc``; the app is left and interrupted as ever, and other keys do nothing.

        Keys typed before the question could be read are neither an answer to it nor a command.
        """
        if event.key in LEAVING_KEYS:
            return
        event.stop()
        event.prevent_default()
        if not self._is_read:
            return
        key = event.character if event.character in self.answers else event.key
        if key == "escape" or self._keys.is_answer(key in self.answers, event.time):
            self.post_message(self.Answered(key))
        else:
            self.update(self._content(waiting_text(list(self.answers))))


def takes_text(widget: Widget | None) -> bool:
    """Whether keys pressed now are text, or answer a question: no binding of a pane may take them away."""
    return isinstance(widget, (Input, TextArea, KeyQuestion))


class AskBar(Vertical):
    """A bar that is hidden until a question is asked; the focus returns to its place after the answer or ``esc``."""

    DEFAULT_CSS = """
    AskBar {
        height: auto;
        display: none;
        &.-asking { display: block; }
        & > Horizontal { height: auto; }
        & .ask-label { width: auto; padding-right: 1; color: $accent; text-style: bold; }
        & .ask-candidates { height: auto; max-height: 3; color: $muted; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._answer: asyncio.Future[str | None] | None = None
        self._watcher: Callable[[str], None] | None = None
        self._back_to: Widget | None = None

    def compose(self) -> ComposeResult:
        """The candidates of a path above the input."""
        yield Static(classes="ask-candidates")
        yield Horizontal(classes="ask-line")

    @property
    def is_asking(self) -> bool:
        """Whether a question is open."""
        return self._answer is not None

    async def converse(self, work: Coroutine[object, object, None]) -> None:
        """Run a coroutine that asks questions, concurrently with other work; it ends with this bar at the latest.

        Its work up to the first question is done when this returns: awaited by the action of a key with priority,
        the question is open before the next key is looked at.
        """
        self.run_worker(work)
        await asyncio.sleep(0)

    async def ask(
        self, label: str, value: str = "", *, placeholder: str = "", changed: Callable[[str], None] | None = None
    ) -> str | None:
        """Ask for a text and wait for it; typed text replaces the initial value.

        Args:
            label: Before the text.
            value: The text that it begins with.
            placeholder: Shown while there is no text.
            changed: Called with the text whenever it changes.

        Returns:
            None where the user gives up, or another question takes the place of this one.
        """
        field = SafeInput(value, placeholder=placeholder)
        field.select_all()
        return await self._answer_to(label, field, changed)

    async def ask_path(
        self, label: str, value: str = "", *, base: Path | None = None, suffixes: Sequence[str] = ()
    ) -> Path | None:
        """Ask for a path, with completion, and wait for it.

        Args:
            label: Before the path.
            value: The path that it begins with.
            base: The directory of relative paths; the working directory by default.
            suffixes: Suffixes of the files that are offered.

        Returns:
            None where the user gives up or names nothing, or another question takes the place of this one.
        """
        field = PathInput(value, base=base, suffixes=suffixes, placeholder="tab completes, esc cancels")
        answer = await self._answer_to(label, field)
        return field.resolved() if answer and answer.strip() else None

    async def ask_key(self, question: str, answers: Mapping[str, str]) -> str | None:
        """Ask a question that one key answers, and wait for it.

        Args:
            question: The question, as a sentence.
            answers: The keys, and the meaning of each.

        Returns:
            None where the user gives up, or another question takes the place of this one.
        """
        return await self._answer_to("", KeyQuestion(question, answers))

    def close(self, answer: str | None = None) -> None:
        """Hide the bar, give the focus back, and resolve the pending answer."""
        back = self._back_to
        self._settle(answer)
        self.remove_class("-asking")
        line = self.query_one(".ask-line")
        had_focus = any(child.has_focus for child in line.children)
        line.remove_children()
        if had_focus and back is not None and back.is_attached and back.display:
            # At once: another question may follow, and must not lose the focus again to the previous widget.
            self.screen.set_focus(back)

    def on_unmount(self) -> None:
        """Resolve the pending answer, which will not come any more."""
        self._settle(None)

    async def _answer_to(self, label: str, field: Widget, changed: Callable[[str], None] | None = None) -> str | None:
        self._open(label, field)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._answer, self._watcher = answer, changed
        return await answer

    def _settle(self, answer: str | None) -> None:
        waiting, self._answer, self._watcher = self._answer, None, None
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _open(self, label: str, field: Widget) -> None:
        self._settle(None)
        focused = self.screen.focused
        # A question may follow another before the focus is back: the first widget that had it gets it in the end.
        if focused is not None and self not in focused.ancestors and focused.is_attached:
            self._back_to = focused
        self._show_candidates([])
        line = self.query_one(".ask-line")
        line.remove_children()
        line.mount(*([Static(label, classes="ask-label", markup=False)] if label else []), field)
        self.add_class("-asking")
        # At once: keys typed ahead are its text. Its queue is processed once it is mounted.
        self.screen.set_focus(field)

    def _show_candidates(self, names: Sequence[str]) -> None:
        try:
            line = self.query_one(".ask-candidates", Static)
        except NoMatches:
            return
        line.display = bool(names)
        shown = list(names[:40])
        more = f"  … {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        line.update(Content("  ".join(shown) + more))

    @on(PathInput.Candidates)
    def _candidates(self, message: PathInput.Candidates) -> None:
        message.stop()
        self._show_candidates(message.names)

    @on(SafeInput.Changed)
    def _changed(self, message: SafeInput.Changed) -> None:
        message.stop()
        if self._watcher is not None and message.input.is_attached:
            self._watcher(message.value)

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        self.close(message.value)

    @on(KeyQuestion.Answered)
    def _answered(self, message: KeyQuestion.Answered) -> None:
        message.stop()
        self.close(message.key if message.key != "escape" else None)

    @on(SafeInput.Cancelled)
    def _cancelled(self, message: SafeInput.Cancelled) -> None:
        message.stop()
        self.close()
