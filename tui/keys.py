"""The keys of the app: one table, ``keys.toml``, feeds bindings, footer, help, palette and the user's keymap file.

A pane takes its rows with ``BINDINGS = bindings("train")`` and shows the most needed ones with ``hints("train", ...)``.
The user's ``keymap.toml`` has a section a scope and a line a key: ``pause = "space"`` under ``[train]`` rebinds
``train.pause``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli
from textual.binding import Binding
from textual.keys import KEY_NAME_REPLACEMENTS, Keys, key_to_character

from core.text import one_line
from tui.settings import read_table

#: The chat pane's equivalent of ``app.ask``, with the same keys.
_ASKS = "chat.write"
#: The key of each action that a worker's refusal may name.
_ACTIONS = {"resume": "train.pause", "set": "train.settings", "stop": "train.stop", "lift_quiet_hours": "train.pause"}
#: Screens that cover the panes; the keys of the app do not work there.
SCREENS = ("template", "columns", "start", "evaluation", "queue", "trash", "compare", "run", "why")
SCOPES = ("app", "data", "config", "train", "chat", "runs", *SCREENS)


@dataclass(frozen=True)
class Key:
    """A key binding: one action and its keys."""

    id: str
    """The id: ``scope.name``, as the keymap file writes it."""
    keys: str
    """Textual's key names, separated by commas; the first one is shown."""
    action: str
    description: str
    """A word or two for the footer."""
    help: str = ""
    """A sentence for the help screen and the palette; the description where empty."""
    footer: bool = False
    """True on the first page of the help; of the app also in the last line when there is room."""
    palette: bool = True
    """True if the command palette offers it; movement keys are no commands."""
    show: str = ""
    """The displayed key, if it differs from its name."""
    priority: bool = False
    """True if the action runs before the next key is handled, so that keys typed ahead are not lost."""
    then: str = ""
    """The input that the action asks for: ``text`` or ``number``; empty for none."""

    @property
    def scope(self) -> str:
        """The scope: ``app``, a pane or a screen."""
        return self.id.partition(".")[0]

    @property
    def pane(self) -> str:
        """The pane that the action shows; empty for any other action."""
        return self.action.removeprefix("app.show_pane('").removesuffix("')") if "show_pane" in self.action else ""

    @property
    def is_twin(self) -> bool:
        """True if it does the reverse of another key: ``walk(-1)`` beside ``walk(1)``."""
        return self.action.endswith("(-1)")

    @property
    def display(self) -> str:
        """The first key for display: ``^p``, ``?``, ``esc``."""
        return self.show or display_key(self.keys.split(",")[0])

    @property
    def display_last(self) -> str:
        """The last key for display, which also acts where a letter is text or closes a screen: ``^q``."""
        return display_key(self.keys.split(",")[-1])


_NAMES = {
    "escape": "esc",
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "vertical_line": "|",
    "backslash": "\\",  # its Unicode name is reverse solidus
}
_ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→"}


def display_key(key: str) -> str:
    """A key for display: ``^p`` for ``ctrl+p``, ``?`` for ``question_mark``."""
    if key.startswith("ctrl+"):
        return f"^{key[5:]}"
    known = _NAMES.get(key) or _ARROWS.get(key)
    character = key_to_character(key)
    return known or (character if character and character.isprintable() and character != " " else key)


def key_of(shown: str) -> str | None:
    """Textual's name of a displayed key that acts: ``ctrl+s`` for ``^s``; None for a word or an arrow."""
    if len(shown) == 2 and shown[0] == "^":
        return f"ctrl+{shown[1]}"
    if shown in ("enter", "tab", "space"):
        return shown
    named = {name: key for key, name in _NAMES.items() if not key.startswith("page")}
    is_letter = len(shown) == 1 and shown.isascii()
    return named.get(shown, shown if is_letter else None)


_KEY_NAMES = {
    *(key.value for key in Keys),
    *KEY_NAME_REPLACEMENTS.values(),
    *("space", "enter", "tab", "escape", "backspace", "delete", "insert"),
}


def is_key(name: str) -> bool:
    """True if Textual can deliver a key of this name."""
    bare = name
    for modifier in ("ctrl+", "shift+", "alt+"):
        bare = bare.removeprefix(modifier)
    return (len(bare) == 1 and bare.isprintable()) or name in _KEY_NAMES or bare in _KEY_NAMES or bool(_character(bare))


def _character(name: str) -> str | None:
    character = key_to_character(name)
    return character if character and len(character) == 1 and name.isidentifier() else None


def _read_table() -> Iterator[Key]:
    """The key bindings of ``keys.toml``, which describes its fields."""
    data = tomli.loads(Path(__file__).with_name("keys.toml").read_text(encoding="utf-8"))
    for scope, section in data.items():
        for name, entry in section.items():
            keys = entry.pop("keys")
            yield Key(f"{scope}.{name}", keys if isinstance(keys, str) else ",".join(keys), **entry)


def _joined(keys: object) -> str | None:
    """Keys as Textual takes them, separated by commas; None for anything but a text or a list of texts."""
    if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
        return ",".join(keys)
    return keys if isinstance(keys, str) else None


KEYS = tuple(_read_table())


def is_text(keys: str) -> bool:
    """True if one of the comma-separated keys types or submits text."""
    return any(key == "enter" or not key.startswith(("ctrl+", "alt+")) for key in keys.split(","))


