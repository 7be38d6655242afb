"""Built-in chat templates, by name, for base models without one."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UserError
from core.small_files import read_small

#: Largest template in bytes. Models have up to a hundred thousand; a megabyte takes minutes to compile.
TEMPLATE_LIMIT = 256 << 10

#: Refuses conversations with tools.
_NO_TOOLS = (
    "{%- for message in messages %}{%- if message.role == 'tool' or message.tool_calls %}"
    "{{ raise_exception('it has no form for tools') }}{%- endif %}{%- endfor %}"
)
_CHATML_TOOLS = """\
{{- "# Tools\\n\\nYou may call functions. Their signatures are:\\n<tools>" }}
{%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
{{- "\\n</tools>\\n\\nTo call one, answer with its name and arguments as JSON:\\n<tool_call>\\n" }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
"""


def _chatml(default_system: str = "") -> str:
    """ChatML: each turn between two special tokens; tools in the format of Hermes and Qwen."""
    return f"""\
{{%- set has_system = messages[0].role == 'system' %}}
{{%- set system = messages[0].content if has_system else '{default_system}' %}}
{{%- if has_system or tools or {bool(default_system)} %}}
{{{{- '<|im_start|>system\\n' }}}}
{{{{- system }}}}
{{%- if tools %}}
{{{{- '\\n\\n' if has_system or {bool(default_system)} else '' }}}}
{_CHATML_TOOLS}{{%- endif %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- for message in (messages[1:] if has_system else messages) %}}
{{{{- '<|im_start|>' + message.role + '\\n' }}}}
{{{{- message.content }}}}
{{%- for call in message.tool_calls or [] %}}
{{{{- '\\n' if message.content or not loop.first else '' }}}}
{{{{- '<tool_call>\\n{{"name": "' + call.function.name + '", "arguments": ' }}}}
{{{{- (call.function.arguments | tojson) + '}}\\n</tool_call>' }}}}
{{%- endfor %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
{{{{- '<|im_start|>assistant\\n' }}}}
{{%- endif %}}"""


_LLAMA3 = (
    _NO_TOOLS
    + """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
)
_MISTRAL = (
    _NO_TOOLS
    + """\
{{- bos_token }}
{%- set has_system = messages[0].role == 'system' %}
{%- for message in (messages[1:] if has_system else messages) %}
{%- if message.role == 'user' %}
{{- '[INST] ' }}
{%- if loop.first and has_system %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- message.content + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content | trim + eos_token }}
{%- endif %}
{%- endfor %}"""
)
_GEMMA = (
    _NO_TOOLS
    + """\
{{- bos_token }}
{%- set has_system = messages[0].role == 'system' %}
{%- for message in (messages[1:] if has_system else messages) %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- if loop.first and has_system %}{{ messages[0].content | trim + '\\n\\n' }}{% endif %}
{{- message.content | trim }}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\\n' }}
{%- endif %}"""
)
_PHI3 = (
    _NO_TOOLS
    + """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}"""
)
_ZEPHYR = (
    _NO_TOOLS
    + """\
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}"""
)
_ALPACA = (
    _NO_TOOLS
    + """\
{{- bos_token or '' }}
{%- set has_system = messages[0].role == 'system' %}
{%- if has_system %}
{{- messages[0].content + '\\n\\n' }}
{%- else %}
{{- 'Below is an instruction that describes a task. Write a response that completes it.\\n\\n' }}
{%- endif %}
{%- for message in (messages[1:] if has_system else messages) %}
{%- if message.role == 'user' %}
{{- '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}
{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\\n' }}
{%- endif %}"""
)
_VICUNA = (
    _NO_TOOLS
    + """\
{{- bos_token or '' }}
{%- set has_system = messages[0].role == 'system' %}
{{- messages[0].content if has_system else 'A conversation between a user and an assistant that answers well.' }}
{%- for message in (messages[1:] if has_system else messages) %}
{%- if message.role == 'user' %}
{{- '\\n\\nUSER: ' + message.content + '\\n' }}
{%- else %}
{{- 'ASSISTANT: ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'ASSISTANT:' }}
{%- endif %}"""
)


@dataclass(frozen=True)
class NamedTemplate:
    """A built-in chat template.

    Args:
        name: As in ``template.name``.
        about: Description in a few words.
        source: The Jinja template.
        stops: Texts of the tokens that end an answer, if not the end-of-text token of the tokenizer.
    """

    name: str
    about: str
    source: str
    stops: tuple[str, ...] = ()


#: All built-in templates, in display order.
NAMED_TEMPLATES: dict[str, NamedTemplate] = {
    template.name: template
    for template in (
        NamedTemplate("chatml", "ChatML: <|im_start|>role … <|im_end|>", _chatml(), ("<|im_end|>",)),
        NamedTemplate(
            "qwen", "ChatML with a default system prompt", _chatml("You are a helpful assistant."), ("<|im_end|>",)
        ),
        NamedTemplate("llama3", "Llama 3: headers, <|eot_id|>", _LLAMA3, ("<|eot_id|>",)),
        NamedTemplate("mistral", "Mistral: [INST] … [/INST]", _MISTRAL),
        NamedTemplate("gemma", "Gemma: <start_of_turn> … <end_of_turn>", _GEMMA, ("<end_of_turn>",)),
        NamedTemplate("phi3", "Phi 3: <|role|> … <|end|>", _PHI3, ("<|end|>",)),
        NamedTemplate("zephyr", "Zephyr: <|role|> …, the model's own end of text", _ZEPHYR),
        NamedTemplate("alpaca", "Alpaca: ### Instruction, ### Response; needs no tokens of its own", _ALPACA),
        NamedTemplate("vicuna", "Vicuna: USER, ASSISTANT; needs no tokens of its own", _VICUNA),
    )
}


def stop_texts(source: str) -> tuple[str, ...]:
    """Stop texts of a built-in template, by its source; empty for other templates."""
    return next((template.stops for template in NAMED_TEMPLATES.values() if template.source == source), ())


def named_or_file(template: str | None) -> str | None:
    """Text of the template that a run was trained with, or None for the model's own.

    Args:
        template: Name of a built-in template, or path of a Jinja file.

    Raises:
        UserError: If the file cannot be read.
    """
    named = template in NAMED_TEMPLATES
    return template_source(None if named else template, template if named else None)


def template_source(file: str | None, name: str | None) -> str | None:
    """Text of the configured template, or None for the model's own.

    Args:
        file: ``template.file``.
        name: ``template.name``.

    Raises:
        UserError: If both are given, the file cannot be read or the name is unknown.
    """
    if file is not None and name is not None:
        raise UserError("template.file and template.name are both set.", "Remove one of them.")
    if name is not None:
        if name not in NAMED_TEMPLATES:
            raise UserError(f"There is no template called {name}.", f"There are {', '.join(NAMED_TEMPLATES)}.")
        return NAMED_TEMPLATES[name].source
    if file is None:
        return None
    try:
        return read_small(file, TEMPLATE_LIMIT).decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"template.file {file} cannot be read: {reason}.", "Check the path.") from error
