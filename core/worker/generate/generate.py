"""Answers of a model that may be in the middle of its training.

The decoding loop is written out rather than taken from ``model.generate``: it can be cancelled between two tokens and
between two pieces of a long prompt, and it leaves no trace in the model. Training's random state, flags and gradients
are the same before and after.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from core.chat.request import BASE, GenerationSettings, QuestionError, grammar_of, reason_of, too_long
from core.data.conversation import RowError
from core.worker.data.encode import Encoder, backend_of, stop_token_ids
from core.worker.generate.cache_trial import cache_use
from core.worker.generate.decoding import BatchDecoder, KeyValues, Sampler, TextStream, likeliest
from core.worker.generate.scores import TokenScores
from core.worker.generate.stops import StopTexts, checked_tokens, reusable, whole_pieces
from core.worker.model.adapters import switched_off
from core.worker.oom.retry import Attempt, MemoryShortageError, attempt, ignore, is_out_of_memory, release

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Grammar:
    """Constrains an answer to a grammar, such as that of a JSON Schema, token by token.

    Args:
        tokenizer: The model's tokenizer, of transformers.
        stop_ids: Stop tokens; they are allowed once the answer is complete.
        grammar: The grammar, for llguidance.

    Raises:
        QuestionError: If the grammar is unsupported.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], grammar: str) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(_tokens(tokenizer, tuple(sorted(stop_ids))), grammar, log_level=0)
        self._check()

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, with minus infinity for tokens that violate the grammar.

        Args:
            logits: ``(vocabulary,)``.

        Raises:
            QuestionError: If the grammar is too complex to continue.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        fits = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        allowed[: len(fits)] = torch.from_numpy(fits)
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Advance by a chosen token.

        Raises:
            QuestionError: As :meth:`allow`.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """True if the answer is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = reason_of(self._matcher.get_error())
            raise QuestionError(f"The JSON Schema cannot be followed: {reason}.", "Ask with a simpler one.")


@functools.lru_cache(maxsize=2)
def _tokens(tokenizer: Any, stop_ids: tuple[int, ...]) -> LLTokenizer:
    """The tokenizer for llguidance; takes about half a second."""
    from llguidance import LLTokenizer

    return LLTokenizer(backend_of(tokenizer).to_str(), eos_token=list(stop_ids))


#: Kept conversations: one for each column of the chat.
KEPT = 3


class PrefixCache:
    """The keys and values of the newest conversation of each source, of the pieces that every answer reads alike.

    They are valid for the weights that computed them: a change of a source's weights must call :meth:`forget`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[int], KeyValues, float]] = {}

    def take(self, source: str, prompt: Prompt) -> tuple[KeyValues, int]:
        """Keys and values for a prompt, and the number of its tokens that they cover; at least one is left to read.
        They leave the cache, so a failed answer leaves nothing behind."""
        tokens, state, _ = self._kept.pop(source, ([], None, 0.0))
        shared = reusable(tokens, prompt.tokens)
        if state is None or not shared or not state.cut(shared):
            state, shared = KeyValues(prompt.network), 0
        state.copies = self.copied_of(prompt) > 0
        return state, shared

    def copied_of(self, prompt: Prompt) -> int:
        """Number of tokens whose keys and values are copied, as they cannot be cut out after the answer."""
        total = len(prompt.tokens) + prompt.budget
        return 0 if KeyValues(prompt.network).can_be_cut(total) else whole_pieces(len(prompt.tokens))

    def keep(self, source: str, prompt: Prompt, state: KeyValues) -> None:
        """Keep the keys and values of a prompt for the next turn; the least recently used are dropped."""
        whole = whole_pieces(len(prompt.tokens))
        beginning = state.beginning(whole) if whole else None
        if beginning is None:
            return
        self._kept[source] = (prompt.tokens[:whole], beginning, time.monotonic())
        while len(self._kept) > KEPT:
            del self._kept[min(self._kept, key=lambda name: self._kept[name][2])]

    def forget(self, source: str | None = None) -> None:
        """Forget a source, or all of them."""
        if source is None:
            self._kept.clear()
        else:
            self._kept.pop(source, None)

    def tokens_of(self, source: str) -> int:
        """Number of tokens kept of a source."""
        return len(self._kept[source][0]) if source in self._kept else 0


