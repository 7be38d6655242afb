"""Bounded Jinja sandbox: every rendering ends, within bounded time and memory.

A template is an untrusted program, and Jinja lets it run nested loops for years, or double a text until memory is full.
Here each rendering has a budget of steps, one for every loop iteration and every call, and of characters, spent by
every text and list that it makes or writes. Both grow with the conversation, so that a template that reads all messages
for each message, or every character, has enough.
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

#: Step budget of a rendering, whatever the conversation.
STEPS = 100_000
#: Character budget of a rendering, whatever the conversation; an entry of a list costs eight.
ROOM = 16 << 20
#: Largest number passed to a function, width of a text and length of a repeated sequence.
LARGEST = 1 << 20

_COUNTED, _JOINED, _MADE = "_counted", "_joined", "_made"
#: Most digits to round a number to.
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
    """Variables of one rendering, and its remaining budget."""

    def __init__(self, environment: jinja2.Environment, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, parent, *args, **kwargs)
        self._meter = _Meter(parent)

    def derived(self, locals: dict[str, Any] | None = None) -> _Context:  # noqa: A002 - as jinja2 has it
        """Another context of the same rendering."""
        context = cast("_Context", super().derived(locals))
        context._meter = self._meter
        return context

    def spend(self, steps: int = 1) -> None:
        """Spend steps.

        Raises:
            SecurityError: If none are left.
        """
        self._meter.steps -= steps
        if self._meter.steps < 0:
            raise jinja2.exceptions.SecurityError("its loops do not come to an end")

    def take(self, characters: int) -> None:
        """Spend characters.

        Raises:
            SecurityError: If none is left.
        """
        self._meter.room -= characters
        if self._meter.room < 0 and not self._meter.extend(0):
            _refuse_size()

    def check(self, size: Callable[[int], int]) -> None:
        """Check that there is room for a result about to be made; ``size`` receives the remaining room.

        Raises:
            SecurityError: If there is not.
        """
        meter = self._meter
        if not meter.holds(size) and not (meter.extend(1) and meter.holds(size)):
            _refuse_size()


class _Meter:
    """Remaining budget of one rendering."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.steps = STEPS + _allowance(names.get("messages"))
        self.room = ROOM
        self._names: dict[str, Any] | None = names

    def holds(self, size: Callable[[int], int]) -> bool:
        """Whether there is room for a result of a size, which is computed from the remaining room."""
        try:
            return size(self.room) <= self.room
        except TooLargeError:
            return False

    def extend(self, wanted: int) -> bool:
        """Extend the room to the size of the conversation, which most renderings never need; returns whether it is
        enough then.
        """
        if self._names is not None:
            messages = self._names.get("messages")
            count = len(messages) if isinstance(messages, list) else 0
            size = sum(deep_size(self._names.get(name), 1 << 40) for name in ("messages", "tools"))
            # Each message may be read in all its forms, and the text so far written again for each of them.
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
    """The values of a loop; each iteration spends a step."""
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
    """Result of the ``~`` operator."""
    context.check(lambda room: sum(deep_size(value, room) for value in values))
    text = "".join(map(str, values))
    context.take(len(text))
    return text


@pass_context
def _made(context: _Context, value: Any) -> Any:
    """An element of a text or a list, which spends room of its own."""
    context.take(own_size(value))
    return value


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that it is called only if there is room for its result.

    Args:
        name: Its name in templates.
        function: The filter.
    """
    kind = getattr(function, "jinja_pass_arg", None)
    passed = kind.name if kind is not None else ""

    @pass_context
    def bounded(context: _Context, *args: Any, **kwargs: Any) -> Any:
        if name in ("join", "list", "sum") and args and not isinstance(args[0], _SIZED):
            # An iterator can be consumed only once.
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
    """Compiles templates so that their texts and loops spend the budget."""

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
        # Output and counted like any other text.
        return jinja2.nodes.Const(node.data, lineno=node.lineno)


def _filtered(name: str, node: jinja2.nodes.Node) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a budget for every rendering; one that exceeds it raises ``SecurityError``."""

    context_class = _Context
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finalize = _finalized
        self.convert: Callable[[Any], Any] = lambda value: value
        """Converts values other than text before they are written."""
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
        """Call an object from a template; macros and recursive loops are called here too."""
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
        """Add, multiply, format or exponentiate, unless the result would be far too large."""
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
    """A value as text, before it is written."""
    if type(value) is not str:
        value = context.environment.convert(value)
        if type(value) is not str:
            context.check(lambda room: deep_size(value, room))
            value = str(value)
    context.take(len(value))
    return value
