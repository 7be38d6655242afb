"""A sandbox in which every template comes to an end, within bounded memory.

A template is a program of somebody else's, and Jinja lets it go through loops in loops for years, or double a text
until memory is full. Here each rendering has a number of steps, one for every turn of a loop and every call, and room
for a number of characters, taken by every text and list that it makes or writes. Both grow with the conversation, so
that what looks at all messages for each message, or at each character, has enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import jinja2
import jinja2.nodes
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import generate_lorem_ipsum, pass_context
from jinja2.visitor import NodeTransformer

from core.template.size_bounds import FILTER_SIZES, TooLargeError, deep_size, filter_size, method_size, own_size

#: Steps of a rendering, whatever the conversation.
STEPS = 100_000
#: Characters of a rendering, whatever the conversation; an entry of a list takes eight.
ROOM = 16 << 20
#: Largest number that a function is given, width of a text and length of what is repeated.
LARGEST = 1 << 20

_COUNTED, _JOINED, _MADE = "_counted", "_joined", "_made"
#: Digits that a number is rounded to.
_MOST_DIGITS = 1000
_SIZED = (list, tuple, dict, str, range)
_TOO_LARGE = "it makes something far larger than a conversation"


def _refuse_size() -> None:
    raise jinja2.exceptions.SecurityError(_TOO_LARGE)


def _check_numbers(values: Iterable[Any], largest: int = LARGEST) -> None:
    for value in values:
        if type(value) is int and value > largest:
            _refuse_size()


class _Context(jinja2.runtime.Context):
    """The names of one rendering, and how many steps and how much room are left to it."""

    def __init__(self, environment: jinja2.Environment, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, parent, *args, **kwargs)
        self._meter = _Meter(parent)

    def derived(self, locals: dict[str, Any] | None = None) -> _Context:  # noqa: A002 - as jinja2 has it
        """Another context of the same rendering."""
        context = cast("_Context", super().derived(locals))
        context._meter = self._meter
        return context

    def spend(self, steps: int = 1) -> None:
        """Take steps away.

        Raises:
            SecurityError: If none are left.
        """
        self._meter.steps -= steps
        if self._meter.steps < 0:
            raise jinja2.exceptions.SecurityError("its loops do not come to an end")

    def take(self, characters: int) -> None:
        """Take room away.

        Raises:
            SecurityError: If none is left.
        """
        self._meter.room -= characters
        if self._meter.room < 0 and not self._meter.extend(0):
            _refuse_size()

    def check(self, size: Callable[[int], int]) -> None:
        """See that there is room for what is about to be made; ``size`` is told how much there is.

        Raises:
            SecurityError: If there is not.
        """
        meter = self._meter
        try:
            if size(meter.room) <= meter.room:
                return
        except TooLargeError:
            pass
        try:
            if meter.extend(1) and size(meter.room) <= meter.room:
                return
        except TooLargeError:
            pass
        _refuse_size()


class _Meter:
    """What is left to one rendering."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.steps = STEPS + _allowance(names.get("messages"))
        self.room = ROOM
        self._names: dict[str, Any] | None = names

    def extend(self, wanted: int) -> bool:
        """Make the room as large as the conversation asks for, which most never need; whether so much is there then."""
        if self._names is not None:
            messages = self._names.get("messages")
            count = len(messages) if isinstance(messages, list) else 0
            size = sum(deep_size(self._names.get(name), 1 << 40) for name in ("messages", "tools"))
            # Each message may be looked at in all its shapes, and the text so far be written anew for each of them.
            self.room += 2 * (count + 16) * size
            self._names = None
        return self.room >= wanted


def _allowance(messages: Any) -> int:
    if not isinstance(messages, list):
        return 0
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    return 4 * (len(messages) ** 2 + sum(len(content) for content in contents if isinstance(content, str)))


@pass_context
def _counted(context: _Context, values: Any) -> Any:
    """What a loop goes through, each turn taking a step."""
    if isinstance(values, _SIZED):
        context.spend(len(values))
        return values
    return _one_by_one(context, values)


