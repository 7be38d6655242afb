"""The table of keys, and its changes by a user's keymap file."""

from __future__ import annotations

from pathlib import Path

from core.runs.control.protocol import ACTIONS
from tests.cases import cases
from tui.keys import (
    KEYS,
    SCOPES,
    KeyTable,
    conflicts,
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


@cases(
    ("key", "shown"),
    [
        *(("ctrl+p", "^p"), ("question_mark", "?"), ("escape", "esc"), ("f1", "f1"), ("slash", "/")),
        *(("backslash", "\\"), ("left_square_bracket", "[")),
    ],
)
def test_keys_are_written_as_people_write_them(key: str, shown: str) -> None:
    assert display_key(key) == shown


def test_a_keymap_rebinds(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text('[train]\npause = "space"\nstop = ["z", "f9"]\n', encoding="utf-8")
    overrides, problems = load_keymap(path)
    assert problems == []
    table = KeyTable(overrides)
    assert table["train.pause"].keys == "space"
    assert table["train.stop"].keys == "z,f9"
    assert table.hints(["train.pause", "train.checkpoint"]) == "space pause  c checkpoint"


def test_every_action_that_a_refusal_names_has_its_key_that_of_the_keymap() -> None:
    table = KeyTable({"train.pause": "space"})
    ways = {action: table.way(action) for action in ACTIONS}
    assert ways == {"resume": "space in the Train pane", "set": "e in the Train pane", "stop": "s in the Train pane"}


def test_what_is_wrong_in_a_keymap_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text('[train]\npuase = "x"\nstop = 3\npause = "nokey"\n[app]\nhelp = "H"\n', encoding="utf-8")
    overrides, problems = load_keymap(path)
    assert set(overrides) == {"app.help"}
    assert len(problems) == 3
    assert "train.puase" in " ".join(problems)


@cases("text", ["[train", "\x00", '[train]\npause = "c"\n', '[train]\npause = "?"\n'])
def test_an_unusable_keymap_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(text, encoding="utf-8")
    overrides, problems = load_keymap(path)
    assert overrides == {}
    assert len(problems) == 1


def test_a_pane_key_over_a_key_of_the_app_is_a_conflict() -> None:
    assert conflicts({"train.pause": "q"}) == [("app.quit", "train.pause", "q")]
    assert conflicts({"train.pause": "slash"}) == []


def test_every_key_of_the_table_can_be_given_to_another_action(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    for key in {part for entry in KEYS for part in entry.keys.split(",")}:
        path.write_text(f'[runs]\nbottom = "{key}"\n', encoding="utf-8")
        assert not [problem for problem in load_keymap(path)[1] if "is no key" in problem]


#: Keys that a terminal, tmux or screen keeps for itself, or that some terminals send as another key.
UNSAFE = {
    *("ctrl+b", "ctrl+a", "ctrl+h", "ctrl+i", "ctrl+j", "ctrl+m", "ctrl+space", "ctrl+@", "ctrl+tab", "ctrl+z"),
    "shift+enter",
}


def test_every_action_has_a_key_that_is_safe() -> None:
    for key in KeyTable().keys:
        safe = [name for name in key.keys.split(",") if name not in UNSAFE and not name.startswith(("alt+", "shift+"))]
        assert safe, key.id
