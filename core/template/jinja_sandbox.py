"""Bounded Jinja sandbox: every rendering ends, within limits on time and memory.

A template is an untrusted program. Plain Jinja would let it run nested loops for years, double a string until memory is
full, or compare two lists that double themselves sixty times. Each rendering here has a budget:

- Steps. A loop iteration or a call costs one. An operation on whole values (``in``, ``==``, ``sort``, a string method)
  costs one per 256 characters of them when written out: a list that holds another list twice counts it twice.
- Characters, spent by every string and list that it makes or writes.
- CPU time, checked as steps are spent.

The budget of steps and characters grows with the conversation, so a template may read all messages for each message, or
every character. It depends on nothing else, so rows are accepted or refused alike on all machines. CPU time differs
between machines, so a template that exceeds it is refused as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType
from typing import Any, cast

import jinja2
import jinja2.nodes
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import generate_lorem_ipsum, pass_context
from jinja2.visitor import NodeTransformer

from core.errors import UserError
from core.template.size_bounds import FILTER_SIZES, TooLargeError, deep_size, filter_size, method_size, own_size

#: Step budget of a rendering before it grows with the conversation.
STEPS = 100_000
#: Character budget of a rendering before it grows with the conversation; a list entry costs eight.
ROOM = 16 << 20
#: CPU seconds of a rendering; a thousandth of a second is usual.
SECONDS = 5.0
#: Largest number passed to a function, width of a string, and length of a repeated sequence.
LARGEST = 1 << 20

#: Steps between readings of the clock.
_STEPS_PER_LOOK = 256
#: Characters of a string per step, and characters of arguments after which an operation costs as much again; as powers
#: of two.
_CHARACTERS_PER_STEP, _CHARACTERS_OF_ARGUMENTS = 8, 4
#: Additional cost of a character in a list or dictionary, whose parts are mostly small; as a power of two.
_LISTS_TAKE = 3
#: Characters of a string and the arguments of its method below which they are not counted.
_SHORT = 1024
#: Most digits to round a number to.
_MOST_DIGITS = 1000
#: Most bits of a computed integer; multiplication and division of longer integers are slow.
_MOST_BITS = 1 << 12
_SIZED = (list, tuple, dict, str, range)
_SCALARS = frozenset((int, bool, float, type(None)))
_TOO_LARGE = "it makes something far larger than a conversation"
_TOO_MANY_STEPS = "it takes far more steps than a conversation needs"

#: Filters that look at a single part of a value.
_INSTANT = frozenset(("attr", "count", "d", "default", "first", "items", "last", "length", "random"))
#: Filters that take values one at a time, as their result is read.
_LAZY = frozenset(("map", "reject", "rejectattr", "select", "selectattr"))
#: Filters that read an iterator to its end.
_WHOLE = frozenset(("batch", "groupby", "join", "list", "max", "min", "reverse", "slice", "sort", "sum", "unique"))
#: Filters and methods with time quadratic in the length of a string.
_SQUARE = frozenset(("pprint", "striptags", "unescape", "urlize", "wordwrap", "xmlattr"))
#: Tests that look only at the type of a value.
_TYPE_TESTS = frozenset(
    (
        *("boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable", "mapping", "none"),
        *("number", "sameas", "sequence", "string", "true", "undefined"),
    )
)
#: Tests that divide with ``%``, which would format a string.
_DIVIDING_TESTS = frozenset(("divisibleby", "even", "odd"))
#: Methods that look at as many characters of a string as their arguments have.
_PREFIX_METHODS = frozenset(("endswith", "removeprefix", "removesuffix", "startswith"))
_FORMATS = frozenset(("format", "format_map"))
#: Arguments that compiled templates add to every call.
_SCOPES = frozenset(("_block_vars", "_loop_vars"))


class TemplateTimeError(UserError):
    """A rendering exceeded its processor time."""


def _refuse_size() -> None:
    raise jinja2.exceptions.SecurityError(_TOO_LARGE)


def _check_numbers(values: Iterable[Any], largest: int = LARGEST) -> None:
    for value in values:
        if type(value) is int and abs(value) > largest:
            _refuse_size()


def _check_bits(*values: Any) -> None:
    for value in values:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            _refuse_size()


class _Context(jinja2.runtime.Context):
    """Variables of a rendering, and its remaining budget."""

    def __init__(self, environment: jinja2.Environment, parent: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, parent, *args, **kwargs)
        self._meter = _Meter(parent)

    def derived(self, locals: dict[str, Any] | None = None) -> _Context:  # noqa: A002 - as jinja2 has it
        """Another context in the same rendering."""
        context = cast("_Context", super().derived(locals))
        context._meter = self._meter
        return context

    def spend(self, steps: int = 1) -> None:
        """Spend steps.

        Raises:
            SecurityError: If no steps are left.
            TemplateTimeError: If no time is left.
        """
        meter = self._meter
        meter.steps -= steps
        if meter.steps < meter.next_look:
            meter.look()

    def look(self, value: Any, *others: Any) -> None:
        """Spend the steps of an operation on a whole value.

        Args:
            value: The value.
            others: Arguments of the operation, which may look at the whole value for each part of them.

        Raises:
            SecurityError: If not enough steps are left.
            TemplateTimeError: If no time is left.
        """
        size = self._size(value)
        if others:
            size *= 1 + (sum(map(self._size, others)) >> _CHARACTERS_OF_ARGUMENTS)
        self.spend(1 + (size >> _CHARACTERS_PER_STEP))

    def _size(self, value: Any) -> int:
        """Characters of a value, for :meth:`look`.

        Raises:
            SecurityError: If the remaining steps are not enough to count them.
        """
        if type(value) is str:
            return len(value)
        if type(value) in _SCALARS:
            return 0
        meter = self._meter
        while True:
            try:
                most = max(meter.steps, 0) << (_CHARACTERS_PER_STEP - _LISTS_TAKE)
                return deep_size(value, most) << _LISTS_TAKE
            except TooLargeError:
                if not meter.grow():
                    meter.steps = -1
                    raise jinja2.exceptions.SecurityError(_TOO_MANY_STEPS) from None

    def take(self, characters: int) -> None:
        """Spend characters.

        Raises:
            SecurityError: If not enough are left.
        """
        meter = self._meter
        meter.room -= characters
        if meter.room < 0 and not (meter.grow() and meter.room >= 0):
            _refuse_size()

    def check(self, size: Callable[[int], int]) -> int:
        """Check the room for a result about to be made.

        Args:
            size: Computes the size of the result; receives the remaining room.

        Returns:
            The size.

        Raises:
            SecurityError: If there is no room for it.
        """
        meter = self._meter
        while True:
            try:
                found = size(meter.room)
            except TooLargeError:
                found = meter.room + 1
            if found <= meter.room:
                return found
            if not meter.grow():
                _refuse_size()


class _Meter:
    """Remaining budget of a rendering."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.steps = STEPS
        self.next_look = STEPS - _STEPS_PER_LOOK
        """Remaining steps below which :meth:`look` is due."""
        self.room = ROOM
        self._end = time.thread_time() + SECONDS
        self._names: dict[str, Any] | None = names

    def look(self) -> None:
        """Check that steps and time are left.

        Raises:
            SecurityError: If no steps are left.
            TemplateTimeError: If no time is left.
        """
        # If Jinja catches the error, the next step raises it again.
        if time.thread_time() > self._end:
            raise TemplateTimeError(
                f"The chat template takes more than {SECONDS:g} s for one conversation, which none should.",
                "Take another template (template.file), or get the model again from where it is from.",
            )
        if self.steps < 0 and not (self.grow() and self.steps >= 0):
            raise jinja2.exceptions.SecurityError(_TOO_MANY_STEPS)
        self.next_look = max(self.steps - _STEPS_PER_LOOK, 0)

    def grow(self) -> bool:
        """Extend the budget by the size of the conversation, once, and only if needed, which is rare.

        Returns:
            True if it was extended.
        """
        if self._names is None:
            return False
        messages = self._names.get("messages")
        count = len(messages) if isinstance(messages, list) else 0
        size = sum(deep_size(self._names.get(name), 1 << 40) for name in ("messages", "tools"))
        # For each message, a template may write the text so far again.
        self.room += 2 * (count + 16) * size
        self.steps += 4 * (count**2 + size)
        self._names = None
        return True


