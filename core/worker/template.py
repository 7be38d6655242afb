"""Conversations as tokens, with the ones to be learned marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.conversation import Example, RowError
from core.errors import UserError
from core.text import one_line


@dataclass(frozen=True)
class TokenizedRow:
    """One row, ready for batching."""

    input_ids: np.ndarray[Any, np.dtype[np.int32]]
    """``(length,)``, int32."""
    supervised: np.ndarray[Any, np.dtype[np.bool_]]
    """``(length,)``, bool: the tokens that are learned."""

    def __len__(self) -> int:
        return len(self.input_ids)


class Encoder:
    """Renders examples with the model's chat template and tokenizes them.

    What is learned of a conversation: for each assistant message, that which the model must produce after the
    generation prompt, its end-of-turn token included and nothing after it. The spans come from rendering the
    conversation up to each assistant message with and without it, so no markers in the template are needed; a
    conversation whose template changes earlier text as it grows is refused. Each span is tokenized by itself, as at
    inference the prompt is.

    Args:
        tokenizer: The model's tokenizer.
        template: A Jinja chat template instead of the tokenizer's own.
        stop_ids: The tokens that end an answer.

    Raises:
        UserError: If the model has no chat template, or none that can be rendered.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.template = template or tokenizer.chat_template

    def encode(self, examples: Sequence[Example]) -> list[TokenizedRow | RowError]:
        """Tokenize examples, in order; an example that cannot be used yields the reason."""
        pieces = [self._split(example) for example in examples]
        texts = [text for piece in pieces if not isinstance(piece, RowError) for text, _ in piece]
        tokens = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        rows: list[TokenizedRow | RowError] = []
        for example, piece in zip(examples, pieces, strict=True):
            if isinstance(piece, RowError):
                rows.append(piece)
            else:
                rows.append(self._assemble(example, [(next(tokens), learned) for _, learned in piece]))
        return rows

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as text, ready for the model to answer."""
        return self._render(list(messages), generation_prompt=True)

    def _split(self, example: Example) -> list[tuple[str, bool]] | RowError:
        """The example as stretches of text, each learned or not."""
        if not example.messages:
            return [(example.text, True)]
        messages = [{"role": message.role, "content": message.content} for message in example.messages]
        try:
            whole = self._render(messages, generation_prompt=False)
            stretches: list[tuple[str, bool]] = []
            done = 0
            for index, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                prompt = self._render(messages[:index], generation_prompt=True)
                answered = self._render(messages[: index + 1], generation_prompt=False)
                if not (whole.startswith(answered) and answered.startswith(prompt) and len(prompt) >= done):
                    return RowError(
                        "template_rewrites", "The chat template rewrites earlier turns as the conversation grows."
                    )
                stretches += [(whole[done : len(prompt)], False), (answered[len(prompt) :], True)]
                done = len(answered)
        except RowError as error:
            return error
        stretches.append((whole[done:], False))
        return [(text, learned) for text, learned in stretches if text]

    def _assemble(self, example: Example, stretches: list[tuple[list[int], bool]]) -> TokenizedRow | RowError:
        ids: list[int] = []
        learned: list[bool] = []
        for tokens, supervised in stretches:
            count = len(tokens) if supervised else 0
            if supervised and example.messages:
                end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), None)
                if end is None:
                    return RowError(
                        "no_stop_token", "The chat template does not end an answer with a token that stops the model."
                    )
                count = end + 1
            ids += tokens
            learned += [True] * count + [False] * (len(tokens) - count)
        if not example.messages and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
            learned.append(True)
        if not any(learned[1:]):
            return RowError("nothing_supervised", "No token of the row is learned.")
        return TokenizedRow(np.asarray(ids, dtype=np.int32), np.asarray(learned, dtype=np.bool_))

    def _render(self, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
        if not self.template:
            raise UserError(
                "The model has no chat template, so conversations cannot be rendered.",
                "Choose an instruction-tuned model, or name a Jinja file in template.file.",
            )
        if not messages:
            # Only reached when the assistant speaks first, which templates are not written for.
            raise RowError("role_order", "The conversation begins with an assistant message.")
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation_prompt
            )
        except Exception as error:  # a template is a program of somebody else's and raises what it likes
            reason = one_line(str(error), 200).rstrip(".")
            raise RowError("template_error", f"The chat template refuses the conversation: {reason}.") from error
        return str(text)


def read_template(path: str | None) -> str | None:
    """The text of a template file, or None for no file.

    Raises:
        UserError: If it cannot be read.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template.file {path} cannot be read: {error}.", "Check the path.") from error


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the generation configuration's and the tokenizer's, without duplicates."""
    found: list[int] = []
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for value in (configured, tokenizer.eos_token_id):
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is not None and token not in found:
                found.append(int(token))
    return found
