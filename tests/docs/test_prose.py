"""Prose of the product is plain: few words that stand in for a noun."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
#: Most uses of a pattern in 1,000 words.
LIMITS = {
    r"\bwhat\b": 2.0,
    r"\b(?:tells?|told)\b": 0.5,
    r"\b(?:those|ones?) (?:that|which|of)\b": 1.0,
}
#: First words of a docstring that has no noun of the field yet.
VAGUE = ("What", "Whether", "One", "Those")
#: The tokenizer of Python takes ten times as long.
COMMENT = re.compile(r"(?:^ *|  )#:? .*")


class Passage(NamedTuple):
    """A docstring or a comment."""

    path: Path
    line: int
    text: str
    is_docstring: bool


def passages(path: Path) -> Iterator[Passage]:
    """Docstrings of a Python file, those of attributes too, and its comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        yield Passage(path, statement.lineno, text, True)
    for number, line in enumerate(source.splitlines(), 1):
        if comment := COMMENT.search(line):
            yield Passage(path, number, comment[0], False)


def rate(pattern: str, texts: list[str]) -> float:
    """Uses of a pattern in 1,000 words."""
    words = sum(len(re.findall(r"[A-Za-z']+", text)) for text in texts)
    return 1000 * sum(len(re.findall(pattern, text, re.IGNORECASE)) for text in texts) / max(words, 1)


def passages_of(*folders: str) -> list[Passage]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [found for path in paths for found in passages(path)]


@pytest.fixture(scope="module")
def code() -> list[Passage]:
    return passages_of("core", "tui")


def test_no_docstring_begins_with_a_vague_word(code: list[Passage]) -> None:
    vague = [
        f"{found.path.relative_to(ROOT)}:{found.line}: {found.text.strip().splitlines()[0]}"
        for found in (*code, *passages_of("bench", "tests"))
        if found.is_docstring and found.text.split(maxsplit=1)[:1] and found.text.split(maxsplit=1)[0] in VAGUE
    ]
    assert vague == []


def test_docstrings_and_comments_name_things(code: list[Passage]) -> None:
    texts = [found.text for found in code]
    assert {pattern: found for pattern, most in LIMITS.items() if (found := rate(pattern, texts)) > most} == {}


def test_pages_name_things() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert {pattern: found for pattern, most in LIMITS.items() if (found := rate(pattern, texts)) > most} == {}
