"""Dialogs of the chat: settings, the models that answer, and a good answer to keep as a row of a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import TextArea
from textual.widgets.option_list import Option

from core.chat.candidates import Candidate
from core.chat.dialogue import COLUMNS
from core.chat.request import GenerationSettings, Source
from core.errors import UserError
from core.text import one_line, sanitize
from core.units import exact_number
from tui.screens.box import FormScreen, InputForm
from tui.screens.overlay import Overlay, key_line
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import TextBlock

_SETTINGS_KEYS = (("enter", "use them"), ("tab", "next"), ("esc", "cancel"))


class ChatSettings(FormScreen[tuple[str, GenerationSettings]]):
    """Dialog of the chat settings, checked on accept; returns the system prompt and the settings, or nothing.

    Args:
        system: The current system prompt.
        settings: The current settings.
    """

    DEFAULT_CSS = style_of("ChatSettings")
    HELP = "chat_settings"

    def __init__(self, system: str, settings: GenerationSettings) -> None:
        seed = "" if settings.seed is None else str(settings.seed)
        penalty = exact_number(settings.repetition_penalty)
        rows = {
            "system": ("system prompt", system, ""),
            "temperature": ("temperature", exact_number(settings.temperature), "randomness, 0 to 5; 0 is none"),
            "top_p": ("top p", exact_number(settings.top_p), "share of likely tokens, up to 1"),
            "max_new_tokens": ("longest answer", str(settings.max_new_tokens), "tokens, up to 32,768"),
            "top_k": ("top k", str(settings.top_k), "number of likely tokens; 0: all"),
            "min_p": ("min p", exact_number(settings.min_p), "least share of the likeliest, below 1"),
            "repetition_penalty": ("repetition", penalty, "penalty, to 10; 1 is none"),
            "seed": ("seed", seed, "the same draws; empty: none"),
            "stop": ("stops", _stops_line(settings.stop), ""),
        }
        lines = {
            name: (label, SafeInput(value, id=f"line-{name}"), hint) for name, (label, value, hint) in rows.items()
        }
        super().__init__(InputForm("Settings of the chat", lines, _SETTINGS_KEYS))

    def take(self) -> None:
        """Return the settings, if they are valid."""
        texts = self._form.texts
        try:
            settings = GenerationSettings(
                max_new_tokens=_whole("longest answer", texts["max_new_tokens"]),
                temperature=_number("temperature", texts["temperature"]),
                top_p=_number("top p", texts["top_p"]),
                top_k=_whole("top k", texts["top_k"]),
                min_p=_number("min p", texts["min_p"]),
                repetition_penalty=_number("repetition penalty", texts["repetition_penalty"]),
                seed=_whole("seed", texts["seed"]) if texts["seed"] else None,
                stop=_read_stops(texts["stop"]),
            )
        except UserError as error:
            self._form.answer(f"✗ {one_line(error.message)}")
            return
        self.dismiss((texts["system"], settings))


def _number(label: str, text: str) -> float:
    """Parse a number.

    Raises:
        UserError: If the text is not a number.
    """
    try:
        number = float(text)
        int(number)
    except (ValueError, OverflowError):
        raise UserError(f"The {label} must be a number, not {one_line(text, 20) or 'nothing'}.") from None
    return number


def _whole(label: str, text: str) -> int:
    """Parse a whole number.

    Raises:
        UserError: If the text is not a whole number.
    """
    number = _number(label, text)
    if number != int(number):
        raise UserError(f"The {label} must be a whole number, not {one_line(text, 20)}.")
    return int(number)


def _stops_line(stops: tuple[str, ...]) -> str:
    """Stop sequences on one line, quoted as JSON because they may contain line breaks and trailing spaces."""
    return json.dumps(list(stops), ensure_ascii=False)[1:-1]


def _read_stops(text: str) -> tuple[str, ...]:
    """Parse stop sequences: a JSON list without its brackets, or a single unquoted text.

    Raises:
        UserError: If a quote is not closed.
    """
    if not text.startswith('"'):
        return (text,) if text else ()
    try:
        found = json.loads(f"[{text}]")
    except ValueError:
        raise UserError('Stops are texts in quotes with commas between them, like "User:", "\\n\\n".') from None
    return tuple(found)


_SOURCES_KEYS = (("j k", "move"), ("space", "mark"), ("enter", "let them answer"), ("esc", "cancel"))
_EXPORT_KEY = ("h", "use it elsewhere")
_NAME_WIDTH = 34


class ChatSources(Overlay[tuple[Source, ...]]):
    """List of the models to ask; returns the marked models in order, or the model under the cursor.

    Args:
        candidates: The available models.
        present: The models that answer now.
    """

    DEFAULT_CSS = style_of("ChatSources")
    HELP = "sources"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", show=False),
        Binding("space", "mark", "mark", show=False),
        Binding("h", "show_export", "use it elsewhere", show=False),
    ]
    AUTO_FOCUS = "ChoiceList"
    ENTER_TAKES = True

    def __init__(self, candidates: Sequence[Candidate], present: Sequence[Source]) -> None:
        super().__init__()
        self._candidates = tuple(candidates)
        known = {candidate.source for candidate in candidates}
        self._marked = [source for source in present if source in known]

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("Who answers")
            yield ChoiceList()
            yield TextBlock(id="answer")
            exports = [_EXPORT_KEY] if any(os.path.isabs(each.source) for each in self._candidates) else []
            yield TextBlock(key_line([*_SOURCES_KEYS[:-1], *exports, _SOURCES_KEYS[-1]]), id="keys")

    def on_mount(self) -> None:
        """List the candidates, with the cursor on the first current model."""
        self._options.add_options([Option(self._line(candidate)) for candidate in self._candidates])
        sources = [candidate.source for candidate in self._candidates]
        self._options.highlighted = sources.index(self._marked[0]) if self._marked else 0

    @property
    def _options(self) -> ChoiceList:
        return self.query_one(ChoiceList)

    def _line(self, candidate: Candidate) -> Content:
        marked = candidate.source in self._marked
        mark = f"{self._marked.index(candidate.source) + 1} " if marked else "· "
        return Content.assemble(
            (mark, "$primary bold" if marked else "$muted"),
            fit(one_line(candidate.name, 200), _NAME_WIDTH),
            ("  " + one_line(candidate.about, 120), "$muted"),
        )

    def action_mark(self) -> None:
        """Mark or unmark the model under the cursor."""
        if (place := self._options.highlighted) is None:
            return
        source = self._candidates[place].source
        answer = self.query_one("#answer", TextBlock)
        answer.show(Content(""))
        if source in self._marked:
            self._marked.remove(source)
        elif len(self._marked) < COLUMNS:
            self._marked.append(source)
        else:
            answer.show(Content.styled(f"At most {COLUMNS} answer at once; unmark another one first.", "$near"))
            return
        for number, candidate in enumerate(self._candidates):
            self._options.replace_option_prompt_at_index(number, self._line(candidate))

    def action_show_export(self) -> None:
        """Show the export under the cursor, with the command lines that use it."""
        from core.export.result import read_result
        from tui.screens.export import ExportPage
        from tui.screens.job import JobScreen

        place = self._options.highlighted
        path = Path(self._candidates[place].source if place is not None else "")
        result = read_result(path.parent) if path.is_absolute() else None
        if result is None:
            self.query_one("#answer", TextBlock).show(
                Content.styled("Only an export has lines for other programs.", "$near")
            )
        else:
            self.app.push_screen(JobScreen(ExportPage(result.run, result.quant or result.kind, result)))

    def take(self) -> None:
        """Return the marked models, or the model under the cursor."""
        place = self._options.highlighted
        under_cursor = self._candidates[place].source if place is not None else None
        if len(self._marked) <= 1 and under_cursor is not None:
            # Without several marks, the cursor decides.
            self.dismiss((under_cursor,))
        else:
            self.dismiss(tuple(self._marked))


@dataclass(frozen=True)
class KeptAnswer:
    """An answer to append to a dataset file, or a correction."""

    text: str
    """The answer as written by the model, or as edited."""
    file: str
    """The path of the file, as typed; empty for a correction."""


class _AnswerArea(TextArea):
    """Editor of the answer; pasted text is sanitized."""

    def __init__(self, text: str) -> None:
        super().__init__(text, soft_wrap=True, tab_behavior="focus", show_line_numbers=False)
        self.cursor_blink = False

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert(sanitize(event.text))

    def action_paste(self) -> None:
        """Paste the app's clipboard."""
        self.insert(sanitize(self.app.clipboard))


