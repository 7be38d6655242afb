"""Variables of a chat template, such as ``enable_thinking``: their values for a run, written into the template's text.

So they hold wherever the template goes: in training, in the chat, beside the adapter, in an exported file. A program
that passes a value of its own, as ``chat_template_kwargs`` of vLLM's server does, still has the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from core.config.schema import VariableValue
from core.errors import UserError


def with_variables(source: str, variables: Mapping[str, VariableValue]) -> str:
    """A chat template whose variables have these values unless the caller passes others.

    Args:
        source: The Jinja template.
        variables: Values by name.

    Raises:
        UserError: If the template does not read one of them.
    """
    if not variables:
        return source
    check_variables(source, variables)
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in variables.items()
    ]
    return "".join(lines) + _after_block(source)


def check_variables(source: str, variables: Mapping[str, VariableValue]) -> None:
    """Check that a chat template reads all of the variables.

    Raises:
        UserError: If it does not read one.
    """
    for name in variables:
        if not reads_variable(source, name):
            raise UserError(
                f"template.variables sets {name}, which the chat template does not read.",
                "Remove it, or take a template that reads it.",
            )


def reads_variable(source: str, name: str) -> bool:
    """Whether a chat template has the name of a variable in it."""
    return re.search(rf"\b{name}\b", source) is not None


def one_template(default: str | None, tools: str | None) -> str | None:
    """A model's own template and its separate one for conversations with tools, as one; None where it has none."""
    if default is None or tools is None:
        return default
    return f"{{%- if tools %}}{_after_block(tools)}{{%- else %}}{_after_block(default)}{{%- endif %}}"


def _after_block(source: str) -> str:
    """A template's text behind a block: the line break there is not rendered, so one that it begins with is doubled."""
    return f"\n{source}" if source.startswith("\n") else source


def _literal(value: VariableValue) -> str:
    """A value as Jinja writes it, whose texts have the escapes of JSON."""
    return json.dumps(value, ensure_ascii=False)
