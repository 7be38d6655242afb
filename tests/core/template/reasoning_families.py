"""Reasoning templates, of the structures that reasoning models have: prompts that open or close a block, and similar.

As in :mod:`tests.core.template.families`, a ``generation`` block holds the text that the model must produce after the
prompt.
"""

from __future__ import annotations

from tests.core.template.families import DEEPSEEK, GLM, Family

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

#: Pairs of tokens for turn, channel and tool; the prompt ends an empty channel that the history does not show, and a
#: turn with a call goes on after the answer of the tool.
GEMMA4 = Family(
    name="gemma4",
    kind="words",
    specials=(
        *("<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    ),
    stops=("<eos>", "<turn|>", "<|tool_response>"),
    bos="<bos>",
    tools=True,
    one_row=False,
    marked="""\
{{- bos_token }}
{%- set ns = namespace(before='') %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- 'response:' + message.name + '{' + message.content + '}<tool_response|>' }}
{%- else %}
{%- if not (message.role == 'assistant' and ns.before == 'tool') %}
{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- endif %}
{%- if message.role == 'assistant' %}{% generation %}
{%- for call in message.tool_calls or [] %}
{{- '<|tool_call>' + call.function.name }}{{- call.function.arguments | tojson }}{{- '<tool_call|>' }}
{%- endfor %}
{{- message.content | trim + ('<|tool_response>' if message.tool_calls else '<turn|>') }}{% endgeneration %}
{{- '' if message.tool_calls else '\\n' }}
{%- else %}{{ message.content | trim + '<turn|>\\n' }}
{%- endif %}
{%- endif %}
{%- set ns.before = message.role %}
{%- endfor %}
{%- if add_generation_prompt and ns.before != 'tool' %}
{{- '<|turn>model\\n<|channel>thought\\n<channel|>' }}
{%- endif %}""",
)

#: The prompt ends an empty block, of which the history shows the end only.
DEEPSEEK_V32 = Family(
    name="deepseek-v3.2",
    kind="words",
    specials=DEEPSEEK.specials,
    stops=DEEPSEEK.stops,
    bos=DEEPSEEK.bos,
    one_row=False,
    marked="""\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- else %}
{{- '<｜Assistant｜></think>' }}{% generation %}{{ message.content + '<｜end▁of▁sentence｜>' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think></think>' }}{% endif %}""",
)

#: The same without the beginning of the block: prompt and history agree.
DEEPSEEK_V31 = Family(
    name="deepseek-v3.1",
    kind="words",
    specials=DEEPSEEK.specials,
    stops=DEEPSEEK.stops,
    bos=DEEPSEEK.bos,
    marked=DEEPSEEK_V32.marked.replace("<think></think>", "</think>"),
)

#: The prompt begins a block that an answer without reasoning ends at once, without the newline of the prompt.
NEMOTRON = Family(
    name="nemotron",
    kind="words",
    specials=_IM,
    stops=("<|im_end|>", "<|endoftext|>"),
    reasoning=True,
    one_row=False,
    marked="""\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role != 'assistant' %}{{ message.content + '<|im_end|>\\n' }}
{%- elif message.reasoning_content and loop.index0 > ns.last %}
{{- '<think>\\n' }}{% generation %}
{{- message.reasoning_content + '\\n</think>\\n' + message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}
{{- '<think>' }}{% generation %}{{ '</think>' + message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}""",
)

#: The same, where an answer without reasoning shows only the end of the block, and no token ends a turn.
GLM47 = Family(
    name="glm-4.7",
    kind="words",
    specials=GLM.specials,
    stops=GLM.stops,
    reasoning=True,
    one_row=False,
    hands_over=True,
    marked="""\
[gMASK]<sop>
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}{{ '<|' + message.role + '|>' + message.content }}
{%- elif message.reasoning_content and loop.index0 > ns.last %}
{{- '<|assistant|><think>' }}{% generation %}
{{- message.reasoning_content.strip() + '</think>' + message.content.strip() }}{% endgeneration %}
{%- else %}{{ '<|assistant|>' }}{% generation %}{{ '</think>' + message.content.strip() }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}""",
)

#: Tokens of its own around reasoning and answer; the prompt, which it always writes, ends an empty block.
COMMAND_R7B = Family(
    name="command-r7b",
    kind="words",
    specials=(
        *(
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
        *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    stops=("<|END_OF_TURN_TOKEN|>",),
    one_row=False,
    marked="""\
{%- for message in messages %}
{{- '<|START_OF_TURN_TOKEN|><|' + ('CHATBOT' if message.role == 'assistant' else message.role | upper) + '_TOKEN|>' }}
{%- if message.role == 'assistant' %}{% generation %}
{{- '<|START_RESPONSE|>' + message.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- endfor %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>' }}""",
)

#: Other spaces in the prompt than in the history.
CARELESS = Family(
    name="careless",
    kind="words",
    specials=("<s>", "</s>"),
    stops=("</s>",),
    bos="<s>",
    one_row=False,
    marked="""\
{{ bos_token }}
{% for message in messages %}
{%- if message.role == 'assistant' %}
    ASSISTANT:{{ '\\n' }}{% generation %}{{ message.content | trim + eos_token }}{% endgeneration %}
{{ '\\n' }}
{%- else %}
{{ message.role | upper }}: {{ message.content }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
ASSISTANT:{{ '\\n\\n' }}
{% endif %}""",
)

#: An empty block in every finished answer; reasoning is shown only in turns whose tools have not been answered yet.
KIMI_THINKING = Family(
    name="kimi-thinking",
    kind="words",
    specials=("[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
    stops=("<|im_end|>",),
    marked="""\
{%- for message in messages %}
{{- '<|im_' + message.role + '|>' + message.role + '<|im_middle|>' }}
{%- if message.role == 'assistant' %}{% generation %}
{%- set thought = message.reasoning_content if message.tool_calls and message.reasoning_content else '' %}
{{- '<think>' + thought + '</think>' + message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}""",
)

#: Contents only as lists of parts, reasoning as one of the parts, and markup of its own for it.
PARTS = Family(
    name="parts",
    kind="words",
    specials=("<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
    stops=("</s>",),
    bos="<s>",
    marked="""\
{{- bos_token }}
{%- for message in messages %}
{{- '[INST]' if message.role == 'user' }}
{%- for part in message.content %}
{%- if part.type == 'thinking' %}{{ '[THINK]' + part.thinking + '[/THINK]' }}
{%- elif part.type == 'text' %}{{ part.text }}
{%- endif %}
{%- endfor %}
{{- '[/INST]' if message.role == 'user' else eos_token }}
{%- endfor %}""",
)

#: Every family whose marks say what the model must produce.
REASONING_MARKED = (*(GEMMA4, DEEPSEEK_V32, DEEPSEEK_V31, NEMOTRON, GLM47, COMMAND_R7B, CARELESS, KIMI_THINKING),)
