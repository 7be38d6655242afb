"""Chat template rendering, with the same results as transformers; conversations of the same shape are rendered once."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.filters import do_trim
from jinja2.parser import Parser
from jinja2.utils import Namespace

from core.config.schema import VariableValue
from core.data.conversation import Message, RowError
from core.errors import UserError
from core.template.answer_turns import REASONING_END, RowText, group_turns, read_turn
from core.template.builtin import TEMPLATE_LIMIT
from core.template.jinja_sandbox import BoundedEnvironment, TemplateTimeError, bounded_filter
from core.text import one_line

#: Field names for the reasoning of a message; most templates read the first.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_READS_REASONING = re.compile(r"(?:\.|\[['\"]|get\(['\"])reasoning\b")
#: Content of a probe message, to test if a template renders it.
_PROBE = "\U0010fffc"

#: File name in tracebacks that Jinja gives a template made from a string.
_TEMPLATE_FILE = "<template>"


class _GenerationBlocks(jinja2.ext.Extension):
    """Jinja extension for ``{% generation %}`` blocks around the assistant's text, rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dictionary:
    """``dict`` for templates: callable, but with nothing to inspect."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` without attributes that begin with an underscore, a way out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may call an attribute "self"
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def make_environment() -> BoundedEnvironment:
    """Make the Jinja environment of transformers' chat templates: the same settings, filters and functions.

    Unlike in transformers, renderings are bounded; see :mod:`core.template.jinja_sandbox`. ``strftime_now`` comes with
    the context, since each :class:`ChatTemplate` has its own time.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = bounded_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _Dictionary()
    environment.globals["namespace"] = _Namespace
    return environment


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    return make_environment().from_string(source)


