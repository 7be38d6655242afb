"""Rows as tokens in the data pane, with a real tokenizer: supervised ones, matches, and what cannot be masked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from textual.pilot import Pilot
from wcwidth import wcswidth

from tests.cases import cases
from tests.tui.data_panes import configuration, data_pane, tokens_of, write_lines
from tests.tui.harness import FORBIDDEN, HOSTILE, press, resize, screen_lines, screen_text, shown, wait_for
from tui.panes.data.pane import DataPane
from tui.widgets.lists.mask_view import _mark, _Piece, wrap_pieces


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    return write_lines(path, (json.dumps({"prompt": ask, "completion": answer}) for ask, answer in rows))


@asynccontextmanager
async def token_pane(
    path: Path, model: Path | str, size: tuple[int, int] = (80, 24), **options: object
) -> AsyncIterator[tuple[Pilot[None], DataPane]]:
    """The data pane with a row as tokens, or the reason why there are none."""
    async with data_pane(path, configuration(path.parent, model__base=str(model), **options), size=size) as (
        pilot,
        pane,
    ):
        await wait_for(pilot, lambda: pane.session.masks is not None or pane.session.masker_error is not None)
        await press(pilot, "m", until=lambda: pane.body.mask_view.parts or pane.body.mask_view._is_problem)
        yield pilot, pane


#: Characters whose width terminals do not agree on.
SIGNS = "की sign"
UNSTEADY = [
    "👨\u200d👩\u200d👧 family",
    "🇩🇪 flag",
    "❤\ufe0f heart",
    "👍🏽 tone",
    SIGNS,
    "z" + "\u0301" * 40,
    "co\u00adop ✌",
]


async def test_borders_stay_where_they_are_whatever_a_row_holds(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [(text * 9, text) for text in UNSTEADY])
    async with token_pane(path, tiny_model_dir) as (pilot, pane):
        # The row is below the list, and beside it where there is room.
        for size, tokens in (((80, 24), True), ((200, 50), True), ((80, 24), False)):
            if not tokens:
                await pilot.press("m")
            await pilot.resize_terminal(*size)
            await pilot.press("g")
            for text in UNSTEADY:
                await pilot.pause()
                # As a conversation a row is read, and the signs of a script are kept.
                if text == SIGNS and not tokens:
                    pane.body.conversation.show(())
                    await pilot.pause()
                drawn = screen_lines(pilot.app)[1:-1]
                assert {line[-1] for line in drawn} == {"│"}
                assert {wcswidth(line) for line in drawn} == {size[0]}
                await pilot.press("j")


async def test_a_row_as_tokens_with_exactly_the_answer_learned(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [("first", "one"), ("second", "two\nlines")])
    async with token_pane(path, tiny_model_dir, (60, 20)) as (pilot, pane):
        await press(pilot, "j", until=lambda: "second" in tokens_of(pane))
        cells = pane.body.mask_view.parts[0].cells
        assert "".join(cell.text for cell in cells if cell.learned) == "two\nlines<|im_end|>"
        assert {cell.text for cell in cells if cell.special} == {"<|im_start|>", "<|im_end|>"}
        learned = sum(cell.learned for cell in cells)
        for size in ((60, 20), (80, 22), (200, 50)):
            await resize(pilot, *size)
            assert "two⏎" in screen_text(pilot.app).replace(" ", "")
            assert f"{len(cells)} tokens · {learned} learned" in screen_text(pilot.app)
        await press(pilot, "m")
        assert pane.body.conversation.display
        assert not pane.body.mask_view.display


async def test_both_answers_of_a_pair_and_a_label_are_named_in_words(tmp_path: Path, tiny_model_dir: Path) -> None:
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    pairs.write_text(json.dumps({"prompt": "ask", "chosen": "yes", "rejected": "no, and not ever"}) + "\n")
    labels.write_text(json.dumps({"prompt": "ask", "completion": "hm", "label": False}) + "\n")
    async with token_pane(pairs, tiny_model_dir, (60, 20)) as (pilot, pane):
        await wait_for(pilot, lambda: len(pane.body.mask_view.parts) == 2)

        def listed() -> tuple[list[str], list[str]]:
            """The words of the list's heading and of its first row."""
            lines = screen_lines(pilot.app)
            place = next(number for number, line in enumerate(lines) if " tok " in line)
            return lines[place].split()[1:], lines[place + 1].split()[1:]

        await wait_for(pilot, lambda: "–" not in listed()[1])
        better, worse = pane.body.mask_view.parts
        counts = [(len(part.cells), sum(cell.learned for cell in part.cells)) for part in (better, worse)]
        assert "".join(cell.text for cell in worse.cells if cell.learned) == "no, and not ever<|im_end|>"
        for size in ((60, 20), (80, 24), (200, 50)):
            await resize(pilot, *size)
            text = screen_text(pilot.app)
            for name, (tokens, learned) in zip(("better", "worse"), counts, strict=True):
                assert f"── {name} answer · {tokens} tokens · {learned} learned ─" in text
            assert f"pair of {counts[0][0]} and {counts[1][0]} tokens" in text
            head, first = listed()
            assert head[:5] == ["#", "tok", "learned", "user", "better"]
            assert (head[5] == "worse") == (size[0] > 60)
            assert first[1:4] == ["1", str(counts[1][0]), str(counts[1][1])], "those of the longer answer"
            assert "yes" in first
            assert ("no," in first) == (size[0] > 60)

        pane.show(labels)
        await wait_for(pilot, lambda: len(pane.body.mask_view.parts) == 1)
        await pilot.pause()
        assert "── bad answer · " in screen_text(pilot.app)
        head, first = listed()
        assert head[3:5] == ["label", "user"]
        assert "bad" in first


