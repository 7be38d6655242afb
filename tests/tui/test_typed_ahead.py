"""Bursts of keys: those that were typed ahead are carried out, those that are text do nothing."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

from textual.events import Key
from textual.keys import _character_to_key

from tests.cases import cases
from tui.keys import KeyTable, load_keymap
from tui.typed_ahead import Place, TypedAhead

PANES = ("data", "config", "train", "chat", "runs")
NAMES = {"\n": "enter", "\x13": "ctrl+s", "\x10": "ctrl+p", "\t": "tab", "↓": "down"}
#: What shells, editors and people write, and what was once typed into the app by mistake.
TEXTS = [
    "clear; localtune-tui trian\n",
    "ls -la\n",
    "sudo reboot\n",
    "git status\n",
    "git\n",
    "pip install torch\n",
    "kill -9 1234\n",
    "rm -rf runs\n",
    "python -m tui\n",
    "exit\n",
    "echo hello\n",
    "test\n",
    "delete\n",
    "tree\n",
    "top\n",
    "pop\n",
    "less\n",
    "stop\n",
    "select * from runs;\n",
    "How do I replace my fan?\n",
    "für Elise\n",
    "好的，开始\n",
]


def key(character: str) -> Key:
    """A key as the terminal delivers it."""
    return Key(NAMES.get(character) or _character_to_key(character), None if character in NAMES else character)


def admitted(text: str, scope: str, *, table: KeyTable | None = None, told: list[str] | None = None) -> str:
    """The keys of a burst that are handled: pane numbers go to their pane, and a key that asks is followed by text."""
    table = table or KeyTable()
    told = [] if told is None else told
    ahead = TypedAhead(table, lambda: told.append("lost"))
    keys = [key(character) for character in text]
    ahead.expect(keys, goes_on=False)
    place, handled = Place(scope=scope), ""
    for each, character in zip(keys, text, strict=True):
        if not ahead.admits(each, place):
            continue
        handled += character
        found = None if place.takes_text else table.find(place.scope, each.key)
        if place.takes_text and character == "\n":
            place = Place(scope=scope)
        elif found is not None and found.pane:
            scope = found.pane
            place = Place(scope=scope)
        elif found is not None and found.then:
            place = Place(takes_text=True)
    return handled


@cases("scope", PANES)
@cases("text", TEXTS)
def test_no_letter_of_a_text_is_a_command(text: str, scope: str) -> None:
    told: list[str] = []
    handled = admitted(text, scope, told=told)
    if handled:
        # A text may begin with the key that asks for one: it is that text then, and nothing else.
        first = KeyTable().find(scope, key(handled[0]).key)
        assert handled == text
        assert first is not None
        assert first.then == "text"
    else:
        assert told == ["lost"]


@cases(
    ("scope", "text"),
    [
        ("data", "tr\n"),
        ("train", "1o rows.jsonl\n"),
        ("train", "1tr\n"),
        ("data", "jjjjjjjj"),
        ("data", ":123456\n"),
        ("data", "/fan\nn"),
        ("data", "jjj/fan\n"),
        ("data", "GGkk"),
        ("config", "2jj"),
        ("config", "/lr\n"),
        ("config", "\n0.01\n"),
        ("config", "jjj\n0.01\n"),
        ("config", "S mine.toml\n"),
        ("config", "\x13mine.toml\n"),
        ("config", "Oapp\n"),
        ("config", "P↓↓\n"),
        ("train", "e1e-4\n"),
        ("train", "sy"),
        ("train", "ihello world\n"),
        ("runs", "/failed\n"),
        ("runs", "5jj\n"),
        ("train", "51234"),
        ("chat", "i what is 3?\n"),
        ("chat", "4ihello\n"),
        ("runs", "\x10theme\n"),
    ],
)
def test_what_is_typed_ahead_is_carried_out(scope: str, text: str) -> None:
    told: list[str] = []
    assert admitted(text, scope, told=told) == text
    assert not told


def test_a_letter_without_a_meaning_ends_a_short_burst() -> None:
    assert admitted("tx", "data") == "t"
    assert admitted("xt", "data") == ""


def test_a_key_that_is_held_down_is_no_text() -> None:
    told: list[str] = []
    assert admitted("zzzzzz", "train", told=told) == ""
    assert not told


def test_a_key_pressed_by_itself_is_always_handled() -> None:
    ahead = TypedAhead(KeyTable(), lambda: None)
    ahead.expect([key("x"), key("y"), key("z")], goes_on=False)
    assert ahead.admits(key("q"), Place(scope="train"))


def test_a_text_goes_on_in_the_next_read() -> None:
    told: list[str] = []
    ahead = TypedAhead(KeyTable(), lambda: told.append("lost"))
    handled = []
    for piece, goes_on in (("cle", False), ("ar; lo", True), ("r", True), ("q", True), ("p", False)):
        keys = [key(character) for character in piece]
        ahead.expect(keys, goes_on=goes_on)
        handled += [each.key for each in keys if ahead.admits(each, Place(scope="train"))]
    assert handled == ["p"]
    assert told == ["lost"]


def test_what_was_dropped_long_ago_takes_no_later_keys_with_it() -> None:
    ahead = TypedAhead(KeyTable(), lambda: None)
    place = Place(scope="data")
    keys = [key(character) for character in "clear; ls"]
    ahead.expect(keys, goes_on=False)
    assert not any(ahead.admits(each, place) for each in keys)
    # Much later, two keys are pressed as one.
    assert ahead.admits(key("j"), place)
    second = key("m")
    ahead.expect([second], goes_on=True)
    assert ahead.admits(second, place)


@cases(
    ("scope", "text", "expected"),
    [("config", "open /etc/passwd\n", "op"), ("data", "sx reboot\n", "s"), ("train", "pcb", "pc")],
)
def test_of_a_text_that_comes_key_by_key_little_is_handled(scope: str, text: str, expected: str) -> None:
    ahead = TypedAhead(KeyTable(), lambda: None)
    place, handled = Place(scope=scope), ""
    for number, character in enumerate(text):
        each = key(character)
        if number:
            ahead.expect([each], goes_on=True)
        handled += character if ahead.admits(each, place) else ""
    assert handled == expected


def test_single_letters_that_come_at_once_stop_at_the_first_that_means_nothing() -> None:
    table = KeyTable()
    ahead = TypedAhead(table, lambda: None)
    nothing = next(letter for letter in ascii_lowercase if table.find("train", letter) is None)
    handled = []
    for number, character in enumerate(f"c{nothing}ear; r\n"):
        each = key(character)
        ahead.expect([each], goes_on=number > 0)
        handled += [each.key] if ahead.admits(each, Place(scope="train")) else []
    assert handled == ["c"]


def test_a_question_takes_its_own_keys_alone() -> None:
    ahead = TypedAhead(KeyTable(), lambda: None)
    keys = [key(character) for character in "mary\n"]
    ahead.expect(keys, goes_on=False)
    assert not any(ahead.admits(each, Place(own={"y", "n"})) for each in keys)
    keys = [key(character) for character in "y\n"]
    ahead.expect(keys, goes_on=False)
    assert all(ahead.admits(each, Place(own={"y", "n"})) for each in keys)


def test_a_paste_of_thousands_of_letters_is_looked_through_once() -> None:
    keys = [key("j") for _ in range(100_000)]
    ahead = TypedAhead(KeyTable(), lambda: None)
    ahead.expect(keys, goes_on=False)
    assert sum(ahead.admits(each, Place(scope="data")) for each in keys[:2_000]) == 2_000


def test_a_keymap_counts(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text('[train]\npause = "z"\nstop = "i"\n', encoding="utf-8")
    keymap = load_keymap(path)
    assert keymap.problems == []
    table = KeyTable(keymap.overrides)
    assert admitted("zi", "train", table=table) == "zi"
    # The letter is the user's own now; the other key for it stays.
    assert table["app.ask"].keys == "f6"
    assert table["app.ask"].display == "f6"


@cases("keys", ['["i", "w"]', '"w"'])
def test_a_keymap_may_rebind_the_key_of_the_chat_alone(tmp_path: Path, keys: str) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(f"[chat]\nwrite = {keys}\n", encoding="utf-8")
    keymap = load_keymap(path)
    assert keymap.problems == []
    assert KeyTable(keymap.overrides)["app.ask"].keys == "i,f6"
