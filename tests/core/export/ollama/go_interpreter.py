"""Interpreter of the part of Go's ``text/template`` that exported templates are written in.

Text, comments, trim markers, ``if``, ``range``, ``define``, ``template``, variables, fields, calls and literals have
the meaning of https://pkg.go.dev/text/template; anything else is refused. Texts are bytes, as in Go: their lengths and
slices count bytes. The data are the values that Ollama hands to a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Literal:
    """A text, number or truth value."""

    value: bytes | int | bool


@dataclass(frozen=True)
class Dot:
    """The value that ``.`` stands for."""


@dataclass(frozen=True)
class Variable:
    """A variable; its name has the dollar sign."""

    name: str


@dataclass(frozen=True)
class Fields:
    """Fields of a value, one after another."""

    of: Operand
    names: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A call of a function."""

    function: str
    arguments: tuple[Operand, ...]


Operand = Literal | Dot | Variable | Fields | Call


@dataclass(frozen=True)
class Text:
    """Text that is written as it is."""

    text: bytes


@dataclass(frozen=True)
class Output:
    """A value that is written."""

    value: Operand


@dataclass(frozen=True)
class Assign:
    """A variable that gets a value; a new one if it is declared."""

    name: str
    value: Operand
    declares: bool


@dataclass(frozen=True)
class If:
    """A condition with its two branches."""

    condition: Operand
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class Range:
    """A loop, with the variables for index and element; empty where it has none."""

    over: Operand
    index: str
    element: str
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class Invoke:
    """A named template, carried out with a value."""

    name: str
    value: Operand


Node = Text | Output | Assign | If | Range | Invoke


@dataclass(frozen=True)
class Tree:
    """A parsed template."""

    nodes: tuple[Node, ...]
    named: dict[str, tuple[Node, ...]] = field(default_factory=dict)


