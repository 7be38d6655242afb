"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from core.data.conversation import RowError
from core.errors import UserError
from core.template.limits import BoundedEnvironment
from core.text import one_line

#: Names that the reasoning of a message goes by; templates read the first, older data has the others.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

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


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox in which transformers renders chat templates: the same settings, filters and functions.

    Other than there, a rendering has an end; see :mod:`core.template.limits`.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dictionary()
    environment.globals["namespace"] = _Namespace
    return environment


class ChatTemplate:
    """A chat template: a conversation goes in, the text that the model sees comes out.

    Args:
        source: The Jinja template.
        special_tokens: Names that the template may use, such as ``bos_token``, and the text of each.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})

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
        try:
            return self._compiled.render(self.context(messages, tools, add_generation_prompt))
        except jinja2.TemplateSyntaxError as error:
            raise RowError("template_error", f"{self._syntax(error)}.") from error
        except Exception as error:  # a template is a program of somebody else's and raises what it likes
            reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
            raise RowError("template_error", f"The chat template refuses the conversation: {reason}.") from error

    def check(self) -> None:
        """See that the template is Jinja.

        Raises:
            UserError: If it is not; the message names the line.
        """
        try:
            _ = self._compiled
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._syntax(error)}.", "Mend it, or name another one in template.file.") from error

    def context(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> dict[str, Any]:
        """All names that the template sees."""
        return {
            "messages": [_as_passed(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens,
        }

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return make_environment().from_string(self.source)

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


def _as_passed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without empty fields, its reasoning under both names that templates read."""
    fields = {key: value for key, value in message.items() if value is not None}
    for name in _REASONING_FIELDS:
        if (reasoning := fields.get(name)) is not None:
            return {"thinking": reasoning, **fields, "reasoning_content": reasoning}
    return fields
