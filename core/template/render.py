"""Chat template rendering, with the same results as transformers."""

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

from core.config.schema import VariableValue
from core.data.conversation import RowError
from core.errors import UserError
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