def yields_to_text(action: str, table: KeyTable) -> bool:
    """True if an action must not run while text is being entered.

    Args:
        action: The name of the action.
        table: The keys with the user's changes.
    """
    return any(key.priority and key.action == action and is_text(key.keys) for key in table.keys)


def bindings(scope: str) -> list[Binding]:
    """Bindings of a scope, for ``BINDINGS``."""
    return [
        Binding(key.keys, key.action, key.description, key.footer, key.show or None, key.priority, id=key.id)
        for key in KEYS
        if key.scope == scope
    ]


class KeyTable:
    """The key table with the user's changes.

    Args:
        overrides: The user's keys by id.
    """

    def __init__(self, overrides: Mapping[str, str] | None = None) -> None:
        self.overrides = dict(overrides or {})
        self.keys = tuple(
            replace(key, keys=self.overrides[key.id], show="") if key.id in self.overrides else key for key in KEYS
        )
        self._by_id = {key.id: key for key in self.keys}
        self._by_key = {(key.scope, part): key for key in reversed(self.keys) for part in _parts(key.keys)}

    def find(self, scope: str, key: str) -> Key | None:
        """The binding of a key in a pane, including the app's bindings, or in a screen; None if there is none."""
        own = self._by_key.get((scope, key))
        return own if own is not None or not scope or scope in SCREENS else self._by_key.get(("app", key))

    def has(self, key: str) -> bool:
        """True if a key has a binding in any scope."""
        return any(known == key for _, known in self._by_key)

    def __getitem__(self, identity: str) -> Key:
        return self._by_id[identity]

    def scope(self, scope: str) -> list[Key]:
        """Keys of a scope, in the order of the table."""
        return [key for key in self.keys if key.scope == scope]

    def twin(self, key: Key) -> Key | None:
        """The key that does the reverse of a key; None if there is none."""
        reverse = key.action.replace("(1)", "(-1)")
        found = (other for other in self.scope(key.scope) if other.action == reverse and other.is_twin)
        return None if key.is_twin else next(found, None)

    def displayed(self, scope: str, shown: str) -> Key | None:
        """The binding of a pane or the app whose key is displayed as ``shown``; None if there is none."""
        keys = [*self.scope(scope), *self.scope("app")]
        ways = ((key, {key.display, *(display_key(part) for part in key.keys.split(","))}) for key in keys)
        return next((key for key, displays in ways if shown in displays), None)

    def way(self, action: str, _run: str = "") -> str:
        """The key for an action named in a refusal, with its pane: ``p in the Train pane``."""
        return f"{self[_ACTIONS[action]].display} in the Train pane"

    def named(self, identities: Iterable[str]) -> list[tuple[str, str]]:
        """Displayed keys with their labels."""
        return [(self[name].display, self[name].description) for name in identities]

    def hints(self, identities: Iterable[str]) -> str:
        """Key hints for a border: ``p pause  c checkpoint``."""
        return "  ".join(f"{key} {label}" for key, label in self.named(identities))


def load_keymap(path: Path) -> tuple[dict[str, str], list[str]]:
    """Read the user's keymap: its keys by id, and its errors; a missing file changes nothing.

    Args:
        path: ``keymap.toml``.
    """
    data, problems = read_table(path)
    overrides: dict[str, str] = {}
    known = {key.id for key in KEYS}
    for identity, value in _flatten(data):
        keys = _joined(value)
        if identity not in known:
            problems.append(f"there is no key {one_line(identity, 60)}")
        elif keys is None or not keys.strip():
            problems.append(f"{identity} must be a key or a list of keys")
        elif wrong := [part for part in _parts(keys) if not is_key(part)]:
            problems.append(f"{identity}: {one_line(wrong[0], 40)} is not a key")
        else:
            overrides[identity] = ",".join(_parts(keys))
    if "app.ask" not in overrides:
        overrides |= _yield_ask(overrides)
    for first, second, key in conflicts(overrides):
        problems.append(f"{display_key(key)} is both {first} and {second}")
        overrides.pop(first, None)
        overrides.pop(second, None)
    return overrides, problems


def _yield_ask(overrides: Mapping[str, str]) -> dict[str, str]:
    """The remaining keys of ``app.ask`` if the keymap takes some of them; empty if it takes none or all."""
    used = {part for identity, keys in overrides.items() if identity != _ASKS for part in _parts(keys)}
    present = _parts(next(key.keys for key in KEYS if key.id == "app.ask"))
    left = [key for key in present if key not in used]
    return {"app.ask": ",".join(left)} if left and left != present else {}


def _parts(keys: str) -> list[str]:
    return [_name_of(part.strip()) for part in keys.split(",") if part.strip()]


def _name_of(key: str) -> str:
    """Textual's name of a key that may be written as a character: ``question_mark`` for ``?``."""
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


def conflicts(overrides: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Pairs of ids that a changed key makes ambiguous, with that key: in the same scope, or app and pane."""
    table = KeyTable(overrides)
    found: list[tuple[str, str, str]] = []
    owners: dict[str, list[Key]] = {}
    for entry in table.keys:
        for key in _parts(entry.keys):
            for other in owners.setdefault(key, []):
                if {entry.id, other.id} == {_ASKS, "app.ask"}:
                    continue
                scopes = {entry.scope, other.scope}
                shared = len(scopes) == 1 or ("app" in scopes and scopes.isdisjoint(SCREENS))
                if shared and (entry.id in overrides or other.id in overrides):
                    found.append((other.id, entry.id, key))
            owners[key].append(entry)
    return found
