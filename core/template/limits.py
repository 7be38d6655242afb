"""A sandbox in which every template comes to an end.

A template is a program of somebody else's, and Jinja lets it go through loops in loops for years. Here each rendering
has a number of steps: one for every turn of a loop and every call. It grows with the conversation, so that what looks
at all messages for each message, or at each character, has enough. Powers, repeated texts and widths are bounded too,
as one operation on them can take as long, or all memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Steps of a rendering, whatever the conversation.
STEPS = 100_000
#: Largest number that a function is given, width of a text and length of what is repeated.
LARGEST = 1 << 20

_FILTER = "_counted"
#: Filters that take a width or a count.
_SIZED_FILTERS = ("batch", "center", "indent", "slice")
_SIZED = (list, tuple, dict, str, range)


def _refuse_size() -> None:
    raise jinja2.exceptions.SecurityError("it makes something far larger than a conversation")


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if type(value) is int and value > LARGEST:
            _refuse_size()


class _Context(jinja2.runtime.Context):
    """The names of one rendering, and how many steps are left to it."""

    def __init__(self, environment: jinja2.Environment, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, parent, *args, **kwargs)
        self.steps = STEPS + _allowance(parent.get("messages"))

    def spend(self, steps: int = 1) -> None:
        """Take steps away.

        Raises:
            SecurityError: If none are left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise jinja2.exceptions.SecurityError("its loops do not come to an end")


def _allowance(messages: Any) -> int:
    if not isinstance(messages, list):
        return 0
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    return 4 * (len(messages) ** 2 + sum(len(content) for content in contents if isinstance(content, str)))


@jinja2.pass_context
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


def _with_checked_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args)
        _check_numbers(kwargs.values())
        return function(*args, **kwargs)

    return checked


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with an end to every rendering; one that goes beyond raises ``SecurityError``."""

    context_class = _Context
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters[_FILTER] = _counted
        for name in _SIZED_FILTERS:
            self.filters[name] = _with_checked_numbers(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, _FILTER, [], [], None, None).set_lineno(loop.lineno)
            loop.iter.set_environment(self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        """Call something for a template; macros and recursive loops come this way too."""
        __context.spend()
        _check_numbers(args)
        _check_numbers(kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        """Multiply or raise to a power, unless the result would be far too large."""
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int) and len(value) * times > LARGEST:
                    _refuse_size()
            return left * right
        if isinstance(right, int) and right * (left.bit_length() if isinstance(left, int) else 1) > LARGEST:
            _refuse_size()
        return left**right
