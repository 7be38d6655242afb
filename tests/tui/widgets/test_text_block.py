"""Texts that wrap or are cut."""

from __future__ import annotations

from textual.app import App, ComposeResult
from textual.content import Content

from tests.tui.harness import wait_for
from tui.widgets.text_block import TextBlock, clip, hang


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


class BlockApp(App[None]):
    """An app of one block."""

    def compose(self) -> ComposeResult:
        yield TextBlock(Content("one"))


async def test_a_block_that_changes_again_after_a_layout_has_the_height_of_the_last_change() -> None:
    async with BlockApp().run_test() as pilot:
        block = pilot.app.query_one(TextBlock)
        await wait_for(pilot, lambda: block.size.height == 1)
        block.show(Content("one\ntwo"))
        pilot.app.screen._refresh_layout()
        block.show(Content("one\ntwo\nthree"))
        await wait_for(pilot, lambda: block.size.height == 3)


async def test_a_block_that_its_owner_has_hidden_stays_hidden_when_its_text_changes() -> None:
    async with BlockApp().run_test() as pilot:
        block = pilot.app.query_one(TextBlock)
        block.display = False
        block.show(Content("two"))
        assert not block.display
        block.show(Content(""))
        block.show(Content("three"))
        assert block.display