@pass_context
def _counted(context: _Context, values: Any) -> Any:
    """Values of a loop; each iteration spends a step."""
    return _Steps(context, values) if isinstance(values, _SIZED) else _one_by_one(context, values)


class _Steps:
    """Values of a loop with a known length. Each spends its step when taken, so the clock is read during the loop."""

    __slots__ = ("_context", "_values")

    def __init__(self, context: _Context, values: Any) -> None:
        self._context, self._values = context, values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _one_by_one(self._context, self._values)


def _one_by_one(context: _Context, values: Iterable[Any], each: int = 1) -> Iterator[Any]:
    for value in values:
        context.spend(each)
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
    """A slice of a string or a list, which spends room."""
    context.take(own_size(value))
    return value


@pass_context
def _weighed(context: _Context, value: Any) -> Any:
    """A compared value; spends steps by its size."""
    kind = type(value)
    if kind not in _SCALARS and (kind is not str or len(value) >> _CHARACTERS_PER_STEP):
        context.look(value)
    return value


@pass_context
def _searched(context: _Context, value: Any) -> Any:
    """A searched value; spends steps by its size, except for a dictionary, whose keys are found at once."""
    return value if type(value) is dict else _weighed(context, value)


@pass_context
def _keyed(context: _Context, value: Any) -> Any:
    """A key of a dictionary; a tuple spends steps, since it is hashed with everything in it."""
    return _weighed(context, value) if isinstance(value, tuple) else value


