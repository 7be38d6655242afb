"""Chat templates of the structures that this year's models have: thinking on and off, calls of tools, channels.

As in :mod:`tests.core.template.families`, a ``generation`` block holds the text that the model must produce after the
prompt. ``enable_thinking`` is what their own templates read, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tests.core.template.families import GEMMA3, GPT_OSS, LLAMA3, PHI3, QWEN3, Family
from tests.core.template.reasoning_families import GEMMA4

#: Whether thinking is told to be on or off; None: as the template has it by itself.
Thinking = Literal["on", "off"] | None
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class ModelFamily:
    """A template, and what its models do.

    Args:
        family: The template, with marks.
        reasoning: Where it reads reasoning: a field of the message, a block in the content, or a part of the content;
            empty where it has none.
        tools: Whether it has a form for calls.
        switch: Whether thinking can be told to be on and off.
    """

    family: Family
    reasoning: Literal["", "reasoning_content", "thinking", "content", "parts"] = ""
    tools: bool = False
    switch: bool = False

    def told(self, thinking: Thinking) -> Family:
        """The template with thinking on or off."""
        if thinking is None:
            return self.family
        value = "true" if thinking == "on" else "false"
        return replace(self.family, marked=f"{{%- set enable_thinking = {value} %}}\n{self.family.marked}")


_LAST_QUESTION = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"""
_JSON_CALLS = """\
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}"""

#: Thinking told by a variable or by a word of the system prompt, which the template takes out of it; turned off, an
#: empty block is in the prompt and in all turns. Calls of tools are in no turn, and their answers are the user's.
SMOLLM3 = Family(
    name="smollm3",
    kind="words",
    specials=_IM,
    stops=("<|im_end|>", "<|endoftext|>"),
    marked="""\
{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- set own = messages[0].content if messages[0].role == 'system' else '' %}
{%- if '/no_think' in own %}{% set thinks = false %}{% elif '/think' in own %}{% set thinks = true %}{% endif %}
{%- set empty = '' if thinks else '<think>\\n\\n</think>\\n' %}
{{- '<|im_start|>system\\nToday: ' + strftime_now('%Y') + '\\nMode: ' + ('/think' if thinks else '/no_think') + '\\n' }}
{{- own.replace('/no_think', '').replace('/think', '').rstrip() or 'You are an assistant.' }}{{ '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role in ('user', 'tool') %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + empty }}{% generation %}
{{- message.content.lstrip('\\n') + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + empty }}{% endif %}""",
)

#: A system prompt of its own with the date, the tools before the last question only, no generation prompt. A call has
#: an id of nine characters and no text with it; turns that do not alternate are refused.
MISTRAL_SMALL = Family(
    name="mistral-small",
    kind="words",
    specials=(
        *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]"),
        *("[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[TOOL_RESULTS]", "[TOOL_CONTENT]"),
        "[/TOOL_RESULTS]",
    ),
    stops=("</s>",),
    bos="<s>",
    marked=_LAST_QUESTION
    + """\
{{- bos_token }}
{%- set own = messages[0].role == 'system' %}
{%- set count = namespace(turns=0) %}
{%- set turns = messages[1:] if own else messages %}
{%- for message in turns %}
{%- if message.role != 'tool' and not message.get('tool_calls') %}
{%- if (message.role == 'user') != (count.turns % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set count.turns = count.turns + 1 %}
{%- endif %}
{%- endfor %}
{{- '[SYSTEM_PROMPT]' + (messages[0].content if own else 'Today is ' + strftime_now('%Y') + '.') + '[/SYSTEM_PROMPT]' }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}
{{- '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | default('') | length != 9 %}{{ raise_exception('9 in ids!') }}{% endif %}
{{- '[TOOL_RESULTS]' + message.tool_call_id + '[TOOL_CONTENT]' + message.content + '[/TOOL_RESULTS]' }}
{%- elif message.role == 'assistant' %}{% generation %}
{%- for call in message.get('tool_calls') or [] %}
{%- if call.id | default('') | length != 9 %}{{ raise_exception('9 in ids!') }}{% endif %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}{{ call.function.arguments | tojson }}
{%- endfor %}
{{- ('' if message.get('tool_calls') else message.content) + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}""",
)

