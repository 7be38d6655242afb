"""Chat templates of the structures that well-known models have, with the generated parts marked by hand.

The marks are ``{% generation %}`` blocks for transformers' own mask, which is what ours is compared with. Ours gets the
templates without them. A ``generation`` block holds what the model must say, the stop included, and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.template.tokenizer import ModelTokenizer
from tests.core.template.toy_tokenizers import id_of, make_backend

_MARKS = re.compile(r"\{% (?:end)?generation %\}")


@dataclass(frozen=True)
class Family:
    """A template, and a tokenizer as the models that use it have."""

    name: str
    kind: str
    specials: tuple[str, ...]
    stops: tuple[str, ...]
    marked: str
    bos: str = ""
    eos: str = ""
    rstrip: bool = False
    newlines: bool = False
    tools: bool = False
    """Whether it has a form for tools."""
    reasoning: bool = False
    """Whether it has a field for reasoning."""
    one_row: bool = True
    """Whether turns without reasoning stay as they were once later ones follow."""
    hands_over: bool = False
    """Whether a turn ends with the token that begins the next, ``<|user|>`` or ``<|observation|>``."""

    @property
    def template(self) -> str:
        """The template without marks."""
        return _MARKS.sub("", self.marked)

    def tokenizer(self) -> ModelTokenizer:
        backend = make_backend(self.kind, self.specials, self.rstrip, self.newlines)
        named = {"bos_token": self.bos, "eos_token": self.eos or self.stops[0]}
        return ModelTokenizer(
            backend,
            special_tokens={name: text for name, text in named.items() if text},
            stop_ids=[id_of(backend, text) for text in self.stops],
            chat_template=self.template,
        )


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

#: A default system prompt, a newline after each turn.
SMOLLM2 = Family(
    name="smollm2",
    kind="bytes",
    specials=_IM,
    stops=("<|im_end|>",),
    marked="""\
{% for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: Trims, begins with a token of its own, ends with one of several stops, no newline after a turn.
LLAMA3 = Family(
    name="llama3",
    kind="words",
    specials=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
    ),
    stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    tools=True,
    marked="""\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n' }}
{%- if tools is not none %}
{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
{%- elif message.role == 'assistant' %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '' }}{% generation %}{{ '{"name": "' + call.name + '", "parameters": ' }}
{{- (call.arguments | tojson) + '}' + '<|eom_id|>' }}{% endgeneration %}
{%- else %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
{%- endif %}
{%- else %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
)

_HERMES_TOOLS = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}{{ DEFAULT }}
{%- endif %}"""
_HERMES_CALLS = """\
{%- for call in message.tool_calls or [] %}
{{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n{"name": "' + call.function.name }}
{{- '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}"""
_HERMES_RESULTS = """\
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"""

#: A default system prompt; answers of tools are put together into one turn.
QWEN25 = Family(
    name="qwen25",
    kind="words",
    specials=_IM,
    stops=("<|im_end|>", "<|endoftext|>"),
    tools=True,
    marked=_HERMES_TOOLS.replace("DEFAULT", "'<|im_start|>system\\nYou are Qwen.<|im_end|>\\n'")
    + """\
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{ message.content }}"""
    + _HERMES_CALLS
    + """\
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"""
    + _HERMES_RESULTS
    + """\
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: Leaves the reasoning of earlier turns out, and writes an empty block into the last turn only.
QWEN3 = Family(
    name="qwen3",
    kind="words",
    specials=_IM,
    stops=("<|im_end|>", "<|endoftext|>"),
    tools=True,
    reasoning=True,
    one_row=False,
    marked=_HERMES_TOOLS.replace("DEFAULT", "''")
    + """\
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == 'user' and not message.content.startswith('<tool_response>') %}
{%- set ns.searching = false %}{%- set ns.last_query = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- elif message.role == 'assistant' %}
{%- set reasoning = '' %}
{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}{% generation %}
{%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{ content }}
{%- endif %}"""
    + _HERMES_CALLS
    + """\
{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"""
    + _HERMES_RESULTS
    + """\
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

#: Its own name for the assistant, the system prompt inside the first turn, trims, insists on the order of roles.
GEMMA3 = Family(
    name="gemma3",
    kind="always",
    specials=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    stops=("<eos>", "<end_of_turn>"),
    bos="<bos>",
    newlines=True,
    marked="""\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_prefix = '' -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate') }}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + (first_prefix if loop.first else '') }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{% endgeneration %}
{%- else -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}""",
)

#: Tokens that swallow the spaces after them.
PHI3 = Family(
    name="phi3",
    kind="legacy",
    specials=("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>"),
    stops=("<|endoftext|>", "<|end|>"),
    rstrip=True,
    marked="""\
{% for message in messages %}
{%- if message['role'] == 'assistant' -%}
{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}""",
)

#: No generation prompt at all, turns told apart by plain text, a space before each answer.
MISTRAL = Family(
    name="mistral",
    kind="first",
    specials=("<unk>", "<s>", "</s>"),
    stops=("</s>",),
    bos="<s>",
    marked="""\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}
{%- endif %}
{%- for message in rest %}
{%- if message.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}""",
)

#: The system prompt before the last message, as long as that is the user's; no spaces around turns.
MISTRAL_NEMO = Family(
    name="mistral-nemo",
    kind="words",
    specials=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    stops=("</s>",),
    bos="<s>",
    one_row=False,
    marked="""\
{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST]' + (system if loop.last else '') + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}""",
)

#: The system prompt without a role, the assistant's turn ended by the end of text.
DEEPSEEK = Family(
    name="deepseek",
    kind="words",
    specials=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    stops=("<｜end▁of▁sentence｜>",),
    bos="<｜begin▁of▁sentence｜>",
    marked="""\
{%- set ns = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}{% endif %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}
{%- elif message['role'] == 'assistant' %}
{{- '<｜Assistant｜>' }}{% generation %}{{ message['content'] + '<｜end▁of▁sentence｜>' }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}""",
)

#: The reasoning begun by the generation prompt and left out of what is rendered.
DEEPSEEK_R1 = Family(
    name="deepseek-r1",
    kind="words",
    specials=DEEPSEEK.specials,
    stops=DEEPSEEK.stops,
    bos=DEEPSEEK.bos,
    one_row=False,
    marked="""\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] }}{% endif %}
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}
{%- if message['role'] == 'assistant' %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}""",
)

#: No end of turn: what stops the model is the token that begins the next turn.
GLM = Family(
    name="glm",
    kind="words",
    specials=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    tools=True,
    hands_over=True,
    marked="""\
[gMASK]<sop>
{%- macro visible(content) -%}{{ content }}{%- endmacro -%}
{%- if tools %}{{ '<|system|>\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ '<|system|>\\n' + visible(message.content) }}
{%- elif message.role == 'user' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'assistant' %}{{ '<|user|>' }}
{%- else %}{% generation %}{{ '<|user|>' }}{% endgeneration %}
{%- endif %}
{{- '\\n' + visible(message.content) }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role == 'assistant' %}
{% generation %}{{ '<|observation|>' }}{% endgeneration %}
{%- endif %}
{{- '\\n' + visible(message.content) }}
{%- else %}
{{- '<|assistant|>' }}{% generation %}{{ '\\n' + visible(message.content).strip() }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}{{ '\\n' + key + '\\n' + (value | tojson) }}{% endfor %}
{{- '\\n</tool_call>' }}
{%- endfor %}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
)

#: Channels; a turn ends otherwise when it is the last, and earlier reasoning is left out.
GPT_OSS = Family(
    name="gpt-oss",
    kind="words",
    specials=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"),
    stops=("<|return|>", "<|endoftext|>", "<|call|>"),
    tools=True,
    reasoning=True,
    one_row=False,
    marked="""\
{%- macro opening() -%}
{{ '<|start|>system<|message|>You are a model.\\n' + strftime_now('%Y') + '<|end|>' }}
{%- endmacro -%}
{{- opening() }}
{%- if messages[0].role == 'system' %}{% set developer = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set developer = '' %}{% set rest = messages %}
{%- endif %}
{%- if developer or tools %}
{{- '<|start|>developer<|message|>' + developer }}
{%- for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{{ '<|end|>' }}
{%- endif %}
{%- for message in rest %}
{%- if message.role == 'assistant' %}
{{- '<|start|>assistant' }}{% generation %}
{%- if message.tool_calls %}
{%- if message.thinking %}
{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- ' to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson }}{{ '<|call|>' }}
{%- elif loop.last and not add_generation_prompt %}
{%- if message.thinking %}
{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' }}
{%- endif %}
{{- '<|channel|>final<|message|>' + message.content + '<|return|>' }}
{%- else %}
{{- '<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- endif %}{% endgeneration %}
{%- elif message.role == 'tool' %}
{{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' + message.content | tojson + '<|end|>' }}
{%- else %}{{ '<|start|>user<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}""",
)

#: An empty block of reasoning in the generation prompt that what is rendered does not have.
NO_THINKING = Family(
    name="no-thinking",
    kind="bytes",
    specials=_IM,
    stops=("<|im_end|>",),
    one_row=False,
    marked="""\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}""",
)

#: Every family whose marks say what the model must produce; DeepSeek R1's template hides a part of it.
MARKED = (SMOLLM2, LLAMA3, QWEN25, QWEN3, GEMMA3, PHI3, MISTRAL, MISTRAL_NEMO, DEEPSEEK, GLM, GPT_OSS, NO_THINKING)
FAMILIES = (*MARKED, DEEPSEEK_R1)
