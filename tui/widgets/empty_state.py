"""Empty states of panes: a note on the missing content, helpful keys, and data files to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from core.errors import UserError
from core.runs.record.sentences import slug_of
from core.runs.record.state import ACTIVE_STATES, END_STATES
from core.text import one_line
from core.units import coarse_ago, format_bytes, format_count
from tui.datasets.here import FoundFile, Here
from tui.keys import Key, KeyTable
from tui.shell import shell_of
from tui.widgets.text_block import HangingBlock


class EmptyState(HangingBlock):
    """An empty state: a message, and keys with their actions.

    Args:
        message: A note on the missing content.
        keys: Pairs of a key as displayed and its action.
        can_focus: Let it take the focus.
    """

    DEFAULT_CSS = "EmptyState { height: 1fr; padding: 1 2; }"

    def __init__(
        self,
        message: str = "",
        keys: Sequence[tuple[str, str]] = (),
        *,
        id: str | None = None,  # noqa: A002
        can_focus: bool = False,
    ) -> None:
        super().__init__(empty_content(message, keys), id=id)
        self.can_focus = can_focus

    def say(self, message: str, keys: Sequence[tuple[str, str]] = ()) -> None:
        """Show another message and other keys."""
        self.show(empty_content(message, keys))


def empty_content(message: str, keys: Sequence[tuple[str, str]]) -> Content:
    """The message and the aligned keys."""
    width = max((len(key) for key, _ in keys), default=0)
    lines = [Content(message), *([Content("")] if keys else [])]
    lines += [Content.assemble((key.ljust(width), "$primary bold"), "   ", text) for key, text in keys]
    return Content("\n").join(lines)


@dataclass(frozen=True)
class Way:
    """A way to start: a key and its effect."""

    key: Key
    text: str


class FirstSteps(HangingBlock):
    """The text of an empty pane: ways to start, and files with a cursor.

    The keys of the ways work while the pane has the focus, even if they belong to another pane.
    """

    DEFAULT_CSS = "FirstSteps { height: 1fr; padding: 1 2; }"

    @dataclass
    class Chosen(Message):
        """A file has been chosen."""

        path: Path

    def __init__(self, *, id: str | None = None, can_focus: bool = False) -> None:  # noqa: A002
        super().__init__(id=id)
        self.can_focus = can_focus
        self.here = Here()
        self._headline = ""
        self._error: UserError | None = None
        self._has_files = False
        self._ways: tuple[Way, ...] = ()
        self._cursor = 0

    def explain(
        self, headline: str, ways: Sequence[Way] = (), error: UserError | None = None, *, has_files: bool = True
    ) -> None:
        """Show another text.

        Args:
            headline: A note on the missing content, or a question.
            ways: The ways to start.
            error: The last error, shown first.
            has_files: List the files below the first way.
        """
        self._headline, self._ways, self._error = headline, tuple(ways), error
        self._has_files = has_files and bool(self._ways)
        self._refresh()

    def look_around(self, here: Here) -> None:
        """Show the files and runs found here."""
        self.here = here
        self._cursor = min(self._cursor, max(len(here.files) - 1, 0))
        self._refresh()

    def move(self, by: int) -> None:
        """Move the cursor in the files."""
        self._cursor = max(min(self._cursor + by, len(self.here.files) - 1), 0)
        self._refresh()

    def choose(self) -> bool:
        """Choose the file under the cursor; returns False if there is none."""
        if not self._has_files or not self.here.files:
            return False
        self.post_message(self.Chosen(self.here.files[self._cursor].path))
        return True

    @property
    def offers_files(self) -> bool:
        """True while it is laid out and lists the files to start from."""
        return self._has_files and all(node.display for node in self.ancestors_with_self if isinstance(node, Widget))

    @property
    def keys(self) -> list[Key]:
        """The keys of the ways, without those of the app."""
        return [way.key for way in self._ways if way.key.scope != "app"]

    async def take_files_key(self, event: events.Key, keys: KeyTable) -> bool:
        """Handle a key that moves the cursor or chooses a file; returns False for other keys."""
        moves = {"data.down": 1, "data.up": -1}
        for name in (*moves, "data.read"):
            if self._has_files and event.key in [key.strip() for key in keys[name].keys.split(",")]:
                event.stop()
                event.prevent_default()
                if name in moves:
                    self.move(moves[name])
                else:
                    self.choose()
                return True
        return False

    async def take_key(self, event: events.Key, scope: str) -> None:
        """Run the key of a way; keys of the pane and of the app work by themselves.

        Args:
            event: The key.
            scope: The scope of the pane's own keys.
        """
        for way in self._ways:
            if way.key.scope not in (scope, "app") and event.key in [key.strip() for key in way.key.keys.split(",")]:
                event.stop()
                event.prevent_default()
                await shell_of(self).run_key(way.key)
                return

    def _refresh(self) -> None:
        files = self.here.files if self._has_files else ()
        opens = shell_of(self).keys["data.read"].display if files else ""
        content = steps_content(self._headline, self._ways, files, self._cursor, opens)
        if (error := self._error) is not None:
            hint = f"\n  {one_line(error.hint)}" if error.hint else ""
            shown = (f"✗ {one_line(error.message)}", "$limit bold"), (hint, "$muted")
            content = Content.assemble(*shown, "\n\n", content)
        self.show(content)


def ways_to_begin(keys: KeyTable, here: Here, now: float, *, sample: str, sample_text: str) -> list[Way]:
    """Ways to start, in order.

    Args:
        keys: The key table with the user's changes.
        here: The files and runs found here.
        now: The current time, in Unix seconds.
        sample: The id of the key for the sample.
        sample_text: The effect of that key.
    """
    ways = [
        Way(keys["data.open"], "my own file (CSV, JSONL, Parquet …)"),
        Way(keys["data.browse"], "look for it in the directories"),
        Way(keys[sample], sample_text),
        Way(keys["config.import"], "a configuration of Axolotl, LLaMA-Factory or Unsloth"),
    ]
    if here.runs:
        ways.append(Way(keys["app.runs"], _tell_runs(here, now)))
    return ways


def _tell_runs(here: Here, now: float) -> str:
    # The subject without the time in the id, which follows in words.
    subject = one_line(slug_of(here.last_run), 60)
    # Live states change too often to show here.
    state = "in progress" if here.last_state in ACTIVE_STATES else one_line(here.last_state, 20)
    has_ended = here.last_state in END_STATES and 0 < here.last_ended <= now
    ended = f"{subject}, {state}" + (f" {coarse_ago(now - here.last_ended)}" if has_ended else "")
    return f"my run: {ended}" if here.runs == 1 else f"my {format_count(here.runs)} runs · last: {ended}"


def steps_content(
    headline: str, ways: Sequence[Way], files: Sequence[FoundFile], cursor: int, opens: str = ""
) -> Content:
    """The headline, then a line for each way, with the files below the first.

    Args:
        headline: A note on the missing content, or a question.
        ways: The ways to start.
        files: The files.
        cursor: The index of the file under the cursor.
        opens: The key that opens it, as displayed.
    """
    lines = [Content(headline)]
    width = max((cell_len(way.key.display) for way in ways), default=0)
    for place, way in enumerate(ways):
        if not place:
            lines.append(Content(""))
        lines.append(Content.assemble((way.key.display.ljust(width), "$primary bold"), "   ", way.text))
        if not place and files:
            lines += _file_lines(files, cursor, width + 3, opens)
    return Content("\n").join(lines)


def _file_lines(files: Sequence[FoundFile], cursor: int, indent: int, opens: str) -> list[Content]:
    names = [one_line(file.path.name, 40) for file in files]
    width = max(map(cell_len, names))
    lines = []
    for place, (file, name) in enumerate(zip(files, names, strict=True)):
        pointer = "▸ " if place == cursor else "  "
        rows = "" if file.rows is None else f"{format_count(file.rows)} row{'' if file.rows == 1 else 's'}"
        size = rows or format_bytes(file.bytes)
        hint = f"   {opens} opens it" if place == cursor else ""
        pad = " " * (width - cell_len(name))
        lines.append(
            Content.assemble(
                " " * indent, (pointer, "$primary bold"), (name, "bold"), pad, f"   {size}", (hint, "$muted")
            )
        )
    return lines