#: The same with text beside calls, no ids, the tools at the beginning, and reasoning as a part of the content, which
#: stays in later turns.
MINISTRAL3 = Family(
    name="ministral-3",
    kind="words",
    specials=(*MISTRAL_SMALL.specials, "[THINK]", "[/THINK]"),
    stops=("</s>",),
    bos="<s>",
    marked="""\
{{- bos_token }}
{%- macro shown(content) %}
{%- if content is string %}{{ content }}
{%- else %}
{%- for part in content %}
{%- if part.type == 'thinking' %}{{ '[THINK]' + part.thinking + '[/THINK]' }}
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endmacro %}
{%- if messages[0].role == 'system' %}
{{- '[SYSTEM_PROMPT]' + shown(messages[0].content) + '[/SYSTEM_PROMPT]' }}
{%- else %}{{ '[SYSTEM_PROMPT]Draft your thoughts first.[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST]' + shown(message.content) + '[/INST]' }}
{%- elif message.role == 'tool' %}{{ '[TOOL_RESULTS]' + shown(message.content) + '[/TOOL_RESULTS]' }}
{%- elif message.role == 'assistant' %}{% generation %}{{ shown(message.content) }}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{ call.function.arguments | tojson }}
{%- endfor %}
{{- eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}""",
)

