"""The table of keys, and its changes by a user's keymap file."""

from __future__ import annotations

from pathlib import Path

import tomli

from core.runs.control.protocol import ACTIONS
from tests.cases import cases
from tui.keys import (
    KEYS,
    SCOPES,
    KeyTable,
    display_key,
    is_key,
    load_keymap,
)


def test_the_table_has_keys_that_there_are_in_scopes_that_there_are() -> None:
    assert {key.scope for key in KEYS} <= set(SCOPES)
    for key in KEYS:
        assert all(map(is_key, key.keys.split(","))), key.id
        assert key.then in ("", "text", "number"), key.id
    assert len([key for key in KEYS if key.scope == "app" and key.footer]) <= 6


def test_no_key_means_two_things_in_one_place() -> None:
    seen: dict[tuple[str, str], str] = {}
    for key in KEYS:
        for part in key.keys.split(","):
            assert (key.scope, part) not in seen, f"{part}: {key.id} and {seen[key.scope, part]}"
            seen[key.scope, part] = key.id


def test_a_letter_has_one_meaning_in_all_panes_and_screens() -> None:
    meanings = tomli.loads(Path(__file__).with_name("letters.toml").read_text(encoding="utf-8"))
    known = {(letter, name) for letter, (_, *names) in meanings.items() for name in names}
    used = {(part, key) for key in KEYS if not key.is_twin for part in key.keys.split(",") if part.isalpha()}
    for letter, key in used:
        if len(letter) == 1:
            name = key.id.partition(".")[2]
            assert {(letter, name), (letter, key.id)} & known, (
                f"{key.id}: {letter} is {meanings.get(letter, ['free'])[0]}"
            )
    stale = known - {(letter, name) for letter, key in used for name in (key.id, key.id.partition(".")[2])}
    assert not stale


def test_a_key_that_does_the_reverse_is_the_capital_of_its_letter() -> None:
    table = KeyTable()
    for key in KEYS:
        if (
            (twin := table.twin(key)) is not None
            and twin.keys.isupper()
            and twin.keys.isalpha()
            and len(twin.keys) == 1
        ):
            assert twin.keys.lower() in key.keys.split(","), twin.id


@cases(
    ("key", "shown"),
    [
        *(("ctrl+p", "^p"), ("question_mark", "?"), ("escape", "esc"), ("f1", "f1"), ("slash", "/"), ("plus", "+")),
        *(("backslash", "\\"), ("left_square_bracket", "[")),
    ],
)
def test_keys_are_written_as_people_write_them(key: str, shown: str) -> None:
    assert display_key(key) == shown


def test_every_action_that_a_refusal_names_has_its_key_that_of_the_keymap() -> None:
    table = KeyTable({"train.pause": "space"})
    assert table.hints(["train.pause", "train.checkpoint"]) == "space pause  ^s checkpoint"
    ways = {action: table.way(action) for action in ACTIONS}
    space = "space in the Train pane"
    assert ways == {
        "resume": space,
        "set": "e in the Train pane",
        "stop": "x in the Train pane",
        "lift_quiet_hours": space,
    }


@cases(
    ("text", "kept", "problems"),
    [
        ('[train]\npuase = "x"\nstop = 3\npause = "nokey"\n[app]\nhelp = "f9"\n', {"app.help"}, 3),
        *(("[train", set(), 1), ("\x00", set(), 1)),
        *(('[train]\npause = "x"\n', set(), 1), ('[train]\npause = "?"\n', set(), 1)),
    ],
)
def test_what_is_wrong_in_a_keymap_is_left_out_and_named(
    tmp_path: Path, text: str, kept: set[str], problems: int
) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(text, encoding="utf-8")
    overrides, found = load_keymap(path)
    assert (set(overrides), len(found)) == (kept, problems)
    assert ("train.puase" in " ".join(found)) == ("puase" in text)


#: Keys that a terminal, tmux or screen keeps for itself, or that some terminals send as another key.
UNSAFE = {
    *("ctrl+b", "ctrl+a", "ctrl+h", "ctrl+i", "ctrl+j", "ctrl+m", "ctrl+space", "ctrl+@", "ctrl+tab", "ctrl+z"),
    "shift+enter",
}


def test_every_action_has_a_key_that_is_safe() -> None:
    for key in KeyTable().keys:
        safe = [name for name in key.keys.split(",") if name not in UNSAFE and not name.startswith(("alt+", "shift+"))]
        assert safe, key.id