def _passed(function: Callable[..., Any]) -> Callable[[_Context], tuple[Any, ...]]:
    """Function that returns the arguments that a filter or a test takes before its value."""
    kind = getattr(function, "jinja_pass_arg", None)
    match kind.name if kind is not None else "":
        case "context":
            return lambda context: (context,)
        case "eval_context":
            return lambda context: (context.eval_ctx,)
        case "environment":
            return lambda context: (context.environment,)
    return lambda _: ()


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that it is called only with enough steps, and enough room for its result.

    Args:
        name: Its name in templates.
        function: The filter.
    """
    before = _passed(function)
    factor, is_square = FILTER_SIZES.get(name, 0), name in _SQUARE
    most = _MOST_DIGITS if name == "round" else LARGEST
    most_named = _MOST_DIGITS if name in ("round", "tojson") else LARGEST

    @pass_context
    def bounded(context: _Context, *args: Any, **kwargs: Any) -> Any:
        if name in _WHOLE and args and not isinstance(args[0], _SIZED):
            # An iterator can be consumed only once.
            args = (list(_one_by_one(context, args[0])), *args[1:])
        given = args[1:]
        if kwargs:
            _check_numbers(kwargs.values(), most_named)
            given += tuple(kwargs.values())
        _check_numbers(args[1:], most)
        # Do not count a list twice if its size is computed below.
        is_counted = factor and not given and not is_square and args and type(args[0]) is not str
        if args and not is_counted:
            context.look(args[0], *given, *(args[:1] if is_square else ()))
        if factor:
            size = context.check(lambda room: filter_size(name, args, kwargs, room))
            if is_counted:
                context.spend(1 + (size // factor >> (_CHARACTERS_PER_STEP - _LISTS_TAKE)))
            if name == "format":
                context.spend(_fields(args[0]))
        made = function(*before(context), *args, **kwargs)
        if type(made) is int:
            _check_bits(made)
        context.take(own_size(made))
        return made

    @pass_context
    def lazy(context: _Context, values: Any, *args: Any, **kwargs: Any) -> Any:
        # An undefined value has no parts.
        each = 1 + (sum(map(context._size, (*args, *kwargs.values()))) >> _CHARACTERS_OF_ARGUMENTS)
        if isinstance(values, _SIZED):
            context.spend(each * len(values))
        elif values:
            values = _one_by_one(context, values, each)
        return function(*before(context), values, *args, **kwargs)

    return lazy if name in _LAZY else bounded


def _bounded_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    before = _passed(function)

    @pass_context
    def bounded(context: _Context, *args: Any, **kwargs: Any) -> Any:
        if name in _DIVIDING_TESTS and args and isinstance(args[0], (str, bytes)):
            raise jinja2.exceptions.SecurityError(f"a text is not {name}")
        for value in (*args, *kwargs.values()):
            _weighed(context, value)
        return function(*before(context), *args, **kwargs)

    return bounded


def _fields(text: Any) -> int:
    """Number of fields in a format, and of attributes in them; each takes as long as a call."""
    return sum(map(text.count, "%{.[")) if isinstance(text, str) else 0


@pass_context
def _bounded_lipsum(
    context: _Context,
    n: int = 5,
    html: bool = True,
    min: int = 20,  # noqa: A002 - as jinja2 has it
    max: int = 100,  # noqa: A002
) -> str:
    if n * max > 1 << 16:
        _refuse_size()
    context.spend(abs(n * max))
    return generate_lorem_ipsum(n, html, min, max)


class _Watched(NodeTransformer):
    """Rewrites templates so that strings, loops and comparisons spend the budget."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802 - as jinja2 has it
        self.generic_visit(node)
        node.iter = _filtered(_counted, node.iter)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_joined, jinja2.nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Node:  # noqa: N802
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        # A comparison with a constant is bounded by the constant.
        is_short = len(sides) == 2 and (_is_constant(sides[1]) or (not searches and _is_constant(sides[0])))
        self.generic_visit(node)
        if not is_short:
            node.expr = _unless_constant(_weighed, node.expr)
            for operand in node.ops:
                operand.expr = _unless_constant(_searched if "in" in operand.op else _weighed, operand.expr)
        return node

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, jinja2.nodes.Slice):
            return _filtered(_made, node)
        node.arg = _unless_constant(_keyed, node.arg)
        return node

    def visit_Pair(self, node: jinja2.nodes.Pair) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _unless_constant(_keyed, node.key)
        return node

    def visit_TemplateData(self, node: jinja2.nodes.TemplateData) -> jinja2.nodes.Node:  # noqa: N802
        # Counted like any other output.
        return jinja2.nodes.Const(node.data, lineno=node.lineno)


