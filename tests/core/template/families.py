"""Chat templates of the structures of published models, with the generated text marked by hand.

The templates are in the directory ``jinja``, the rest is in ``families.yaml``. A ``{% generation %}`` block, which
gives transformers its mask, holds exactly the text that the model must produce, including the stop token. Our code gets
the templates without the blocks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from core.template.tokenizer import ModelTokenizer
from tests.core.template.toy_tokenizers import id_of, make_backend

_TEMPLATES = Path(__file__).with_name("jinja")
_MARKS = re.compile(r"\{% (?:end)?generation %\}")
#: Thinking turned on or off; None for the template's default.
Thinking = Literal["on", "off"] | None


@dataclass(frozen=True)
class Family:
    """A template, and a tokenizer like that of its models.

    Args:
        name: Its name.
        specials: Special tokens.
        stops: Stop tokens.
        marked: The template, with marks.
        kind: Kind of the tokenizer, see :func:`make_backend`; as ``rstrip`` and ``newlines``.
        tools: True if it renders tool calls.
        reasoning: Place where it reads reasoning: a field of the message, a block in the content, or a part of the
            content; empty for none.
        one_row: True if turns without reasoning stay the same once later turns follow.
        hands_over: True if a turn ends with the first token of the next turn, ``<|user|>`` or ``<|observation|>``.
        model: Key of :data:`MODEL_FAMILIES`.
        switch: True if thinking can be turned on and off.
        group: ``marked`` if the marks are exactly the text that the model must produce; ``reasoning`` for templates of
            this kind with reasoning.
    """

    name: str
    specials: tuple[str, ...]
    stops: tuple[str, ...]
    marked: str
    kind: str = "words"
    bos: str = ""
    eos: str = ""
    rstrip: bool = False
    newlines: bool = False
    tools: bool = False
    reasoning: str = ""
    one_row: bool = True
    hands_over: bool = False
    model: str = ""
    switch: bool = False
    group: str = ""

    def __repr__(self) -> str:
        return self.name

    @property
    def template(self) -> str:
        """The template without marks."""
        return _MARKS.sub("", self.marked)

    def edited(self, old: str, new: str, count: int = -1) -> Family:
        """The family with another template, which has the new text for the old one, without marks."""
        assert old in self.template
        return replace(self, marked=self.template.replace(old, new, count))

    def setting(self, name: str, value: str) -> Family:
        """The family with a template that sets a variable."""
        return replace(self, marked=f"{{%- set {name} = {value} %}}\n{self.marked}")

    def told(self, thinking: Thinking) -> Family:
        """The family with thinking on or off."""
        return self if thinking is None else self.setting("enable_thinking", "true" if thinking == "on" else "false")

    def tokenizer(self) -> ModelTokenizer:
        backend = make_backend(self.kind, self.specials, self.rstrip, self.newlines)
        named = {"bos_token": self.bos, "eos_token": self.eos or self.stops[0]}
        return ModelTokenizer(
            backend,
            special_tokens={name: text for name, text in named.items() if text},
            stop_ids=[id_of(backend, text) for text in self.stops],
            chat_template=self.template,
        )


def _family(name: str, specials: str, stops: str, **fields: Any) -> Family:
    marked = (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return Family(name, tuple(specials.split()), tuple(stops.split()), marked, **fields)


_NAMED: dict[str, Family] = {
    name: _family(**fields)
    for name, fields in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}


def __getattr__(name: str) -> Family:
    """A family of the file, by its name there."""
    if name not in _NAMED:
        raise AttributeError(name)
    return _NAMED[name]


MARKED = tuple(family for family in _NAMED.values() if family.group == "marked")
#: DeepSeek R1's template hides a part of the text that the model must produce.
FAMILIES = (*MARKED, _NAMED["DEEPSEEK_R1"])
REASONING_MARKED = tuple(family for family in _NAMED.values() if family.group == "reasoning")
MODEL_FAMILIES: dict[str, list[Family]] = {}
for _each in _NAMED.values():
    if _each.model:
        MODEL_FAMILIES.setdefault(_each.model, []).append(_each)


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
    family: Family, messages: Sequence[dict[str, Any]], tools: Sequence[Any], after: Sequence[int] | None = None
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
