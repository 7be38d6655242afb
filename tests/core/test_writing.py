"""Files of a run may come from elsewhere: a search of the sources for unsafe ways to open, truncate and read them.

A file of a run is opened by :mod:`core.beneath`, read in lines by :mod:`core.runs.record.tail`, and parsed by
:func:`core.small_files.parse_json`. Exceptions are listed here, each with its reason.
"""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.cases import cases

CORE = Path(__file__).resolve().parents[2] / "core"
#: Parts of core that handle files of runs.
PARTS = ("audit", "chat", "evaluation", "launch", "queue", "runs", "tracking", "worker")
#: Of os and shutil: they write, cut, copy or delete by a path, through links in any part of it.
_BY_PATH = frozenset({"truncate", "rmtree", "copytree", "copyfile", "copy", "copy2", "move", "mknod", "link"})
_METHODS = frozenset({"write_text", "write_bytes", "touch"})

#: Writes outside runs, or safe for the stated reason: ``file`` or ``file: function``.
WRITERS = {
    "audit/job.py: _work_directory": "removes the private copy of an audit",
    "chat/answer_rows.py: _append": "a file of the user's, which may be a link",
    "chat/answer_rows.py: remember_file": "a file of the home",
    "chat/engine.py": "a log of the home",
    "evaluation/lm_eval.py: HarnessRun._keep": "a new file in a folder that make_folder has looked at",
    "evaluation/record.py: RecordFile.write": "replaces a name in a folder that make_folder has looked at",
    "evaluation/report.py": "a file that the user names",
    "queue/status.py": "files of the home's queue",
    "queue/store.py": "files of the home's queue",
    "queue/unit.py": "a systemd unit of the user's",
    "runs/control/devices.py: _open_lock": "a lock of the home",
    "runs/catalog/trained.py: held_checkpoint": "opened for reading, for a shared lock",
    "runs/catalog/trained.py: is_held": "opened for reading, for a shared lock",
    "runs/record/state.py: _kernel_messages": "reads the kernel's messages",
    "runs/record/state.py: write_ranks": "replaces a name in the run's own directory",
    "runs/catalog/removal.py": "deletes runs; rmtree follows no links, and the run's parent is the home's",
    "runs/record/files.py: confirm_checkpoints": "a record of the home",
    "runs/record/state.py: RunState.write": "replaces a name in the run's own directory; overwrite refuses links",
    "runs/record/store.py: write_labels": "replaces a name in the run's own directory",
    "runs/record/store.py": "a run that is being made",
    "runs/catalog/rows.py: RunCache.save": "a file of the home's cache",
    "worker/audit": "the private copy of an audit",
    "worker/checkpoint/checkpoint.py: save_checkpoint": "a new directory; refuse_moved_checkpoints comes first",
    "worker/checkpoint/checkpoint.py: save_tensors": "a file in that directory",
    "worker/checkpoint/checkpointer.py: Checkpointer._save_result.write": "a new directory of whole_directory",
    "worker/export": "a new directory, of exports or temporary",
    "worker/model": "new directories, of prepared models or temporary; streams go into a checkpoint's new directory",
    "worker/process/command_server.py: private_streams": "the null device",
    "worker/process/recorder.py: Recorder.__init__": "the null device, for a process that keeps no record",
    "worker/selftest": "runs that the self-test makes",
    "worker/setup/strategy.py: settle_kept_layers": "replaces a name in the run's own directory",
    "worker/setup/preparation.py: prepare": "replaces a name in the run's own directory",
}  # fmt: skip

#: Unlimited reads of files that no foreign run brings.
READERS = {
    "chat/engine.py: _last_line": "a log of the home, from near its end",
    "evaluation/probe": "a file of this program",
    "runs/record/state.py: _counter_files": "a file of the kernel",
    "runs/record/state.py: boot_id": "a file of the kernel",
    "runs/record/state.py: start_identity": "a file of the kernel",
    "worker/audit/compare.py": "files of a checkpoint whose sizes its manifest has, in a private copy",
    "worker/export": "files of an export or a tokenizer that this program has made or checked",
    "worker/generate": "no file",
    "worker/model/expert_offload.py": "no file",
    "worker/setup/provenance.py": "a file of the kernel",
    "worker/process/openmp.py": "files of the kernel",
    "worker/process/recorder.py: peak_rss_bytes": "a file of the kernel",
    "worker/selftest": "runs that the self-test makes",
    "worker/setup/compilation.py": "a file of the system; the rest is no file",
}

#: JSON that is parsed otherwise.
PARSERS = {
    "chat/answer_rows.py: _check_first": "a row of the user's",
    "chat/prompts.py": "a row of the user's",
    "chat/request.py": "a request, with limits of its own",
    "evaluation": "rows of the user's, answers of a model, and results of another program",
    "runs/record/events.py: decode_event": "events may have NaN; each field is checked for its limits",
    "runs/control/protocol.py: decode_message": "messages, with limits of their own",
    "worker/audit": "requests and answers of its own processes, and files of a private copy",
    "worker/distributed/ranks.py": "messages of the run's own processes",
    "worker/export": "files of an export or a tokenizer that this program has made or checked",
    "worker/measure": "a request of its parent",
    "worker/selftest": "requests of its parent, and runs that it makes",
    "worker/supervise": "reports of the run's own processes, each field checked",
}


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
        "reader": "read it by core.runs.record.tail.read_lines, or in pieces of a size",
        "parser": "parse it by core.small_files.parse_json",
    }
    assert not wrong, f"{ways[kind]}, or list it with its reason:\n" + "\n".join(wrong)
    assert not idle, f"these exceptions are of nothing: {sorted(idle)}"


@cases(
    ("source", "kind"),
    [
        ("os.truncate(path, 3)", "writer"),
        ("path.open('ab')", "writer"),
        ("self._path.open(mode='r+b')", "writer"),
        ("open(path, 'w', encoding='utf-8')", "writer"),
        ("os.open(path, flags)", "writer"),
        ("shutil.rmtree(path, ignore_errors=True)", "writer"),
        ("(directory / 'a').write_text('x')", "writer"),
        ("with path.open('rb') as file:\n    for line in file: pass", "reader"),
        ("with open_regular(path) as f, x as y:\n    found = [line for line in enumerate(f)]", "reader"),
        ("for line in BufferedReader(open_regular(path)): pass", "reader"),
        ("file.readline()", "reader"),
        ("path.read_text()", "reader"),
        ("json.loads(line)", "parser"),
        ("os.ftruncate(file, 0)", None),
        ("path.open('rb').read(100)", None),
        ("file.readline(LIMIT)", None),
        ("for line in read_lines(file, LIMIT): pass", None),
    ],
)
def test_it_finds_what_it_is_for(source: str, kind: str | None) -> None:
    found = [item[0] for item in findings(textwrap.dedent(source))]
    assert found == ([] if kind is None else [kind])