#: A system turn of its own where there is none; calls in the syntax of Python; the last turn ends with the end of text,
#: earlier ones with the end of a turn.
OLMO3 = Family(
    name="olmo3",
    kind="words",
    specials=_IM,
    stops=("<|endoftext|>", "<|im_end|>"),
    one_row=False,
    marked="""\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou have no functions.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- '<|im_start|>system\\n' + message.content }}
{%- if tools %}{{ '<functions>' }}{{ tools | tojson }}{{ '</functions>' }}{% endif %}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'user' %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}{{ '<|im_start|>environment\\n' + message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}
{%- if message.tool_calls %}
{{- '<function_calls>' }}
{%- for call in message.tool_calls %}
{{- '\\n' if not loop.first }}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments.items() %}
{{- ', ' if not loop.first }}{{ key + '=' }}{{ value | tojson }}
{%- endfor %}{{ ')' }}
{%- endfor %}{{ '</function_calls>' }}
{%- endif %}
{{- '<|endoftext|>' if loop.last else '<|im_end|>' }}{% endgeneration %}{{ '' if loop.last else '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: The same beginning with reasoning, as its sibling that thinks has it; the content holds it in all turns.
OLMO3_THINK = replace(
    OLMO3,
    name="olmo3-think",
    marked=OLMO3.marked.replace(
        "'<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}",
        "'<|im_start|>assistant\\n' + ('<think>' if message.content.startswith('<think>') else '') }}{% generation %}"
        "{{ message.content.removeprefix('<think>') }}",
    ).replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}"),
)

#: Roles between two tokens, the end of text after every turn, a system prompt of its own with the date; tools have a
#: role, their calls are in no turn.
GRANITE3 = Family(
    name="granite3",
    kind="words",
    specials=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
    stops=("<|end_of_text|>",),
    marked="""\
{%- macro turn(role, text) %}
{{- '<|start_of_role|>' + role + '<|end_of_role|>' + text + '<|end_of_text|>\\n' }}
{%- endmacro %}
{%- if messages[0].role == 'system' %}{{ turn('system', messages[0].content) }}
{%- else %}
{{- turn('system', 'Today: ' + strftime_now('%Y') + '.' + (' Write your thoughts first.' if thinking else '')) }}
{%- endif %}
{%- if tools %}{{ turn('available_tools', tools | tojson) }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% generation %}
{{- message.content + '<|end_of_text|>' }}{% endgeneration %}{{ '\\n' }}
{%- elif message.role != 'system' %}{{ turn(message.role, message.content) }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}""",
)

#: The same roles; calls in the assistant's turns, their answers in the user's.
GRANITE4 = Family(
    name="granite4",
    kind="words",
    specials=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
    stops=("<|end_of_text|>",),
    marked="""\
{%- macro begin(role) %}{{ '<|start_of_role|>' + role + '<|end_of_role|>' }}{% endmacro %}
{%- if tools or messages[0].role == 'system' %}
{{- begin('system') + (messages[0].content if messages[0].role == 'system' else 'You are an assistant.') }}
{%- for tool in tools or [] %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ begin('user') + message.content + '<|end_of_text|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ begin('user') }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|end_of_text|>\\n' }}{% endif %}
{%- elif message.role == 'assistant' %}
{{- begin('assistant') }}{% generation %}{{ message.content }}"""
    + _JSON_CALLS
    + """\
{{- '<|end_of_text|>' }}{% endgeneration %}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ begin('assistant') }}{% endif %}""",
)

#: The prompt begins a block of reasoning, or has an empty one; earlier turns have none, and calls are written as tags.
QWEN35 = Family(
    name="qwen3.5",
    kind="words",
    specials=(*_IM, "<think>", "</think>", "<tool_call>", "</tool_call>"),
    stops=("<|im_end|>", "<|endoftext|>"),
    one_row=False,
    marked=_LAST_QUESTION
    + """\
{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- if tools or messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' }}{% for tool in tools or [] %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- messages[0].content if messages[0].role == 'system' else '' }}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|im_start|>user\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content | trim + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and thinks %}
{%- set thought = (message.reasoning_content or '') | trim %}
{{- '<think>\\n' }}{% generation %}{{ thought + '\\n</think>\\n\\n' }}{% endgeneration %}
{%- elif loop.index0 > ns.last %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{% generation %}{{ message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- ('\\n\\n' if message.content | trim else '') if loop.first else '\\n' }}
{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n' if thinks else '<think>\\n\\n</think>\\n\\n') }}
{%- endif %}""",
)

#: No token ends a turn; reasoning stays in the turns of the last question, and earlier ones show the end of a block.
GLM47 = Family(
    name="glm-4.7-flash",
    kind="words",
    specials=(
        *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>"),
        "</arg_value>",
    ),
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    one_row=False,
    hands_over=True,
    marked="[gMASK]<sop>"
    + _LAST_QUESTION
    + """\
{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|observation|>' }}{% endif %}
{{- '<tool_response>' + message.content + '</tool_response>' }}
{%- elif message.role != 'assistant' %}{{ '<|' + message.role + '|>' + message.content }}
{%- else %}
{{- '<|assistant|>' }}
{%- if message.reasoning_content and loop.index0 > ns.last %}
{{- '<think>' }}{% generation %}{{ message.reasoning_content.strip() + '</think>' }}{% endgeneration %}
{%- elif thinks %}{% generation %}{{ '</think>' }}{% endgeneration %}
{%- else %}{{ '</think>' }}
{%- endif %}
{% generation %}{{ message.content.strip() }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}
{{- '<arg_key>' + key + '</arg_key><arg_value>' + (value if value is string else value | tojson) + '</arg_value>' }}
{%- endfor %}{{ '</tool_call>' }}
{%- endfor %}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' + ('<think>' if thinks else '</think>') }}{% endif %}""",
)

#: Calls as a list in the syntax of Python between two tokens; reasoning of the last turns stays, without spaces.
LFM2 = Family(
    name="lfm2",
    kind="words",
    specials=(*_IM, "<|startoftext|>", "<|tool_call_start|>", "<|tool_call_end|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
    bos="<|startoftext|>",
    one_row=False,
    marked=_LAST_QUESTION
    + """\
{{- bos_token }}
{%- if tools %}{{ '<|im_start|>system\\nList of tools: ' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}
{%- if message.thinking is defined and loop.index0 > ns.last %}
{{- '<think>' + message.thinking + '</think>' }}
{%- endif %}
{{- message.content }}
{%- if message.tool_calls %}
{{- '<|tool_call_start|>[' }}
{%- for call in message.tool_calls %}
{{- ', ' if not loop.first }}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments.items() %}
{{- ', ' if not loop.first }}{{ key + '=' }}{{ value | string }}
{%- endfor %}{{ ')' }}
{%- endfor %}{{ ']<|tool_call_end|>' }}
{%- endif %}
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: A token between the role and the text, and none after a turn.
PHI4 = Family(
    name="phi4",
    kind="words",
    specials=(*_IM, "<|im_sep|>"),
    stops=("<|im_end|>", "<|endoftext|>"),
    marked="""\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '<|im_sep|>' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}""",
)

#: No text between turns, and the end of text after a conversation that no answer is asked of.
PHI4_MINI = Family(
    name="phi4-mini",
    kind="words",
    specials=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    stops=("<|end|>", "<|endoftext|>"),
    eos="<|endoftext|>",
    marked="""\
{%- for message in messages %}
{{- '<|' + message.role + '|>' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}""",
)

#: Thinking told by a token in the system turn, and after the answer of a tool begun by the prompt.
GEMMA4_THINKING = Family(
    name="gemma4-thinking",
    kind="words",
    specials=(*GEMMA4.specials, "<|think|>"),
    stops=GEMMA4.stops,
    bos="<bos>",
    one_row=False,
    marked=_LAST_QUESTION
    + """\
{{- bos_token }}
{%- set thinks = enable_thinking if enable_thinking is defined else true %}
{%- if thinks %}{{ '<|turn>system\\n<|think|>\\n<turn|>\\n' }}{% endif %}
{%- set before = namespace(role='') %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- 'response:' + message.name + '{' + message.content + '}<tool_response|>' }}
{%- else %}
{%- if not (message.role == 'assistant' and before.role == 'tool') %}
{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- endif %}
{%- if message.role == 'assistant' %}
{%- if message.reasoning_content and loop.index0 > ns.last %}
{%- if before.role == 'tool' and thinks %}{{ '<|channel>thought\\n' }}
{%- else %}{% generation %}{{ '<|channel>thought\\n' }}{% endgeneration %}
{%- endif %}
{% generation %}{{ message.reasoning_content + '\\n<channel|>' }}{% endgeneration %}
{%- endif %}
{% generation %}
{%- for call in message.tool_calls or [] %}
{{- '<|tool_call>' + call.function.name }}{{- call.function.arguments | tojson }}{{- '<tool_call|>' }}
{%- endfor %}
{{- message.content | trim + ('<|tool_response>' if message.tool_calls else '<turn|>') }}{% endgeneration %}
{{- '' if message.tool_calls else '\\n' }}
{%- else %}{{ message.content | trim + '<turn|>\\n' }}
{%- endif %}
{%- endif %}
{%- set before.role = message.role %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|turn>model\\n' if before.role != 'tool' else '<|channel>thought\\n' if thinks else '' }}
{%- endif %}""",
)

#: By the families of :mod:`tests.families.tiny`.
MODEL_FAMILIES: dict[str, tuple[ModelFamily, ...]] = {
    "llama": (ModelFamily(LLAMA3, tools=True),),
    "qwen3": (ModelFamily(QWEN3, "reasoning_content", tools=True),),
    "qwen3_5": (ModelFamily(QWEN35, "reasoning_content", tools=True, switch=True),),
    "gemma3": (ModelFamily(GEMMA3),),
    "gemma4": (ModelFamily(GEMMA4, tools=True), ModelFamily(GEMMA4_THINKING, "reasoning_content", True, True)),
    "gpt_oss": (ModelFamily(GPT_OSS, "thinking", tools=True),),
    "mistral3": (ModelFamily(MISTRAL_SMALL, tools=True),),
    "ministral3": (ModelFamily(MINISTRAL3, "parts", tools=True),),
    "glm4_moe_lite": (ModelFamily(GLM47, "reasoning_content", tools=True, switch=True),),
    "phi3": (ModelFamily(PHI3), ModelFamily(PHI4), ModelFamily(PHI4_MINI)),
    "smollm3": (ModelFamily(SMOLLM3, "content", switch=True),),
    "lfm2": (ModelFamily(LFM2, "thinking", tools=True),),
    "olmo3": (ModelFamily(OLMO3, tools=True), ModelFamily(OLMO3_THINK, "content", tools=True)),
    "granite": (ModelFamily(GRANITE3, "content"),),
    "granitemoehybrid": (ModelFamily(GRANITE4, tools=True),),
}