class ChatTemplate:
    """A chat template: renders a conversation to the text that the model sees.

    Templates that write the date get the same time for every rendering, so all rows of a run agree. Templates that
    accept content only as a list of parts get a list with one text part.

    Args:
        source: The Jinja template.
        special_tokens: Texts of the special tokens, by their names in templates, such as ``bos_token``.
        with_tools: Separate template for conversations with tools, if the model has one.
        now: Time for templates that write the date; None for the current time.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        with_tools: str | None = None,
        now: datetime | None = None,
    ) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self.with_tools = None if with_tools is None else ChatTemplate(with_tools, special_tokens, now=now)
        self._now = datetime.now() if now is None else now

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation.

        Args:
            messages: Messages with ``role``, ``content`` and optional fields.
            tools: JSON schemas of the tools that the assistant may call.
            add_generation_prompt: Append the opening of the assistant's turn.

        Raises:
            RowError: ``template_error`` if the template is not valid Jinja or refuses the conversation.
            TemplateTimeError: If it exceeds its time limit.
        """
        if tools and self.with_tools is not None:
            return self.with_tools.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        try:
            return self._compiled.render(self.context(messages, tools, add_generation_prompt))
        except TemplateTimeError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise RowError("template_error", f"{self._syntax(error)}.") from error
        except MemoryError as error:
            raise RowError("template_error", "The chat template needs more memory than it may have.") from error
        except Exception as error:  # a template is an untrusted program and may raise anything
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".!")
            raise RowError("template_error", f"The chat template refuses the conversation: {reason}.") from error

    @property
    def all_sources(self) -> str:
        """Text of this template and its template for tools."""
        return self.source if self.with_tools is None else f"{self.source}\0{self.with_tools.source}"

    def source_for(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Text of the template for a conversation with these tools."""
        return self.source if self.with_tools is None or not tools else self.with_tools.source

    def check(self) -> None:
        """Check that the template is valid Jinja.

        Raises:
            UserError: If it is not; the message names the line.
        """
        hint = "Fix it, or name another one in template.file."
        if len(self.source) > TEMPLATE_LIMIT:
            raise UserError(f"The chat template is larger than {TEMPLATE_LIMIT >> 10} KiB.", hint)
        try:
            _ = self._compiled
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._syntax(error)}.", hint) from error
        except RecursionError as error:
            raise UserError("The chat template is nested too deep.", hint) from error
        except MemoryError as error:
            # Python's compiler also raises this for code nested too deep.
            raise UserError("The chat template is nested too deep, or far too large.", hint) from error
        except Exception as error:  # the compiler may raise anything for an odd template
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".!")
            raise UserError(f"The chat template cannot be compiled: {reason}.", hint) from error

    def context(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> dict[str, Any]:
        """All variables of a rendering."""
        return {
            **self._names,
            "messages": [self._as_passed(message) for message in messages],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return _compile(self.source)

    @functools.cached_property
    def _wants_parts(self) -> bool:
        """True if the template renders content that is a list of parts, but not content that is text."""
        return not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    @functools.cached_property
    def _reads_reasoning(self) -> bool:
        return _READS_REASONING.search(self.source) is not None

    def _shows(self, content: Any) -> bool:
        question = {"role": "user", "content": content}
        values = {**self._names, "messages": [question], "add_generation_prompt": False}
        try:
            return _PROBE in self._compiled.render(values)
        except TemplateTimeError:
            raise
        except Exception:  # as in render
            return False

    @property
    def _names(self) -> dict[str, Any]:
        return {"strftime_now": self._now.strftime, "tools": None, "documents": None, **self.special_tokens}

    def _as_passed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message without null fields, with its reasoning under the names that templates read."""
        fields = {key: value for key, value in message.items() if value is not None}
        content = fields.get("content")
        if not isinstance(content, list) and content is not None and self._wants_parts:
            fields["content"] = [{"type": "text", "text": content}]
        for name in _REASONING_FIELDS:
            if (reasoning := fields.get(name)) is not None:
                fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
                # transformers does not add this name, so only for templates that read it.
                return {"reasoning": reasoning, **fields} if self._reads_reasoning else fields
        return fields

    @staticmethod
    def _syntax(error: jinja2.TemplateSyntaxError) -> str:
        reason = one_line(error.message or "it cannot be read", 200).rstrip(".")
        return f"The chat template is not valid in line {error.lineno}: {reason}"


def template_line(error: BaseException) -> int | None:
    """Line of the template, from 1, that caused an error of :class:`ChatTemplate`; None if unknown."""
    cause = error.__cause__
    if isinstance(cause, jinja2.TemplateSyntaxError):
        return cause.lineno
    line, trace = None, cause.__traceback__ if cause is not None else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _TEMPLATE_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# Variables of a template, such as ``enable_thinking``: their values are written into the text of the template, so they
# hold wherever it goes: training, chat, adapter, export. A caller may still pass other values, like
# ``chat_template_kwargs`` of vLLM's server.


def with_variables(source: str, variables: Mapping[str, VariableValue]) -> str:
    """A chat template with values for its variables, unless the caller passes others.

    Args:
        source: The Jinja template.
        variables: Values by name.

    Raises:
        UserError: If the template does not read a variable.
    """
    if not variables:
        return source
    text = ""
    for name, value in variables.items():
        if not reads_variable(source, name):
            raise UserError(
                f"template.variables sets {name}, which the chat template does not read.",
                "Remove it, or take a template that reads it.",
            )
        # A Jinja literal has the same escapes as JSON.
        literal = json.dumps(value, ensure_ascii=False)
        text += f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}"
    return text + _after_block(source)


def reads_variable(source: str, name: str) -> bool:
    """True if a chat template contains the name of a variable."""
    return re.search(rf"\b{name}\b", source) is not None


def one_template(default: str | None, tools: str | None) -> str | None:
    """A model's template and its separate template for tools, merged; None without a template."""
    if default is None or tools is None:
        return default
    return f"{{%- if tools %}}{_after_block(tools)}{{%- else %}}{_after_block(default)}{{%- endif %}}"


def _after_block(source: str) -> str:
    """Text of a template for use after a block, where Jinja drops the first line break: a leading one is doubled."""
    return f"\n{source}" if source.startswith("\n") else source


