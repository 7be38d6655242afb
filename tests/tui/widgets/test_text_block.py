"""Texts that wrap or are cut."""

from __future__ import annotations

from textual.content import Content

from tui.widgets.text_block import clip, hang


def test_what_wraps_stays_in_the_column_of_its_text() -> None:
    text = "A sentence that is longer than a line.\n\n  ^r U   Make the edit again that was undone\n  x      short"
    assert hang(Content(text), 30).plain.split("\n") == [
        "A sentence that is longer than",
        "a line.",
        "",
        "  ^r U   Make the edit again",
        "         that was undone",
        "  x      short",
    ]


def test_a_column_without_room_is_given_up() -> None:
    assert hang(Content("a-long-name-of-a-thing   some words after it"), 24).plain.count("\n") > 0
    assert not any(line.startswith("   ") for line in hang(Content("a-long-name   some words"), 16).plain.split("\n"))


def test_what_has_no_room_ends_in_an_ellipsis() -> None:
    text = "one two three four five six"
    assert clip(Content(text), 14, 2).plain == text
    assert clip(Content(text), 10, 2).plain == "one two\nthree fou…"
