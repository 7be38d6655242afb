"""Every key of the app, in one table that feeds bindings, footer, help, palette and the user's keymap file.

A pane takes its rows with ``BINDINGS = bindings("train")`` and shows the most needed ones with ``hints("train", ...)``.
The user's ``keymap.toml`` has a section a scope and a line a key: ``pause = "space"`` under ``[train]`` rebinds
``train.pause``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from textual.binding import Binding
from textual.keys import KEY_NAME_REPLACEMENTS, Keys, key_to_character

from core.small_files import read_small
from core.text import one_line
from tui.settings import LIMIT

#: Screens that lie over the panes; the keys of the app do not work there.
SCREENS = ("template", "columns")
SCOPES = ("app", "data", "config", "train", "chat", "runs", *SCREENS)


@dataclass(frozen=True)
class Key:
    """One thing a key does."""

    id: str
    """``scope.name``, as the keymap file writes it."""
    keys: str
    """Textual's key names, separated by commas; the first one is shown."""
    action: str
    description: str
    """A word or two for the footer."""
    help: str = ""
    """A sentence for the help screen and the palette; the description where empty."""
    footer: bool = False
    """Whether the footer shows it when there is room."""
    palette: bool = True
    """Whether the command palette offers it; movement keys are no commands."""
    show: str = ""
    """How the key is written, where its name would not do."""
    priority: bool = False
    """Whether it is carried out before the next key is looked at, so that what is typed ahead is not lost."""

    @property
    def scope(self) -> str:
        """``app``, or the pane or screen it belongs to."""
        return self.id.partition(".")[0]

    @property
    def display(self) -> str:
        """The first key as people write it: ``^p``, ``?``, ``esc``."""
        return self.show or display_key(self.keys.split(",")[0])


_NAMES = {
    "escape": "esc",
    "question_mark": "?",
    "slash": "/",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "vertical_line": "|",
}
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def display_key(key: str) -> str:
    """A key as people write it: ``ctrl+p`` is ``^p``, ``question_mark`` is ``?``."""
    if key.startswith("ctrl+"):
        return f"^{key[5:]}"
    known = _NAMES.get(key) or _ARROWS.get(key)
    character = key_to_character(key)
    return known or (character if character and character.isprintable() and character != " " else key)


