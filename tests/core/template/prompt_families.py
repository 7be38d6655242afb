"""Chat templates whose prompt is not the beginning of the finished answer, of structures that published models have.

As in :mod:`tests.core.template.families`, a ``generation`` block holds the text that the model must produce after the
prompt.
"""

from __future__ import annotations

from tests.core.template.families import Family

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

#: Calls and their results within one turn of the assistant; the prompt begins the turn anew after a result.
IN_ONE_TURN = Family(
    name="in-one-turn",
    kind="words",
    specials=("<s>", "</s>", "<|user|>", "<|assistant|>", "<|calls|>", "<|called|>", "<|done|>"),
    stops=("<|done|>", "<|called|>"),
    bos="<s>",
    one_row=False,
    marked="""\
{{- bos_token }}
{%- set open = namespace(turn=false, results=false) %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- ('<|done|>' if open.turn) ~ '<|user|>' + message.content }}{% set open.turn = false %}
{%- elif message.role == 'tool' %}{{ (', ' if open.results else '[') + message.content }}{% set open.results = true %}
{%- elif message.role == 'assistant' %}
{{- ']' if open.results }}{{ '' if open.turn else '<|assistant|>' }}{% set open.results = false %}
{%- set open.turn = true %}{% generation %}{{ message.content }}
{%- if message.tool_calls %}
{{- '<|calls|>' }}{{ message.tool_calls[0].function | tojson }}{{ '<|called|>' }}
{%- endif %}{% endgeneration %}
{%- endif %}
{%- endfor %}
{{- ']' if open.results }}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
)

#: A loop that begins after the system message counts from it and looks up neighbors by that count: with a system
#: message, the result of a tool has no end of turn once it is answered.
MISCOUNTED = Family(
    name="miscounted",
    kind="words",
    specials=_IM,
    stops=("<|im_end|>", "<|endoftext|>"),
    one_row=False,
    marked="""\
{%- set first = 1 if messages[0].role == 'system' else 0 %}
{%- if first %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages[first:] %}
{%- if message.role == 'user' %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}{{ '<|im_start|>user\\n<result>' + message.content }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- else %}
{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ '<call>' }}{{ call.function | tojson }}{{ '</call>' }}{% endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: The prompt begins reasoning with a sentence that the finished answer lacks; reasoning of the last turn is shown.
IN_WORDS = Family(
    name="in-words",
    kind="words",
    specials=("<|begin_user|>", "<|begin_assistant|>", "<|end|>"),
    stops=("<|end|>",),
    one_row=False,
    marked="""\
{%- for message in messages %}
{{- '<|begin_' + message.role + '|>\\n' }}
{%- if message.role == 'assistant' %}{% generation %}
{{- message.reasoning_content + '\\n[FINAL]\\n' if loop.last and message.reasoning_content }}
{{- message.content + '<|end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ message.content + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|begin_assistant|>\\nMy steps:\\n' }}{% endif %}""",
)

#: A budget of no tokens: the prompt has a block with a sentence about it, which the finished answer lacks.
NO_BUDGET = Family(
    name="no-budget",
    kind="words",
    specials=("<seed:bos>", "<seed:eos>"),
    stops=("<seed:eos>",),
    bos="<seed:bos>",
    one_row=False,
    marked="""\
{%- for message in messages %}
{{- bos_token + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}
{%- if message.reasoning_content %}{{ '<seed:think>' + message.reasoning_content + '</seed:think>' }}{% endif %}
{{- message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- bos_token + 'assistant\\n' }}
{%- if thinking_budget == 0 %}
{{- '<seed:think>\\n<seed:budget>There is no budget, so I answer at once.</seed:budget>\\n</seed:think>' }}
{%- endif %}
{%- endif %}""",
)

#: Reasoning in a field, and contents as they are; the prompt begins a block where that is asked for.
UNDIVIDED = Family(
    name="undivided",
    kind="words",
    specials=("<eos>", "<|User|>", "<|Bot|>"),
    stops=("<eos>",),
    marked="""\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|Bot|>' }}{% generation %}
{{- '<think>' + message.reasoning_content + '</think>' if message.reasoning_content else '</think>' }}
{{- message.content + '<eos>' }}{% endgeneration %}
{%- else %}{{ '<|User|>' + message.content + '<eos>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|Bot|>' }}
{%- if enable_thinking is defined %}{{ '<think>' if enable_thinking else '</think>' }}{% endif %}
{%- endif %}""",
)

#: Reasoning in the content alone, without spaces around its block, of which earlier turns keep the end.
UNSPACED = Family(
    name="unspaced",
    kind="words",
    specials=("<eos>", "<|User|>", "<|Bot|>"),
    stops=("<eos>",),
    marked="""\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|Bot|>' }}{% generation %}{{ '</think>' + message.content.split('</think>')[-1] + '<eos>' }}{% endgeneration %}
{%- else %}{{ '<|User|>' + message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Bot|>' + ('<think>' if thinking else '</think>') }}{% endif %}""",
)

#: Every part of a turn is closed by the same token, the turn itself by another.
CLOSED_PARTS = Family(
    name="closed-parts",
    kind="words",
    specials=("</s>", "<|open|>", "<|close|>", "<|end_of_msg|>"),
    stops=("</s>",),
    marked="""\
{%- macro part(name, text) %}{{ '<|open|>' + name + ':' + text + '<|close|>' + name }}{% endmacro %}
{%- for message in messages %}
{{- '<|open|>' + message.role + ':' }}
{%- if message.role == 'assistant' %}
{{- '<|open|>response:' }}{% generation %}{{ message.content + '<|close|>response' }}
{{- '<|close|>assistant<|end_of_msg|>' }}{% endgeneration %}
{%- else %}{{ part('text', message.content) + '<|close|>' + message.role + '<|end_of_msg|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|open|>assistant:<|open|>response:' }}{% endif %}""",
)
