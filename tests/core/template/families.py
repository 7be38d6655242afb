"""Chat templates of the structures of published models, with the generated text marked by hand.

The templates are in the directory ``jinja``. A ``{% generation %}`` block, which gives transformers its mask, holds
exactly the text that the model must produce, including the stop token. Our code gets the templates without the blocks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from core.template.tokenizer import ModelTokenizer
from tests.core.template.toy_tokenizers import id_of, make_backend

_TEMPLATES = Path(__file__).with_name("jinja")
_MARKS = re.compile(r"\{% (?:end)?generation %\}")


@dataclass(frozen=True)
class Family:
    """A template, and a tokenizer like that of its models."""

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
    """True if it renders tool calls."""
    reasoning: bool = False
    """True if it reads a reasoning field."""
    one_row: bool = True
    """True if turns without reasoning stay the same once later turns follow."""
    hands_over: bool = False
    """True if a turn ends with the first token of the next turn, ``<|user|>`` or ``<|observation|>``."""

    @property
    def template(self) -> str:
        """The template without marks."""
        return _MARKS.sub("", self.marked)

    def edited(self, old: str, new: str, count: int = -1) -> Family:
        """The family with another template, which has the new text for the old one, without marks."""
        assert old in self.template
        return replace(self, marked=self.template.replace(old, new, count))

    def tokenizer(self) -> ModelTokenizer:
        backend = make_backend(self.kind, self.specials, self.rstrip, self.newlines)
        named = {"bos_token": self.bos, "eos_token": self.eos or self.stops[0]}
        return ModelTokenizer(
            backend,
            special_tokens={name: text for name, text in named.items() if text},
            stop_ids=[id_of(backend, text) for text in self.stops],
            chat_template=self.template,
        )


def _family(name: str, specials: str, stops: str, kind: str = "words", **fields: Any) -> Family:
    """A family whose template is ``jinja/NAME.jinja``; tokens are separated by spaces."""
    marked = (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return Family(name, kind, tuple(specials.split()), tuple(stops.split()), marked, **fields)


_IM = "<|endoftext|> <|im_start|> <|im_end|>"
_GLM = "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>"
_GEMMA4 = (
    "<eos> <bos> <|turn> <turn|> <|channel> <channel|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>"
)
_DEEPSEEK_BEGIN, _DEEPSEEK_END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_DEEPSEEK = f"{_DEEPSEEK_BEGIN} {_DEEPSEEK_END} <｜User｜> <｜Assistant｜>"
_MISTRAL = (
    "<unk> <s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "[TOOL_CALLS] [CALL_ID] [ARGS] [TOOL_RESULTS] [TOOL_CONTENT] [/TOOL_RESULTS]"
)

#: A default system prompt, a newline after each turn.
SMOLLM2 = _family("smollm2", _IM, "<|im_end|>", kind="bytes")
#: Trims, begins with a special token, ends with several stops, no newline after a turn.
LLAMA3 = _family(
    "llama3",
    "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>",
    "<|end_of_text|> <|eom_id|> <|eot_id|>",
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    tools=True,
)
#: A default system prompt; tool answers share a turn.
QWEN25 = _family("qwen25", _IM, "<|im_end|> <|endoftext|>", tools=True)
#: Leaves out the reasoning of earlier turns, and writes an empty block only in the last turn.
QWEN3 = _family("qwen3", _IM, "<|im_end|> <|endoftext|>", tools=True, reasoning=True, one_row=False)
#: Another name for the assistant, the system prompt inside the first turn, trimming, and a check of the role order.
GEMMA3 = _family(
    "gemma3",
    "<pad> <eos> <bos> <start_of_turn> <end_of_turn>",
    "<eos> <end_of_turn>",
    kind="always",
    bos="<bos>",
    newlines=True,
)
#: Tokens that swallow the spaces after them.
PHI3 = _family(
    "phi3",
    "<unk> <s> </s> <|endoftext|> <|assistant|> <|user|> <|system|> <|end|>",
    "<|endoftext|> <|end|>",
    kind="legacy",
    rstrip=True,
)
#: No generation prompt, plain text between turns, a space before each answer.
MISTRAL = _family("mistral", "<unk> <s> </s>", "</s>", kind="first", bos="<s>")
#: The system prompt before the last message if that is the user's; no spaces around turns.
MISTRAL_NEMO = _family("mistral-nemo", "<unk> <s> </s> [INST] [/INST]", "</s>", bos="<s>", one_row=False)
#: The system prompt without a role, the assistant's turn ended by the end of text.
DEEPSEEK = _family("deepseek", _DEEPSEEK, _DEEPSEEK_END, bos=_DEEPSEEK_BEGIN)
#: The generation prompt begins reasoning that the history leaves out.
DEEPSEEK_R1 = _family("deepseek-r1", _DEEPSEEK, _DEEPSEEK_END, bos=_DEEPSEEK_BEGIN, one_row=False)
#: No end of turn: the first token of the next turn stops the model.
GLM = _family("glm", _GLM, "<|endoftext|> <|user|> <|observation|>", tools=True, hands_over=True)
#: Channels; the last turn has another end, and earlier reasoning is left out.
GPT_OSS = _family(
    "gpt-oss",
    "<|start|> <|message|> <|channel|> <|end|> <|return|> <|call|> <|endoftext|>",
    "<|return|> <|endoftext|> <|call|>",
    tools=True,
    reasoning=True,
    one_row=False,
)
#: An empty reasoning block in the generation prompt that the history lacks.
NO_THINKING = _family("no-thinking", _IM, "<|im_end|>", kind="bytes", one_row=False)
#: Pairs of tokens for turn, channel and tool; the prompt ends an empty channel that the history does not show, and a
#: turn with a call goes on after the answer of the tool.
GEMMA4 = _family("gemma4", _GEMMA4, "<eos> <turn|> <|tool_response>", bos="<bos>", tools=True, one_row=False)
#: The prompt ends an empty block, of which the history shows the end only.
DEEPSEEK_V32 = _family("deepseek-v3.2", _DEEPSEEK, _DEEPSEEK_END, bos=_DEEPSEEK_BEGIN, one_row=False)
#: The same without the beginning of the block: prompt and history agree.
DEEPSEEK_V31 = _family("deepseek-v3.1", _DEEPSEEK, _DEEPSEEK_END, bos=_DEEPSEEK_BEGIN)
#: The prompt begins a block that an answer without reasoning ends at once, without the newline of the prompt.
NEMOTRON = _family("nemotron", _IM, "<|im_end|> <|endoftext|>", reasoning=True, one_row=False)
#: The same, where an answer without reasoning shows only the end of the block, and no token ends a turn.
GLM47 = _family(
    "glm-4.7", _GLM, "<|endoftext|> <|user|> <|observation|>", reasoning=True, one_row=False, hands_over=True
)
#: Special tokens around reasoning and answer; the template always writes the prompt, which ends an empty block.
COMMAND_R7B = _family(
    "command-r7b",
    "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|SYSTEM_TOKEN|> <|CHATBOT_TOKEN|> "
    "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
    "<|END_OF_TURN_TOKEN|>",
    one_row=False,
)
#: Other spaces in the prompt than in the history.
CARELESS = _family("careless", "<s> </s>", "</s>", bos="<s>", one_row=False)
#: An empty block in every finished answer; reasoning is shown only in turns with unanswered tool calls.
KIMI_THINKING = _family(
    "kimi-thinking", "[EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|>", "<|im_end|>"
)
#: Contents only as lists of parts, with reasoning as a part, and other markup for it.
PARTS = _family("parts", "<s> </s> [INST] [/INST] [THINK] [/THINK]", "</s>", bos="<s>")
#: Calls and their results within one turn of the assistant; the prompt begins the turn anew after a result.
IN_ONE_TURN = _family(
    "in-one-turn",
    "<s> </s> <|user|> <|assistant|> <|calls|> <|called|> <|done|>",
    "<|done|> <|called|>",
    bos="<s>",
    one_row=False,
)
#: A loop that begins after the system message counts from it and looks up neighbors by that count: with a system
#: message, the result of a tool has no end of turn once it is answered.
MISCOUNTED = _family("miscounted", _IM, "<|im_end|> <|endoftext|>", one_row=False)
#: The prompt begins reasoning with a sentence that the finished answer lacks; reasoning of the last turn is shown.
IN_WORDS = _family("in-words", "<|begin_user|> <|begin_assistant|> <|end|>", "<|end|>", one_row=False)
#: A budget of no tokens: the prompt has a block with a sentence about it, which the finished answer lacks.
NO_BUDGET = _family("no-budget", "<seed:bos> <seed:eos>", "<seed:eos>", bos="<seed:bos>", one_row=False)
#: Reasoning in a field, contents unchanged; the prompt begins a block if asked to.
UNDIVIDED = _family("undivided", "<eos> <|User|> <|Bot|>", "<eos>")
#: Reasoning only in the content, without spaces around its block; earlier turns keep the end of the block.
UNSPACED = _family("unspaced", "<eos> <|User|> <|Bot|>", "<eos>")
#: The same token closes every part of a turn, another token the turn.
CLOSED_PARTS = _family("closed-parts", "</s> <|open|> <|close|> <|end_of_msg|>", "</s>")
#: Thinking is set by a variable, or by a word that the template removes from the system prompt; turned off, the prompt
#: and all turns have an empty block. Tool calls are in no turn, and their answers are the user's.
SMOLLM3 = _family("smollm3", _IM, "<|im_end|> <|endoftext|>")
#: A default system prompt with the date, the tools only before the last question, no generation prompt. A call has an
#: id of nine characters and no text; turns that do not alternate are refused.
MISTRAL_SMALL = _family("mistral-small", _MISTRAL, "</s>", bos="<s>")
#: The same with text beside calls, no ids, the tools at the beginning, and reasoning as a part of the content, which
#: stays in later turns.
MINISTRAL3 = _family("ministral-3", f"{_MISTRAL} [THINK] [/THINK]", "</s>", bos="<s>")
#: A default system turn; calls in Python syntax; the last turn ends with the end of text, earlier turns with the end
#: of a turn.
OLMO3 = _family("olmo3", _IM, "<|endoftext|> <|im_end|>", one_row=False)
#: The same, beginning with reasoning, as its thinking sibling; the content holds it in all turns.
OLMO3_THINK = _family("olmo3-think", _IM, "<|endoftext|> <|im_end|>", one_row=False)
#: Roles between two tokens, the end of text after every turn, a default system prompt with the date; tools have a
#: role, their calls are in no turn.
GRANITE3 = _family("granite3", "<|end_of_text|> <|start_of_role|> <|end_of_role|>", "<|end_of_text|>")
#: The same roles; calls in the assistant's turns, their answers in the user's.
GRANITE4 = _family("granite4", "<|end_of_text|> <|start_of_role|> <|end_of_role|>", "<|end_of_text|>")
#: The prompt begins a reasoning block, or has an empty block; earlier turns have none, and calls are written as tags.
QWEN35 = _family(
    "qwen3.5",
    "<|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call>",
    "<|im_end|> <|endoftext|>",
    one_row=False,
)
#: No token ends a turn; the turns of the last question keep reasoning, earlier turns the end of a block.
GLM47_FLASH = _family(
    "glm-4.7-flash",
    f"{_GLM} <think> </think> <tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value>",
    "<|endoftext|> <|user|> <|observation|>",
    one_row=False,
    hands_over=True,
)
#: Calls as a list in Python syntax between two tokens; the last turns keep reasoning, without spaces.
LFM2 = _family(
    "lfm2",
    "<|endoftext|> <|im_start|> <|im_end|> <|startoftext|> <|tool_call_start|> <|tool_call_end|>",
    "<|im_end|> <|endoftext|>",
    bos="<|startoftext|>",
    one_row=False,
)
#: A token between the role and the text, and none after a turn.
PHI4 = _family("phi4", "<|endoftext|> <|im_start|> <|im_end|> <|im_sep|>", "<|im_end|> <|endoftext|>")
#: No text between turns; the end of text after a conversation without generation prompt.
PHI4_MINI = _family(
    "phi4-mini", "<|endoftext|> <|system|> <|user|> <|assistant|> <|end|>", "<|end|> <|endoftext|>", eos="<|endoftext|>"
)
#: Thinking is set by a token in the system turn; the prompt begins it after the answer of a tool.
GEMMA4_THINKING = _family(
    "gemma4-thinking", f"{_GEMMA4} <|think|>", "<eos> <turn|> <|tool_response>", bos="<bos>", one_row=False
)

#: Families whose marks are exactly the text that the model must produce; DeepSeek R1's template hides a part of it.
MARKED = (SMOLLM2, LLAMA3, QWEN25, QWEN3, GEMMA3, PHI3, MISTRAL, MISTRAL_NEMO, DEEPSEEK, GLM, GPT_OSS, NO_THINKING)
FAMILIES = (*MARKED, DEEPSEEK_R1)
REASONING_MARKED = (GEMMA4, DEEPSEEK_V32, DEEPSEEK_V31, NEMOTRON, GLM47, COMMAND_R7B, CARELESS, KIMI_THINKING)

#: Thinking turned on or off; None for the template's default.
Thinking = Literal["on", "off"] | None


@dataclass(frozen=True)
class ModelFamily:
    """A template, and the abilities of its models.

    Args:
        family: The template, with marks.
        reasoning: Place where it reads reasoning: a field of the message, a block in the content, or a part of the
            content; empty for none.
        tools: True if it renders tool calls.
        switch: True if thinking can be turned on and off.
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