#: Bounds of a batch in :func:`generate_batch`: rows, and tokens including the answers (keys and values stay).
BATCH_ROWS = 32
BATCH_TOKENS = 8192
#: Steps between two reports of :func:`generate_batch`.
STEPS_PER_REPORT = 4

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """An answer and its figures."""

    text: str
    """As written by the model; sanitize it before display."""
    tokens: int
    """Tokens of the text, without the stop token."""
    first_token_seconds: float
    """From the question to the first token."""
    tokens_per_second: float
    """After the first token."""
    finish: Finish
    prompt_tokens: int = 0
    """Tokens of the conversation before the answer."""
    context_limit: int | None = None
    """Largest number of tokens of conversation and answer together; None where the model does not say."""
    reused_tokens: int = 0
    """Tokens of the conversation that were not read again, thanks to cached keys and values."""

    def to_answer(self, source: str) -> dict[str, Any]:
        """The fields of an answer, as every engine and a run in training send them.

        Args:
            source: Label of the source.
        """
        values = asdict(self)
        del values["reused_tokens"]
        return values | {"source": source}


@contextlib.contextmanager
def answering_as(model: Any, source: str) -> Iterator[None]:
    """Let a ``PeftModel`` answer as its ``base`` or ``tuned`` inside; other models are always their base."""
    if source == BASE and hasattr(model, "disable_adapter"):
        with switched_off(model):
            yield
    else:
        yield


@dataclass
class Prompt:
    """A tokenized conversation to be answered."""

    network: Any
    """The transformers model, with its adapters."""
    tokens: list[int]
    stop_ids: frozenset[int]
    """Stop tokens."""
    budget: int
    """Most tokens of the answer."""
    context_limit: int | None
    """Largest number of tokens that the model reads; None where it does not say."""
    call_grammar: str | None = None
    """Grammar of an answer that has to call a tool."""
    echo: str | None = None
    """The text that comes before the answer."""


def prepare_prompt(
    model: Any,
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    max_new_tokens: int,
    template: str | None = None,
    *,
    tools: Sequence[dict[str, Any]] = (),
    text: str | list[int] | None = None,
    echo: bool = False,
    forced_tools: Sequence[str] = (),
    several_calls: bool = True,
) -> Prompt:
    """Render and tokenize a conversation.

    Args:
        model: A causal language model, or a ``PeftModel`` around one; in training mode or not.
        tokenizer: Its tokenizer.
        messages: ``role`` and ``content`` each.
        max_new_tokens: Longest answer.
        template: A chat template instead of the tokenizer's own.
        tools: Tools offered to the model, in OpenAI's schema.
        text: A text to continue, or its tokens, instead of the conversation.
        echo: Return the text before the answer.
        forced_tools: Names of tools, of which the answer is a call.
        several_calls: Allow more than one call in such an answer.

    Raises:
        UserError: If the conversation cannot be rendered or is too long for the model.
    """
    network = _network(model)
    stop_ids = frozenset(stop_token_ids(getattr(network, "generation_config", None), tokenizer, template))
    if isinstance(text, list):
        tokens = checked_tokens(text, int(network.get_input_embeddings().weight.shape[0]))
    elif text is not None:
        tokens = Encoder(tokenizer, sorted(stop_ids), template).text_ids(text)
    else:
        tokens = _encode(tokenizer, [messages], stop_ids, template, tools)[0]
    prompt = Prompt(network, tokens, stop_ids, _room(network, tokens, max_new_tokens), _context_limit(network))
    if forced_tools:
        encoder = Encoder(tokenizer, sorted(stop_ids), template)
        prompt.call_grammar = encoder.call_grammar(messages, tools, forced_tools, several=several_calls)
    if echo:
        prompt.echo = text if isinstance(text, str) else backend_of(tokenizer).decode(tokens, skip_special_tokens=False)
    return prompt


