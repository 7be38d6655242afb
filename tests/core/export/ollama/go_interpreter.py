"""Interpreter of the part of Go's ``text/template`` that exported templates are written in.

Text, trim markers, ``if``, ``range``, ``define``, ``template``, variables, fields, calls and literals have the meaning
of https://pkg.go.dev/text/template; anything else is refused. Texts are bytes, as in Go: their lengths and slices count
bytes. The data are the values that Ollama hands to a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<number>[0-9]+)(?![0-9A-Za-z_.])|(?P<variable>\$[A-Za-z0-9_]*)
      |(?P<field>\.[A-Za-z_][A-Za-z0-9_]*)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>:=|[().,=]))""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:([nrt\\\"])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}
_KEYWORDS = ("if", "else", "end", "range", "define", "template", "block", "with", "break", "continue")


class GoError(ValueError):
    """An invalid Go template, one with unsupported features, or one that ends with an error."""


@dataclass
class _State:
    """Dot, variables and output of a rendering."""

    dot: Any
    scope: list[tuple[str, Any]]
    out: list[bytes] = field(default_factory=list)

    def place(self, name: str) -> int:
        for place in range(len(self.scope) - 1, -1, -1):
            if self.scope[place][0] == name:
                return place
        raise GoError(f"undefined variable {name}")


_Value = Callable[[_State], Any]
_Node = Callable[[_State], None]


class GoTemplate:
    """A Go template, with the variables that Ollama gives it.

    Raises:
        GoError: If it is not valid.
    """

    def __init__(self, source: str) -> None:
        self._pieces = _pieces(source)
        self._named: dict[str, list[_Node]] = {}
        self._nodes, end = self._block()
        if end:
            raise GoError(f"unexpected {end}")

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
        data = {"System": system.encode(), "Messages": joined, "Response": b""}
        state = _State(data, [("$", data)])
        _run(self._nodes, state)
        return b"".join(state.out).decode("utf-8", "replace")

    def _block(self) -> tuple[list[_Node], str]:
        """Nodes up to the ``end`` or ``else`` that closes them, and that word."""
        found: list[_Node] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                found.append(_writer(piece.encode()))
                continue
            word = piece.peek()[1]
            if word not in _KEYWORDS:
                found.append(_statement(piece))
                continue
            piece.take()
            if word == "else" and piece.peek()[1] == "if":
                piece.take()
                found.append(self._if(piece))
                return found, "else if"
            if word in ("end", "else"):
                piece.finish()
                return found, word
            found.append(self._opened(word, piece))
        return found, ""

    def _opened(self, word: str, piece: _Action) -> _Node:
        if word == "if":
            return self._if(piece)
        if word == "range":
            return self._range(piece)
        if word not in ("template", "define"):
            raise GoError(f"{word} is not known here")
        name = piece.take("string")
        if word == "template":
            value = piece.pipeline()
            piece.finish()
            return self._invoked(name, value)
        piece.finish()
        self._named[name], end = self._block()
        if end != "end":
            raise GoError("a definition is not closed")
        return lambda _: None

    def _invoked(self, name: str, value: _Value) -> _Node:
        def run(state: _State) -> None:
            dot = value(state)
            if name not in self._named:
                raise GoError(f"template {name} not defined")
            _run(self._named[name], replace(state, dot=dot, scope=[("$", dot)]))

        return run

    def _if(self, piece: _Action) -> _Node:
        condition = piece.pipeline()
        piece.finish()
        then, otherwise = self._branches()
        return lambda state: _run(then if condition(state) else otherwise, state)

    def _range(self, piece: _Action) -> _Node:
        names: list[str] = []
        if piece.peek()[0] == "variable" and piece.peek(1)[1] in (",", ":="):
            names.append(piece.take())
            if piece.take("mark") == ",":
                names.append(piece.take("variable"))
                piece.take("mark")
        over = piece.pipeline()
        piece.finish()
        body, otherwise = self._branches()

        def run(state: _State) -> None:
            values = over(state)
            if not isinstance(values, list):
                raise GoError("range can't iterate over it")
            for at, value in enumerate(values):
                # Variables that are assigned inside stay assigned; declared ones end with the body.
                outer = len(state.scope)
                state.scope.extend(zip(names, (at, value) if len(names) == 2 else (value,), strict=False))
                _run(body, replace(state, dot=value))
                del state.scope[outer:]
            if not values:
                _run(otherwise, state)

        return run

    def _branches(self) -> tuple[list[_Node], list[_Node]]:
        then, end = self._block()
        if end == "else if":
            return then[:-1], then[-1:]
        otherwise: list[_Node] = []
        if end == "else":
            otherwise, end = self._block()
        if end != "end":
            raise GoError("a block is not closed")
        return then, otherwise


def _run(nodes: Sequence[_Node], state: _State) -> None:
    """Carry out a block; variables that it declares end with it."""
    outer = len(state.scope)
    for node in nodes:
        node(state)
    del state.scope[outer:]


def _writer(text: bytes) -> _Node:
    return lambda state: state.out.append(text)


def _statement(piece: _Action) -> _Node:
    """An assignment, or a value that is written."""
    if piece.peek()[0] == "variable" and piece.peek(1)[1] in (":=", "="):
        name, mark = piece.take(), piece.take()
        value = piece.pipeline()

        def assign(state: _State) -> None:
            if mark == ":=":
                state.scope.append((name, value(state)))
            else:
                state.scope[state.place(name)] = (name, value(state))

        node: _Node = assign
    else:
        written = piece.pipeline()

        def write(state: _State) -> None:
            if not isinstance(found := written(state), (bytes, int)):
                raise GoError("only texts, numbers and truth values are written")
            state.out.append(found if isinstance(found, bytes) else str(found).lower().encode())

        node = write
    piece.finish()
    return node


def _pieces(source: str) -> Iterator[str | _Action]:
    """Texts and actions in order, with trim markers carried out."""
    place, trims = 0, False
    while True:
        begin = source.find("{{", place)
        text = source[place:] if begin < 0 else source[place:begin]
        text = text.lstrip(_SPACE) if trims else text
        place = begin + 2
        if begin >= 0 and source[place : place + 1] == "-" and source[place + 1 : place + 2] in tuple(_SPACE):
            text, place = text.rstrip(_SPACE), place + 2
        if text:
            yield text
        if begin < 0:
            return
        tokens: list[tuple[str, str]] = []
        while (end := re.compile(r"[ \t\r\n]+-\}\}|[ \t\r\n]*\}\}").match(source, place)) is None:
            match = _TOKEN.match(source, place)
            if match is None or match.lastgroup is None:
                raise GoError(f"unexpected {source[place : place + 12]!r} in an action")
            tokens.append((match.lastgroup, match[match.lastgroup]))
            # A field belongs to the value before it unless there is space between them.
            if match.lastgroup == "field" and match[0][0] == "." and len(tokens) > 1 and tokens[-2][1] != "(":
                tokens[-1] = ("of", tokens[-1][1])
            place = match.end()
        place, trims = end.end(), "-" in end[0]
        yield _Action(tokens)


class _Action:
    """Tokens of an action, each with its kind."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._place = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else ("end", "")

    def take(self, kind: str = "") -> str:
        found = self.peek()
        if found[0] == "end" or (kind and found[0] != kind):
            raise GoError(f"unexpected {found[1]!r} in an action")
        self._place += 1
        return found[1]

    def finish(self) -> None:
        if self.peek()[0] != "end":
            raise GoError(f"unexpected {self.peek()[1]!r} in an action")

    def pipeline(self) -> _Value:
        """A value, or the call of a function."""
        if self.peek()[0] != "word" or self.peek()[1] in ("true", "false"):
            return self._operand()
        name, arguments = self.take(), list[_Value]()
        while self.peek()[0] != "end" and self.peek()[1] != ")":
            arguments.append(self._operand())
        if name in ("and", "or"):
            return lambda state: _decided(name, arguments, state)
        if name not in FUNCTIONS:
            raise GoError(f"function {name!r} not defined")
        return lambda state: _called(FUNCTIONS[name], [argument(state) for argument in arguments])

    def _operand(self) -> _Value:
        kind, text = self.peek()
        self.take()
        if kind in ("string", "number", "word"):
            if kind == "word" and text not in ("true", "false"):
                raise GoError(f"unexpected {text!r} in an action")
            value = _literal(text) if kind == "string" else int(text) if kind == "number" else text == "true"
            return lambda _: value
        if kind == "variable":
            found: _Value = lambda state: state.scope[state.place(text)][1]  # noqa: E731
        elif kind == "field":
            found = _field(lambda state: state.dot, text[1:])
        elif text == "(":
            found = self.pipeline()
            if self.take("mark") != ")":
                raise GoError("a parenthesis is not closed")
        elif text == ".":
            return lambda state: state.dot
        else:
            raise GoError(f"unexpected {text!r} in an action")
        while self.peek()[0] == "of":
            found = _field(found, self.take()[1:])
        return found