def _is_constant(node: jinja2.nodes.Node) -> bool:
    """True for a constant of the template, or a list or tuple of constants."""
    if isinstance(node, (jinja2.nodes.List, jinja2.nodes.Tuple)):
        return all(isinstance(item, jinja2.nodes.Const) for item in node.items)
    return isinstance(node, jinja2.nodes.Const)


def _filtered(function: Callable[..., Any], node: jinja2.nodes.Node) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, function.__name__, [], [], None, None, lineno=node.lineno)


def _unless_constant(function: Callable[..., Any], node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
    return node if isinstance(node, jinja2.nodes.Const) else _filtered(function, node)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of jinja2 with a budget for every rendering.

    A rendering that exceeds its steps or characters raises ``SecurityError``; beyond its time it raises
    :class:`TemplateTimeError`.
    """

    context_class = _Context
    intercepted_binops = frozenset(["*", "**", "+", "-", "/", "//", "%"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finalize = _finalized
        self.convert: Callable[[Any], Any] = lambda value: value
        """Converts values other than strings before they are written."""
        self.globals["lipsum"] = _bounded_lipsum
        self.filters |= {
            name: bounded_filter(name, function) for name, function in self.filters.items() if name not in _INSTANT
        }
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        tests |= {name: _bounded_test(name, function) for name, function in tests.items() if name not in _TYPE_TESTS}
        ours = (_counted, _joined, _made, _weighed, _searched, _keyed)
        self.filters |= {function.__name__: function for function in ours}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = _Watched().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        """Call an object from a template, including macros and recursive loops."""
        named = {name: value for name, value in kwargs.items() if name not in _SCOPES} if kwargs else kwargs
        if type(__obj) is BuiltinMethodType and not named and _are_short(__obj.__self__, args):
            __context.spend()
            made = __obj(*args)
            __context.take(own_size(made))
            return made
        __context.spend(1 + (len(args) + len(named) >> 4))
        if isinstance(__obj, jinja2.runtime.LoopContext):
            args = (_counted(__context, args[0]), *args[1:]) if args else args
        elif not isinstance(__obj, jinja2.runtime.Macro):
            args = _looked_at(__context, __obj, args, named)
        made = super().call(__context, __obj, *args, **kwargs)
        if type(made) is int:
            _check_bits(made)
        __context.take(own_size(made))
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, unless the result would be too large."""
        if operator == "+":
            if type(left) is str and type(right) is str:
                context.take(len(left) + len(right))
            elif isinstance(left, (str, list, tuple, bytes)) and isinstance(right, (str, list, tuple, bytes)):
                context.take(own_size(left) + own_size(right))
            else:
                _check_bits(left, right)
            return left + right
        if type(left) in _SCALARS and type(right) in _SCALARS:
            context.spend()
        else:
            context.look(left, *((right,) if type(right) not in _SCALARS else ()))
        if operator == "%" and isinstance(left, (str, bytes)):
            context.check(lambda room: method_size(left, "%", (right,), {}, room))
            made = left % right
            context.take(len(made))
            return made
        _check_bits(left, right)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple, bytes)) and isinstance(times, int):
                    if len(value) * times > LARGEST:
                        _refuse_size()
                    context.take(max(own_size(value) * times, 0))
        if operator == "**" and isinstance(right, int):
            bits = left.bit_length() if isinstance(left, int) else 1
            if abs(right) * bits > _MOST_BITS:
                _refuse_size()
        return self.binop_table[operator](left, right)