def answer_prompt(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    settings: GenerationSettings,
    on_token: Callable[[str], None],
    cancelled: Callable[[], bool],
    *,
    began: float,
    kept: PrefixCache | None = None,
    source: str = "",
    json_schema: str | None = None,
    scores: TokenScores | None = None,
) -> Generation:
    """Answer a prepared conversation, streaming.

    Args:
        model: As for :func:`prepare_prompt`.
        tokenizer: Its tokenizer.
        prompt: The conversation.
        settings: Length and randomness.
        on_token: Called with each piece of text, whole characters only.
        cancelled: Asked between two tokens.
        began: Time of the question, by the monotonic clock.
        kept: Keys and values of earlier turns; None to keep none, as for changing weights.
        source: Their source.
        json_schema: A JSON Schema for the answer, as JSON.
        scores: Receives the log-probabilities of the answer's tokens, and of those of a prompt that is echoed.

    Raises:
        UserError: If the logits are not finite, or memory runs out.
    """
    tokens, limit, read = prompt.tokens, prompt.context_limit, 0
    held = prompt.call_grammar if json_schema is None else grammar_of(json_schema)
    grammar = Grammar(tokenizer, prompt.stop_ids, held) if held is not None else None
    answer = _Answer(prompt, TextStream(tokenizer), StopTexts(settings.stop), grammar, on_token, scores)
    hear = None if prompt.echo is None or scores is None else _scoring(tokens, scores)
    with _out_of_memory_explained(), _no_gradients(model):
        network = prompt.network
        # A prompt that is scored is read from its beginning.
        kept = None if hear is not None else kept
        state, read = (KeyValues(network), 0) if kept is None else kept.take(source, prompt)
        logits = state.read(tokens[read:], cancelled, hear)
        if logits is None:
            return Generation("", 0, time.monotonic() - began, 0.0, "cancelled", len(tokens), limit, read)
        if prompt.echo is not None:
            on_token(prompt.echo)
        finish: Finish = "length"
        if prompt.budget:
            finish = answer.decode(state, logits, Sampler(settings, before=tokens), cancelled)
        if kept is not None:
            kept.keep(source, prompt, state)
    answer.flush()
    ended, count = time.monotonic(), len(answer.tokens)
    first = answer.first_token or ended
    decoded, seconds = (count - 1, ended - first) if count > 1 else (count, ended - began)
    rate = decoded / max(seconds, 1e-9)
    return Generation(answer.text, count, first - began, rate, finish, len(tokens), limit, read)


@dataclass
class _Answer:
    """An answer while it is decoded: its tokens, and the emitted text."""

    prompt: Prompt
    stream: TextStream
    stops: StopTexts
    grammar: Grammar | None
    on_token: Callable[[str], None]
    scores: TokenScores | None = None
    first_token: float = 0.0
    """Time of the first token, by the monotonic clock."""
    read: int = 0
    """Characters written by the model."""
    given: int = 0
    """Characters emitted."""

    @property
    def tokens(self) -> list[int]:
        """Tokens so far, without the stop token."""
        return self.stream.tokens

    @property
    def text(self) -> str:
        """The text up to a stop text."""
        return self.stops.text

    def decode(self, state: KeyValues, logits: torch.Tensor, sampler: Sampler, cancelled: Callable[[], bool]) -> Finish:
        """Decode to the end; returns the reason for it.

        Args:
            state: Keys and values of the prompt, extended by the answer.
            logits: Logits of the first token.
            sampler: Chooses tokens.
            cancelled: Asked between two tokens.
        """
        while True:
            token = sampler.choose(logits[0] if self.grammar is None else self.grammar.allow(logits[0]))
            if self.scores is not None and (self.scores.has_end or token not in self.prompt.stop_ids):
                ((logprob, top),) = likeliest(logits, [token], self.scores.count)
                self.scores.add(token, logprob, top, self.read)
            if (finish := self._take(token)) is not None:
                return finish
            if cancelled():
                return "cancelled"
            logits = state.extend(torch.tensor([[token]]))

    def _take(self, token: int) -> Finish | None:
        """Append a token; the reason that the answer ends with it, None where it continues."""
        if not self.tokens:
            self.first_token = time.monotonic()
        if token in self.prompt.stop_ids:
            return "stop"
        self._push(self.stream.push(token))
        if self.grammar is not None:
            self.grammar.take(token)
        if self.stops.found or (self.grammar is not None and self.grammar.is_complete):
            return "stop"
        return "length" if len(self.tokens) >= self.prompt.budget else None

    def flush(self) -> None:
        """Emit the held-back text."""
        self._push(self.stream.flush())
        self._give(self.stops.flush())
        if self.scores is not None and not self.stops.found:
            self.scores.release()

    def _push(self, piece: str) -> None:
        self.read += len(piece)
        self._give(self.stops.push(piece))

    def _give(self, piece: str) -> None:
        if piece:
            self.given += len(piece)
            if self.scores is not None:
                self.scores.release(self.given)
            self.on_token(piece)


