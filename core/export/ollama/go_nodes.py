"""Nodes of Go templates, as :mod:`.go_syntax` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field


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
