from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from wcwidth import wcswidth

from core.text import PLACEHOLDER, REPLACEMENT, one_line, sanitize, steady
from tests.cases import cases

ANYTHING = st.text(st.characters(exclude_categories=()))
BIDI = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def dangerous(text: str) -> list[str]:
    """Characters that a terminal acts on, or that cannot be sent to one."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI]


@given(ANYTHING)
def test_nothing_that_a_terminal_acts_on_is_left(text: str) -> None:
    safe = sanitize(text)
    assert set(dangerous(safe)) <= {"\t", "\n"}
    safe.encode("utf-8")
    assert sanitize(safe) == safe


@given(ANYTHING, st.integers(2, 50))
def test_one_line_is_one_safe_line_of_at_most_the_limit(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert dangerous(line) == []
    assert len(line) <= limit


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs")).filter(lambda c: c not in BIDI)))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert sanitize(text) == text


@given(ANYTHING, st.integers(0, 20))
def test_a_stream_may_be_cut_anywhere_but_in_a_line_end(text: str, cut: int) -> None:
    if text[:cut].endswith("\r"):
        return
    assert sanitize(text[:cut]) + sanitize(text[cut:]) == sanitize(text)


@cases(("text", "safe"), [
    ("\x1b]52;c;QUJD\x07", f"{REPLACEMENT}]52;c;QUJD{REPLACEMENT}"), ("\x9b2J\x00", f"{REPLACEMENT}2J{REPLACEMENT}"),
    ("a\u202eb\u2066c", "abc"), ("a\r\nb\rc\td", "a\nb\nc\td"), ("a\u2028b\u2029c", "a\nb\nc"),
    ("\ud800", REPLACEMENT), ("[/] [@click=x]", "[/] [@click=x]"), ("e\u0301 👩‍🚀 ليل", "e\u0301 👩‍🚀 ليل"),
])  # fmt: skip
def test_known_attacks_and_known_innocents(text: str, safe: str) -> None:
    assert sanitize(text) == safe


def test_line_ends_are_shown_and_cuts_marked() -> None:
    assert one_line("a\nb\tc") == "a⏎b c"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"


@cases(("text", "shown"), [
    ("👨\u200d👩\u200d👧 home", "👨👩👧 home"), ("🇩🇪🇫🇷", "DEFR"), ("I ❤\ufe0f it", "I ❤ it"), ("👍🏽👍", "👍👍"),
    ("1\ufe0f\u20e3", "1\u20e3"), ("🏴\U000e0067\U000e0062\U000e007f", "🏴"),
    ("e\u0301" + "\u0301" * 30, "e" + "\u0301" * 4), (" \u0301", f" {PLACEHOLDER}\u0301"), ("🏽", PLACEHOLDER),
    ("\u200d\ufe0f", PLACEHOLDER), ("की", "क" + PLACEHOLDER), ("✌", PLACEHOLDER), ("\U0003ffff", REPLACEMENT),
    ("co\u00adop", "co-op"), ("日本語 Ёж größe ภาษา", "日本語 Ёж größe ภาษา"), ("", ""),
])  # fmt: skip
def test_what_terminals_draw_in_different_widths_is_taken_apart(text: str, shown: str) -> None:
    assert steady(text) == shown


def test_text_that_is_read_keeps_its_vowel_signs() -> None:
    assert steady("की 👨\u200d👩", whole=True) == "की 👨👩"


@given(ANYTHING)
def test_two_ways_to_measure_agree_and_widths_add_up(text: str) -> None:
    line = steady(one_line(text))
    assert cell_len(line) == wcswidth(line) == sum(map(cell_len, line))
    assert bool(line) == bool(one_line(text))
    assert steady(line) == line


def test_every_character_has_a_width_that_is_agreed_upon() -> None:
    codes = [*range(0xA0, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]
    lines = [steady(f"a{one_line(chr(code))}b") for code in codes]
    assert [line for line in lines if wcswidth(line) != cell_len(line)] == []