def _field(of: _Value, name: str) -> _Value:
    def read(state: _State) -> Any:
        value = of(state)
        if not isinstance(value, dict) or name not in value:
            raise GoError(f"can't evaluate field {name}")
        return value[name]

    return read


def _decided(name: str, arguments: Sequence[_Value], state: _State) -> Any:
    """The first argument that decides, or the last one; those after it are not evaluated."""
    value: Any = None
    for argument in arguments:
        value = argument(state)
        if bool(value) == (name == "or"):
            break
    return value


def _called(function: Callable[..., Any], values: Sequence[Any]) -> Any:
    try:
        return function(*values)
    except TypeError as error:
        raise GoError(str(error)) from error


def _literal(quoted: str) -> bytes:
    def replaced(match: re.Match[str]) -> str:
        return _SIMPLE[match[1]] if match[1] else chr(int(match[2] or match[3], 16))

    text = _ESCAPE.sub(replaced, quoted[1:-1])
    if "\\" in _ESCAPE.sub("", quoted[1:-1]):
        raise GoError("unknown escape")
    return text.encode()


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


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda first, other: not _equal(first, other),
    "lt": _less,
    "le": lambda first, other: not _less(other, first),
    "gt": lambda first, other: _less(other, first),
    "ge": lambda first, other: not _less(first, other),
    "not": lambda value: not value,
    "len": len,
    "index": _index,
    "slice": _slice,
}
