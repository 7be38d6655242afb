"""Rows for tests of the analysis, and those that it finds."""

from __future__ import annotations

from typing import Any

from core.analysis.result import Analysis


def row(question: str, answer: str = "An answer of its own.") -> dict[str, Any]:
    """A row of a conversation: a question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows_of(analysis: Analysis, code: str) -> list[int]:
    """The rows with a problem, by its code; none where it is not found."""
    problem = analysis.problem(code)
    return [] if problem is None else list(problem.indices)
