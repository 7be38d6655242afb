"""Choice of the models that answer: the run, its base, its checkpoints, and other runs on the same base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.chat.candidates import Candidate
from core.chat.dialogue import COLUMNS
from core.chat.request import Source
from core.text import one_line
from tui.screens.overlay import Overlay, key_line
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.strips import fit
from tui.widgets.text_block import TextBlock

_KEYS = (("space", "mark"), ("enter", "ask them"), ("esc", "leave as it is"))
_NAME_WIDTH = 34


class ChatSources(Overlay[tuple[Source, ...]]):
    """List of the models to ask; returns the marked models in order, or the model under the cursor.

    Args:
        candidates: The available models.
        present: The models that answer now.
    """

    DEFAULT_CSS = """
    ChatSources {
        & > Vertical {
            width: 84; max-width: 100%; height: auto; max-height: 90%; padding: 0 1;
            border: round $border-focus; border-title-style: bold; background: $surface;
        }
        & ChoiceList { height: auto; max-height: 20; }
        & #keys { margin-top: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "leave", show=False),
        Binding("space", "mark", "mark", show=False),
    ]
    AUTO_FOCUS = "ChoiceList"

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
            yield TextBlock(key_line(_KEYS), id="keys")

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
            answer.show(Content.styled(f"At most {COLUMNS} answer at once; take another mark away.", "$near"))
            return
        for number, candidate in enumerate(self._candidates):
            self._options.replace_option_prompt_at_index(number, self._line(candidate))

    def on_key(self, event: events.Key) -> None:
        """Accept on ``enter``, whatever has the focus."""
        if event.key == "enter":
            event.stop()
            self._accept()

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        self._accept()

    def _accept(self) -> None:
        place = self._options.highlighted
        under_cursor = self._candidates[place].source if place is not None else None
        if len(self._marked) <= 1 and under_cursor is not None:
            # Without several marks, the cursor decides.
            self.dismiss((under_cursor,))
        else:
            self.dismiss(tuple(self._marked))