KEYS: tuple[Key, ...] = (
    # The whole app. Nothing here is a key that tmux, screen or a terminal keeps for itself.
    Key("app.data", "1", "app.show_pane('data')", "Data", "Show the data"),
    Key("app.config", "2", "app.show_pane('config')", "Config", "Show the configuration"),
    Key("app.train", "3", "app.show_pane('train')", "Train", "Show the run"),
    Key("app.chat", "4", "app.show_pane('chat')", "Chat", "Talk to the model"),
    Key("app.runs", "5", "app.show_pane('runs')", "Runs", "Show all runs"),
    Key("app.tile", "0", "app.tile", "tiles", "Show the panes side by side again, where the terminal is large enough"),
    Key("app.start", "r", "app.start", "run", "Start a run with the present configuration", footer=True),
    Key("app.help", "question_mark,f1", "app.help", "help", "Explain the keys of this pane", footer=True, show="?"),
    Key(
        "app.palette",
        "ctrl+p",
        "app.command_palette",
        "palette",
        "Find any command by name",
        footer=True,
        palette=False,
    ),
    Key("app.theme", "f2", "app.change_theme", "theme", "Choose the colors"),
    Key("app.picture", "f4", "app.save_picture", "screenshot", "Save a screenshot as an SVG file"),
    Key("app.quit", "q,ctrl+q", "app.quit", "quit", "Leave; a run that is on goes on unless you stop it", footer=True),
    # Data.
    Key(
        "data.open", "o", "ask_path", "open", "Open a data file by its path; tab completes", footer=True, priority=True
    ),
    Key("data.browse", "b", "browse", "browse", "Pick a data file from the directories"),
    Key("data.sample", "d", "open_sample", "sample data", "Open the support tickets that come with the app"),
    Key("data.search", "slash", "search", "search", "Find a text in the rows", footer=True, priority=True),
    Key("data.next", "n", "search_again(1)", "next", "The next match: in the row while you read it, else the next row"),
    Key("data.previous", "N", "search_again(-1)", "previous", "The match before, in the row or in the rows before"),
    Key("data.goto", "colon,ctrl+g", "ask_row", "row number", "Go to a row by its number", priority=True),
    Key(
        "data.tokens",
        "m",
        "toggle_tokens",
        "tokens",
        "Show the row as tokens, the learned ones lit, or back",
        footer=True,
    ),
    Key("data.report", "s", "report", "statistics", "Problems and lengths of the whole file, or back", footer=True),
    Key("data.filter", "f", "filter(1)", "filter", "Only the rows with one kind of problem, then the next kind"),
    Key("data.filter_back", "F", "filter(-1)", "filter before", "Only the rows with the kind of problem before"),
    Key("data.problem", "p,right_square_bracket", "next_problem(1)", "next problem", "Go to the next problem row"),
    Key(
        "data.problem_before",
        "P,left_square_bracket",
        "next_problem(-1)",
        "problem before",
        "Go to the row with a problem before this one",
    ),
    Key("data.longest", "l", "longest", "longest row", "Go to the row with the most tokens"),
    Key("data.train", "t", "use('train')", "train on it", "Use this file as data.train", footer=True),
    Key("data.eval", "e", "use('eval')", "hold it out", "Use this file as data.eval", footer=True),
    Key("data.template", "T", "form('template')", "template", "See, choose or edit the chat template"),
    Key("data.columns", "C", "form('columns')", "columns", "Say by hand which column plays which part"),
    Key("data.reload", "f5", "reload", "reload", "Open the file again, as it is now"),
    Key("data.read", "enter", "read_row", "read the row", "Scroll in the row under the cursor", palette=False),
    Key(
        "data.back",
        "escape",
        "back",
        "back",
        "Stop a search, go back to the list, take marks or the filter away",
        palette=False,
    ),
    Key("data.down", "j,down", "move(1)", "down", "One row down", palette=False),
    Key("data.up", "k,up", "move(-1)", "up", "One row up", palette=False),
    Key("data.page_down", "pagedown,space", "move_page(1)", "page down", "A page down", palette=False),
    Key("data.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("data.top", "g,home", "move_end(-1)", "first", "The first row", palette=False),
    Key("data.bottom", "G,end", "move_end(1)", "last", "The last row", palette=False),
    # Config.
    Key("config.edit", "enter", "edit", "edit", "Change the option under the cursor", footer=True, priority=True),
    Key(
        "config.search",
        "slash",
        "search",
        "search",
        "Show only options with a text in their name or help",
        footer=True,
        priority=True,
    ),
    Key("config.save", "ctrl+s", "save", "save", "Write the configuration to its file", footer=True, priority=True),
    Key(
        "config.expert",
        "x",
        "toggle_expert",
        "all options",
        "Show all options, or only the ones most runs need",
        footer=True,
    ),
    Key(
        "config.presets",
        "P",
        "presets",
        "presets",
        "Choose a preset; what it would change is shown first",
        footer=True,
        priority=True,
    ),
    Key("config.undo", "u", "undo", "undo", "Undo the last edit"),
    Key("config.redo", "ctrl+r,U", "redo", "redo", "Make the edit again that was undone"),
    Key(
        "config.help",
        "h",
        "toggle_help",
        "long help",
        "All about the option under the cursor: cost, usual values, source",
    ),
    Key(
        "config.changed",
        "c",
        "toggle_changed",
        "changed only",
        "Show only what differs from the preset, the defaults or the last run, or all again",
    ),
    Key(
        "config.compare",
        "v",
        "compare",
        "compare",
        "Compare with its file, the last run, the preset or another file",
        priority=True,
    ),
    Key("config.open", "O", "open", "open…", "Open another configuration, the last ones first", priority=True),
    Key(
        "config.save_as",
        "S",
        "save_as",
        "save as…",
        "Write the configuration to another file, and go on in that one",
        priority=True,
    ),
    Key("config.duplicate", "y", "duplicate", "duplicate", "Go on in a copy; the file stays as it is"),
    Key("config.editor", "e", "open_editor", "$EDITOR", "Edit the configuration as TOML in your editor"),
    Key(
        "config.import",
        "I",
        "import_file",
        "import…",
        "Open a configuration of Axolotl, LLaMA-Factory or Unsloth as a new one",
        priority=True,
    ),
    Key(
        "config.form",
        "o",
        "form",
        "preview",
        "Choose a template, a format or columns in a screen that shows the rows",
    ),
    Key("config.default", "d,delete", "reset", "default", "Give the option under the cursor its default again"),
    Key("config.problem", "p", "next_problem", "next problem", "Go to the next option with a problem"),
    Key("config.help_down", "J", "scroll_help(3)", "down", "Scroll the long help down", palette=False),
    Key("config.help_up", "K", "scroll_help(-3)", "up", "Scroll the long help up", palette=False),
    Key("config.cycle", "space,right", "cycle(1)", "next value", "The next value of a choice", palette=False),
    Key("config.cycle_back", "left", "cycle(-1)", "previous value", "The value before of a choice", palette=False),
    Key("config.back", "escape", "back", "back", "Show all rows again after a search or a filter", palette=False),
    Key("config.down", "j,down", "move(1)", "down", "One option down", palette=False),
    Key("config.up", "k,up", "move(-1)", "up", "One option up", palette=False),
    Key("config.page_down", "pagedown", "move_page(1)", "page down", "A page down", palette=False),
    Key("config.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("config.top", "g,home", "move_end(-1)", "first", "The first option", palette=False),
    Key("config.bottom", "G,end", "move_end(1)", "last", "The last option", palette=False),
    # Train.
    Key("train.pause", "p", "toggle_pause", "pause", "Pause the run between two steps, or let it go on", footer=True),
    Key("train.checkpoint", "c", "checkpoint", "checkpoint", "Save a checkpoint now", footer=True),
    Key(
        "train.stop",
        "s",
        "stop",
        "stop",
        "Stop the run: with a checkpoint, without one, or kill it",
        footer=True,
        priority=True,
    ),
    Key(
        "train.settings",
        "e",
        "change_settings",
        "settings",
        "Change learning rate, evaluation or saving while it runs",
        footer=True,
        priority=True,
    ),
    Key("train.continue", "C", "continue_run", "continue", "Continue this run from its last checkpoint", footer=True),
    Key("train.sample", "d", "sample", "try the sample", "Train the starter model on the sample data (3 minutes)"),
    Key("train.log_axis", "y", "toggle_log_axis", "log axis", "Switch the loss axis between linear and logarithmic"),
    Key("train.follow", "end,G", "follow_log", "follow", "Follow the end of the log again", palette=False),
    # Chat.
    Key("chat.write", "i,enter", "write", "write", "Write to the model", footer=True, priority=True),
    Key(
        "chat.source",
        "b,ctrl+t",
        "toggle_source",
        "base/tuned",
        "Ask the base model instead of the tuned one, or back",
        footer=True,
    ),
    Key(
        "chat.both",
        "vertical_line,f3",
        "toggle_both",
        "both",
        "Ask both models and put the answers side by side",
        footer=True,
    ),
    Key("chat.clear", "ctrl+l", "clear", "clear", "Begin a new conversation"),
    Key("chat.copy", "ctrl+y", "copy", "copy", "Copy the last answer to the clipboard of your terminal"),
    Key(
        "chat.cancel", "escape", "cancel", "cancel", "Stop the answer, or leave the prompt", footer=True, palette=False
    ),
    Key("chat.down", "j,down", "move(1)", "down", "One line down", palette=False),
    Key("chat.up", "k,up", "move(-1)", "up", "One line up", palette=False),
    Key("chat.page_down", "pagedown", "move_page(1)", "page down", "A page down", palette=False),
    Key("chat.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("chat.top", "g,home", "move_end(-1)", "first", "The beginning of the conversation", palette=False),
    Key("chat.bottom", "G,end", "move_end(1)", "last", "The end of the conversation", palette=False),
    # Runs.
    Key("runs.open", "enter", "open", "open", "Show this run, and follow it if it is live", footer=True),
    Key("runs.continue", "C", "continue_run", "continue", "Continue this run from its last checkpoint", footer=True),
    Key(
        "runs.filter",
        "slash",
        "filter",
        "filter",
        "Show only runs whose id, state or model has a text in it",
        footer=True,
        priority=True,
    ),
    Key("runs.down", "j,down", "move(1)", "down", "One run down", palette=False),
    Key("runs.up", "k,up", "move(-1)", "up", "One run up", palette=False),
    Key("runs.page_down", "pagedown", "move_page(1)", "page down", "A page down", palette=False),
    Key("runs.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("runs.top", "g,home", "move_end(-1)", "first", "The newest run", palette=False),
    Key("runs.bottom", "G,end", "move_end(1)", "last", "The oldest run", palette=False),
    # The screen with the chat templates.
    Key("template.use", "enter", "use", "use", "Use the template under the cursor", palette=False),
    Key(
        "template.edit",
        "e",
        "edit",
        "edit",
        "Edit the template, in a file of yours, and use that",
        palette=False,
        priority=True,
    ),
    Key("template.row", "n,right", "step_row(1)", "next row", "Show the next row", palette=False),
    Key("template.row_before", "N,left", "step_row(-1)", "row before", "Show the row before", palette=False),
    Key("template.part", "tab", "app.focus_next", "next part", "Scroll in the row or the source", palette=False),
    Key("template.down", "j,down", "move(1)", "down", "One template or line down", palette=False),
    Key("template.up", "k,up", "move(-1)", "up", "One template or line up", palette=False),
    Key("template.page_down", "pagedown,space", "move_page(1)", "page down", "A page down", palette=False),
    Key("template.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("template.top", "g,home", "move_end(-1)", "first", "The first template or line", palette=False),
    Key("template.bottom", "G,end", "move_end(1)", "last", "The last template or line", palette=False),
    Key("template.help", "question_mark,f1", "help", "help", "Explain the keys", palette=False, show="?"),
    Key("template.back", "escape", "back", "back", "Go back; what was in use stays so", palette=False),
    # The screen with the columns.
    Key(
        "columns.choose",
        "enter",
        "choose",
        "choose",
        "Choose a column for the part under the cursor",
        palette=False,
        priority=True,
    ),
    Key("columns.next", "right,space", "step(1)", "next", "The next column of the file", palette=False),
    Key("columns.previous", "left", "step(-1)", "before", "The column before of the file", palette=False),
    Key("columns.none", "d,delete", "leave_out", "leave out", "No column for this part", palette=False),
    Key("columns.clear", "c", "clear", "clear", "Name no columns; the format is detected again", palette=False),
    Key("columns.save", "s,ctrl+s", "save", "save", "Put format and columns into the configuration", palette=False),
    Key("columns.part", "tab", "app.focus_next", "preview", "Scroll in the rows, or back to the parts", palette=False),
    Key("columns.down", "j,down", "move(1)", "down", "One part or line down", palette=False),
    Key("columns.up", "k,up", "move(-1)", "up", "One part or line up", palette=False),
    Key("columns.page_down", "pagedown", "move_page(1)", "page down", "A page down", palette=False),
    Key("columns.page_up", "pageup", "move_page(-1)", "page up", "A page up", palette=False),
    Key("columns.top", "g,home", "move_end(-1)", "first", "The first part or line", palette=False),
    Key("columns.bottom", "G,end", "move_end(1)", "last", "The last part or line", palette=False),
    Key("columns.help", "question_mark,f1", "help", "help", "Explain the keys", palette=False, show="?"),
    Key("columns.back", "escape", "back", "back", "Go back; nothing is changed", palette=False),
)


def is_text(keys: str) -> bool:
    """Whether one of the keys, with commas between them, writes or ends a text where something is being written."""
    return any(key == "enter" or not key.startswith(("ctrl+", "alt+")) for key in keys.split(","))


def yields_to_text(action: str, table: KeyTable) -> bool:
    """Whether an action must not be carried out by its key where something is being written.

    Args:
        action: Its name.
        table: The keys as the user has them.
    """
    return any(key.priority and key.action == action and is_text(key.keys) for key in table.keys)


def bindings(scope: str) -> list[Binding]:
    """The bindings of a scope, for ``BINDINGS``."""
    return [
        Binding(
            key.keys,
            key.action,
            key.description,
            show=key.footer,
            key_display=key.show or None,
            priority=key.priority,
            id=key.id,
        )
        for key in KEYS
        if key.scope == scope
    ]


class KeyTable:
    """The table with the user's changes in it.

    Args:
        overrides: Ids with the keys that replace theirs.
    """

    def __init__(self, overrides: Mapping[str, str] | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.keys = tuple(
            replace(key, keys=self.overrides[key.id], show="") if key.id in self.overrides else key for key in KEYS
        )
        self._by_id = {key.id: key for key in self.keys}

    def __getitem__(self, identity: str) -> Key:
        return self._by_id[identity]

    def scope(self, scope: str) -> list[Key]:
        """The keys of a scope, in the order of the table."""
        return [key for key in self.keys if key.scope == scope]

    def hints(self, identities: Iterable[str]) -> str:
        """``p pause  c checkpoint`` for a border: key and description, in the given order."""
        return "  ".join(f"{self[name].display} {self[name].description}" for name in identities)


@dataclass(frozen=True)
class KeymapFile:
    """What a keymap file says, and what is wrong with it."""

    overrides: dict[str, str]
    problems: list[str]


def load_keymap(path: Path) -> KeymapFile:
    """Read the user's keymap; a missing file changes nothing, and what is wrong in it is left out and reported.

    Args:
        path: ``keymap.toml``.
    """
    import tomli

    try:
        data = tomli.loads(read_small(path, LIMIT).decode("utf-8"))
    except FileNotFoundError:
        return KeymapFile({}, [])
    except (OSError, ValueError, RecursionError) as error:
        return KeymapFile({}, [f"it cannot be read: {one_line(str(error), 120)}"])
    overrides: dict[str, str] = {}
    problems: list[str] = []
    known = {key.id for key in KEYS}
    for identity, value in _flatten(data):
        keys = ",".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        if identity not in known:
            problems.append(f"there is no key {one_line(identity, 60)}")
        elif not isinstance(keys, str) or not keys.strip():
            problems.append(f"{identity} must be a key or a list of keys")
        elif wrong := [part for part in _parts(keys) if not is_key(part)]:
            problems.append(f"{identity}: {one_line(wrong[0], 40)} is no key")
        else:
            overrides[identity] = ",".join(_parts(keys))
    for first, second, key in conflicts(overrides):
        problems.append(f"{display_key(key)} is both {first} and {second}")
        overrides.pop(first, None)
        overrides.pop(second, None)
    return KeymapFile(overrides, problems)


def _parts(keys: str) -> list[str]:
    return [_name_of(part.strip()) for part in keys.split(",") if part.strip()]


def _name_of(key: str) -> str:
    """Textual's name of a key that may be written as a character: ``?`` is ``question_mark``."""
    if len(key) != 1 or key.isalnum():
        return key
    name = unicodedata.name(key, key).lower().replace("-", "_").replace(" ", "_")
    return KEY_NAME_REPLACEMENTS.get(name, name)


def _flatten(data: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", keys) for inner, keys in value.items())
        else:
            yield name, value


_KEY_NAMES = {key.value for key in Keys} | {"space", "enter", "tab", "escape", "backspace", "delete", "insert"}


def is_key(name: str) -> bool:
    """Whether Textual could ever deliver a key of this name."""
    bare = name
    for modifier in ("ctrl+", "shift+", "alt+"):
        bare = bare.removeprefix(modifier)
    return (len(bare) == 1 and bare.isprintable()) or name in _KEY_NAMES or bare in _KEY_NAMES or bool(_character(bare))


def _character(name: str) -> str | None:
    character = key_to_character(name)
    return character if character and len(character) == 1 and name.isidentifier() else None


def conflicts(overrides: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Pairs of ids that a changed key makes ambiguous (same scope, or one of them for the whole app), with that key."""
    table = KeyTable(overrides)
    found: list[tuple[str, str, str]] = []
    owners: dict[str, list[Key]] = {}
    for entry in table.keys:
        for key in _parts(entry.keys):
            for other in owners.setdefault(key, []):
                scopes = {entry.scope, other.scope}
                shared = len(scopes) == 1 or ("app" in scopes and scopes.isdisjoint(SCREENS))
                if shared and (entry.id in overrides or other.id in overrides):
                    found.append((other.id, entry.id, key))
            owners[key].append(entry)
    return found
