"""Settings in a script or a notebook: literal arguments of its calls, from the syntax tree; nothing is run."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.small_files import read_small
from core.text import one_line
from core.yaml.file import YamlFile

#: Most bytes of a notebook with its outputs, and most characters of code.
_NOTEBOOK, _CODE = 32 << 20, 128 << 10
_LARGEST = 1 << 63
#: Most values in the list or dictionary of a name; a list of such names would have any number.
_PARTS = 1000

# The calls, by the last part of their name; the first of each kind counts.
_CALLS = {
    **dict.fromkeys(("SFTTrainer", "UnslothTrainer", "Trainer", "Seq2SeqTrainer"), "trainer"),
    **dict.fromkeys(("DPOTrainer", "ORPOTrainer", "KTOTrainer", "GRPOTrainer", "RewardTrainer"), "trainer"),
    **dict.fromkeys(("SFTConfig", "TrainingArguments", "UnslothTrainingArguments", "DPOConfig"), "arguments"),
    **dict.fromkeys(("ORPOConfig", "KTOConfig", "GRPOConfig", "Seq2SeqTrainingArguments"), "arguments"),
    "get_peft_model": "adapter",
    "LoraConfig": "adapter",
    "from_pretrained": "model",
    "get_chat_template": "template",
    "train_on_responses_only": "responses",
}
_FIRST = {"model": "model_name", "arguments": "output_dir"}
_OBJECTS = {"model", "tokenizer", "processing_class", "args", "train_dataset", "eval_dataset", None}
_DATA = ("train_dataset", "eval_dataset")
_LOADER = ("path", "name")
_SELECTS = (*_LOADER, "split", "data_files", "revision")


@dataclass(frozen=True)
class CodeFile(YamlFile):
    """The settings in a file.

    Args:
        computed: Arguments that are no literals, with their code.
        left: Places that are not read, with their code and the reason.
    """

    computed: dict[str, str] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_calls(path: Path) -> CodeFile:
    """Read a script or a notebook in the sandbox; blocks.

    Raises:
        UserError: If it cannot be read, is too large, or has no model of Unsloth's.
    """
    return sandboxed(read_code, one_line(str(path)), rights=reading(path))(path)


def read_code(path: Path) -> CodeFile:
    """Read a file in this process; see :func:`read_calls`.

    Raises:
        UserError: As :func:`read_calls`.
    """
    shown, is_notebook = one_line(str(path)), path.suffix.lower() == ".ipynb"
    try:
        text = read_small(path, _NOTEBOOK if is_notebook else _CODE).decode("utf-8-sig")
        pieces = _cells(text) if is_notebook else [("", text)]
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        noun = "a notebook" if is_notebook else "UTF-8 text"
        raise UserError(f"{shown} is not {noun}.", "Check the path.") from error
    if sum(len(code) for _, code in pieces) > _CODE:
        raise UserError(f"{shown} has more than {_CODE >> 10} KB of code.", "Check the path.")
    reader = _Reader()
    for cell, code in pieces:
        try:
            reader.read(ast.parse(code), cell)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if not cell:
                line = f", line {error.lineno}," if isinstance(error, SyntaxError) and error.lineno else ""
                raise UserError(f"{shown}{line} is not Python.", "Fix it.") from error
            reader.left[cell] = (one_line(code.strip(), 60), "The cell is not Python, and is not read.")
    reader.finish()
    if "model" not in reader.seen:
        raise UserError(
            f"{shown} has no call of FastLanguageModel.from_pretrained, by which a program of Unsloth is known.",
            "Name the script or notebook that trains, or write its settings to a configuration.",
        )
    return CodeFile(path, reader.values, reader.lines, {}, reader.computed, reader.left)


def _cells(text: str) -> list[tuple[str, str]]:
    """The code of a notebook by cell, without its magic commands."""
    found = []
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        code = "".join(cell["source"])
        first = code.lstrip().partition("\n")[0]
        if cell["cell_type"] == "code" and (not first.startswith("%%") or first.startswith(("%%capture", "%%time"))):
            found.append((f"cell {number}", _without_magic(code)))
    return found


def _without_magic(code: str) -> str:
    """Python alone: commands of a shell and of the notebook become ``pass``, with the lines that continue them."""
    lines, goes_on = [], False
    for line in code.split("\n"):
        bare = line.lstrip()
        if goes_on or bare[:1] in ("!", "%", "?"):
            goes_on = line.rstrip().endswith("\\")
            line = f"{line[: len(line) - len(bare)]}pass" if bare[:1] in ("!", "%", "?") else ""
        lines.append(line)
    return "\n".join(lines)


class _Reader:
    """Follows the statements in order: constants, the origin of names, and the calls."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}
        self.computed: dict[str, str] = {}
        self.left: dict[str, tuple[str, str]] = {}
        self.seen: set[str] = set()
        self._constants: dict[str, Any] = {}
        self._origins: dict[str, list[ast.AST]] = {}
        self._data: dict[str, ast.AST] = {}
        self._loads: list[ast.Call] = []

    def read(self, tree: ast.AST, cell: str) -> None:
        """Read a piece of code."""
        for node in _in_order(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.FunctionDef):
                self._origins.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Call):
                self._call(node, cell)

    def finish(self) -> None:
        """Find the datasets: those loaded for the trainer, else all of them."""
        for key, node in self._data.items():
            loads = list(self._loaded(node))
            if key == "train_dataset" and not loads:
                loads = self._loads
            entries = [entry for load in loads if (entry := self._entry(load)) is not None]
            entries = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
            if entries and len(entries) == len(loads):
                self.values[key] = entries
            elif not (isinstance(node, ast.Constant) and node.value is None):
                self.computed[key] = one_line(ast.unparse(loads[0] if loads else node), 200)

    def _assign(self, target: ast.AST, value: ast.AST) -> None:
        for name in [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]:
            self._constants.pop(name, None)
            with contextlib.suppress(ValueError):
                if isinstance(target, ast.Name) and _parts(constant := self._value(value)) <= _PARTS:
                    self._constants[name] = constant
            self._origins.setdefault(name, []).append(value)

    def _call(self, node: ast.Call, cell: str) -> None:
        name, owner = _name(node)
        kind = _CALLS.get(name)
        if name == "load_dataset":
            self._loads.append(node)
        elif name == "map" and isinstance(node.func, ast.Attribute):
            self.values["dataset.map"] = True
        if kind is None or (name in ("from_pretrained", "get_peft_model") and not owner.startswith("Fast")):
            return
        if kind in self.seen:
            place = cell or f"line {node.lineno}"
            self.left.setdefault(place, (name, "A later call of its kind: the first one counts."))
            return
        self.seen.add(kind)
        if kind == "model":
            self._take("model_class", ast.Constant(owner), cell, node.lineno)
        elif kind in ("trainer", "responses"):
            self._take(kind, ast.Constant(name if kind == "trainer" else True), cell, node.lineno)
        if kind in _FIRST and node.args:
            self._take(_FIRST[kind], node.args[0], cell, node.lineno)
        for keyword in node.keywords if kind != "responses" else ():
            self._keyword(keyword, cell)

    def _keyword(self, keyword: ast.keyword, cell: str) -> None:
        key, line = keyword.arg, keyword.value.lineno
        if key in _DATA:
            self._data.setdefault(key, keyword.value)
        elif key not in _OBJECTS and key is not None:
            self._take(key, keyword.value, cell, line)
        elif key is None:
            try:
                given = self._value(keyword.value)
            except ValueError:
                given = None
            for name, value in given.items() if isinstance(given, dict) else ():
                self._take(str(name), ast.Constant(value), cell, line)
            if not isinstance(given, dict):
                self.computed[f"**{one_line(ast.unparse(keyword.value), 60)}"] = ""

    def _take(self, key: str, node: ast.AST, cell: str, line: int) -> None:
        self.computed.pop(key, None)
        self.values.pop(key, None)
        if not cell:
            self.lines[key] = line
        try:
            self.values[key] = self._value(node)
        except ValueError:
            self.computed[key] = one_line(ast.unparse(node), 200)

    def _value(self, node: ast.AST) -> Any:
        """The value of a literal, of a constant or of arithmetic with them.

        Raises:
            ValueError: If it is computed otherwise.
        """
        if isinstance(node, ast.Name) and node.id in self._constants:
            return self._constants[node.id]
        if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, complex, type(...))):
            return _bounded(node.value)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._value(item) for item in node.elts]
        if isinstance(node, ast.Dict) and None not in node.keys:
            keys = [str(self._value(key)) for key in node.keys if key is not None]
            return dict(zip(keys, (self._value(value) for value in node.values), strict=True))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -_number(self._value(node.operand))
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
            left, right = _number(self._value(node.left)), _number(self._value(node.right))
            add, subtract = isinstance(node.op, ast.Add), isinstance(node.op, ast.Sub)
            return _bounded(left + right if add else left - right if subtract else left * right)
        raise ValueError

    def _loaded(self, node: ast.AST) -> Iterator[ast.Call]:
        """Calls of ``load_dataset`` that an expression comes from."""
        origins, seen = [node], set[str]()
        for origin in origins:
            for each in ast.walk(origin):
                if isinstance(each, ast.Call) and _name(each)[0] == "load_dataset":
                    yield each
                elif isinstance(each, ast.Name) and each.id not in seen:
                    seen.add(each.id)
                    origins += self._origins.get(each.id, ())

    def _entry(self, load: ast.Call) -> dict[str, Any] | None:
        """A dataset as ``path``, ``name``, ``split``, ``data_files`` and ``revision``; None if it is computed."""
        given = [*zip(_LOADER, load.args, strict=False), *((item.arg or "", item.value) for item in load.keywords)]
        try:
            entry = {key: self._value(node) for key, node in given if key in _SELECTS}
        except ValueError:
            return None
        files = entry.get("data_files")
        if isinstance(files, dict):
            split = str(entry.get("split") or "train").partition("[")[0]
            entry["data_files"] = files.get(split) or next(iter(files.values()), None)
        return {key: value for key, value in entry.items() if value is not None} if "path" in entry else None


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes in the order of the code, without those after ``if False``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Constant) and not child.test.value:
            yield from _in_order(ast.Module(child.orelse, []))
        else:
            yield child
            yield from _in_order(child)


def _name(call: ast.Call) -> tuple[str, str]:
    """The last part of the name of a call, and the name before it."""
    function = call.func
    if isinstance(function, ast.Attribute):
        owner = function.value
        return function.attr, getattr(owner, "id", "") or getattr(owner, "attr", "")
    return (function.id if isinstance(function, ast.Name) else ""), ""


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return value


def _parts(value: Any) -> int:
    """The number of values in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_parts, inner))


def _bounded(value: Any) -> Any:
    if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
        raise ValueError
    return value