class KeepAnswer(Overlay[KeptAnswer]):
    """Dialog with the answer to edit, and the file if it is for a dataset; returns both, or nothing.

    Args:
        question: The question, for reference.
        answer: The answer as written by the model.
        file: The last used file; empty for none yet, None for an answer that has a file of its own.
        title: The title of the dialog.
        verb: The effect of the key that accepts.
    """

    DEFAULT_CSS = style_of("KeepAnswer")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", show=False, priority=True),
        Binding("ctrl+s", "accept", "append", show=False, priority=True),
        Binding("tab", "app.focus_next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", show=False, priority=True),
    ]
    AUTO_FOCUS = "TextArea"
    TAKES_TEXT = True

    def __init__(
        self,
        question: str,
        answer: str,
        file: str | None,
        *,
        title: str = "Add this answer to a dataset",
        verb: str = "append",
    ) -> None:
        super().__init__()
        self._question, self._answer, self._file = question, answer, file
        self._title, self._verb = title, verb

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._title)
            yield TextBlock(Content.styled(one_line(self._question, 400), "$muted"), id="question")
            yield _AnswerArea(sanitize(self._answer))
            if self._file is not None:
                with Horizontal():
                    yield TextBlock(Content("file"), classes="label")
                    yield SafeInput(self._file, placeholder="answers.jsonl; created if it does not exist")
            yield TextBlock(id="answer")
            keys = [("^s", self._verb), *([("tab", "next")] if self._file is not None else []), ("esc", "cancel")]
            yield TextBlock(key_line(keys), id="keys")

    def action_accept(self) -> None:
        """Return the answer and the file."""
        edited = self.query_one(TextArea).text
        file = "" if self._file is None else self.query_one(SafeInput).value.strip()
        says = "" if edited.strip() else "The answer is empty."
        says = says or ("" if file or self._file is None else "Name a file; it is created if it does not exist.")
        if says:
            self.query_one("#answer", TextBlock).show(Content.styled(f"✗ {says}", "$limit"))
            if edited.strip():
                self.query_one(SafeInput).focus()
            return
        # An unedited answer is kept as written, not as sanitized for the editor.
        self.dismiss(KeptAnswer(self._answer if edited == sanitize(self._answer) else edited, file))

    def take(self) -> None:
        """Return the answer and the file."""
        self.action_accept()