#: Placeholders in traced output: a private-use character for the content of each message.
FIRST_MARK, LAST_MARK = 0x100000, 0x10FFF0
#: Constructs that hand rendered text back to the template, which could inspect it unnoticed.
_CAPTURES: tuple[type[jinja2.nodes.Node], ...] = (
    jinja2.nodes.Macro,
    jinja2.nodes.CallBlock,
    jinja2.nodes.FilterBlock,
    jinja2.nodes.AssignBlock,
    jinja2.nodes.Block,
)

#: A text that the template tested, the test, and its argument.
Assumption = tuple[tuple["str | int", ...], str, "str | None"]

#: Checks on real text that the traced result of a test holds.
_CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "not_empty": lambda text, _: bool(text),
    "lacks": lambda text, argument: argument not in text,
    "starts_otherwise": lambda text, argument: not text.startswith(argument),
    "ends_otherwise": lambda text, argument: not text.endswith(argument),
    "differs": lambda text, argument: text != argument,
    "strip": lambda text, argument: text.strip(argument) == text,
    "lstrip": lambda text, argument: text.lstrip(argument) == text,
    "rstrip": lambda text, argument: text.rstrip(argument) == text,
}


class InspectedError(Exception):
    """The template inspects a content in a way that cannot be traced."""


class _Watch:
    def __init__(self) -> None:
        self.assumptions: set[Assumption] = set()
        self.looked_at = False

    def refuse(self) -> NoReturn:
        # Recorded as well as raised, since tests of jinja2 swallow exceptions.
        self.looked_at = True
        raise InspectedError


class Opaque:
    """A string that cannot be inspected: a sequence of literal texts and numbers of message contents."""

    __slots__ = ("_parts", "_watch")

    def __init__(self, parts: tuple[str | int, ...], watch: _Watch) -> None:
        self._parts = parts
        self._watch = watch

    def _assume(self, check: str, argument: str | None = None) -> None:
        if argument is not None and type(argument) is not str:
            self._watch.refuse()
        self._watch.assumptions.add((self._parts, check, argument))

    def __add__(self, other: object) -> Opaque:
        if isinstance(other, Opaque):
            return Opaque(self._parts + other._parts, self._watch)
        if type(other) is not str:
            self._watch.refuse()
        return Opaque((*self._parts, other), self._watch) if other else self

    def __radd__(self, other: object) -> Opaque:
        if type(other) is not str:
            self._watch.refuse()
        return Opaque((other, *self._parts), self._watch) if other else self

    def __bool__(self) -> bool:
        self._assume("not_empty")
        return True

    def __contains__(self, other: object) -> bool:
        if type(other) is not str or not other:
            self._watch.refuse()
        self._assume("lacks", other)
        return False

    def __eq__(self, other: object) -> bool:
        if type(other) is str:
            self._assume("differs", other)
            return False
        if isinstance(other, Opaque):
            self._watch.refuse()
        return False

    def __ne__(self, other: object) -> bool:
        return not self.__eq__(other)

    def startswith(self, prefix: str) -> bool:
        self._assume("starts_otherwise", prefix)
        return False

    def endswith(self, suffix: str) -> bool:
        self._assume("ends_otherwise", suffix)
        return False

    def strip(self, characters: str | None = None) -> Opaque:
        return self._trimmed("lstrip", characters)._trimmed("rstrip", characters)

    def lstrip(self, characters: str | None = None) -> Opaque:
        return self._trimmed("lstrip", characters)

    def rstrip(self, characters: str | None = None) -> Opaque:
        return self._trimmed("rstrip", characters)

    def split(self, separator: str | None = None) -> list[Opaque]:
        if not separator:
            self._watch.refuse()
        self._assume("lacks", separator)
        return [self]

    def replace(self, old: str, new: str) -> Opaque:
        if not old or type(new) is not str:
            self._watch.refuse()
        self._assume("lacks", old)
        return self

    def _trimmed(self, side: str, characters: str | None) -> Opaque:
        """The text trimmed on one side: literal text is trimmed, contents are assumed to need no trimming."""
        if characters is not None and type(characters) is not str:
            self._watch.refuse()
        parts = list(self._parts)
        place = 0 if side == "lstrip" else -1
        while parts:
            edge = parts[place]
            if isinstance(edge, int):
                one = Opaque((edge,), self._watch)
                one._assume(side, characters)
                one._assume("not_empty")
                break
            trimmed = edge.lstrip(characters) if side == "lstrip" else edge.rstrip(characters)
            if trimmed:
                parts[place] = trimmed
                break
            del parts[place]
        return Opaque(tuple(parts), self._watch)

    def _written(self) -> str:
        """Traced output of the text."""
        return "".join(part if isinstance(part, str) else chr(FIRST_MARK + part) for part in self._parts)

    def _refuse(self, *_: Any) -> NoReturn:
        self._watch.refuse()

    def __getattr__(self, name: str) -> NoReturn:
        self._watch.looked_at = True
        raise AttributeError(name)

    __hash__ = __str__ = __repr__ = __format__ = __len__ = __iter__ = __getitem__ = _refuse
    __mod__ = __rmod__ = __mul__ = __rmul__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __int__ = __float__ = __index__ = __reversed__ = __call__ = _refuse


