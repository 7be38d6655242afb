"""Building blocks of decoding: cached forward passes, the choice of a token, and text from tokens."""

from __future__ import annotations

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.worker.generate.cache_trial import cache_argument, cache_use
from core.worker.generate.stops import PIECE_TOKENS, common_prefix, whole_pieces

#: Fewer shared tokens are not worth a separate pass.
SHORTEST_SHARED_PREFIX = 16
#: Tokens that a draw considers first; they hold nearly all of a language model's distribution.
LIKELIEST = 512
#: Rows of logits whose log-probabilities are computed at once.
_ROWS = 16


class KeyValues:
    """The keys and values of a growing sequence (or a batch of them), and the forward passes that extend them.

    Where a model cannot continue from its cache, all earlier tokens are read again with each new one.

    Args:
        network: A transformers causal language model, in evaluation mode.
    """

    def __init__(self, network: Any) -> None:
        self.copies = False
        """Copy the keys and values of a prompt's whole pieces as it is read, for :meth:`beginning`: the sequence will
        be too long to be cut."""
        self._copy: KeyValues | None = None
        self.device = network.get_input_embeddings().weight.device
        self.length = 0
        """Tokens read so far."""
        self.use = cache_use(network)
        """Correct uses of the cache."""
        self._cache = DynamicCache(config=network.config) if self.use.tokens else None
        self._read: list[dict[str, torch.Tensor]] = []
        self._network = network
        known = inspect.signature(network.forward).parameters
        self._cache_name = cache_argument(network)
        self._limits_head = "logits_to_keep" in known

    def extend(self, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Read more tokens.

        Args:
            input_ids: ``(rows, tokens)``, on any device.
            **arguments: Further arguments of the model.

        Returns:
            The logits after the last token, ``(rows, vocabulary)``.
        """
        return self._extend(input_ids, 1, arguments)[:, -1]

    def _extend(self, input_ids: torch.Tensor, last: int, arguments: dict[str, Any]) -> torch.Tensor:
        """The logits after the ``last`` tokens of those read, ``(rows, at least last, vocabulary)``."""
        if self._limits_head:
            # An index, not a count: with a count the model slices its hidden states, and for a frozen head torch then
            # copies the whole head for every row of a batch.
            arguments["logits_to_keep"] = torch.arange(input_ids.shape[1] - last, input_ids.shape[1])
        self.length += input_ids.shape[1]
        if self._cache is None:
            return self._extend_plainly(input_ids, last, arguments)
        arguments[self._cache_name] = self._cache
        logits: torch.Tensor = self._network(input_ids=input_ids.to(self.device), use_cache=True, **arguments).logits
        return logits

    def _extend_plainly(self, input_ids: torch.Tensor, last: int, arguments: dict[str, Any]) -> torch.Tensor:
        """Read all tokens so far again, without a cache."""
        known = ("position_ids",)
        self._read.append({"input_ids": input_ids} | {name: arguments[name] for name in known if name in arguments})
        every = {name: torch.cat([part[name].to(self.device) for part in self._read], 1) for name in self._read[0]}
        if self._limits_head:
            arguments["logits_to_keep"] = torch.arange(self.length - last, self.length)
        logits: torch.Tensor = self._network(**{**arguments, **every}, use_cache=False).logits
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Keep some rows of the batch; a row may be repeated.

        Args:
            rows: Their numbers, int64.
        """
        self._read = [{name: part[rows.to(part.device)] for name, part in each.items()} for each in self._read]
        if self._cache is None:
            return
        if self.use.recurrent:
            self._cache.reorder_cache(rows)
        else:
            self._cache.batch_select_indices(rows)

    def cut(self, wanted: int) -> bool:
        """Cut to the first tokens; returns True on success."""
        if wanted == self.length:
            return True
        if self._cache is None or not self.can_be_cut(self.length):
            return False
        self._cache.crop(wanted - self.length)
        self.length = wanted
        return True

    def can_be_cut(self, length: int) -> bool:
        """True if so many tokens can be cut to fewer: a sliding window loses its first tokens, and a state has none."""
        if self._cache is None or self.use.recurrent:
            return False
        sliding = [layer for layer in self._cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
        return all(length < layer.sliding_window for layer in sliding)

    def beginning(self, wanted: int) -> KeyValues | None:
        """The keys and values of the first tokens: these, cut, or their copy; None if there are none."""
        found = self if self.cut(wanted) else self._copy
        return found if found is not None and found.may_be_kept and found.length == wanted else None

    @property
    def may_be_kept(self) -> bool:
        """True if it can be kept for a later text."""
        if self._cache is None or not self.use.pieces:
            return False
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return self.use.recurrent or all(type(layer) in plain for layer in self._cache.layers)

    def read(
        self,
        tokens: Sequence[int],
        cancelled: Callable[[], bool],
        hear: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor | None:
        """Read a prompt, or the rest of one, in pieces.

        Args:
            tokens: The tokens.
            cancelled: Asked between two pieces.
            hear: Receives the logits after every token of a piece, ``(tokens, vocabulary)``.

        Returns:
            The logits after the last token, ``(1, vocabulary)``; None when cancelled or empty.
        """
        logits: torch.Tensor | None = None
        step = PIECE_TOKENS if self.use.pieces and self._cache is not None else max(1, len(tokens))
        whole = whole_pieces(self.length + len(tokens))
        for begin in range(0, len(tokens), step):
            if cancelled():
                return None
            if self.copies and 0 < self.length == whole and self.may_be_kept:
                self._copy = copy.copy(self)
                self._copy._cache = copy.deepcopy(self._cache)
            piece = torch.tensor([list(tokens[begin : begin + step])])
            every = self._extend(piece, 1 if hear is None else piece.shape[1], {})
            if hear is not None:
                hear(every[0, -piece.shape[1] :])
            logits = every[:, -1]
        return logits


class BatchDecoder:
    """Greedy decoding of several conversations together, padded on the left.

    Args:
        network: A transformers causal language model.
        prompts: Their tokens.
        pad_id: Any token.
        stop_ids: Tokens that end an answer.
    """

    def __init__(self, network: Any, prompts: Sequence[Sequence[int]], pad_id: int, stop_ids: frozenset[int]) -> None:
        self.answers: list[list[int]] = [[] for _ in prompts]
        """Tokens so far, without the final stop token."""
        self.stops: dict[int, int] = {}
        """The stop tokens of finished answers, by the number of the prompt."""
        self.finished = 0
        """Finished answers."""
        self._stop_ids = stop_ids
        self._state = KeyValues(network)
        #: Prompt number of each row of the batch; -1 for a finished one.
        self._rows = list(range(len(prompts)))
        shared = self._read_shared(prompts)
        width = max(map(len, prompts)) - shared
        ids = torch.full((len(prompts), width), pad_id)
        mask = torch.ones((len(prompts), shared + width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            padding = width - (len(prompt) - shared)
            ids[row, padding:] = torch.tensor(prompt[shared:])
            mask[row, shared : shared + padding] = 0
        self._input = ids.to(self._state.device)
        self._mask = mask.to(self._state.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]

    def _read_shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """Read the common prefix of all prompts once; at least one token of each prompt is left.

        Returns:
            The number of tokens read.
        """
        shared = common_prefix([prompt[:-1] for prompt in prompts])
        if len(prompts) < 2 or shared < SHORTEST_SHARED_PREFIX:
            return 0
        # Padding after the prefix would run through a state.
        if self._state.use.recurrent:
            return 0
        self._state.read(prompts[0][:shared], lambda: False)
        self._state.select(torch.zeros(len(prompts), dtype=torch.long, device=self._state.device))
        return shared

    def step(self) -> None:
        """Append a token to every unfinished row."""
        logits = self._state.extend(self._input, attention_mask=self._mask, position_ids=self._positions)
        chosen = logits.argmax(-1)
        kept: list[int] = []
        for place, token in enumerate(chosen.tolist()):
            row = self._rows[place]
            if row < 0:
                continue
            if token in self._stop_ids:
                self.finished += 1
                self.stops[row] = token
                self._rows[place] = -1
            else:
                self.answers[row].append(token)
                kept.append(place)
        self._input = chosen[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        if kept and len(kept) <= 0.75 * len(self._rows):
            self._keep(kept)

    def _keep(self, places: list[int]) -> None:
        """Keep only these rows."""
        index = torch.tensor(places, device=self._state.device)
        self._state.select(index)
        self._input, self._positions, self._mask = self._input[index], self._positions[index], self._mask[index]
        self._rows = [self._rows[place] for place in places]


class Sampler:
    """Chooses tokens, with random numbers apart from those of training.

    Logits stay on their device: a draw transfers the :data:`LIKELIEST` tokens and the mass of all in a single copy, a
    greedy choice only one value. The distribution is exact: where those tokens do not contain the draw, as with a flat
    distribution, all tokens are sorted, on the device too.

    Args:
        settings: Penalty, temperature, truncation and seed. There is one draw per token, from a generator on the host:
            the same seed gives the same tokens on every device, as far as its logits are the same.
        before: Tokens of the conversation, for the repetition penalty.
    """

    def __init__(self, settings: GenerationSettings, before: Sequence[int] = ()) -> None:
        self._settings = settings
        self._generator = torch.Generator()
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)
        self._seen = sorted(set(before)) if settings.repetition_penalty != 1 else []
        self._seen_here: torch.Tensor | None = None
        self._written: Counter[int] = Counter()

    def choose(self, logits: torch.Tensor) -> int:
        """The next token.

        Args:
            logits: ``(vocabulary,)``.

        Raises:
            UserError: If the logits are not finite.
        """
        settings = self._settings
        if settings.logit_bias:
            logits = _added(logits, settings.biases(len(logits)))
        if settings.repetition_penalty != 1:
            logits = self._penalized(logits)
        if self._written and (settings.frequency_penalty or settings.presence_penalty):
            logits = self._lowered(logits)
        token = self._choose(logits)
        if settings.repetition_penalty != 1:
            self._seen.append(token)
        self._written[token] += 1
        return token

    def _lowered(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits less the frequency and presence penalties of the tokens of the answer, as OpenAI defines them."""
        once, each = self._settings.presence_penalty, self._settings.frequency_penalty
        return _added(logits, [(token, -each * count - once) for token, count in self._written.items()])

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits with earlier tokens' logits divided by the penalty where positive, else multiplied by it."""
        if self._seen_here is None:
            self._seen_here = torch.tensor(self._seen, device=logits.device, dtype=torch.long)
        elif len(self._seen) > len(self._seen_here):
            self._seen_here = torch.cat([self._seen_here, self._seen_here.new_tensor([self._seen[-1]])])
        penalty = self._settings.repetition_penalty
        logits = logits.float()
        found = logits[self._seen_here]
        return logits.index_put((self._seen_here,), torch.where(found > 0, found / penalty, found * penalty))

    def _choose(self, logits: torch.Tensor) -> int:
        settings = self._settings
        if settings.temperature == 0:
            value, token = torch.stack([part.double() for part in logits.max(-1)]).tolist()
            _check_finite(value)
            return int(token)
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        scaled = logits.float() / settings.temperature
        likeliest = _Likeliest.of(scaled, min(LIKELIEST, len(scaled)))
        _check_finite(likeliest.logits[0].item())
        if not likeliest.decide(drawn, settings):
            likeliest = _Likeliest.of(scaled, len(scaled))
        return likeliest.draw(drawn, settings)


def _added(logits: torch.Tensor, values: Sequence[tuple[int, float]]) -> torch.Tensor:
    """The logits with values added to those of some tokens, in fp32."""
    tokens, added = zip(*values, strict=True)
    places = torch.tensor(tokens, device=logits.device)
    return logits.float().index_add(0, places, torch.tensor(added, dtype=torch.float32, device=logits.device))


@dataclass(frozen=True)
class _Likeliest:
    """The likeliest tokens of a distribution, on the host in fp64, the likeliest first."""

    logits: torch.Tensor
    tokens: torch.Tensor
    log_mass: float
    """Log-sum-exp of all logits."""
    everything: bool
    """True if these are all tokens."""

    @classmethod
    def of(cls, logits: torch.Tensor, count: int) -> _Likeliest:
        """The likeliest of ``(vocabulary,)`` logits, in one transfer: fp64 holds tokens and fp32 values exactly."""
        values, tokens = logits.topk(count)
        parts = [values.double(), tokens.double(), logits.logsumexp(-1, keepdim=True).double()]
        host = torch.cat(parts).cpu()
        return cls(host[:count], host[count:-1], host[-1].item(), count == len(logits))

    def decide(self, drawn: float, settings: GenerationSettings) -> bool:
        """True if the drawn token is known without the others.

        Args:
            drawn: As in :meth:`draw`.
            settings: The same.
        """
        if self._is_whole(self._nucleus(settings), settings):
            return True
        return not settings.top_k and settings.top_p >= 1 and drawn < self._shares.sum().item()

    def draw(self, drawn: float, settings: GenerationSettings) -> int:
        """The token at a place of the truncated distribution.

        Args:
            drawn: Place, from 0 to below 1.
            settings: The ``top_k`` likeliest tokens count; of these, a token while those before it have not filled the
                share ``top_p``, and while its probability is at least ``min_p`` of the likeliest one's.
        """
        upto, count = self._shares.cumsum(-1), self._nucleus(settings)
        place = drawn * upto[count - 1].item() if self._is_whole(count, settings) else drawn
        return int(self.tokens[min(int(torch.searchsorted(upto, place, right=True)), count - 1)])

    @property
    def _shares(self) -> torch.Tensor:
        return (self.logits - self.log_mass).exp()

    def _is_whole(self, count: int, settings: GenerationSettings) -> bool:
        """True if no further token could count, and the total mass is known."""
        if self.everything or not settings.top_k:
            return self.everything or count < len(self.tokens)
        return settings.top_k <= len(self.tokens)

    def _nucleus(self, settings: GenerationSettings) -> int:
        """Number of these tokens that count, at least one."""
        shares, logits = self._shares, self.logits
        whole = 1.0
        if 0 < settings.top_k < len(shares):
            shares, logits = shares[: settings.top_k], logits[: settings.top_k]
            whole = shares.sum().item()
        count = int((shares.cumsum(-1) - shares < settings.top_p * whole).sum())
        if settings.min_p > 0:
            count = min(count, int((logits >= logits[0] + math.log(settings.min_p)).sum()))
        return max(count, 1)


def _check_finite(logit: float) -> None:
    if not math.isfinite(logit):
        raise UserError(
            "The model computes values that are not numbers (NaN or infinite).",
            "Its weights are damaged, or the training has diverged: go back to an earlier checkpoint.",
        )


def likeliest(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Log-probabilities of tokens and of the likeliest ones in their places.

    Args:
        logits: ``(tokens, vocabulary)``, or more rows.
        tokens: The tokens.
        count: Number of likeliest tokens.

    Returns:
        For each token its log-probability, and the likeliest tokens with theirs.
    """
    found: list[tuple[float, list[tuple[int, float]]]] = []
    # Few at a time: in fp32 the rows of a large vocabulary take a lot of memory.
    for begin in range(0, len(tokens), _ROWS):
        part = torch.tensor(tokens[begin : begin + _ROWS], device=logits.device)[:, None]
        log = logits[begin : begin + len(part)].float().log_softmax(-1)
        _check_finite(log.max().item())
        values, ids = log.topk(count)
        best = [list(zip(*each, strict=True)) for each in zip(ids.tolist(), values.tolist(), strict=True)]
        found += zip(log.gather(1, part)[:, 0].tolist(), best, strict=True)
    return found


class TextStream:
    """Incremental detokenization that never emits half a character.

    Tokens are decoded together with earlier ones, as some tokenizers write spaces depending on the context.

    Args:
        tokenizer: The tokenizer.
    """

    #: A character has at most four bytes, so with more pending tokens U+FFFD is the intended text.
    _PENDING_LIMIT = 8

    def __init__(self, tokenizer: Any) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._pieces: list[str] = []
        self._context = 0
        self._read = 0

    @property
    def text(self) -> str:
        """The text emitted so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Add a token and return the newly completed text."""
        self.tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """The rest, an incomplete character as U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._decode(self.tokens[self._context : self._read])
        now = self._decode(self.tokens[self._context :])
        pending = len(self.tokens) - self._read
        if len(now) <= len(before) or (now.endswith("\ufffd") and not final and pending < self._PENDING_LIMIT):
            return ""
        piece = now[len(before) :]
        self._context, self._read = self._read, len(self.tokens)
        self._pieces.append(piece)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
