"""Go templates carried out as ``text/template`` does, for the part of the language in :mod:`.go_syntax`.

Texts are bytes, as in Go: their lengths and slices count bytes. The data are those that Ollama hands to a template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.export.ollama import go_nodes as go
from core.export.ollama.go_syntax import GoSyntaxError, parse

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
    def __init__(self, tree: go.Tree, out: list[bytes]) -> None:
        self._tree = tree
        self._out = out

    def run(self, nodes: Sequence[go.Node], dot: _Value, scope: _Scope) -> None:
        """Carry out the nodes of a block; variables that it declares end with it."""
        outer = len(scope)
        for node in nodes:
            self._run(node, dot, scope)
        del scope[outer:]

    def _run(self, node: go.Node, dot: _Value, scope: _Scope) -> None:
        if isinstance(node, go.Text):
            self._out.append(node.text)
        elif isinstance(node, go.Output):
            self._out.append(_written(_evaluate(node.value, dot, scope)))
        elif isinstance(node, go.Assign):
            value = _evaluate(node.value, dot, scope)
            if node.declares:
                scope.append((node.name, value))
            else:
                scope[_place(node.name, scope)] = (node.name, value)
        elif isinstance(node, go.If):
            self.run(node.then if _truth(_evaluate(node.condition, dot, scope)) else node.otherwise, dot, scope)
        elif isinstance(node, go.Range):
            self._loop(node, dot, scope)
        else:
            value = _evaluate(node.value, dot, scope)
            self.run(self._tree.named[node.name], value, [("$", value)])

    def _loop(self, node: go.Range, dot: _Value, scope: _Scope) -> None:
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


def _evaluate(operand: go.Operand, dot: _Value, scope: _Scope) -> _Value:
    if isinstance(operand, go.Literal):
        return operand.value
    if isinstance(operand, go.Dot):
        return dot
    if isinstance(operand, go.Variable):
        return scope[_place(operand.name, scope)][1]
    if isinstance(operand, go.Fields):
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


def _call(call: go.Call, dot: _Value, scope: _Scope) -> _Value:
    if call.function in ("and", "or"):
        # The first that decides is the value, and what follows it is not looked at.
        value: _Value = None
        for argument in call.arguments:
            value = _evaluate(argument, dot, scope)
            if _truth(value) == (call.function == "or"):
                break
        return value
    values = [
        argument.value if type(argument) is go.Literal else _evaluate(argument, dot, scope)
        for argument in call.arguments
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


def _check_names(tree: go.Tree) -> None:
    """Refuse functions, templates and variables that are not there, as Go does when it parses a template.

    Raises:
        GoSyntaxError: If there are any.
    """
    _check_nodes(tree.nodes, tree, ["$"])
    for nodes in tree.named.values():
        _check_nodes(nodes, tree, ["$"])


def _check_nodes(nodes: Sequence[go.Node], tree: go.Tree, names: list[str]) -> None:
    outer = len(names)
    for node in nodes:
        if isinstance(node, (go.Output, go.Invoke)):
            _check_operand(node.value, names)
            if isinstance(node, go.Invoke) and node.name not in tree.named:
                raise GoSyntaxError(f"template {node.name!r} not defined")
        elif isinstance(node, go.Assign):
            _check_operand(node.value, names)
            if node.declares:
                names.append(node.name)
            else:
                _check_operand(go.Variable(node.name), names)
        elif isinstance(node, go.If):
            _check_operand(node.condition, names)
            _check_nodes(node.then, tree, names)
            _check_nodes(node.otherwise, tree, names)
        elif isinstance(node, go.Range):
            _check_operand(node.over, names)
            _check_nodes(node.body, tree, [*names, *filter(None, (node.index, node.element))])
            _check_nodes(node.otherwise, tree, names)
    del names[outer:]


def _check_operand(operand: go.Operand, names: Sequence[str]) -> None:
    if isinstance(operand, go.Variable) and operand.name not in names:
        raise GoSyntaxError(f"undefined variable {operand.name}")
    if isinstance(operand, go.Fields):
        _check_operand(operand.of, names)
    if isinstance(operand, go.Call):
        if operand.function not in FUNCTIONS and operand.function not in ("and", "or"):
            raise GoSyntaxError(f"function {operand.function!r} not defined")
        least, most = _COUNTS.get(operand.function, (1, 99) if operand.function in ("and", "or") else (2, 2))
        if not least <= len(operand.arguments) <= most:
            raise GoSyntaxError(f"wrong number of arguments for {operand.function}")
        for argument in operand.arguments:
            _check_operand(argument, names)
