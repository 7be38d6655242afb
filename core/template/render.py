"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.utils import Namespace

from core.data.conversation import RowError
from core.errors import UserError
from core.template.builtin import TEMPLATE_LIMIT
from core.template.jinja_sandbox import BoundedEnvironment, bounded_filter
from core.text import one_line

#: Names that the reasoning of a message goes by; most templates read the first, some one of the others.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_READS_REASONING = re.compile(r"(?:\.|\[['\"]|get\(['\"])reasoning\b")
#: The content of an invented message, to see whether a template shows it.
_PROBE = "\U0010fffc"

#: What Jinja calls the file of a template that has none, in tracebacks.
_TEMPLATE_FILE = "<template>"


class _GenerationBlocks(jinja2.ext.Extension):
    """Accepts ``{% generation %}``, which some templates put around what the assistant says; it writes nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dictionary:
    """``dict`` as templates get it: to be called, not to be looked into."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` without names that begin with an underscore, which would lead out of the sandbox."""

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
    """The sandbox in which transformers renders chat templates: the same settings, filters and functions.

    Other than there, a rendering has an end; see :mod:`core.template.jinja_sandbox`. ``strftime_now`` comes with the
    context, as each :class:`ChatTemplate` has a moment of its own.
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
    """A chat template: a conversation goes in, the text that the model sees comes out.

    Templates that write the date write that of one moment, so that all rows of a run have the same, whenever each of
    them is rendered. Templates that read a content only as a list of parts get one part of text.

    Args:
        source: The Jinja template.
        special_tokens: Names that the template may use, such as ``bos_token``, and the text of each.
        with_tools: Another template for conversations that have tools, where the model has one.
        now: The moment of the date that it writes; None for the present one.
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
        """The text of a conversation.

        Args:
            messages: ``role`` and ``content`` each, and what else they have.
            tools: JSON schemas of what the assistant may call.
            add_generation_prompt: End with the opening of the assistant's turn.

        Raises:
            RowError: ``template_error`` if the template is no Jinja or refuses the conversation.
        """
        if tools and self.with_tools is not None:
            return self.with_tools.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        try:
            return self._compiled.render(self.context(messages, tools, add_generation_prompt))
        except jinja2.TemplateSyntaxError as error:
            raise RowError("template_error", f"{self._syntax(error)}.") from error
        except MemoryError as error:
            raise RowError("template_error", "The chat template needs more memory than it may have.") from error
        except Exception as error:  # a template is a program of somebody else's and raises what it likes
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
            raise RowError("template_error", f"The chat template refuses the conversation: {reason}.") from error

    @property
    def all_sources(self) -> str:
        """The text of this template and of the one for tools."""
        return self.source if self.with_tools is None else f"{self.source}\0{self.with_tools.source}"

    def source_for(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The text of the template that renders a conversation with such tools."""
        return self.source if self.with_tools is None or not tools else self.with_tools.source

    def check(self) -> None:
        """See that the template is Jinja.

        Raises:
            UserError: If it is not; the message names the line.
        """
        hint = "Mend it, or name another one in template.file."
        if len(self.source) > TEMPLATE_LIMIT:
            raise UserError(f"The chat template is larger than {TEMPLATE_LIMIT >> 10} KiB.", hint)
        try:
            _ = self._compiled
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._syntax(error)}.", hint) from error
        except RecursionError as error:
            raise UserError("The chat template is nested too deep.", hint) from error
        except MemoryError as error:
            # Python's own compiler has this for code that is nested too deep, too.
            raise UserError("The chat template is nested too deep, or far too large.", hint) from error
        except Exception as error:  # what the compiler raises at what a template is made of
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
            raise UserError(f"The chat template cannot be compiled: {reason}.", hint) from error

    def context(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> dict[str, Any]:
        """All names that the template sees."""
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
        """Whether the template shows a content that is a list of parts, and none that is text."""
        return not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    @functools.cached_property
    def _reads_reasoning(self) -> bool:
        return _READS_REASONING.search(self.source) is not None

    def _shows(self, content: Any) -> bool:
        question = {"role": "user", "content": content}
        values = {**self._names, "messages": [question], "add_generation_prompt": False}
        try:
            return _PROBE in self._compiled.render(values)
        except Exception:  # as in render
            return False

    @property
    def _names(self) -> dict[str, Any]:
        return {"strftime_now": self._now.strftime, "tools": None, "documents": None, **self.special_tokens}

    def _as_passed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message without empty fields, its reasoning under the names that templates read."""
        fields = {key: value for key, value in message.items() if value is not None}
        content = fields.get("content")
        if not isinstance(content, list) and content is not None and self._wants_parts:
            fields["content"] = [{"type": "text", "text": content}]
        for name in _REASONING_FIELDS:
            if (reasoning := fields.get(name)) is not None:
                fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
                # Not one of the names that transformers adds, so only where it is asked for.
                return {"reasoning": reasoning, **fields} if self._reads_reasoning else fields
        return fields

    @staticmethod
    def _syntax(error: jinja2.TemplateSyntaxError) -> str:
        reason = one_line(error.message or "it cannot be read", 200).rstrip(".")
        return f"The chat template is not valid in line {error.lineno}: {reason}"


def template_line(error: BaseException) -> int | None:
    """The line of the template, from 1, that an error of :class:`ChatTemplate` comes from; None where none is known."""
    cause = error.__cause__
    if isinstance(cause, jinja2.TemplateSyntaxError):
        return cause.lineno
    line, trace = None, cause.__traceback__ if cause is not None else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _TEMPLATE_FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