def _are_short(text: Any, args: tuple[Any, ...]) -> bool:
    """True if a string method has so little input that it costs a single step."""
    if type(text) is not str:
        return False
    total = len(text)
    for value in args:
        if type(value) is not str:
            return False
        total += len(value)
    return total <= _SHORT


def _looked_at(context: _Context, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Spend the steps of a call, and check the room for its result.

    Returns:
        The arguments, with an iterator replaced by a list.

    Raises:
        SecurityError: If not enough steps or room are left.
    """
    method = getattr(function, "__wrapped__", function)
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, (str, bytes)):
        if function is safe_range or isinstance(owner, int):
            _check_numbers(args)
        for value in (
            (owner, *args, *kwargs.values()) if isinstance(owner, (list, tuple)) else (*args, *kwargs.values())
        ):
            _weighed(context, value)
        return args
    name = method.__name__
    if name == "join" and args and not isinstance(args[0], _SIZED):
        args = (list(_one_by_one(context, args[0])), *args[1:])
    given = (*args, *kwargs.values())
    if name in _PREFIX_METHODS:
        for value in given:
            _weighed(context, value)
        return args
    if name in _FORMATS:
        context.spend(_fields(owner))
    else:
        _check_numbers(given)
    context.look(owner, *given, *((owner,) if name in _SQUARE else ()))
    context.check(lambda room: method_size(owner, name, args, kwargs, room))
    return args


@pass_context
def _finalized(context: Any, value: Any) -> Any:
    """A value as a string, before it is written."""
    if type(value) is not str:
        value = context.environment.convert(value)
        if type(value) is not str:
            context.check(lambda room: deep_size(value, room))
            value = str(value)
    context.take(len(value))
    return value