def generate_batch(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[dict[str, str]]],
    max_new_tokens: int,
    progress: Callable[[int, int], None],
    *,
    template: str | None = None,
    notice: Callable[[str], None] = ignore,
) -> list[str]:
    """Answer many conversations greedily; the answers are in the order of the questions.

    Conversations of similar length are answered together, their common prefix (a system prompt) is read once, and
    finished rows leave the batch. A batch that runs out of memory is halved and restarted.

    Args:
        model: As for :func:`prepare_prompt`.
        tokenizer: Its tokenizer.
        conversations: ``role`` and ``content`` each.
        max_new_tokens: Longest answer.
        progress: Called with finished rows and their total, several times a batch; it may raise to cancel.
        template: A chat template instead of the tokenizer's own.
        notice: Called with a message when memory ran out and the batch was cut.

    Raises:
        UserError: As :func:`prepare_prompt` and :func:`answer_prompt`.
        MemoryShortageError: If a single conversation does not fit.
    """
    network = _network(model)
    stop_ids = frozenset(stop_token_ids(getattr(network, "generation_config", None), tokenizer, template))
    prompts = _encode(tokenizer, conversations, stop_ids, template)
    answers = answer_tokens(model, prompts, stop_ids, max_new_tokens, progress, tokenizer.pad_token_id, notice)
    tokens = [[token for token in answer if token not in stop_ids] for answer in answers]
    return [
        str(text)
        for text in tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ]