MODEL_FAMILIES: dict[str, tuple[ModelFamily, ...]] = {
    "llama": (ModelFamily(LLAMA3, tools=True),),
    "qwen3": (ModelFamily(QWEN3, "reasoning_content", tools=True),),
    "qwen3_5": (ModelFamily(QWEN35, "reasoning_content", tools=True, switch=True),),
    "gemma3": (ModelFamily(GEMMA3),),
    "gemma4": (ModelFamily(GEMMA4, tools=True), ModelFamily(GEMMA4_THINKING, "reasoning_content", True, True)),
    "gpt_oss": (ModelFamily(GPT_OSS, "thinking", tools=True),),
    "mistral3": (ModelFamily(MISTRAL_SMALL, tools=True),),
    "ministral3": (ModelFamily(MINISTRAL3, "parts", tools=True),),
    "glm4_moe_lite": (ModelFamily(GLM47_FLASH, "reasoning_content", tools=True, switch=True),),
    "phi3": (ModelFamily(PHI3), ModelFamily(PHI4), ModelFamily(PHI4_MINI)),
    "smollm3": (ModelFamily(SMOLLM3, "content", switch=True),),
    "lfm2": (ModelFamily(LFM2, "thinking", tools=True),),
    "olmo3": (ModelFamily(OLMO3, tools=True), ModelFamily(OLMO3_THINK, "content", tools=True)),
    "granite": (ModelFamily(GRANITE3, "content"),),
    "granitemoehybrid": (ModelFamily(GRANITE4, tools=True),),
}


