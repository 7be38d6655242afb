"""Reference prompts and answers: the text that inference shows and the model must produce, from transformers alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tests.core.template.families import Family


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
    # The last turn is what the conversation without it does not have.
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