def _one_by_one(context: _Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        context.spend()
        yield value


@pass_context
def _joined(context: _Context, values: Iterable[Any]) -> str:
    """What ``~`` makes."""
    context.check(lambda room: sum(deep_size(value, room) for value in values))
    text = "".join(map(str, values))
    context.take(len(text))
    return text


@pass_context
def _made(context: _Context, value: Any) -> Any:
    """A part of a text or a list, which takes room of its own."""
    context.take(own_size(value))
    return value


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is only called where there is room for what it makes.

    Args:
        name: What it is called in templates.
        function: The filter.
    """
    kind = getattr(function, "jinja_pass_arg", None)
    passed = kind.name if kind is not None else ""

    @pass_context
    def bounded(context: _Context, *args: Any, **kwargs: Any) -> Any:
        if name in ("join", "list", "sum") and args and not isinstance(args[0], _SIZED):
            # What comes one by one can only be gone through once.
            args = (list(_one_by_one(context, args[0])), *args[1:])
        _check_numbers(args)
        _check_numbers(kwargs.values(), _MOST_DIGITS if name == "tojson" else LARGEST)
        context.check(lambda room: filter_size(name, args, kwargs, room))
        first: tuple[Any, ...] = ()
        if passed == "context":
            first = (context,)
        elif passed == "eval_context":
            first = (context.eval_ctx,)
        elif passed == "environment":
            first = (context.environment,)
        made = function(*first, *args, **kwargs)
        context.take(own_size(made))
        return made

    return bounded


def _bounded_round(function: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args[1:], *kwargs.values()), _MOST_DIGITS)
        return function(*args, **kwargs)

    return bounded


def _bounded_lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:  # noqa: A002
    if n * max > 1 << 16:
        _refuse_size()
    return generate_lorem_ipsum(n, html, min, max)


class _Watched(NodeTransformer):
    """Lets what makes texts and goes through loops pass by the meter."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802 - as jinja2 has it
        self.generic_visit(node)
        node.iter = _filtered(_COUNTED, node.iter)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_JOINED, jinja2.nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MADE, node) if isinstance(node.arg, jinja2.nodes.Slice) else node

    def visit_TemplateData(self, node: jinja2.nodes.TemplateData) -> jinja2.nodes.Node:  # noqa: N802
        # Written like any other text, and counted so.
        return jinja2.nodes.Const(node.data, lineno=node.lineno)


def _filtered(name: str, node: jinja2.nodes.Node) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with an end to every rendering; one that goes beyond raises ``SecurityError``."""

    context_class = _Context
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finalize = _finalized
        self.convert: Callable[[Any], Any] = lambda value: value
        """Applied to what is not text before it is written."""
        self.globals["lipsum"] = _bounded_lipsum
        for name in FILTER_SIZES:
            if name in self.filters:
                self.filters[name] = bounded_filter(name, self.filters[name])
        self.filters["round"] = _bounded_round(self.filters["round"])
        self.filters |= {_COUNTED: _counted, _JOINED: _joined, _MADE: _made}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = _Watched().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        """Call something for a template; macros and recursive loops come this way too."""
        __context.spend()
        _check_numbers(args)
        _check_numbers(kwargs.values())
        method = getattr(__obj, "__wrapped__", __obj)
        text = getattr(method, "__self__", None)
        if isinstance(text, (str, bytes)):
            if method.__name__ == "join" and args and not isinstance(args[0], _SIZED):
                args = (list(_one_by_one(__context, args[0])), *args[1:])
            __context.check(lambda room: method_size(text, method.__name__, args, kwargs, room))
        made = super().call(__context, __obj, *args, **kwargs)
        __context.take(own_size(made))
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Add, multiply, format or raise to a power, unless the result would be far too large."""
        if operator == "+":
            if isinstance(left, (str, list, tuple, bytes)) and isinstance(right, (str, list, tuple, bytes)):
                context.take(own_size(left) + own_size(right))
            return left + right
        if operator == "%":
            if isinstance(left, (str, bytes)):
                context.check(lambda room: method_size(left, "%", (right,), {}, room))
                made = left % right
                context.take(len(made))
                return made
            return left % right
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple, bytes)) and isinstance(times, int):
                    if len(value) * times > LARGEST:
                        _refuse_size()
                    context.take(max(own_size(value) * times, 0))
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > LARGEST:
                _refuse_size()
            return left * right
        if isinstance(right, int) and right * (left.bit_length() if isinstance(left, int) else 1) > LARGEST:
            _refuse_size()
        return left**right


@pass_context
def _finalized(context: Any, value: Any) -> Any:
    """What is about to be written, as text."""
    if type(value) is not str:
        value = context.environment.convert(value)
        if type(value) is not str:
            context.check(lambda room: deep_size(value, room))
            value = str(value)
    context.take(len(value))
    return value
