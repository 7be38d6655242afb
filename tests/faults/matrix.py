"""The fault matrix of ``matrix.toml``, and the tests that it names."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import tomli

ROOT = Path(__file__).resolve().parents[2]
#: Subjects of faults.
FAMILIES = ("processes", "storage", "memory", "numbers", "devices", "clock", "input", "network", "terminal")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault: its injection, the property that must hold, and the tests for it."""

    number: int
    family: str
    fault: str
    injected: str
    holds: str
    tests: tuple[str, ...] = ()
    """Ids as of pytest, without parameters."""
    reason: str = ""
    """Why there is no test; empty if there is one."""


def read_matrix() -> list[Row]:
    """The rows, in their order."""
    data = tomli.loads(Path(__file__).with_name("matrix.toml").read_text(encoding="utf-8"))
    return [Row(**{**row, "tests": tuple(row.get("tests", ()))}) for row in data["row"]]


def functions_of(file: str) -> set[str]:
    """Names of the test functions that pytest collects from a file; empty where there is no such file.

    Args:
        file: Relative to the repository.
    """
    path = ROOT / file
    if not (path.is_file() and path.name.startswith("test_")):
        return set()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        node.name
        for node in body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }
