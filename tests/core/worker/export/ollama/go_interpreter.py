"""The part of Go's ``text/template`` that exported templates are written in, translated to Python and carried out.

Text, trim markers, ``if``, ``range``, ``define``, ``template``, variables, fields, calls and literals have the meaning
of https://pkg.go.dev/text/template; anything else is refused. Texts are bytes, as in Go: their lengths and slices count
bytes. The data are the values that Ollama hands to a template.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SPACE = " \t\r\n"
_STRING = r'"(?:[^"\\\n]|\\.)*"'
_ACTION = re.compile(rf'\{{\{{(-[{_SPACE}])?((?:{_STRING}|[^"])*?)([{_SPACE}]-)?\}}\}}')
_TOKEN = re.compile(rf"[{_SPACE}]*({_STRING}|[0-9]+(?![\w.])|[$.]?[A-Za-z_]\w*|[$.()=,]|:=)", re.ASCII)
_ESCAPE = re.compile(r"\\(?:([nrt\\\"])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}


class GoError(ValueError):
    """An invalid Go template, one with unsupported features, or one that ends with an error."""


@dataclass
class _Block:
    """A block whose statements are being translated: its function in Python, its dot and its variables by name."""

    kind: str
    lines: list[str]
    depth: int
    dot: str
    variables: dict[str, str]


class GoTemplate:
    """A Go template, with the variables that Ollama gives it.

    Raises:
        GoError: If it is not valid.
    """

    def __init__(self, source: str) -> None:
        self._functions: dict[str, list[str]] = {}
        self._blocks: list[_Block] = []
        self._define("")
        text, *parts = _ACTION.split(source)
        is_trimmed = False
        for left, action, right, after in zip(*(parts[at::4] for at in range(4)), strict=True):
            self._write_text(text.rstrip(_SPACE) if left else text, is_trimmed)
            self._tokens = [*_tokens(action), ""]
            self._statement()
            self._expect("")
            text, is_trimmed = after, right is not None
        self._write_text(text, is_trimmed)
        if len(self._blocks) > 1:
            raise GoError("a block is not closed")
        self._made: dict[str, Callable[[Any, list[bytes]], None]] = {}
        for name, lines in self._functions.items():
            made: dict[str, Any] = {**_FUNCTIONS, **_RUNTIME, "templates": self._made}
            exec("\n".join(lines), made)  # noqa: S102 - translated here
            self._made[name] = made["run"]

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
        try:
            self._made[""]({"System": system.encode(), "Messages": joined, "Response": b""}, out)
        except (LookupError, TypeError) as error:
            raise GoError(str(error)) from error
        return b"".join(out).decode("utf-8", "replace")

    def _emit(self, code: str) -> None:
        self._blocks[-1].lines.append(" " * self._blocks[-1].depth + code)

    def _write_text(self, text: str, is_trimmed: bool) -> None:
        if "{{" in text:
            raise GoError("an action is not closed")
        self._emit(f"out.append({(text.lstrip(_SPACE) if is_trimmed else text).encode()!r})")

    def _open(self, kind: str, code: str, dot: str = "", names: Mapping[str, str] | None = None) -> None:
        self._emit(code)
        outer = self._blocks[-1]
        variables = {**outer.variables, **(names or {})}
        self._blocks.append(_Block(kind, outer.lines, outer.depth + 1, dot or outer.dot, variables))

    def _define(self, name: str) -> None:
        lines = self._functions[name] = ["def run(root, out):"]
        self._blocks.append(_Block("define", lines, 1, "root", {"$": "root"}))

    def _take(self) -> str:
        return self._tokens.pop(0)

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise GoError(f"unexpected {found!r} in an action")

    def _statement(self) -> None:
        word, block = self._tokens[0], self._blocks[-1]
        if word[:1] == "$" and self._tokens[1] in (":=", "="):
            self._take()
            if self._take() == ":=":
                value, block.variables[word] = self._call(), f"v{len(block.lines)}"
            else:
                value = self._call()
            self._emit(f"{self._variable(word)} = {value}")
        elif word not in ("if", "else", "end", "range", "define", "template"):
            self._emit(f"out.append(written({self._call()}))")
        else:
            self._take()
            getattr(self, f"_on_{word}")()

    def _on_if(self) -> None:
        self._open("if", f"if {self._call()}:")

    def _on_else(self) -> None:
        self._close("if")
        if self._tokens[0] == "if":
            self._take()
            self._open("if", f"elif {self._call()}:")
        else:
            self._open("else", "else:")

    def _on_end(self) -> None:
        self._close("if", "else", "range", "define")

    def _close(self, *kinds: str) -> None:
        if len(self._blocks) == 1 or self._blocks.pop().kind not in kinds:
            raise GoError("unexpected end or else")

    def _on_range(self) -> None:
        names: list[str] = []
        if ":=" in self._tokens:
            place = self._tokens.index(":=")
            names = self._tokens[:place:2]
            del self._tokens[: place + 1]
        index, item = (f"{kind}{len(self._blocks[-1].lines)}" for kind in ("index", "item"))
        code = f"for {index}, {item} in enumerate(listed({self._call()})):"
        self._open("range", code, item, dict(zip(reversed(names), (item, index), strict=False)))

    def _on_define(self) -> None:
        if len(self._blocks) > 1:
            raise GoError("a definition stands in a block")
        self._define(self._take()[1:-1])

    def _on_template(self) -> None:
        self._emit(f"templates[{self._take()[1:-1]!r}]({self._call()}, out)")

    def _variable(self, name: str) -> str:
        if name not in self._blocks[-1].variables:
            raise GoError(f"undefined variable {name}")
        return self._blocks[-1].variables[name]

    def _call(self) -> str:
        """A value, or the call of a function, as Python."""
        name, arguments = self._tokens[0], list[str]()
        if not name.isidentifier() or name in ("true", "false"):
            return self._operand()
        self._take()
        while self._tokens[0] not in ("", ")"):
            arguments.append(self._operand())
        if name in ("and", "or") and arguments:
            return f"({f' {name} '.join(arguments)})"
        if name not in _FUNCTIONS:
            raise GoError(f"function {name!r} not defined")
        return f"{name}_({', '.join(arguments)})" if name == "not" else f"{name}({', '.join(arguments)})"

    def _operand(self) -> str:
        token, dot = self._take(), self._blocks[-1].dot
        if token[:1] == '"':
            return repr(_literal(token))
        if token.isdecimal() or token in ("true", "false"):
            return token.capitalize()
        if token[:1] == "$":
            found = self._variable(token)
        elif token == "(":
            found = self._call()
            self._expect(")")
        elif token[:1] == ".":
            found = f"{dot}[{token[1:]!r}]" if token[1:] else dot
        else:
            raise GoError(f"unexpected {token!r} in an action")
        while self._tokens[0][:1] == ">":
            found = f"{found}[{self._take()[2:]!r}]"
        return found


def _tokens(action: str) -> list[str]:
    """Tokens of an action; a field of the value before it begins with ``>``."""
    found: list[str] = []
    place, end = 0, len(action.rstrip(_SPACE))
    while place < end:
        if (match := _TOKEN.match(action, place)) is None:
            raise GoError(f"unexpected {action[place : place + 12]!r} in an action")
        is_of = match[0][0] == "." and found and found[-1] != "("
        found.append(f">{match[1]}" if is_of else match[1])
        place = match.end()
    return found


def _literal(quoted: str) -> bytes:
    if "\\" in _ESCAPE.sub("", quoted):
        raise GoError("unknown escape")
    return _ESCAPE.sub(lambda m: _SIMPLE[m[1]] if m[1] else chr(int(m[2] or m[3], 16)), quoted[1:-1]).encode()


# Called by the translated templates.


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("range can't iterate over it")
    return value


def _written(value: Any) -> bytes:
    if not isinstance(value, (bytes, int)):
        raise TypeError("only texts, numbers and truth values are written")
    return value if isinstance(value, bytes) else str(value).lower().encode()


def _comparable(first: Any, other: Any) -> None:
    if type(first) is not type(other) or not isinstance(first, (bytes, int)):
        raise TypeError("incompatible types for comparison")


def _equal(first: Any, second: Any, *others: Any) -> bool:
    for other in (second, *others):
        _comparable(first, other)
        if first == other:
            return True
    return False


def _at_least(first: Any, other: Any) -> bool:
    _comparable(first, other)
    return bool(first >= other)


def _slice(value: Any, begin: int = 0, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not 0 <= begin <= end <= len(value):
        raise IndexError(f"index out of range: {begin}:{end}")
    return value[begin:end]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, other: not _equal(first, other),
    "ge": _at_least,
    "not": operator.not_,
    "len": len,
    "index": operator.getitem,
    "slice": _slice,
}
_RUNTIME = {"listed": _listed, "written": _written, "not_": operator.not_}
