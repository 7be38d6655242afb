"""Thinking switches: the variables by which chat templates are told to have the model reason, or not to."""

from __future__ import annotations

from core.config.schema import VariableValue
from core.data.conversation import RowError
from core.template.reasoning import closed_error, prompt_block
from core.template.render import ChatTemplate
from core.template.settings import reads_variable, with_variables

#: Names and values in the templates of published models: Qwen 3 and most others; DeepSeek, Kimi and Granite; Cohere;
#: MiniMax; Hunyuan; those that take OpenAI's names; Seed.
_OFF: tuple[tuple[str, VariableValue], ...] = (
    ("enable_thinking", False),
    ("thinking", False),
    ("reasoning", False),
    ("thinking_mode", "disabled"),
    ("reasoning_effort", "no_think"),
    ("reasoning_effort", "none"),
    ("thinking_budget", 0),
)
_ON: tuple[tuple[str, VariableValue], ...] = (
    ("enable_thinking", True),
    ("thinking", True),
    ("reasoning", True),
    ("thinking_mode", "enabled"),
    ("reasoning_effort", "high"),
)
_QUESTION = "\U0010fffa"


def thinking_switch(template: ChatTemplate, *, on: bool) -> tuple[str, VariableValue] | None:
    """The variable, and its value, by which a template has the model reason or not; None if it has no such variable.

    It is found by trying: with it, the generation prompt ends outside of a block of reasoning, or has not ended one.
    """
    untold = _ends(template)
    for name, value in _ON if on else _OFF:
        if not reads_variable(template.source, name):
            continue
        found = _ends(ChatTemplate(with_variables(template.source, {name: value}), template.special_tokens))
        if found is None or found == untold:
            continue
        plain, prompt = found
        block = prompt_block(prompt, len(plain) if prompt.startswith(plain) else 0, worded=True)
        if block is None or block.closed != on:
            return name, value
    return None


def _ends(template: ChatTemplate) -> tuple[str, str] | None:
    """A question, without and with the generation prompt."""
    question = {"role": "user", "content": _QUESTION}
    try:
        return template.render([question]), template.render([question], add_generation_prompt=True)
    except RowError:
        return None


def with_switch(error: RowError, template: ChatTemplate) -> RowError:
    """The reason why a row cannot be used, with the variable that helps where reasoning and prompt do not agree."""
    closed = error.message == closed_error().message
    if error.code != "no_reasoning" and not closed:
        return error
    switch = thinking_switch(template, on=closed)
    if switch is None:
        return error
    name, value = switch
    written = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
    begins = "it begins with the reasoning" if closed else "it begins with the answer"
    return RowError(error.code, f"{error.message} With template.variables = {{{name} = {written}}} {begins}.")
