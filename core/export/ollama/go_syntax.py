"""Syntax of Go templates: the part of ``text/template`` that the exported templates are written in.

Text, comments, trim markers, ``if``, ``range``, ``define``, ``template``, variables, fields, calls and literals have
the meaning of https://pkg.go.dev/text/template. Whatever else that language has is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.export.ollama import go_nodes as go

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


def parse(source: str) -> go.Tree:
    """Parse a Go template.

    Raises:
        GoSyntaxError: If it is not valid, or outside of the part that is known here.
    """
    parser = _Parser(list(_pieces(source)))
    nodes, end = parser.nodes()
    if end:
        raise GoSyntaxError(f"unexpected {{{{{end}}}}}")
    return go.Tree(nodes, parser.named)


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
        self.named: dict[str, tuple[go.Node, ...]] = {}

    def nodes(self, depth: int = 0) -> tuple[tuple[go.Node, ...], str]:
        """Nodes up to the ``end`` or ``else`` that closes them, and that word; ``else if`` is one."""
        found: list[go.Node] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                found.append(go.Text(piece.encode()))
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
                name = _text(piece.take("string")).decode()
                found.append(go.Invoke(name, _pipeline(piece)))
                piece.finish()
            elif word == "define" and depth == 0:
                name = _text(piece.take("string")).decode()
                piece.finish()
                self.named[name], end = self.nodes(depth + 1)
                if end != "end":
                    raise GoSyntaxError("a definition is not closed")
            else:
                raise GoSyntaxError(f"{word} is not known here")
        return tuple(found), ""

    def _open(self, end: str, node: go.If) -> str:
        self._nested = node
        return end

    def _if(self, action: _Action, depth: int) -> go.If:
        condition = _pipeline(action)
        action.finish()
        then, otherwise = self._branches(depth)
        return go.If(condition, then, otherwise)

    def _branches(self, depth: int) -> tuple[tuple[go.Node, ...], tuple[go.Node, ...]]:
        then, end = self.nodes(depth + 1)
        if end == "else if":
            return then, (self._nested,)
        otherwise: tuple[go.Node, ...] = ()
        if end == "else":
            otherwise, end = self.nodes(depth + 1)
        if end != "end":
            raise GoSyntaxError("a block is not closed")
        return then, otherwise

    def _range(self, action: _Action, depth: int) -> go.Range:
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
        return go.Range(over, index, element, body, otherwise)


def _statement(action: _Action) -> go.Node:
    """An action that is no keyword's: an assignment, or a value that is written."""
    if action.peek()[0] == "variable" and action.peek(1)[1] in (":=", "="):
        name, mark = action.take(), action.take()
        node: go.Node = go.Assign(name, _pipeline(action), mark == ":=")
    else:
        node = go.Output(_pipeline(action))
    action.finish()
    return node


def _pipeline(action: _Action) -> go.Operand:
    kind, word, _ = action.peek()
    if kind != "word" or word in ("true", "false"):
        return _operand(action)
    action.take()
    arguments = []
    while action.peek()[0] != "end" and not action.is_at(")"):
        if not action.peek()[2]:
            raise GoSyntaxError(f"unexpected {action.peek()[1]!r} in an action")
        arguments.append(_operand(action))
    return go.Call(word, tuple(arguments))


def _operand(action: _Action) -> go.Operand:
    kind, text, _ = action.peek()
    action.take()
    found: go.Operand
    if kind == "string":
        return go.Literal(_text(text))
    if kind == "raw":
        return go.Literal(text[1:-1].replace("\r", "").encode())
    if kind == "number":
        return go.Literal(int(text, 10))
    if kind == "word" and text in ("true", "false"):
        return go.Literal(text == "true")
    if kind == "variable":
        found = go.Variable(text)
    elif kind == "field":
        return _fields(action, go.Dot(), [text[1:]])
    elif text == ".":
        return go.Dot()
    elif text == "(":
        found = _pipeline(action)
        action.take("mark", ")")
    else:
        raise GoSyntaxError(f"unexpected {text!r} in an action")
    return _fields(action, found, [])


def _fields(action: _Action, of: go.Operand, names: list[str]) -> go.Operand:
    while action.peek()[0] == "field" and not action.peek()[2]:
        names.append(action.take()[1:])
    return go.Fields(of, tuple(names)) if names else of


def _text(quoted: str) -> bytes:
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