@functools.cache
def reference(family: Family) -> Any:
    """The family's tokenizer as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = family.tokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, **tokenizer.special_tokens, chat_template=family.template
    )


def prompt_ids(family: Family, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
    """The tokens that inference gives the model."""
    found = reference(family).apply_chat_template(
        list(messages), tools=list(tools) or None, add_generation_prompt=True, return_dict=True
    )
    return list(found["input_ids"])


def answer_ids(
    family: Family, messages: Sequence[dict[str, Any]], tools: Sequence[Any] = (), after: Sequence[int] | None = None
) -> list[int]:
    """The tokens of the last turn, an assistant's, that are marked in the family's template.

    Args:
        family: The family.
        messages: The conversation, up to and with that turn.
        tools: Its tools.
        after: The tokens of the prompt; where the last of them and the first of the answer are one in the whole text,
            the answer is tokenized by itself, as it is generated.
    """
    found = reference(family).apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        chat_template=family.marked,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, marked = list(found["input_ids"]), list(found["assistant_masks"])
    # Everything that the conversation lacks without its last turn belongs to the last turn.
    end = max(place for place, mark in enumerate(marked) if mark) + 1
    start = end
    while start and marked[start - 1]:
        start -= 1
    if after is not None and ids[:start] != list(after):
        decode = family.tokenizer().decode
        text, before = decode(ids[:end]), decode(list(after))
        if text.startswith(before):
            return list(family.tokenizer().encode([text[len(before) :]])[0])
    return ids[start:end]
