from __future__ import annotations

import time
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.content import Content

from core.text import sanitize
from tests.cases import cases
from tests.tui.harness import FORBIDDEN, HOSTILE
from tui.widgets.markdown_text import BLOCK_LIMIT, MarkdownText


def plain(text: str) -> str:
    return MarkdownText().render(text).plain


def styles(content: Content, part: str) -> set[str]:
    place = content.plain.index(part)
    return {str(span.style) for span in content.spans if span.start <= place < span.end}


@cases(
    ("text", "shown"),
    [
        ("one\ntwo", "one\ntwo"),
        ("# Head\n\nsome **bold** and *soft* and `a*b`", "Head\n\nsome bold and soft and a*b"),
        ("- a\n- b\n  - c\n\n1. x\n2. y", "• a\n• b\n  ◦ c\n\n1. x\n2. y"),
        ("3. three\n\n4. four", "3. three\n\n4. four"),
        ("> said\n> on", "│ said\n│ on"),
        ("```python\nif a:\n\n    b()\n```", "python\n▏ if a:\n▏\n▏     b()"),
        ("```\nopen", "▏ open"),
        ("| a | b |\n|---|---|\n| long | x |", "a     b\n────  ─\nlong  x"),
        ("[here](https://x.example/a)", "here ⟨https://x.example/a⟩"),
        ("![pic](https://x.example/p.png)", "[pic] ⟨https://x.example/p.png⟩"),
        ("<script>x</script> &lt;b&gt;", "<script>x</script> <b>"),
        ('{"area": "network", "ref": 12}', '{"area": "network", "ref": 12}'),
        ("snake_case_name [1] [/red] [@click=app.quit()]x", "snake_case_name [1] [/red] [@click=app.quit()]x"),
        ("", ""),
        ("***", "─" * 24),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert [line.rstrip() for line in plain(text).split("\n")] == shown.split("\n")


def test_styles_say_what_the_marks_said() -> None:
    content = MarkdownText().render("# Head\n\nsome **bold *both* x** `code` ~~gone~~")
    assert any("bold" in style for style in styles(content, "Head"))
    assert {"bold", "italic"} <= styles(content, "both")
    assert "$accent" in styles(content, "code")
    assert "strike" in styles(content, "gone")


@cases("code", ["&#x202E;", "&#8238;", "&#x2028;", "&#x9b;", "&#27;", "\\&#27;", "`\x1b[2J`"])
def test_what_the_parser_writes_itself_is_harmless(code: str) -> None:
    found = plain(f"a {code} b\n\n```{code}\n{code}\n```\n\n[x](<{code}>)")
    assert found == sanitize(found)
    assert FORBIDDEN.isdisjoint(found)


@given(st.text(st.sampled_from(list("ab*_`[]()<>#|-~>! \n\t&;:x1\x1b\u202e\\")), max_size=200))
def test_any_text_is_shown_and_harmless(text: str) -> None:
    found = MarkdownText().render(text)
    assert found.plain == sanitize(found.plain)
    # No part of it does anything when it is clicked.
    assert all("@click" not in str(span.style) for span in found.spans)


def test_a_stream_is_shown_as_the_whole_text_is() -> None:
    text = "# A\n\n- one\n- **two**\n\n```py\nx = 1\n\ny = 2\n```\n\n| a |\n|---|\n| 1 |\n\n" + HOSTILE
    stream = MarkdownText()
    for end in range(1, len(text) + 1):
        last = stream.render(text[:end])
    assert last.plain == plain(text)


def test_blocks_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tui.widgets import markdown_text

    render = Mock(wraps=markdown_text._render)
    monkeypatch.setattr(markdown_text, "_render", render)
    stream = MarkdownText()
    stream.render("one\n\ntwo")
    stream.render("one\n\ntwo three\n\nfour")
    assert [call.args[0] for call in render.call_args_list] == ["one", "two", "two three", "four"]


@cases("unit", ["[", "![", "*a ", "_", "`a", "[](", "> ", "- ", "<", "|a", "a\n", "&#x202E;"])
def test_no_text_keeps_the_keys_waiting(unit: str) -> None:
    text = unit * (BLOCK_LIMIT // len(unit))
    began = time.process_time()
    MarkdownText().render(text)
    # Of processor time; a hang would be of seconds.
    assert time.process_time() - began < 2
    assert MarkdownText().render(unit * 50_000).plain