#: What trim markers remove.
_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<raw>`[^`]*`)
      | (?P<number>[0-9]+)(?![0-9A-Za-z_.])
      | (?P<variable>\$[A-Za-z0-9_]*)
      | (?P<field>\.[A-Za-z_][A-Za-z0-9_]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>:=|[().,=])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34}
_KEYWORDS = ("if", "else", "end", "range", "define", "template", "block", "with", "break", "continue")


class GoSyntaxError(ValueError):
    """A Go template is not valid, or uses what is not carried out here."""


def parse(source: str) -> Tree:
    """Parse a Go template.

    Raises:
        GoSyntaxError: If it is not valid, or outside of the part that is known here.
    """
    parser = _Parser(list(_pieces(source)))
    nodes, end = parser.nodes()
    if end:
        raise GoSyntaxError(f"unexpected {{{{{end}}}}}")
    return Tree(nodes, parser.named)


def _pieces(source: str) -> Iterator[str | _Action]:
    """Texts and actions in order, with trim markers carried out."""
    place, trims = 0, False
    while place <= len(source):
        begin = source.find("{{", place)
        text = source[place:] if begin < 0 else source[place:begin]
        if trims:
            text = text.lstrip(_SPACE)
        if begin < 0:
            if text:
                yield text
            return
        place = begin + 2
        if source[place : place + 1] == "-" and source[place + 1 : place + 2] in tuple(_SPACE):
            text = text.rstrip(_SPACE)
            place += 2
        if text:
            yield text
        if source[place:].lstrip(_SPACE).startswith("/*"):
            place = source.find("*/", place) + 2
            match = re.compile(r"[ \t\r\n]-\}\}|\}\}").match(source, place)
            if place < 2 or match is None:
                raise GoSyntaxError("a comment is not closed")
            place, trims = match.end(), match.group() != "}}"
            continue
        action, place, trims = _read_action(source, place)
        yield action


class _Action:
    """The tokens of an action, each with its kind, and whether space is before it."""

    def __init__(self, tokens: list[tuple[str, str, bool]]) -> None:
        self._tokens = tokens
        self._place = 0

    def peek(self, ahead: int = 0) -> tuple[str, str, bool]:
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else ("end", "", False)

    def take(self, kind: str = "", text: str = "") -> str:
        """The next token.

        Raises:
            GoSyntaxError: If it is not of this kind, or not this text.
        """
        found = self.peek()
        if found[0] == "end" or (kind and found[0] != kind) or (text and found[1] != text):
            raise GoSyntaxError(f"unexpected {found[1]!r} in an action")
        self._place += 1
        return found[1]

    def is_at(self, text: str) -> bool:
        return self.peek()[0] in ("word", "mark") and self.peek()[1] == text

    def finish(self) -> None:
        """Check that nothing is left."""
        if self.peek()[0] != "end":
            raise GoSyntaxError(f"unexpected {self.peek()[1]!r} in an action")


def _read_action(source: str, place: int) -> tuple[_Action, int, bool]:
    tokens: list[tuple[str, str, bool]] = []
    has_space = True
    while True:
        if source.startswith("}}", place):
            return _Action(tokens), place + 2, False
        if has_space and tokens and source.startswith("-}}", place):
            return _Action(tokens), place + 3, True
        match = _TOKEN.match(source, place)
        if match is None or match.lastgroup is None:
            raise GoSyntaxError(f"unexpected {source[place : place + 12]!r} in an action")
        place = match.end()
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group(), has_space))
        has_space = match.lastgroup == "space"


class _Parser:
    def __init__(self, pieces: list[str | _Action]) -> None:
        self._pieces = iter(pieces)
        self.named: dict[str, tuple[Node, ...]] = {}

    def nodes(self, depth: int = 0) -> tuple[tuple[Node, ...], str]:
        """Nodes up to the ``end`` or ``else`` that closes them, and that word; ``else if`` is one."""
        found: list[Node] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                found.append(Text(piece.encode()))
                continue
            word = piece.peek()[1] if piece.peek()[0] == "word" else ""
            if word not in _KEYWORDS:
                found.append(_statement(piece))
                continue
            piece.take()
            if word == "end":
                piece.finish()
                return tuple(found), "end"
            if word == "else":
                if piece.is_at("if"):
                    piece.take()
                    # As if nested, with one end for both.
                    return tuple(found), self._open("else if", self._if(piece, depth))
                piece.finish()
                return tuple(found), "else"
            if word == "if":
                found.append(self._if(piece, depth))
            elif word == "range":
                found.append(self._range(piece, depth))
            elif word == "template":
                name = _literal(piece.take("string")).decode()
                found.append(Invoke(name, _pipeline(piece)))
                piece.finish()
            elif word == "define" and depth == 0:
                name = _literal(piece.take("string")).decode()
                piece.finish()
                self.named[name], end = self.nodes(depth + 1)
                if end != "end":
                    raise GoSyntaxError("a definition is not closed")
            else:
                raise GoSyntaxError(f"{word} is not known here")
        return tuple(found), ""

    def _open(self, end: str, node: If) -> str:
        self._nested = node
        return end

    def _if(self, action: _Action, depth: int) -> If:
        condition = _pipeline(action)
        action.finish()
        then, otherwise = self._branches(depth)
        return If(condition, then, otherwise)

    def _branches(self, depth: int) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        then, end = self.nodes(depth + 1)
        if end == "else if":
            return then, (self._nested,)
        otherwise: tuple[Node, ...] = ()
        if end == "else":
            otherwise, end = self.nodes(depth + 1)
        if end != "end":
            raise GoSyntaxError("a block is not closed")
        return then, otherwise

    def _range(self, action: _Action, depth: int) -> Range:
        index = element = ""
        if action.peek()[0] == "variable" and action.peek(1)[1] in (",", ":="):
            element = action.take("variable")
            if action.is_at(","):
                action.take()
                index, element = element, action.take("variable")
            action.take("mark", ":=")
        over = _pipeline(action)
        action.finish()
        body, otherwise = self._branches(depth)
        return Range(over, index, element, body, otherwise)


def _statement(action: _Action) -> Node:
    """An action that is no keyword's: an assignment, or a value that is written."""
    if action.peek()[0] == "variable" and action.peek(1)[1] in (":=", "="):
        name, mark = action.take(), action.take()
        node: Node = Assign(name, _pipeline(action), mark == ":=")
    else:
        node = Output(_pipeline(action))
    action.finish()
    return node


def _pipeline(action: _Action) -> Operand:
    kind, word, _ = action.peek()
    if kind != "word" or word in ("true", "false"):
        return _operand(action)
    action.take()
    arguments = []
    while action.peek()[0] != "end" and not action.is_at(")"):
        if not action.peek()[2]:
            raise GoSyntaxError(f"unexpected {action.peek()[1]!r} in an action")
        arguments.append(_operand(action))
    return Call(word, tuple(arguments))


def _operand(action: _Action) -> Operand:
    kind, text, _ = action.peek()
    action.take()
    found: Operand
    if kind == "string":
        return Literal(_literal(text))
    if kind == "raw":
        return Literal(text[1:-1].replace("\r", "").encode())
    if kind == "number":
        return Literal(int(text, 10))
    if kind == "word" and text in ("true", "false"):
        return Literal(text == "true")
    if kind == "variable":
        found = Variable(text)
    elif kind == "field":
        return _fields(action, Dot(), [text[1:]])
    elif text == ".":
        return Dot()
    elif text == "(":
        found = _pipeline(action)
        action.take("mark", ")")
    else:
        raise GoSyntaxError(f"unexpected {text!r} in an action")
    return _fields(action, found, [])


def _fields(action: _Action, of: Operand, names: list[str]) -> Operand:
    while action.peek()[0] == "field" and not action.peek()[2]:
        names.append(action.take()[1:])
    return Fields(of, tuple(names)) if names else of


def _literal(quoted: str) -> bytes:
    found, place, inner = bytearray(), 0, quoted[1:-1]
    for match in _ESCAPE.finditer(inner):
        found += inner[place : match.start()].encode()
        place = match.end()
        simple, byte, short, long, other = match.groups()
        if other is not None:
            raise GoSyntaxError(f"unknown escape \\{other}")
        if simple is not None:
            found.append(_SIMPLE[simple])
        elif byte is not None:
            found.append(int(byte, 16))
        else:
            try:
                found += chr(int(short or long, 16)).encode()
            except (ValueError, OverflowError) as error:
                raise GoSyntaxError("an escape is no character") from error
    return bytes(found + inner[place:].encode())


_Value = Any
_Scope = list[tuple[str, _Value]]


class GoError(ValueError):
    """A Go template ends with an error."""


@dataclass(frozen=True)
class Message:
    """A message as Ollama hands it to a template, with the fields that are used."""

    Role: bytes
    Content: bytes
    Thinking: bytes = b""


class GoTemplate:
    """A Go template, with the variables that Ollama gives it.

    Args:
        source: The template.

    Raises:
        GoSyntaxError: If it is not valid.
    """

    def __init__(self, source: str) -> None:
        self._tree = parse(source)
        _check_names(self._tree)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render a conversation as Ollama does: messages of one role that follow each other are joined to one.

        Args:
            messages: ``role`` and ``content`` each, and ``reasoning_content`` where there is some.

        Raises:
            GoError: If the template ends with an error.
        """
        joined = _joined(messages)
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        data = {"System": system.encode(), "Messages": joined, "Response": b""}
        out: list[bytes] = []
        _Rendering(self._tree, out).run(self._tree.nodes, data, [("$", data)])
        return b"".join(out).decode("utf-8", "replace")


def _joined(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    found: list[Message] = []
    for message in messages:
        role, content = message["role"].encode(), message["content"].encode()
        if found and found[-1].Role == role and role != b"tool":
            found[-1] = Message(role, found[-1].Content + b"\n\n" + content, found[-1].Thinking)
        else:
            found.append(Message(role, content, message.get("reasoning_content", "").encode()))
    return found


class _Rendering:
    def __init__(self, tree: Tree, out: list[bytes]) -> None:
        self._tree = tree
        self._out = out

    def run(self, nodes: Sequence[Node], dot: _Value, scope: _Scope) -> None:
        """Carry out the nodes of a block; variables that it declares end with it."""
        outer = len(scope)
        for node in nodes:
            self._run(node, dot, scope)
        del scope[outer:]

    def _run(self, node: Node, dot: _Value, scope: _Scope) -> None:
        if isinstance(node, Text):
            self._out.append(node.text)
        elif isinstance(node, Output):
            self._out.append(_written(_evaluate(node.value, dot, scope)))
        elif isinstance(node, Assign):
            value = _evaluate(node.value, dot, scope)
            if node.declares:
                scope.append((node.name, value))
            else:
                scope[_place(node.name, scope)] = (node.name, value)
        elif isinstance(node, If):
            self.run(node.then if _truth(_evaluate(node.condition, dot, scope)) else node.otherwise, dot, scope)
        elif isinstance(node, Range):
            self._loop(node, dot, scope)
        else:
            value = _evaluate(node.value, dot, scope)
            self.run(self._tree.named[node.name], value, [("$", value)])

    def _loop(self, node: Range, dot: _Value, scope: _Scope) -> None:
        values = _evaluate(node.over, dot, scope)
        if not isinstance(values, list):
            raise GoError(f"range can't iterate over {values!r}")
        for index, value in enumerate(values):
            named = [(name, each) for name, each in ((node.index, index), (node.element, value)) if name]
            scope.extend(named)
            self.run(node.body, value, scope)
            del scope[len(scope) - len(named) :]
        if not values:
            self.run(node.otherwise, dot, scope)


def _place(name: str, scope: _Scope) -> int:
    for place in range(len(scope) - 1, -1, -1):
        if scope[place][0] == name:
            return place
    raise GoError(f"undefined variable {name}")


def _evaluate(operand: Operand, dot: _Value, scope: _Scope) -> _Value:
    if isinstance(operand, Literal):
        return operand.value
    if isinstance(operand, Dot):
        return dot
    if isinstance(operand, Variable):
        return scope[_place(operand.name, scope)][1]
    if isinstance(operand, Fields):
        value = _evaluate(operand.of, dot, scope)
        for name in operand.names:
            value = _field(value, name)
        return value
    return _call(operand, dot, scope)


def _field(value: _Value, name: str) -> _Value:
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, Message) and name in ("Role", "Content", "Thinking"):
        return getattr(value, name)
    raise GoError(f"can't evaluate field {name}")


def _call(call: Call, dot: _Value, scope: _Scope) -> _Value:
    if call.function in ("and", "or"):
        # The first that decides is the value, and what follows it is not looked at.
        value: _Value = None
        for argument in call.arguments:
            value = _evaluate(argument, dot, scope)
            if _truth(value) == (call.function == "or"):
                break
        return value
    values = [
        argument.value if type(argument) is Literal else _evaluate(argument, dot, scope) for argument in call.arguments
    ]
    return FUNCTIONS[call.function](*values)


def _truth(value: _Value) -> bool:
    return True if isinstance(value, Message) else bool(value)


def _written(value: _Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return str(value).encode()
    raise GoError("only texts, numbers and truth values are written")


def _equal(first: _Value, *others: _Value) -> bool:
    if not others:
        raise GoError("missing argument for comparison")
    for other in others:
        if type(first) is not type(other) or not isinstance(first, (bytes, int)):
            raise GoError("incompatible types for comparison")
        if first == other:
            return True
    return False


def _unequal(first: _Value, other: _Value) -> bool:
    return not _equal(first, other)


def _less(first: _Value, other: _Value) -> bool:
    if type(first) is not type(other) or not isinstance(first, (bytes, int)) or isinstance(first, bool):
        raise GoError("incompatible types for comparison")
    return bool(first < other)


def _length(value: _Value) -> int:
    if not isinstance(value, (bytes, list, dict)):
        raise GoError("len of a value without a length")
    return len(value)


def _index(value: _Value, *places: _Value) -> _Value:
    for place in places:
        if not isinstance(value, list) or type(place) is not int:
            raise GoError("can't index it")
        if not 0 <= place < len(value):
            raise GoError(f"index out of range: {place}")
        value = value[place]
    return value


def _slice(value: _Value, *places: _Value) -> _Value:
    if not isinstance(value, (bytes, list)) or len(places) > 2 or any(type(place) is not int for place in places):
        raise GoError("can't slice it")
    begin = places[0] if places else 0
    end = places[1] if len(places) > 1 else len(value)
    for place in (begin, end):
        if not 0 <= place <= len(value):
            raise GoError(f"index out of range: {place}")
    if begin > end:
        raise GoError(f"invalid slice index: {begin} > {end}")
    return value[begin:end]


FUNCTIONS: dict[str, Callable[..., _Value]] = {
    "eq": _equal,
    "ne": _unequal,
    "lt": _less,
    "le": lambda first, other: not _less(other, first),
    "gt": lambda first, other: _less(other, first),
    "ge": lambda first, other: not _less(first, other),
    "not": lambda value: not _truth(value),
    "len": _length,
    "index": _index,
    "slice": _slice,
}
_COUNTS = {"not": (1, 1), "len": (1, 1), "index": (1, 9), "slice": (1, 3), "eq": (1, 99)}


def _check_names(tree: Tree) -> None:
    """Refuse functions, templates and variables that are not there, as Go does when it parses a template.

    Raises:
        GoSyntaxError: If there are any.
    """
    _check_nodes(tree.nodes, tree, ["$"])
    for nodes in tree.named.values():
        _check_nodes(nodes, tree, ["$"])


def _check_nodes(nodes: Sequence[Node], tree: Tree, names: list[str]) -> None:
    outer = len(names)
    for node in nodes:
        if isinstance(node, (Output, Invoke)):
            _check_operand(node.value, names)
            if isinstance(node, Invoke) and node.name not in tree.named:
                raise GoSyntaxError(f"template {node.name!r} not defined")
        elif isinstance(node, Assign):
            _check_operand(node.value, names)
            if node.declares:
                names.append(node.name)
            else:
                _check_operand(Variable(node.name), names)
        elif isinstance(node, If):
            _check_operand(node.condition, names)
            _check_nodes(node.then, tree, names)
            _check_nodes(node.otherwise, tree, names)
        elif isinstance(node, Range):
            _check_operand(node.over, names)
            _check_nodes(node.body, tree, [*names, *filter(None, (node.index, node.element))])
            _check_nodes(node.otherwise, tree, names)
    del names[outer:]


def _check_operand(operand: Operand, names: Sequence[str]) -> None:
    if isinstance(operand, Variable) and operand.name not in names:
        raise GoSyntaxError(f"undefined variable {operand.name}")
    if isinstance(operand, Fields):
        _check_operand(operand.of, names)
    if isinstance(operand, Call):
        if operand.function not in FUNCTIONS and operand.function not in ("and", "or"):
            raise GoSyntaxError(f"function {operand.function!r} not defined")
        least, most = _COUNTS.get(operand.function, (1, 99) if operand.function in ("and", "or") else (2, 2))
        if not least <= len(operand.arguments) <= most:
            raise GoSyntaxError(f"wrong number of arguments for {operand.function}")
        for argument in operand.arguments:
            _check_operand(argument, names)
