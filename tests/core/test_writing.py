"""Files of a run may come from elsewhere: a search of the sources for unsafe ways to open, truncate and read them.

A file of a run is opened by :mod:`core.beneath`, read in lines by :mod:`core.runs.record.state`, and parsed by
:func:`core.small_files.parse_json`. Exceptions are listed here, each with its reason.
"""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.cases import cases, tables

TABLES = tables(__file__)

CORE = Path(__file__).resolve().parents[2] / "core"
#: Parts of core that handle files of runs.
PARTS = ("audit", "chat", "evaluation", "launch", "queue", "runs", "tracking", "worker")
#: Of os and shutil: they write, cut, copy or delete by a path, through links in any part of it.
_BY_PATH = frozenset({"truncate", "rmtree", "copytree", "copyfile", "copy", "copy2", "move", "mknod", "link"})
_METHODS = frozenset({"write_text", "write_bytes", "touch"})

#: Writes outside runs, or safe for the stated reason: ``file`` or ``file: function``.
WRITERS = TABLES["writers"]  # fmt: skip

#: Unlimited reads of files that no foreign run brings.
READERS = TABLES["readers"]

#: JSON that is parsed otherwise.
PARSERS = TABLES["parsers"]


def _mode(call: ast.Call, at: int) -> str:
    given = [word.value for word in call.keywords if word.arg == "mode"] + call.args[at : at + 1]
    return next((item.value for item in given if isinstance(item, ast.Constant) and isinstance(item.value, str)), "r")


def _kind_of_call(call: ast.Call) -> str | None:
    text = ast.unparse(call.func)
    owner, _, name = text.rpartition(".")
    if text in ("os.open", "write_atomic", "overwrite", "os.fdopen"):
        # os.fdopen gets a descriptor of core.beneath.
        return None if text == "os.fdopen" else "writer"
    if (owner in ("os", "shutil") and name in _BY_PATH) or name in _METHODS:
        return "writer"
    if name == "open" and set(_mode(call, 0 if owner else 1)) & set("wax+"):
        return "writer"
    if name in ("readlines", "read_text", "read_bytes") or (name in ("read", "readline") and not call.args):
        return "reader"
    return "parser" if text in ("json.loads", "json.load") else None


def _opens_file(node: ast.expr) -> bool:
    """True if an expression is an open file, as the subject of a loop or a ``with``."""
    call = node.args[0] if isinstance(node, ast.Call) and ast.unparse(node.func) == "enumerate" and node.args else node
    if not isinstance(call, ast.Call):
        return False
    name = ast.unparse(call.func).rpartition(".")[2]
    return name in ("open", "open_regular", "BufferedReader", "FileIO", "fdopen", "TextIOWrapper")


def findings(source: str) -> Iterator[tuple[str, str, int]]:
    """Calls and loops in a source that this test is about: kind, function, line."""

    def visit(node: ast.AST, where: str, files: frozenset[str]) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            where = f"{where}.{node.name}" if where else node.name
        if isinstance(node, ast.With):
            bound = {item.optional_vars.id for item in node.items if isinstance(item.optional_vars, ast.Name)
                     and _opens_file(item.context_expr)}  # fmt: skip
            files = files | bound
        if isinstance(node, ast.Call) and (kind := _kind_of_call(node)) is not None:
            yield kind, where, node.lineno
        if isinstance(node, (ast.For, ast.comprehension)):
            over = node.iter
            if isinstance(over, ast.Call) and ast.unparse(over.func) == "enumerate" and over.args:
                over = over.args[0]
            if _opens_file(over) or (isinstance(over, ast.Name) and over.id in files):
                yield "reader", where, over.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where, files)

    yield from visit(ast.parse(source), "", frozenset())


@functools.cache
def _all_findings() -> list[tuple[str, str, str, int]]:
    """The findings of all parts, each with its file."""
    files = sorted(path for part in PARTS for path in (CORE / part).rglob("*.py"))
    return [
        (path.relative_to(CORE).as_posix(), *found) for path in files for found in findings(path.read_text("utf-8"))
    ]


def _unlisted(kind: str, listed: dict[str, str]) -> tuple[list[str], set[str]]:
    """Places that no entry of a list covers, and the entries that cover none."""
    wrong, used = [], set[str]()
    for file, found, where, line in _all_findings():
        if found != kind:
            continue
        names = {file, f"{file}: {where}", *(parent.as_posix() for parent in Path(file).parents)}
        if (entries := names & set(listed)) == set():
            wrong.append(f"core/{file}:{line} ({where})")
        used |= entries
    return wrong, set(listed) - used


@cases(("kind", "listed"), [("writer", WRITERS), ("reader", READERS), ("parser", PARSERS)], ids=lambda _: "")
def test_files_of_runs_are_opened_read_and_parsed_one_way(kind: str, listed: dict[str, str]) -> None:
    wrong, idle = _unlisted(kind, listed)
    ways = {
        "writer": "open it by core.beneath, cut it by os.ftruncate, remove it by core.directories.remove_tree",
        "reader": "read it by core.runs.record.state.read_lines, or in pieces of a size",
        "parser": "parse it by core.small_files.parse_json",
    }
    assert not wrong, f"{ways[kind]}, or list it with its reason:\n" + "\n".join(wrong)
    assert not idle, f"these exceptions are of nothing: {sorted(idle)}"


@cases(("source", "kind"), TABLES["it_finds_what_it_is_for"])
def test_it_finds_what_it_is_for(source: str, kind: str | None) -> None:
    found = [item[0] for item in findings(textwrap.dedent(source))]
    assert found == ([] if kind is None else [kind])