class _InlineGeneration(jinja2.ext.Extension):
    """Jinja extension for ``{% generation %}`` that does not capture the text."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _write(value: Any) -> Any:
    return value._written() if isinstance(value, Opaque) else value


def _trim(value: Any, chars: str | None = None) -> Any:
    return value.strip(chars) if isinstance(value, Opaque) else do_trim(value, chars)


def _is_string(value: Any) -> bool:
    return isinstance(value, (str, Opaque))


class TracedTemplate:
    """A template compiled to run on placeholders.

    Args:
        template: The template to trace.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, assumptions: set[Assumption]
    ) -> str:
        """Render messages whose contents are placeholders made by :func:`placeholder`.

        Args:
            messages: Messages with ``role`` and ``content``; contents other than placeholders are ordinary text.
            add_generation_prompt: As for :meth:`ChatTemplate.render`.
            assumptions: Receives assumptions on the contents. If they hold, the output is the same as a real rendering.

        Raises:
            InspectedError: If the output depends on the contents in another way, or the template refuses the messages.
            TemplateTimeError: As :meth:`ChatTemplate.render`.
        """
        compiled = self._compiled
        if compiled is None:
            raise InspectedError
        watch = _Watch()
        shown = [{**message, "content": _opaque(message["content"], watch)} for message in messages]
        try:
            text = compiled.render(self._template.context(shown, None, add_generation_prompt))
        except TemplateTimeError:
            raise
        except Exception as error:  # the real rendering reports the error better
            raise InspectedError from error
        if watch.looked_at:
            raise InspectedError
        assumptions |= watch.assumptions
        return text

    @functools.cached_property
    def _compiled(self) -> jinja2.Template | None:
        source = self._template.source
        if any(ord(character) >= FIRST_MARK for character in source):
            return None
        environment = make_environment()
        environment.convert = _write
        environment.add_extension(_InlineGeneration)
        environment.filters["trim"] = bounded_filter("trim", _trim)
        environment.tests["string"] = _is_string
        try:
            tree = environment.parse(source)
        except (jinja2.TemplateSyntaxError, RecursionError):
            return None
        recursive = any(loop.recursive for loop in tree.find_all(jinja2.nodes.For))
        if recursive or any(True for _ in tree.find_all(_CAPTURES)):
            return None
        return environment.from_string(source)


def placeholder(number: int) -> str:
    """Placeholder for the content of a message while a template is traced."""
    return chr(FIRST_MARK + number)


def _opaque(content: str, watch: _Watch) -> Opaque | str:
    if len(content) == 1 and FIRST_MARK <= ord(content) <= LAST_MARK:
        return Opaque((ord(content) - FIRST_MARK,), watch)
    return content


