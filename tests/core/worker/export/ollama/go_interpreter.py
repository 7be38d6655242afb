"""The part of Go's ``text/template`` that exported templates are written in, translated to Python and carried out.

Text, trim markers, ``if``, ``range``, ``define``, ``template``, variables, fields, calls and literals have the meaning
of https://pkg.go.dev/text/template; anything else is refused. Texts are bytes, as in Go: their lengths and slices count
bytes. The data are the values that Ollama hands to a template.
"""

from __future__ import annotations

import itertools
import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_SPACE = " \t\r\n"
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_ACTION = re.compile(rf'\{{\{{(-[{_SPACE}])?((?:{_STRING}|[^"])*?)([{_SPACE}]-)?\}}\}}')
_TOKEN = re.compile(
    rf"""[{_SPACE}]*(?:(?P<string>{_STRING})|(?P<number>[0-9]+)(?![\w.])|(?P<variable>\$\w*)
      |(?P<field>\.[A-Za-z_]\w*)|(?P<word>[A-Za-z_]\w*)|(?P<mark>:=|[().,=]))""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:([nrt\\\"])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}


class GoError(ValueError):
    """An invalid Go template, one with unsupported features, or one that ends with an error."""


@dataclass
class _Block:
    """A block whose statements are being translated: its lines of Python, its dot and its variables."""

    kind: str
    lines: list[str]
    depth: int
    dot: str
    scope: ChainMap[str, str]


class GoTemplate:
    """A Go template, with the variables that Ollama gives it.

    Raises:
        GoError: If it is not valid.
    """

    def __init__(self, source: str) -> None:
        self._numbers = itertools.count()
        self._functions: dict[str, list[str]] = {}
        self._blocks: list[_Block] = []
        self._define("")
        text, *parts = _ACTION.split(source)
        is_trimmed = False
        for left, action, right, after in zip(*(parts[at::4] for at in range(4)), strict=True):
            self._write_text(text.rstrip(_SPACE) if left else text, is_trimmed)
            self._tokens = _tokens(action)
            self._statement()
            if self._tokens:
                raise GoError(f"unexpected {self._tokens[0][1]!r} in an action")
            text, is_trimmed = after, right is not None
        self._write_text(text, is_trimmed)
        if len(self._blocks) > 1:
            raise GoError("a block is not closed")
        self._named: dict[str, Callable[[Any, list[bytes]], None]] = {}
        for name, lines in self._functions.items():
            made: dict[str, Any] = dict(_RUNTIME, named=self._named)
            exec("\n".join(lines), made)  # noqa: S102 - translated here
            self._named[name] = made["run"]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render a conversation as Ollama does: messages of one role that follow each other are joined to one.

        Raises:
            GoError: If the template ends with an error.
        """
        joined: list[dict[str, bytes]] = []
        for message in messages:
            role, content = message["role"].encode(), message["content"].encode()
            if joined and joined[-1]["Role"] == role != b"tool":
                joined[-1]["Content"] += b"\n\n" + content
            else:
                thinking = message.get("reasoning_content", "").encode()
                joined.append({"Role": role, "Content": content, "Thinking": thinking})
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        out: list[bytes] = []
        self._named[""]({"System": system.encode(), "Messages": joined, "Response": b""}, out)
        return b"".join(out).decode("utf-8", "replace")

    def _emit(self, code: str) -> None:
        block = self._blocks[-1]
        block.lines.append(" " * block.depth + code)

    def _write_text(self, text: str, is_trimmed: bool) -> None:
        if "{{" in text:
            raise GoError("an action is not closed")
        self._emit(f"out.append({(text.lstrip(_SPACE) if is_trimmed else text).encode()!r})")

    def _open(self, kind: str, code: str) -> _Block:
        self._emit(code)
        outer = self._blocks[-1]
        self._blocks.append(replace(outer, kind=kind, depth=outer.depth + 1, scope=outer.scope.new_child()))
        self._emit("pass")
        return self._blocks[-1]

    def _define(self, name: str) -> None:
        lines = self._functions[name] = ["def run(root, out):"]
        self._blocks.append(_Block("define", lines, 1, "root", ChainMap({"$": "root"})))

    def _declare(self, variable: str) -> str:
        name = self._blocks[-1].scope[variable] = f"v{next(self._numbers)}"
        return name

    def _statement(self) -> None:
        kind, word = self._peek()
        if kind == "variable" and self._peek(1)[1] in (":=", "="):
            self._take()
            is_new, value = self._take() == ":=", self._pipeline()
            self._emit(f"{self._declare(word) if is_new else self._variable(word)} = {value}")
        elif word not in ("if", "else", "end", "range", "define", "template"):
            self._emit(f"out.append(written({self._pipeline()}))")
        else:
            self._take()
            getattr(self, f"_on_{word}")()

    def _on_if(self) -> None:
        self._open("if", f"if {self._pipeline()}:")

    def _on_else(self) -> None:
        if self._blocks.pop().kind != "if" or not self._blocks:
            raise GoError("unexpected else")
        if self._peek()[1] == "if":
            self._take()
            self._open("if", f"elif {self._pipeline()}:")
        else:
            self._open("else", "else:")

    def _on_end(self) -> None:
        self._blocks.pop()
        if not self._blocks:
            raise GoError("unexpected end")

    def _on_range(self) -> None:
        names: list[str] = []
        if self._peek()[0] == "variable" and self._peek(1)[1] in (",", ":="):
            names.append(self._take())
            if self._take("mark") == ",":
                names.append(self._take("variable"))
                self._take("mark")
        place, item = (f"v{next(self._numbers)}" for _ in range(2))
        block = self._open("range", f"for {place}, {item} in enumerate(listed({self._pipeline()})):")
        block.dot = item
        block.scope.update(zip(names, (place, item) if len(names) == 2 else (item,), strict=False))

    def _on_define(self) -> None:
        if len(self._blocks) > 1:
            raise GoError("a definition stands in a block")
        self._define(self._take("string")[1:-1])

    def _on_template(self) -> None:
        name = self._take("string")[1:-1]
        self._emit(f"invoked(named, {name!r})({self._pipeline()}, out)")

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[ahead] if ahead < len(self._tokens) else ("end", "")

    def _take(self, kind: str = "") -> str:
        found = self._peek()
        if found[0] == "end" or (kind and found[0] != kind):
            raise GoError(f"unexpected {found[1]!r} in an action")
        return self._tokens.pop(0)[1]

    def _variable(self, name: str) -> str:
        if name not in self._blocks[-1].scope:
            raise GoError(f"undefined variable {name}")
        return self._blocks[-1].scope[name]

    def _pipeline(self) -> str:
        """A value, or the call of a function, as Python."""
        if self._peek()[0] != "word" or self._peek()[1] in ("true", "false"):
            return self._operand()
        name, arguments = self._take(), list[str]()
        while self._peek()[0] != "end" and self._peek()[1] != ")":
            arguments.append(self._operand())
        if name in ("and", "or") and arguments:
            return f"({f' {name} '.join(arguments)})"
        if name not in _FUNCTIONS:
            raise GoError(f"function {name!r} not defined")
        return f"called({name!r}, {', '.join(arguments)})"

    def _operand(self) -> str:
        kind, text = self._peek()
        self._take()
        if kind == "string":
            return repr(_literal(text))
        if kind == "number" or text in ("true", "false"):
            return text.capitalize()
        if kind == "variable":
            found = self._variable(text)
        elif kind == "field":
            found = f"field({self._blocks[-1].dot}, {text[1:]!r})"
        elif text == "(":
            found = self._pipeline()
            if self._take("mark") != ")":
                raise GoError("a parenthesis is not closed")
        elif text == ".":
            return self._blocks[-1].dot
        else:
            raise GoError(f"unexpected {text!r} in an action")
        while self._peek()[0] == "of":
            found = f"field({found}, {self._take()[1:]!r})"
        return found


def _tokens(action: str) -> list[tuple[str, str]]:
    """Tokens of an action, each with its kind."""
    found: list[tuple[str, str]] = []
    place, end = 0, len(action.rstrip(_SPACE))
    while place < end:
        match = _TOKEN.match(action, place)
        if match is None or match.lastgroup is None:
            raise GoError(f"unexpected {action[place : place + 12]!r} in an action")
        # A field belongs to the value before it unless there is space between them.
        is_of = match.lastgroup == "field" and match[0][0] == "." and found and found[-1][1] != "("
        found.append(("of" if is_of else match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


def _literal(quoted: str) -> bytes:
    text = _ESCAPE.sub(lambda m: _SIMPLE[m[1]] if m[1] else chr(int(m[2] or m[3], 16)), quoted[1:-1])
    if "\\" in _ESCAPE.sub("", quoted[1:-1]):
        raise GoError("unknown escape")
    return text.encode()


# Called by the translated templates.


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise GoError(f"can't evaluate field {name}")
    return value[name]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise GoError("range can't iterate over it")
    return value


def _written(value: Any) -> bytes:
    if not isinstance(value, (bytes, int)):
        raise GoError("only texts, numbers and truth values are written")
    return value if isinstance(value, bytes) else str(value).lower().encode()


def _invoked(named: Mapping[str, Any], name: str) -> Any:
    if name not in named:
        raise GoError(f"template {name} not defined")
    return named[name]


def _called(name: str, *values: Any) -> Any:
    try:
        return _FUNCTIONS[name](*values)
    except TypeError as error:
        raise GoError(str(error)) from error


def _equal(first: Any, second: Any, *others: Any) -> bool:
    for other in (second, *others):
        if type(first) is not type(other) or not isinstance(first, (bytes, int)):
            raise GoError("incompatible types for comparison")
        if first == other:
            return True
    return False


def _less(first: Any, other: Any) -> bool:
    if type(first) is not type(other) or type(first) not in (bytes, int):
        raise GoError("incompatible types for comparison")
    return bool(first < other)


def _index(value: Any, place: Any) -> Any:
    if not isinstance(value, list) or type(place) is not int or not 0 <= place < len(value):
        raise GoError(f"index out of range: {place}")
    return value[place]


def _slice(value: Any, begin: int = 0, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not isinstance(value, (bytes, list)) or not 0 <= begin <= end <= len(value):
        raise GoError(f"index out of range: {begin}:{end}")
    return value[begin:end]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, other: not _equal(first, other),
    "ge": lambda first, other: not _less(first, other),
    "not": lambda value: not value,
    "len": len,
    "index": _index,
    "slice": _slice,
}
_RUNTIME = {"field": _field, "listed": _listed, "written": _written, "invoked": _invoked, "called": _called}
