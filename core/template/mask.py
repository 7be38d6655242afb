"""Loss mask: the tokens of a row, and a flag for each token that enters the loss (is supervised)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import string
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.config.choices import Supervise
from core.config.schema import VariableValue
from core.data.conversation import IGNORED_LABEL, Example, Message, RowError
from core.errors import UserError
from core.template.answer_turns import (
    Render,
    RowText,
    Turn,
    begun_answer,
    closed_error,
    group_turns,
    has_reasoning,
    leaves,
    place_reasoning,
    prompt_block,
    read_turn,
)
from core.template.render import ChatTemplate, Shapes, reads_variable, with_variables
from core.template.stops import stop_token_ids
from core.template.tokenizer import MaskedRow, ModelTokenizer, RowTokenizer, any_of, stop_text
from core.template.tool_call_grammar import call_grammar, find_form

#: Variables of published templates that turn reasoning off: Qwen 3 and most others; DeepSeek, Kimi and Granite; Cohere;
#: MiniMax; Hunyuan; templates with OpenAI's names; Seed.
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
    """Variable of a template, and its value, that turns reasoning on or off; None without one.

    It is found by trying: the generation prompt must then leave a reasoning block open, or end outside of one.
    """
    unset = _ends(template)
    for name, value in _ON if on else _OFF:
        if not reads_variable(template.source, name):
            continue
        found = _ends(ChatTemplate(with_variables(template.source, {name: value}), template.special_tokens))
        if found is None or found == unset:
            continue
        plain, prompt = found
        block = prompt_block(prompt, len(plain) if prompt.startswith(plain) else 0, worded=True)
        if block is None or block.closed != on:
            return name, value
    return None


def _ends(template: ChatTemplate) -> tuple[str, str] | None:
    """A rendered question, without and with the generation prompt."""
    question = {"role": "user", "content": _QUESTION}
    try:
        return template.render([question]), template.render([question], add_generation_prompt=True)
    except RowError:
        return None


def with_switch(error: RowError, template: ChatTemplate) -> RowError:
    """The error for a row, with the variable that helps if reasoning and prompt do not match."""
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


Messages = list[dict[str, Any]]
#: Length of tool call ids in Mistral's templates, which refuse any other.
_ID_LENGTH = 9
_ID_CHARACTERS = string.digits + string.ascii_letters


def readable_calls(render: Render, messages: Messages) -> Messages:
    """Messages with tool calls in the form that the template reads.

    Arguments are an object, or JSON text if the template needs it; ids are unchanged, or have the length that
    Mistral's templates need.
    """
    forms: list[Callable[[Messages], Messages]] = [
        _with_json_arguments,
        _with_short_ids,
        lambda given: _with_short_ids(_with_json_arguments(given)),
    ]
    try:
        text = render(messages, False)
    except RowError as error:
        for form in forms:
            with contextlib.suppress(RowError):
                changed = form(messages)
                render(changed, False)
                return changed
        raise error from None
    # A template that writes an object directly would write Python's repr instead of JSON.
    arguments = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    if any(isinstance(value, dict) and value and str(value) in text for value in arguments):
        with contextlib.suppress(RowError):
            changed = _with_json_arguments(messages)
            render(changed, False)
            return changed
    return messages


def _with_json_arguments(messages: Messages) -> Messages:
    changed: Messages = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            function = dict(call["function"])
            if not isinstance(function["arguments"], str):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            calls.append({**call, "function": function})
        changed.append({**message, "tool_calls": calls} if "tool_calls" in message else message)
    return changed


def _with_short_ids(messages: Messages) -> Messages:
    """Calls and their answers with short ids, derived from the id of the call, else from its position and name.

    An answer that names no call belongs to the first call without an answer.
    """
    changed: Messages = []
    ids: dict[str, str] = {}
    open_calls: list[str] = []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
            for number, call in enumerate(message["tool_calls"]):
                given = str(call.get("id") or f"{place} {number} {call['function']['name']}")
                ids[given] = _short(given)
                open_calls.append(ids[given])
                calls.append({**call, "id": ids[given]})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            answered = ids.get(str(message.get("tool_call_id"))) or next(iter(open_calls), "")
            if answered in open_calls:
                open_calls.remove(answered)
            message = {**message, "tool_call_id": answered}
        changed.append(message)
    return changed


def _short(given: str) -> str:
    """An id of the right length, always the same for the same text; an id of that length is unchanged."""
    if len(given) == _ID_LENGTH and given.isascii() and given.isalnum():
        return given
    value = int.from_bytes(hashlib.sha256(given.encode("utf-8", "replace")).digest()[:8], "big")
    base = len(_ID_CHARACTERS)
    return "".join(_ID_CHARACTERS[value // base**place % base] for place in range(_ID_LENGTH))


#: Replaces a text, to test if it is rendered; only letters, so no escaping changes it.
_PROBE = "qzlocaltuneprobe"
#: Most cached situations, and most messages of each.
_REMEMBERED, _LONGEST = 1024, 64

_Situation = tuple[tuple[str, ...], tuple[bool, ...], bool]


class PromptCheck:
    """Reports parts of prompts that a template leaves out, checked once for all rows with the same roles.

    Args:
        template: The chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: dict[_Situation, str] = {}

    def left_out(self, example: Example) -> str:
        """A sentence on the parts of the prompt that are not rendered; empty if all are rendered."""
        turns = (*example.messages, *example.chosen)
        looked_at = turns[:_LONGEST]
        situation = (
            tuple([turn.role for turn in looked_at]),
            tuple([bool(turn.tool_calls) or not turn.content.strip() for turn in looked_at]),
            bool(example.tools),
        )
        if situation not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[situation] = self._look(looked_at, example.tools)
        return self._known[situation]

    def _look(self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        asked = turns[:last]
        messages = [turn.fields() for turn in asked]
        parts = []
        if tools and not self._shows(messages, [_with_probe(tool) for tool in tools]):
            parts.append("the list of tools")
        for index, turn in enumerate(asked):
            if turn.role == "assistant" or not turn.content.strip():
                continue
            probed = [*messages[:index], {**messages[index], "content": _PROBE}, *messages[index + 1 :]]
            if not self._shows(probed, tools):
                parts.append(
                    "the system message" if turn.role == "system" else f"message {index + 1}, the {turn.role}'s"
                )
        return f"The chat template leaves out {' and '.join(parts)}." if parts else ""

    def _shows(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bool:
        try:
            return _PROBE in self._template.render(messages, tools=tools, add_generation_prompt=True).casefold()
        except RowError:
            # The template refuses the probe rather than leaving it out.
            return True


def _with_probe(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with the probe as name and description."""
    changed = dict(tool)
    for key, value in tool.items():
        if key in ("name", "description"):
            changed[key] = _PROBE
        elif key == "function" and isinstance(value, Mapping):
            changed[key] = _with_probe(value)
    return changed


#: Codes of row errors caused by the chat template, not by the row.
TEMPLATE_CODES = frozenset({"template_error", "template_rewrites", "template_drops", "no_reasoning", "no_stop_token"})

#: End marks of common models, which rows may hold that were written for another one.
_END_MARKS = ("<|endoftext|>", "</s>", "<|im_end|>")

#: Most cached messages of errors with the remedy added.
_REASONS = 64


class Masker:
    """Renders examples with the chat template, tokenizes them and makes their loss masks.

    Exactly those tokens are supervised that the model must produce after the generation prompt, up to and including
    the stop token; :mod:`core.template.answer_turns` finds them.

    The text of a special token inside a message (a user who writes ``<|im_end|>``) would become that token, here as at
    inference, and end the turn. Such a row is refused as ``special_in_content``. With ``allow_special`` it is used and
    the text acts as the token, but an answer can never contain a stop token. Plain text is used as is.

    An end mark at the very end of an answer is left out, as the template writes its own.

    Args:
        tokenizer: Tokenizer of the model.
        template: Template to use instead of the model's own.
        supervise: ``assistant``: all turns of the assistant; ``last``: its last turn; ``all``: the whole text. The
            ``train`` flag of a message overrides it.
        allow_special: Use rows that contain special tokens.
        end_answers: Append the end-of-text token to answers that the template does not end with a stop token, so the
            model learns to stop there; otherwise such rows are refused.
        max_length: Greatest length, for :attr:`MaskedRow.cut`.
        stop_ids: Stop tokens, if not those of the tokenizer and the template.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        template: ChatTemplate | None = None,
        supervise: Supervise = "assistant",
        *,
        allow_special: bool = False,
        end_answers: bool = False,
        max_length: int | None = None,
        stop_ids: Sequence[int] | None = None,
    ) -> None:
        if template is None:
            template = tokenizer.own_template()
        self.tokenizer = tokenizer
        self.template = template
        self.supervise = supervise
        self.max_length = max_length
        self.stop_ids = tuple(stop_token_ids(tokenizer, template) if stop_ids is None else stop_ids)
        self._allow_special = allow_special
        self._rows = RowTokenizer(tokenizer, self.stop_ids, "" if template is None else template.all_sources)
        eos = tokenizer.eos_id
        self.ended = 0
        """Number of answers so far with an end-of-text token appended."""
        self._ending = stop_text(tokenizer, eos) if end_answers and eos in self.stop_ids and eos is not None else ""
        # The thinking switch is searched once per message.
        self._remedied = functools.lru_cache(_REASONS)(self._with_switch)
        self._shapes = Shapes(template, self._rows.stops) if template is not None else None
        self._prompts = PromptCheck(template) if template is not None else None

    def mask(self, examples: Sequence[Example]) -> list[MaskedRow | RowError]:
        """Training sequences of examples, in order, or the reason why an example cannot be used.

        Both answers of a preference pair become sequences, the worse answer as ``rejected`` of the better answer. If
        either cannot be used, or is not a single sequence, neither is used.

        Raises:
            UserError: If there are conversations and the model has no chat template.
        """
        examples = [self.unmarked(example) for example in examples]
        pairs = [example for example in examples if example.is_preference]
        worse = [replace(pair, chosen=pair.rejected) for pair in pairs]
        found = iter(self._mask([*examples, *worse]))
        rows = [next(found) for _ in examples]
        return [
            _paired(row, next(found)) if example.is_preference else _labeled(row, example.label)
            for example, row in zip(examples, rows, strict=True)
        ]

    def unmarked(self, example: Example) -> Example:
        """An example without end marks at the end of its answers; the same object if there are none."""
        found = example.messages, example.chosen, example.rejected
        bare = messages, chosen, rejected = tuple(tuple(map(self._bare, turns)) for turns in found)
        return example if bare == found else replace(example, messages=messages, chosen=chosen, rejected=rejected)

    def _bare(self, turn: Message) -> Message:
        text = turn.content
        if turn.role != "assistant" or not text.rstrip().endswith(self._end_marks):
            return turn
        while found := next((mark for mark in self._end_marks if text.rstrip().endswith(mark)), ""):
            if found == "</s>" and "<s>" in text:
                break  # text struck through
            text = text.rstrip().removesuffix(found)
        # An answer of nothing else is refused as a whole.
        return replace(turn, content=text) if text.strip() else turn

    @functools.cached_property
    def _end_marks(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens
        own = (added[number].content for number in self.stop_ids if number in added)
        return (*_END_MARKS, *filter(str.strip, own))

    def _mask(self, examples: Sequence[Example]) -> list[MaskedRow | RowError]:
        """Training sequences of examples; for preference pairs, of the better answer only."""
        texts: list[list[RowText] | RowError] = [self._texts(example) for example in examples]
        flat = [row for rows in texts if not isinstance(rows, RowError) for row in rows]
        tokens = iter(self._rows.tokenize(flat))
        masked: list[MaskedRow | RowError] = []
        for example, rows in zip(examples, texts, strict=True):
            if isinstance(rows, RowError):
                masked.append(rows)
                continue
            found = [next(tokens) for _ in rows]
            row = self._finish(example, found)
            if self._prompts is not None and not isinstance(row, RowError) and example.messages:
                left_out = self._prompts.left_out(example)
                row = replace(row, left_out=left_out) if left_out else row
            masked.append(row)
        return masked

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Render a conversation as a prompt, ready for the model to answer, or to continue if it ends with an answer.

        Raises:
            UserError: If the model has no chat template.
            RowError: If the template refuses the conversation.
        """
        template = self._needed()
        passed = _as_read(template, [dict(message) for message in messages], tools)
        if passed[-1]["role"] == "assistant":
            return begun_answer(_renderer(template, tools), passed, self._rows.stops)
        return template.render(passed, tools=tools, add_generation_prompt=True)

    def call_grammar(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        names: Collection[str],
        *,
        several: bool,
    ) -> str:
        """Grammar of an answer that calls tools as in a training sequence; see :mod:`core.template.tool_call_grammar`.

        Args:
            messages: The conversation.
            tools: The tools that its prompt offers.
            names: Names of those that may be called.
            several: Allow more than one call.

        Raises:
            UserError: If the model has no chat template.
        """
        template = self._needed()
        asked = [dict(message) for message in messages]
        if asked[-1]["role"] == "assistant":
            asked.pop()

        def write(calls: Sequence[dict[str, Any]]) -> str:
            passed = _as_read(
                template, [*asked, {"role": "assistant", "content": "", "tool_calls": list(calls)}], tools
            )
            answer = read_turn(_renderer(template, tools), passed, len(asked), self._rows.stops).answer
            return self._rows.stops.split(answer)[0]

        special = {token.content: number for number, token in self.tokenizer.added_tokens.items() if token.special}
        wanted = [tool["function"] for tool in tools if tool["function"]["name"] in names]
        return call_grammar(find_form(write, any_of(special)), wanted, special, several=several)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a prompt, the same as before an answer in a training sequence.

        Raises:
            UserError: As :meth:`prompt`.
            RowError: As :meth:`prompt`.
        """
        return self._rows.encode(self.prompt(messages, tools)).tolist()

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text for the model to continue, with the tokens that begin a text in training."""
        prefix, ids = self.tokenizer.text_prefix, self._rows.encode(text).tolist()
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def _needed(self) -> ChatTemplate:
        if self.template is None:
            raise UserError(
                "The model has no chat template, so conversations cannot be rendered.",
                "Choose an instruction-tuned model, or set template.name or template.file.",
            )
        return self.template

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        """Pattern of texts that would become special tokens."""
        return any_of(
            token.content
            for number, token in self.tokenizer.added_tokens.items()
            if (token.special or number in self.stop_ids) and token.content.strip()
        )

    # Rendering

    def _texts(self, example: Example) -> list[RowText] | RowError:
        """Sequences of text of an example; empty for pre-tokenized rows, and for segments, tokenized separately."""
        if example.ids is not None or example.segments:
            return []
        turns = (*example.messages, *example.chosen)
        if not turns:
            return [RowText(example.text, (), inverted=True)]
        template = self._needed()
        try:
            wanted = _wanted(turns, self.supervise, len(example.messages) if example.is_preference else 0)
            self._check_special(turns, example.tools, wanted)
            if self.supervise != "all" and not example.tools and self._shapes is not None:
                found = self._shapes.rows(turns, wanted)
                if found is not None:
                    return _encodable(found)
            return _encodable(self._read(template, turns, example.tools, wanted))
        except RowError as error:
            return self._explained(error)

    def _read(
        self,
        template: ChatTemplate,
        turns: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        wanted: Sequence[int],
    ) -> list[RowText]:
        render = _renderer(template, tools)
        messages = _as_read(template, [turn.fields() for turn in turns], tools)

        def read(index: int) -> Turn:
            turn = read_turn(render, messages, index, self._rows.stops, ending=self._ending)
            self.ended += turn.is_ended
            return turn

        if self.supervise != "all":
            return group_turns([read(index) for index in wanted])
        last = read(max(index for index, turn in enumerate(turns) if turn.role == "assistant"))
        spared = [read(index) for index, turn in enumerate(turns) if turn.role == "assistant" and turn.train is False]
        text = last.learned + last.rest
        if not all(text.startswith(turn.learned) for turn in spared):
            raise RowError("template_rewrites", "The chat template rewrites a turn that is not to be learned.")
        return [RowText(text, tuple(turn.span for turn in spared), inverted=True, last=last.span)]

    def _with_switch(self, code: str, message: str) -> str:
        return message if self.template is None else with_switch(RowError(code, message), self.template).message

    def _explained(self, error: RowError) -> RowError:
        """The error, with the thinking switch that helps."""
        message = self._remedied(error.code, error.message)
        # The original error also has the position in the template.
        return error if message == error.message else RowError(error.code, message)

    def _check_special(
        self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], wanted: Sequence[int]
    ) -> None:
        for index, turn in enumerate(turns):
            parts: Iterable[str] = (turn.content,)
            if turn.reasoning or turn.tool_calls or turn.name:
                parts = (turn.content, turn.reasoning, turn.name, *_strings(turn.tool_calls))
            for part in parts:
                found = self._special.search(part)
                if found is None:
                    continue
                ends = index in wanted and self._rows.stops.search(part) is not None
                if ends or not self._allow_special:
                    raise RowError(
                        "special_in_content",
                        f"Message {index + 1} holds {found.group()}, which is a special token of the model"
                        + (" and would end the answer." if ends else " and would act as one."),
                    )
        if tools and not self._allow_special:
            for part in _strings(tools):
                if (found := self._special.search(part)) is not None:
                    raise RowError(
                        "special_in_content", f"A tool's description holds {found.group()}, which is a special token."
                    )

    # Tokenization

    def _finish(self, example: Example, found: Sequence[list[MaskedRow] | RowError]) -> MaskedRow | RowError:
        rows: list[MaskedRow] = []
        try:
            if example.ids is not None:
                rows.append(_given_tokens(example, self.tokenizer))
            if example.segments:
                rows.append(self._segments(example))
            for item in found:
                if isinstance(item, RowError):
                    return item
                rows += item
        except RowError as error:
            return error
        if example.text and (example.is_framed or not example.segments):
            # The end-of-text token is trained on together with the last segment.
            learned = not example.segments or example.segments[-1].train
            rows = [self._plain(row, learned) for row in rows]
        masked = [self._masked(row) for row in rows if row.supervised.find(1, 1) >= 0]
        if not masked:
            return RowError("nothing_supervised", "No token of the row is learned.")
        return masked[0].with_further(masked[1:]) if len(masked) > 1 else masked[0]

    def _segments(self, example: Example) -> MaskedRow:
        """Separately tokenized segments, concatenated, since inference tokenizes the prompt separately."""
        ids, supervised = array("i"), bytearray()
        for segment, tokens in zip(
            example.segments, self.tokenizer.encode([part.text for part in example.segments]), strict=True
        ):
            ids.extend(tokens)
            supervised += (b"\x01" if segment.train else b"\x00") * len(tokens)
        return MaskedRow(ids, supervised)

    def _masked(self, row: MaskedRow) -> MaskedRow:
        limit = self.max_length
        row.supervised[0] = 0  # nothing precedes it, so it is not predicted
        return replace(row, cut=limit) if limit is not None and len(row) > limit else row

    def _plain(self, row: MaskedRow, learns_end: bool) -> MaskedRow:
        """Plain text, with the tokens that begin and end a text."""
        prefix, eos = self.tokenizer.text_prefix, self.tokenizer.eos_id
        ids, supervised = row.input_ids, row.supervised
        if prefix and list(ids[: len(prefix)]) != prefix:
            ids = array("i", prefix) + ids
            supervised = bytearray(len(prefix)) + supervised
        if eos is not None and (not ids or ids[-1] not in self.stop_ids):
            ids = ids + array("i", [eos])
            supervised = supervised + (b"\x01" if learns_end else b"\x00")
        return MaskedRow(ids, supervised)


def _renderer(template: ChatTemplate, tools: Sequence[Mapping[str, Any]]) -> Render:
    def render(messages: Sequence[dict[str, Any]], generation_prompt: bool) -> str:
        if not messages:
            return ""
        return template.render(messages, tools=tools, add_generation_prompt=generation_prompt)

    return render


def _as_read(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Messages with tool calls and reasoning in the form that the template reads."""
    render = _renderer(template, tools)
    if any(message.get("tool_calls") for message in messages):
        messages = readable_calls(render, messages)
    if any(has_reasoning(message) for message in messages):
        messages = place_reasoning(render, messages, template.source_for(tools))
    return messages


def _paired(better: MaskedRow | RowError, worse: MaskedRow | RowError) -> MaskedRow | RowError:
    """A preference pair as one row, or the reason against it."""
    if isinstance(better, RowError):
        return better
    if isinstance(worse, RowError):
        return RowError(worse.code, f"Of the worse answer: {worse.message}")
    if better.further or worse.further:
        return RowError(
            "template_rewrites", "The chat template rewrites earlier turns, so an answer is not one sequence."
        )
    return replace(better, rejected=worse)


def _labeled(row: MaskedRow | RowError, label: bool | None) -> MaskedRow | RowError:
    return row if label is None or isinstance(row, RowError) else replace(row, label=label)


def _wanted(turns: Sequence[Message], supervise: Supervise, first: int) -> tuple[int, ...]:
    """Indices of the assistant's messages that are trained on, from ``first`` on."""
    spoken = [index for index, turn in enumerate(turns) if turn.role == "assistant" and index >= first]
    if not spoken:
        raise RowError("no_answer", "No message is the assistant's, so there is nothing to learn.")
    by_default = spoken[-1:] if supervise == "last" else spoken
    wanted = tuple(index for index in spoken if (index in by_default if (flag := turns[index].train) is None else flag))
    if not wanted and supervise != "all":
        raise RowError("nothing_supervised", "No turn of the row is marked to be learned.")
    return wanted


def _encodable(rows: list[RowText]) -> list[RowText]:
    """The rows, if they are valid Unicode; messages were checked before, but not the text of the template."""
    for row in rows:
        try:
            _ = row.text.isascii() or row.text.encode()
        except UnicodeEncodeError as error:
            raise RowError("template_error", "The chat template writes half a character.") from error
    return rows


def _given_tokens(example: Example, tokenizer: ModelTokenizer) -> MaskedRow:
    """A pre-tokenized row, with its labels as loss mask."""
    ids = example.ids if example.ids is not None else array("i")
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocabulary_size:
        raise RowError(
            "bad_tokens", f"The row has the token {max(ids)}; the model knows those below {tokenizer.vocabulary_size}."
        )
    if example.labels is None:
        return MaskedRow(array("i", ids), bytearray(b"\x01" * len(ids)))
    return MaskedRow(array("i", ids), bytearray(label != IGNORED_LABEL for label in example.labels))


def _strings(value: Any) -> list[str]:
    """All strings in a JSON value, keys included."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, str)]
