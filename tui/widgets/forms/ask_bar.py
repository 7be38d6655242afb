"""Ask bar: a line at the bottom of a pane that asks for a text, a path, or a key."""

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
from tui.widgets.strips import style_of

#: Seconds after a wrong key during which no key is an answer, because the user is typing.
QUIET_SECONDS = 0.5
#: Keys of the app that work during a question.
LEAVING_KEYS = frozenset({"ctrl+c", "ctrl+q"})


class AnswerKeys:
    """Filter for the keys of a question that ignores fast typing.

    Args:
        is_read: The question can be read; keys typed before are no answers.
    """

    def __init__(self, *, is_read: bool = False) -> None:
        self.is_read = is_read
        self._missed = float("-inf")

    def painted(self) -> None:
        """Take keys from now on: the question has been painted."""
        self.is_read = True

    def is_answer(self, is_offered: bool, time: float) -> bool:
        """True if a key is an answer.

        Args:
            is_offered: The key is offered by the question.
            time: The time of the key press, in seconds.
        """
        if is_offered and time - self._missed >= QUIET_SECONDS:
            return True
        self._missed = time
        return False


def waiting_text(keys: Sequence[str]) -> Content:
    """A hint on the offered keys after a wrong key: ``press y or esc``."""
    shown = [display_key(key) for key in dict.fromkeys([*keys, "escape"])]
    listed = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    return Content.styled(f"press {listed}", "$near")


class KeyQuestion(Static, can_focus=True):
    """A question answered by a single key."""

    DEFAULT_CSS = style_of("KeyQuestion")

    @dataclass
    class Answered(Message):
        """The answer: an offered key, or ``escape``."""

        key: str

    def __init__(self, question: str, answers: Mapping[str, str]) -> None:
        self.answers = dict(answers)
        self._question = one_line(question)
        self._keys = AnswerKeys()
        super().__init__(self._content())

    def _content(self, hint: Content | None = None) -> Content:
        parts: list[tuple[str, str] | str | Content] = [(self._question, "bold $near"), "  "]
        if hint is not None:
            parts += [hint, ": "]
        for key, meaning in self.answers.items():
            parts += [(key, "bold $accent"), f" {meaning}  "]
        return Content.assemble(*parts, ("esc", "bold $accent"), " cancel")

    def on_mount(self) -> None:
        """Accept answers once the question has been painted."""
        self.call_after_refresh(self._keys.painted)

    def on_key(self, event: events.Key) -> None:
        """Handle the offered keys and ``esc``. Only the keys that quit or interrupt the app pass through.

        Keys typed before the question was painted are dropped.
        """
        if event.key in LEAVING_KEYS:
            return
        event.stop()
        event.prevent_default()
        if not self._keys.is_read:
            return
        key = event.character if event.character in self.answers else event.key
        if key == "escape" or self._keys.is_answer(key in self.answers, event.time):
            self.post_message(self.Answered(key))
        else:
            self.update(self._content(waiting_text(list(self.answers))))


def takes_text(widget: Widget | None) -> bool:
    """True if a widget takes keys as text or answers, so that bindings of the pane must not."""
    return isinstance(widget, (Input, TextArea, KeyQuestion))


class AskBar(Vertical):
    """A bar that is hidden until a question is asked; afterwards the focus returns to the previous widget."""

    DEFAULT_CSS = style_of("AskBar")

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
        """True while a question is open."""
        return self._answer is not None

    async def converse(self, work: Coroutine[object, object, None]) -> None:
        """Run a coroutine that asks questions as a worker of the bar.

        Returns after its first step: when a key action awaits this, the question is open before the next key.
        """
        self.run_worker(work)
        await asyncio.sleep(0)

    async def ask(
        self, label: str, value: str = "", *, placeholder: str = "", changed: Callable[[str], None] | None = None
    ) -> str | None:
        """Ask for a text and wait for it; typed text replaces the initial value.

        Args:
            label: The label before the input.
            value: The initial text.
            placeholder: Shown while the input is empty.
            changed: Called with the text whenever it changes.

        Returns:
            The text; None if the user cancels, or another question replaces this one.
        """
        field = SafeInput(value, placeholder=placeholder)
        field.select_all()
        return await self._answer_to(label, field, changed)

    async def ask_path(
        self, label: str, value: str = "", *, base: Path | None = None, suffixes: Sequence[str] = ()
    ) -> Path | None:
        """Ask for a path, with completion, and wait for it; typed text replaces the initial path.

        Args:
            label: The label before the input.
            value: The initial path.
            base: The directory of relative paths; the working directory by default.
            suffixes: Suffixes of the offered files.

        Returns:
            The path; None if the user cancels or enters nothing, or another question replaces this one.
        """
        field = PathInput(value, base=base, suffixes=suffixes, placeholder="tab completes, esc cancels")
        field.select_all()
        answer = await self._answer_to(label, field)
        return field.resolved() if answer and answer.strip() else None

    async def ask_key(self, question: str, answers: Mapping[str, str]) -> str | None:
        """Ask a question that is answered by a single key, and wait for it.

        Args:
            question: The question.
            answers: The keys with their meanings.

        Returns:
            The key; None if the user cancels, or another question replaces this one.
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
            # Immediately, because a following question must not lose the focus to the previous widget.
            self.screen.set_focus(back)

    def on_unmount(self) -> None:
        """Resolve the pending answer, which can no longer come."""
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
        # With consecutive questions, the focus returns to the widget that had it before the first.
        if focused is not None and self not in focused.ancestors and focused.is_attached:
            self._back_to = focused
        self._show_candidates([])
        line = self.query_one(".ask-line")
        line.remove_children()
        line.mount(*([Static(label, classes="ask-label", markup=False)] if label else []), field)
        self.add_class("-asking")
        # Immediately, so that keys typed ahead are its text; its queue is processed once it is mounted.
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
