"""Screen of the queue: the live run, the waiting entries with their times, and the ended entries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.binding import BindingType
from textual.content import Content
from textual.widgets.option_list import Option

from core.errors import UserError
from core.queue import status, store
from core.queue.entry import QueueEntry
from core.queue.estimate import Estimator
from core.queue.fate import run_of
from core.queue.night import NIGHT_OPTIONS
from core.queue.tonight import change_night, tell_live_run
from core.queue.view import EntryView, QueueReader, QueueView
from core.runs.record.store import Run
from core.text import one_line
from core.units import format_duration, format_moment
from tui.keys import bindings
from tui.screens.box import InputForm, ListScreen, ValuesForm
from tui.screens.run_settings import HINTS, LABELS
from tui.shell import shell_of
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.forms.option_field import format_value
from tui.widgets.strips import fit

if TYPE_CHECKING:
    from core.queue.book import Queue

#: Seconds between two reads of the queue.
LOOK_SECONDS = 2.0
#: Columns of a line without its name: the state, and the times with two marks.
_STATE, _TIME = 18, 23
#: Row for an option that has its default, and the keys of a form.
_ANOTHER, _KEYS = "", (("enter", "apply"), ("tab", "next"), ("esc", "cancel"))
#: Result of the start of the runner, shown while one is on.
_STARTED = "The runner is started; it goes on without the app."
#: Columns of the lower border without its text.
_CORNERS = 6
_STYLES = {"failed": "$limit", "lost": "$limit", "skipped": "$near", "held": "$muted", "finished": "$muted"}


class QueueScreen(ListScreen[Run]):
    """Screen of the queue; returns the run to show.

    Args:
        add: Adds a run of the app's configuration, and returns a notice.
        sweep: Adds a run of it for each value in a text; returns a notice.
    """

    SCOPE = "queue"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("queue")]

    def __init__(self, add: Callable[[], Awaitable[str]], sweep: Callable[[str], Awaitable[str]]) -> None:
        super().__init__(
            "Queue",
            ("add", "sweep", "hold", "earlier", "later", "remove", "clear"),
            ("open", "night", "start", "stop", "back"),
        )
        self._add, self._sweep = add, sweep
        self._reader = QueueReader(Estimator())
        self._view: QueueView | None = None
        self._wanted: int | None = None
        self._clock: Callable[[], float] = time.time

    def on_mount(self) -> None:
        """Read the queue every few seconds."""
        self._clock = shell_of(self).clock
        self.set_interval(LOOK_SECONDS * shell_of(self).pace, self._look)

    def on_resize(self) -> None:
        """Fit the lines to the new width."""
        if self._view is not None:
            self._show_entries(self._view)
            self._show_legend(self._view)

    # Reading.

    @work(thread=True, group="queue-look", exclusive=True)
    def _look(self) -> None:
        try:
            if self._view is None:
                # Show the list before the slow estimates.
                self.post_call(self._show, self._reader.read(self._clock(), known_only=True))
            self.post_call(self._show, self._reader.read(self._clock()))
        except UserError as error:
            self.post_call(self._box.say, str(error), "$limit")

    def _show(self, view: QueueView) -> None:
        was_on = self._view is not None and self._view.runner is not None
        if was_on and view.runner is None and self._box.said == _STARTED:
            self._box.say("")
        self._view = view
        self._box.show_about(self._runner_line(view))
        self._show_legend(view)
        self.show_keys()
        self._show_entries(view)

    def _show_legend(self, view: QueueView) -> None:
        """Show the legend in the border, in short if there is no room."""
        legend, room = _legend(view), self._box.outer_size.width - _CORNERS
        self._box.border_subtitle = Content(legend if len(legend) <= room else _legend(view, is_short=True))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """True if an action has an effect on the queue as it is."""
        if (view := self._view) is None:
            return True
        match action:
            case "clear":
                return any(row.entry.is_over for row in view.rows)
            case "start":
                return view.runner is None and bool(view.upcoming)
            case "stop":
                return view.runner is not None
            case "open" | "hold" | "shift" | "remove":
                return bool(view.rows)
        return super().check_action(action, parameters)

    def _runner_line(self, view: QueueView) -> Content:
        """The runner's activity, and the limits of the night."""
        line, words = self._activity(view), view.night.words(self._clock())
        return Content.assemble(line, "\n", ("tonight  ", "$muted"), one_line(words, 200)) if words else line

    def _activity(self, view: QueueView) -> Content:
        if view.runner is not None:
            return Content.assemble(("running", "$primary bold"), f" · {one_line(view.runner.doing, 200)}")
        shows = shell_of(self).keys["queue.start"].display
        if not view.upcoming:
            return Content.styled("No entry is waiting." if view.rows else "The queue is empty.", "$muted")
        return Content.assemble("The runner is stopped, so nothing starts · ", (shows, "$primary bold"), " starts it")

    def _show_entries(self, view: QueueView) -> None:
        """Update the changed lines; the cursor stays on its entry."""
        options, width = self._options, max(self._options.size.width, 40)
        place = options.highlighted or 0
        here = self._wanted if self._wanted is not None else (row.entry.id if (row := self._row) else None)
        times = [_when(row, self._clock()) for row in view.rows]
        # Without a time, its room is the name's.
        room, is_on = _TIME if any(times) else 0, view.runner is not None
        lines = [_line(row, width, fit(when, room), is_on=is_on) for row, when in zip(view.rows, times, strict=True)]
        ids = [str(row.entry.id) for row in view.rows]
        if [option.id for option in options.options] == ids:
            for index, line in enumerate(lines):
                if options.options[index].prompt != line:
                    options.replace_option_prompt_at_index(index, line)
        else:
            options.clear_options()
            options.add_options([Option(line, id=name) for line, name in zip(lines, ids, strict=True)])
        if ids:
            options.highlighted = ids.index(str(here)) if str(here) in ids else min(place, len(ids) - 1)
        self._wanted = None

    @property
    def _row(self) -> EntryView | None:
        """The entry under the cursor."""
        place, options = self._options.highlighted, self._options.options
        if self._view is None or place is None or place >= len(options):
            return None
        return next((row for row in self._view.rows if str(row.entry.id) == options[place].id), None)

    # Keys.

    def action_open(self) -> None:
        """Show the run of the entry under the cursor, or its values if it has none."""
        if (row := self._row) is None:
            return
        if row.entry.run is not None and (run := run_of(row.entry)).config_path.is_file():
            self.dismiss(run)
        else:
            self._edit(row.entry)

    @work
    async def _edit(self, entry: QueueEntry) -> None:
        """Show the values of an entry, to be changed; defaults only where its sweep varies them."""
        try:
            config = await asyncio.to_thread(store.read_entry_config, entry)
        except UserError as error:
            self._box.say(str(error), "$near")
            return
        own = config.model_dump(mode="json", exclude_defaults=True)
        present = {
            f"{section}.{key}": format_value(value)
            for section, values in config.model_dump(mode="json").items()
            for key, value in values.items()
            if key in own.get(section, {}) or f"{section}.{key}" in entry.values
        }
        rows = {name: (name, SafeInput(text, id=name.replace(".", "-")), "") for name, text in present.items()}
        rows[_ANOTHER] = ("another option", SafeInput(placeholder="rank = 32", id="another-option"), "")

        async def accept(texts: dict[str, str]) -> str:
            another = texts.pop(_ANOTHER)
            changes = [f"{name}={text}" for name, text in texts.items() if text != present[name]]
            changes += [another] if another else []
            if changes:
                await asyncio.to_thread(store.edit, entry.id, changes)
            return f"Entry {entry.id} is changed: {', '.join(changes)}" if changes else ""

        about = "Its values. Defaults are not listed; empty a field to go back to the default."
        self._ask(f"Entry {entry.id} · {one_line(entry.title, 50)}", rows, about, accept, "entry")

    def action_sweep(self) -> None:
        """Add a run of the app's configuration for each value of an option."""
        line = SafeInput(placeholder="learning_rate = 1e-3, 2e-4", id="sweep")
        about = (
            "A run of the configuration in the app for each value of an option, or for each combination of several:\n"
            "learning_rate = 1e-3, 2e-4; rank = 8, 16\n"
            "A run for each share of the rows; compare them at the end to see how many rows are enough:\n"
            "share = 0.25, 0.5, 1"
        )
        rows = {"values": ("values", line, "")}
        self._ask("Sweep", rows, about, lambda texts: self._sweep(texts["values"]), "sweep")

    def action_night(self) -> None:
        """Set the limits of the night."""
        now = self._clock()
        present = self._view.night.in_force(now) if self._view is not None else {}
        rows = {}
        for name in NIGHT_OPTIONS:
            text = "none" if name in present and present[name] is None else format_value(present.get(name))
            rows[name] = (LABELS[name], SafeInput(text, id=name.replace(".", "-")), HINTS[name].partition(";")[0])

        async def accept(texts: dict[str, str]) -> str:
            before = await asyncio.to_thread(change_night, texts, now)
            self._box.carry_out(lambda: asyncio.to_thread(tell_live_run, before, now))
            return ""

        about = (
            "Applies to every queued run and the current one, overriding their own limits.\n"
            "Empty: each run keeps its own. none: no limit."
        )
        self._ask("Tonight", rows, about, accept, "tonight")

    @work
    async def _ask(
        self,
        title: str,
        rows: Mapping[str, tuple[str, SafeInput, str]],
        about: str,
        accept: Callable[[dict[str, str]], Awaitable[str]],
        help_name: str,
    ) -> None:
        """Show a form, then what became of it."""
        form = InputForm(title, rows, _KEYS, Content(about))
        if said := await self.app.push_screen_wait(ValuesForm(form, accept, help_name)):
            self._box.say(said)
        self._look()

    def take(self) -> None:
        """Show the run of the entry under the cursor, or its values."""
        self.action_open()

    def action_add(self) -> None:
        """Add a run of the app's configuration."""
        self._box.carry_out(self._add)

    def action_hold(self) -> None:
        """Hold or release the entry under the cursor; an ended one waits again."""
        if (row := self._row) is None:
            return
        entry = row.entry
        if entry.state == "held" or entry.is_over:
            said = (
                f"Entry {entry.id} waits again, for a new run." if entry.is_over else f"Entry {entry.id} is released."
            )
            self._change(lambda queue: queue.released(entry.id), said)
        else:
            self._change(lambda queue: queue.held(entry.id), f"Entry {entry.id} is held.")

    def action_shift(self, places: int) -> None:
        """Move the entry under the cursor up or down."""
        if (row := self._row) is None:
            return
        entry_id = row.entry.id

        def shift(queue: Queue) -> Queue:
            ids = [entry.id for entry in queue.upcoming]
            place = ids.index(entry_id) + 1 if entry_id in ids else 1
            return queue.with_position(entry_id, max(place + places, 1))

        self._wanted = entry_id
        self._change(shift, "")

    def action_remove(self) -> None:
        """Remove the entry under the cursor."""
        if (row := self._row) is not None:
            entry = row.entry
            done = "is done, without its index" if entry.is_indexing else "is removed"
            self._change(lambda queue: queue.removed(entry.id), f"Entry {entry.id} {done}.")

    def action_clear(self) -> None:
        """Remove the ended entries."""

        async def clear() -> str:
            count = await asyncio.to_thread(store.clear)
            return f"{count} {'entry is' if count == 1 else 'entries are'} taken out; the runs are as they were."

        self._box.carry_out(clear)

    def action_start(self) -> None:
        """Start the runner."""

        async def start() -> str:
            _, is_new = await asyncio.to_thread(status.start_runner)
            return _STARTED if is_new else "The runner is already running."

        self._box.carry_out(start)

    def action_stop(self) -> None:
        """End the runner."""

        async def stop() -> str:
            was_on = await asyncio.to_thread(status.stop_runner)
            if not was_on:
                return "The runner was not running."
            return "The runner has ended; a run in progress goes on, an index with the next runner."

        self._box.carry_out(stop)

    def _change(self, how: Callable[[Queue], Queue], said: str) -> None:
        async def change() -> str:
            await asyncio.to_thread(store.change, how)
            return said

        self._box.carry_out(change)