def holds(assumption: Assumption, contents: Sequence[str]) -> bool:
    """True if an assumption holds for the contents of a row's messages."""
    parts, check, argument = assumption
    text = (
        contents[parts[0]]
        if len(parts) == 1 and isinstance(parts[0], int)
        else "".join(part if isinstance(part, str) else contents[part] for part in parts)
    )
    return _CHECKS[check](text, argument)


_SHAPES = 1024
#: Most messages of a cached conversation; few longer conversations share a shape.
_LONGEST = 64
_MARKS = re.compile("([\U00100000-\U0010fff0])")


@dataclass(frozen=True)
class _RowShape:
    """Text of a row, with placeholders for the contents of messages."""

    parts: tuple[str | int, ...]
    bounds: tuple[int, ...]
    """Indices in ``parts`` at which answers begin and end, alternating."""

    def fill(self, contents: Sequence[str]) -> RowText:
        pieces = [part if isinstance(part, str) else contents[part] for part in self.parts]
        positions, length, done = [], 0, 0
        for bound in self.bounds:
            for piece in pieces[done:bound]:
                length += len(piece)
            done = bound
            positions.append(length)
        return RowText("".join(pieces), tuple(zip(positions[::2], positions[1::2], strict=True)))


_Shape = tuple[tuple[_RowShape, ...], tuple[Assumption, ...]]


class Shapes:
    """Renders conversations by filling contents into a cached rendering of their roles.

    Args:
        template: The chat template.
        stops: Pattern of the texts of the stop tokens.
    """

    def __init__(self, template: ChatTemplate, stops: re.Pattern[str]) -> None:
        self._traced = TracedTemplate(template)
        self._stops = stops
        self._known: dict[tuple[tuple[str, ...], tuple[int, ...]], _Shape | None] = {}

    def rows(self, turns: Sequence[Message], wanted: tuple[int, ...]) -> list[RowText] | None:
        """Sequences of text of a conversation, or None if it must be rendered individually.

        Args:
            turns: The conversation.
            wanted: Indices of the assistant's messages that are trained on.
        """
        if len(turns) > _LONGEST:
            return None
        for turn in turns:
            if turn.reasoning or turn.tool_calls or turn.name or turn.tool_call_id:
                return None
        key = (tuple([turn.role for turn in turns]), wanted)
        if key not in self._known:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            self._known[key] = self._trace(*key)
        if (shape := self._known[key]) is None:
            return None
        rows, assumptions = shape
        contents = [turn.content for turn in turns]
        if any(REASONING_END in contents[index] for index in wanted):
            # Reasoning in an answer may not fit its prompt.
            return None
        # A template may leave out a blank message, which only a real rendering shows.
        if not all(content and not content.isspace() for content in contents):
            return None
        if not all(holds(assumption, contents) for assumption in assumptions):
            return None
        return [row.fill(contents) for row in rows]

    def _trace(self, roles: tuple[str, ...], wanted: tuple[int, ...]) -> _Shape | None:
        assumptions: set[Assumption] = set()

        def render(messages: Sequence[dict[str, Any]], generation_prompt: bool) -> str:
            return self._traced.render(messages, generation_prompt, assumptions)

        messages = [{"role": role, "content": placeholder(number)} for number, role in enumerate(roles)]
        try:
            turns = [read_turn(render, messages, index, self._stops, opaque=True) for index in wanted]
        except (InspectedError, RowError):
            return None
        return tuple(_shape(row) for row in group_turns(turns)), tuple(sorted(assumptions, key=repr))


def _shape(row: RowText) -> _RowShape:
    parts: list[str | int] = []
    bounds: list[int] = []
    position = 0
    for edge in (*(edge for span in row.spans for edge in span), len(row.text)):
        for number, part in enumerate(_MARKS.split(row.text[position:edge])):
            if part:
                parts.append(ord(part) - FIRST_MARK if number % 2 else part)
        bounds.append(len(parts))
        position = edge
    return _RowShape(tuple(parts), tuple(bounds[:-1]))