def _strip_styles(pane: DataPane, lines: int) -> dict[str, Style]:
    """The style of each stretch of the token view."""
    found: dict[str, Style] = {}
    for line in range(lines):
        for segment in pane.body.mask_view.render_line(line):
            if segment.text.strip() and segment.style is not None:
                found[segment.text.strip()] = segment.style
    return found


async def test_every_kind_of_token_has_attributes_of_its_own(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bold, underline and reverse alone distinguish them, as on a terminal without colors; a rule marks the cut."""
    monkeypatch.setenv("NO_COLOR", "1")
    path = write(tmp_path / "rows.jsonl", [("ask me", "zyx and some more")])
    async with token_pane(path, tiny_model_dir, (80, 30), train__max_length=30) as (pilot, pane):
        await press(pilot, "slash", *"me", "enter", until=lambda: pane.body.mask_view.match_place == (1, 2))
        styles = _strip_styles(pane, 12)

        def attributes(text: str) -> tuple[bool, bool, bool]:
            style = styles[text]
            return bool(style.bold), bool(style.underline), bool(style.reverse)

        assert attributes("ask") == (False, False, False)
        assert attributes("<|im_start|>") == (False, False, True)
        assert attributes("zyx and so") == (True, True, False)
        assert attributes("<|im_end|>") == (True, True, True), "the last one of the row, which is learned"
        assert attributes("me")[2], "a match"
        assert pane.body.mask_view.parts[0].cut == 30
        assert any("✂ train.max_length = 30: longer rows are dropped" in text for text in styles)
        legend = [segment for segment in pane.body.mask_view.render_line(0) if segment.text.strip()]
        assert [segment.text for segment in legend][:4] == ["learned", "ignored", "special", "2 matches"]


async def test_matches_are_marked_across_tokens_and_gone_through(tmp_path: Path, tiny_model_dir: Path) -> None:
    needle = "urgency of a ticket"
    long = "\n".join(f"line {number} " + (needle if number in (40, 90) else "of text") for number in range(100))
    rows = [("ask", "first"), (long, "second"), ("ask", "third"), (f"{needle.upper()} again", "fourth")]
    async with token_pane(write(tmp_path / "rows.jsonl", rows), tiny_model_dir) as (pilot, pane):
        await pilot.press("slash", *needle, "enter")
        await wait_for(pilot, lambda: pane.index == 1 and pane.body.mask_view.match_place == (1, 2))
        # It is scrolled to the match.
        await wait_for(pilot, lambda: "line 40" in screen_text(pilot.app))
        assert "line 90" not in screen_text(pilot.app)
        cells = pane.body.mask_view.parts[0].cells
        assert all(needle not in cell.text for cell in cells), "the text is divided between tokens"
        marked = _strip_styles(pane, pane.body.mask_view.size.height)
        assert "".join(text for text, style in marked.items() if needle in text and style.reverse) == needle
        # With the focus in the row, first through the row, then on to the next.
        await press(pilot, "enter", "n")
        assert pane.body.mask_view.match_place == (2, 2)
        assert "line 90" in screen_text(pilot.app)
        assert "2 of 2 in row 2" in screen_text(pilot.app)
        await press(pilot, "n", until=lambda: pane.index == 3 and pane.body.mask_view.match_place == (1, 1))
        await press(pilot, "N", until=lambda: pane.index == 1 and pane.body.mask_view.match_place == (2, 2))
        await press(pilot, "N")
        assert pane.body.mask_view.match_place == (1, 2)
        # With the focus in the list, straight to the next row.
        await press(pilot, "escape", "n", until=lambda: pane.index == 3)
        await press(pilot, "escape")
        assert pane.body.mask_view.match_place == (0, 0)
        assert "match" not in screen_text(pilot.app)


async def test_matches_in_the_conversation_are_gone_through(tmp_path: Path) -> None:
    long = "\n".join(f"line {number} " + ("needle" if number in (40, 90) else "text") for number in range(100))
    path = write(tmp_path / "rows.jsonl", [("ask", "first"), (long, "second")])
    async with data_pane(path, size=(80, 24)) as (pilot, pane):
        await press(pilot, "slash", *"NEEDLE", "enter", until="line 40 needle")
        assert (pane.index, pane.body.conversation.match_place) == (1, (1, 2))
        await press(pilot, "enter", "n", until="line 90 needle")
        assert pane.body.conversation.match_place == (2, 2)
        await pilot.resize_terminal(100, 24)
        await wait_for(pilot, lambda: {len(line) for line in screen_lines(pilot.app)} == {100})
        assert pane.body.conversation.match_place == (2, 2)
        # A search may land in a row before its layout.
        turns = pane.body.conversation.turns
        pane.body.conversation.show(())
        await press(pilot, until=lambda: not pane.body.conversation.show_vertical_scrollbar)
        pane.body.conversation.show(turns)
        pane.body.conversation.move_match(1)
        await shown(pilot, "line 40 needle")


@given(
    st.lists(st.text(alphabet="abİ \n", max_size=4), max_size=12),
    st.text(alphabet="ab", min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_marked_pieces_are_the_tokens_again_and_hold_the_matches(texts: list[str], term: str, before: int) -> None:
    tokens = [_Piece(text, f"style {number}") for number, text in enumerate(texts)]
    marked, count = _mark(tokens, term, before)
    assert ["".join(piece.text for piece in pieces) for pieces in marked] == texts
    assert all(piece.style == f"style {number}" for number, pieces in enumerate(marked) for piece in pieces)
    found: dict[int, str] = {}
    for piece in (piece for pieces in marked for piece in pieces if piece.match):
        found[piece.match] = found.get(piece.match, "") + piece.text
    whole = "".join(texts).lower()
    expected = whole.count(term) if len(whole) == len("".join(texts)) else 0
    assert found == dict.fromkeys(range(before + 1, before + expected + 1), term)
    assert count == before + expected


async def test_hostile_text_in_tokens_never_reaches_a_strip(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [(HOSTILE, HOSTILE)])
    async with token_pane(path, tiny_model_dir, (80, 22)) as (pilot, _):
        await press(pilot, "enter", "G")
        text = screen_text(pilot.app)
        assert "[/]i[bold]j" in text
        assert not FORBIDDEN & set(text)


async def test_a_row_that_cannot_be_masked_and_a_model_that_is_not_there(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [("ask", "stop <|im_end|> here")])
    for model, sentence in ((tiny_model_dir, "would end the answer"), ("smollm2-135m-instruct", "is not prepared yet")):
        async with token_pane(path, model, (120, 30)) as (pilot, pane):
            await wait_for(pilot, lambda: sentence in pane.body.mask_view.message)  # noqa: B023 - within this turn
            assert "✗" in screen_text(pilot.app)


@cases("width", [1, 2, 7, 40])
def test_no_line_is_wider_than_the_view(width: int) -> None:
    pieces = [_Piece(text, "learned") for text in ("word", " 日本語", "\n", "a" * 50, "", " \n\n x")]
    lines = list(wrap_pieces(pieces, width))
    assert all(cell_len("".join(piece.text for piece in line)) <= max(width, 2) for line in lines)
    assert "".join(piece.text for line in lines for piece in line) == "".join(p.text for p in pieces).replace("\n", "⏎")


async def test_the_title_of_a_row_keeps_its_problem(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [("ask " * 500, "answer " * 500)])
    async with token_pane(path, tiny_model_dir, size=(110, 24), train__max_length=64) as (pilot, _):
        title = "· as tokens · 4,014 tokens · 2,501 learned · 62% · ✗ longer than train.max_length ─"
        await wait_for(pilot, lambda: title in screen_text(pilot.app))
        await resize(pilot, 80, 24)
        await shown(pilot, "row 1 · 4,014 tokens · 2,501 learned · ✗ longer than train.max_length ─")
        await resize(pilot, 60, 24)
        await shown(pilot, "row 1 · ✗ longer than train.max_length ─")