def _legend(view: QueueView, *, is_short: bool = False) -> str:
    """End of all runs, and the legend for the marks of the durations."""
    starts = "" if view.runner is not None else ", if started now"
    done = [f"all done ~{format_moment(view.ends, '%a %H:%M')}{starts}"] if view.ends is not None else []
    of_plan, of_limit = ("", "") if is_short else (": no run of this kind yet", f" by {' or '.join(view.early_ends)}")
    plan = [f"* by the plan{of_plan}"] if view.has_plans else []
    early = [f"^ ends early{of_limit}"] if view.early_ends else []
    return " · ".join([*done, *plan, *early])


def _line(row: EntryView, width: int, when: str, *, is_on: bool) -> Content:
    """The line of an entry: number, state, times, name, and the reason of a failure."""
    entry = row.entry
    doing = row.state or entry.outcome or entry.state
    if row.state and row.total_steps:
        doing = f"{doing} {row.step}/{row.total_steps}"
    head = f"{entry.id:>3}  "
    name_width = max(width - len(head) - _STATE - len(when) - 1, 8)
    about = row.about
    if entry.trouble:
        about = f"{about}: {entry.trouble}"
    return Content.assemble(
        (head, "$muted"),
        (fit(doing, _STATE), _STYLES.get(row.state or entry.outcome or entry.state, "$primary" if row.state else "")),
        (when, "" if is_on or entry.is_over else "$muted"),
        " ",
        # Without blanks at its end, which a scrollbar would cut with an ellipsis.
        fit(one_line(about, 300), name_width).rstrip(),
    )


def _when(row: EntryView, now: float) -> str:
    """Begin and end of an entry as far as known, with a mark if its duration is by the plan."""
    entry, day = row.entry, time.localtime(now).tm_yday

    def clock(moment: float) -> str:
        return format_moment(moment, "%H:%M" if time.localtime(moment).tm_yday == day else "%a %H:%M")

    if entry.ended is not None and entry.is_over:
        return f"ended {clock(entry.ended)}"
    mark = row.marks
    if row.state and row.ends is not None:
        return f"until ~{clock(row.ends)}{mark}"
    if row.begins is not None and row.ends is not None:
        return f"{clock(row.begins)} – {clock(row.ends)}{mark}"
    if row.place is not None and row.begins is not None and row.begins > now + 60:
        return f"from {clock(row.begins)}"
    return f"takes ~{format_duration(row.seconds)}{mark}" if row.seconds is not None else ""