def answer_tokens(
    model: Any,
    prompts: Sequence[list[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    progress: Callable[[int, int], None],
    pad_id: int | None = None,
    notice: Callable[[str], None] = ignore,
) -> list[list[int]]:
    """Answer many prompts greedily, as :func:`generate_batch`.

    Args:
        model: As for :func:`prepare_prompt`.
        prompts: Their tokens.
        stop_ids: Stop tokens.
        max_new_tokens: Longest answer.
        progress: As for :func:`generate_batch`.
        pad_id: Any token.
        notice: As for :func:`generate_batch`.

    Returns:
        The answers, each with its stop token.
    """
    network = _network(model)
    budgets = [_room(network, prompt, max_new_tokens) for prompt in prompts]
    answers: dict[int, list[int]] = {}

    def answer(batch: list[int]) -> list[list[int]]:
        chosen, budget = [prompts[row] for row in batch], min(budgets[row] for row in batch)
        decoder = BatchDecoder(network, chosen, pad_id or 0, stop_ids)
        _decode(decoder, budget, len(batch), lambda finished: progress(len(answers) + finished, len(prompts)))
        return [
            [*found, *([stop] if (stop := decoder.stops.get(row)) is not None else [])]
            for row, found in enumerate(decoder.answers)
        ]

    with _no_gradients(model):
        # Padding is tried: models with recurrent layers may not support it.
        together = cache_use(network).padding
        waiting = _batches([len(prompt) for prompt in prompts], max_new_tokens, padded=together)
        while waiting:
            batch = waiting.pop(0)
            tried = _try(answer, batch)
            if tried.result is not None:
                answers.update(zip(batch, tried.result, strict=True))
                progress(len(answers), len(prompts))
                continue
            if (half := (len(batch) + 1) // 2) == len(batch):
                raise _too_large(tried.reason or "")
            notice(f"Memory ran out in answering {len(batch)} prompts at once: it is done with {half}.")
            rows = [row for each in (batch, *waiting) for row in each]
            waiting = [rows[begin : begin + half] for begin in range(0, len(rows), half)]
    return [answers[row] for row in range(len(prompts))]


def _decode(decoder: BatchDecoder, budget: int, rows: int, report: Callable[[int], None]) -> None:
    """Decode a batch until all rows are finished or the budget is used up; ``report`` gets the finished rows."""
    reported = -1
    for step in range(budget):
        decoder.step()
        if decoder.finished != reported or step % STEPS_PER_REPORT == 0:
            reported = decoder.finished
            report(reported)
        if decoder.finished == rows:
            return


def _try(answer: Callable[[list[int]], list[list[int]]], batch: list[int]) -> Attempt[list[list[int]]]:
    """Answer a batch, where memory may run out; a single row is tried again with caches emptied."""
    tried = attempt(functools.partial(answer, batch))
    return attempt(functools.partial(answer, batch)) if tried.result is None and len(batch) == 1 else tried


def _batches(lengths: Sequence[int], max_new_tokens: int, *, padded: bool = True) -> list[list[int]]:
    """Rows of similar length together, or of equal length without padding; the longest first, so that a batch that is
    too large fails at once."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        current = batches[-1] if batches else []
        rows_that_fit = BATCH_TOKENS // (lengths[current[0]] + max_new_tokens) if current else 0
        is_alike = current and (padded or lengths[row] == lengths[current[0]])
        if is_alike and len(current) < min(BATCH_ROWS, rows_that_fit):
            current.append(row)
        else:
            batches.append([row])
    return batches


def _network(model: Any) -> Any:
    """The transformers model, with its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _encode(
    tokenizer: Any,
    conversations: Sequence[Sequence[dict[str, str]]],
    stop_ids: frozenset[int],
    template: str | None,
    tools: Sequence[dict[str, Any]] = (),
) -> list[list[int]]:
    """The conversations as tokens, ready for the answer: encoded by the same code as training rows."""
    encoder = Encoder(tokenizer, sorted(stop_ids), template)
    try:
        return [encoder.prompt_ids(messages, tools) for messages in conversations]
    except RowError as error:
        raise QuestionError(error.message, "Change the conversation, or the template in template.file.") from error


def _scoring(tokens: Sequence[int], scores: TokenScores) -> Callable[[torch.Tensor], None]:
    """A function that scores a prompt with the logits after its tokens, a piece at a time."""
    scores.add(tokens[0], None, ())
    places = itertools.count(1)

    def hear(logits: torch.Tensor) -> None:
        following = [tokens[place] for place in itertools.islice(places, len(logits)) if place < len(tokens)]
        for token, (logprob, top) in zip(following, likeliest(logits, following, scores.count), strict=True):
            scores.add(token, logprob, top)
        scores.release()

    return hear


def _room(network: Any, prompt: Sequence[int], wanted: int) -> int:
    """Most tokens of the answer."""
    limit = _context_limit(network)
    if not limit:
        return wanted
    if len(prompt) >= limit:
        raise too_long(len(prompt), limit)
    return min(wanted, limit - len(prompt))


def _context_limit(network: Any) -> int | None:
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


@contextlib.contextmanager
def _no_gradients(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients inside; every module's own mode is restored after.

    Not inference mode: the next backward pass would reject tensors that layers cache in their first pass (tables,
    converted weights).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    """Turn running out of memory into a ``MemoryShortageError``, and free the memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        return
    # Outside the handler, which would keep the failed pass's tensors alive.
    release()
    raise _too_large(reason)


def _too_large(reason: str) -> MemoryShortageError:
    return MemoryShortageError(
        f"The answer does not fit in memory: {reason}", "Ask with a shorter conversation, or when no run is on."
    )
