from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.analysis.row_facts import SAMPLE, main_script
from tests.cases import cases


@cases(
    ("text", "script"),
    [
        ("", "none"),
        ("12 + 34 = ?", "none"),
        ("— “” …", "none"),
        ("Plain words.", "Latin"),
        ("1" * 5000 + "then words", "Latin"),
        ("Über Österreich", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("Привет, world of words", "Latin"),
        ("Γειά σου Κόσμε", "Greek"),
        ("你好，世界", "Han"),
        ("日本語のテキストです", "Japanese"),
        ("안녕하세요", "Hangul"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("half \ud800 of a character", "Latin"),
        ("я" + "a" * 10, "Latin"),
        ("a" + "я" * 10, "Cyrillic"),
    ],
)
def test_the_script_of_most_letters(text: str, script: str) -> None:
    assert main_script(text) == script


def test_only_the_beginning_of_a_long_text_counts() -> None:
    assert main_script("я" * 4 * SAMPLE + "a" * 100_000) == "Cyrillic"


@given(st.text(max_size=300))
def test_any_text_has_one(text: str) -> None:
    assert (main_script(text) == "none") == (not any(map(str.isalpha, text)))
