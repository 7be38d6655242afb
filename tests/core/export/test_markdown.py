"""Foreign text in the places of a page, as a parser of Markdown reads it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from core.export.card import block, code, filled, heading, page, prose, shell_word, table
from core.text import one_line
from tests.cases import cases

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
#: What a line may hold that foreign text is in.
PLAIN = {"text", "text_special", "code_inline", "html_inline"}

#: Signs that mean something in Markdown, in HTML or in a shell, among others.
hostile = st.lists(
    st.one_of(
        st.sampled_from(
            [*"#`~*_[]()<>!|\\&;:-+=.1\n\r\t $'\"{}@/", "\u2028", "\x0b", "\x1b[2J", "\u202e", "```", "~~~"]
        ),
        st.sampled_from(
            ["<b>", "</code>", "&lt;", "&#96;", "[x](y)", "---", "===", "http://x", "    ", "| - |", "<!--"]
        ),
        st.text(max_size=3),
    ),
    max_size=14,
).map("".join)


def parse(text: str) -> list[Token]:
    return PARSER.parse(text)


def content(token: Token) -> str:
    """The text of a line as a reader sees it."""
    children = token.children or []
    assert {child.type for child in children} <= PLAIN, [child.type for child in children]
    assert {child.content for child in children if child.type == "html_inline"} <= {"<code>", "</code>"}
    return "".join(child.content for child in children if child.type != "html_inline")


def lines(tokens: list[Token]) -> Iterator[str]:
    return (content(token) for token in tokens if token.type == "inline")


@given(hostile)
@example("a\\|b`c")
@example("1. x")
@example("123456789) x")
@example("- - -")
@example("+ x")
@example("= =")
@example("> x")
@example("# # #")
@example("x #")
@example("``` `` ` x")
@example("\\\\|`")
@example("&amp;&#x41;")
@example("_a_ __b__ a_b _")
def test_foreign_text_stays_in_its_place_and_is_read_as_it_is(text: str) -> None:
    shown = one_line(text, 200).strip()
    assume(shown)
    text = text[:200]
    parts = [
        heading(1, prose(text)),
        prose(text),
        filled("It is {name}.", name=code(text)),
        table((prose(text), code(text)), [(prose("a"), code(text)), (code(text), prose(text))]),
    ]
    tokens = parse(page(parts))
    shape = [token.type for token in tokens if token.nesting >= 0 and token.type != "inline"]
    rows = ["thead_open", "tr_open", *["th_open"] * 2, "tbody_open", *(["tr_open", *["td_open"] * 2] * 2)]
    assert shape == ["heading_open", "paragraph_open", "paragraph_open", "table_open", *rows]
    assert list(lines(tokens)) == [shown, shown, f"It is {shown}.", shown, shown, "a", shown, shown, shown]


@given(hostile)
def test_a_word_of_a_command_line_is_one_word(text: str) -> None:
    (fence,) = parse(page([block("sh", f"run -m {shell_word(text)} --last")]))
    assert (fence.type, fence.info) == ("fence", "sh")
    assert shlex.split(fence.content) == ["run", "-m", one_line(text, 200), "--last"]


@cases(
    ("text", "wanted"),
    [
        ("tickets-2", "tickets-2"),
        ("loss is 2 and should be <= 1.", "loss is 2 and should be <= 1."),
        ("exact_match: -0.5 (12 %)", "exact_match: -0.5 (12 %)"),
        ("Q4_K_M & F16", "Q4_K_M & F16"),
        ("3.5 nats", "3.5 nats"),
        ("-0.3", "-0.3"),
    ],
)
def test_what_means_nothing_in_markdown_is_left_alone(text: str, wanted: str) -> None:
    assert prose(text) == wanted
    assert code(text) == f"`{wanted}`"


@cases("line", ["```", "  ``` x", "a\nb", "a\r# b"])
def test_a_line_that_would_end_its_block_is_a_mistake(line: str) -> None:
    with pytest.raises(ValueError, match="ends it"):
        block("sh", "echo", line)


def test_long_text_is_cut() -> None:
    assert len(prose("x" * 5000)) == 600
    assert len(code("x" * 5000)) == 202
