"""llama.cpp's library, through the C interface of the package ``llama-cpp-py-sync``; and a GGUF file loaded with it:
tokenizer, template, logits and answers.
"""

from __future__ import annotations

import codecs
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from core.chat.request import GenerationSettings, QuestionError, too_long
from core.data.conversation import RowError
from core.errors import UserError
from core.export.llama_cpp import INSTALL
from core.memory.sizes import kv_bytes
from core.models.architecture.architecture import read_architecture
from core.models.architecture.gguf_header import check_gguf, read_gguf_header
from core.sandbox.limits import growth_limit
from core.template.answer_turns import begun_answer
from core.template.render import ChatTemplate
from core.template.tokenizer import any_of
from core.text import one_line
from core.worker.generate.scores import TokenScores
from core.worker.generate.stops import PIECE_TOKENS, StopTexts, reusable, whole_pieces

#: Level of ggml's log for errors.
_ERROR = 4
#: The latest errors of the library's log; the first one has the reason of a failure.
_errors: deque[str] = deque(maxlen=20)


class Library:
    """The functions of llama.cpp, and helpers for their arguments.

    A structure passed by its address must stay referenced in Python until the last call that reads it.
    """

    def __init__(self) -> None:
        from llama_cpp_py_sync import _cffi_bindings as bindings
        from llama_cpp_py_sync._version import __llama_cpp_tag__, __version__

        self.ffi: Any = bindings.get_ffi()
        self.lib: Any = bindings.get_lib()
        self.version = f"llama.cpp {__llama_cpp_tag__} (llama-cpp-py-sync {__version__})"
        # It must live as long as the library, which calls it.
        self._log = self.ffi.callback("void(enum ggml_log_level, const char *, void *)", self._hear)
        self.lib.llama_log_set(self._log, self.ffi.NULL)
        self.lib.llama_backend_init()

    def _hear(self, level: int, text: Any, _: Any) -> None:
        if level == _ERROR:
            said = self.ffi.string(text).decode("utf-8", "replace")
            _errors.append(said)
            sys.stderr.write(said)

    def decode(self, context: Any, rows: Sequence[Sequence[int]], begin: int, places: Collection[int]) -> int:
        """Let a context read rows of tokens, each a sequence of its own.

        Args:
            context: The context.
            rows: The tokens.
            begin: The position of the first token of each row.
            places: Places of tokens, over all rows, whose logits are needed.

        Returns:
            0, or the library's error code.
        """
        flat = [(token, begin + place, row) for row, tokens in enumerate(rows) for place, token in enumerate(tokens)]
        batch = self.lib.llama_batch_init(len(flat), 0, 1)
        try:
            batch.n_tokens = len(flat)
            for place, (token, position, row) in enumerate(flat):
                batch.token[place], batch.pos[place] = token, position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                batch.logits[place] = place in places
            return int(self.lib.llama_decode(context, batch))
        finally:
            self.lib.llama_batch_free(batch)

    def failure(self) -> str:
        """The first error logged since the last call, as the rest of a sentence; empty without one.

        The errors after it are only consequences.
        """
        lines = [one_line(line.strip(), 200) for line in _errors if line.strip()]
        _errors.clear()
        return f": {lines[0].rstrip('.')}" if lines else ""


@functools.cache
def load_library() -> Library:
    """The library, loaded once per process.

    Raises:
        UserError: If it is not installed or cannot be loaded.
    """
    try:
        return Library()
    except ImportError as error:
        raise UserError(
            "llama.cpp's library is not installed, so GGUF files cannot be read.",
            f"Install it: {INSTALL}",
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:
        reason = one_line(str(error), 200).rstrip(".")
        raise UserError(f"llama.cpp's library cannot be loaded: {reason}.", f"Install it again: {INSTALL}") from error


def threads() -> int:
    """Compute threads: ``OMP_NUM_THREADS``, else the number of this process's cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").strip()
    if wanted.isascii() and wanted.isdecimal() and 0 < int(wanted) <= 512:
        return int(wanted)
    return max(len(os.sched_getaffinity(0)), 1)


def as_path(path: Path) -> bytes:
    """A path as the library's argument."""
    return os.fsencode(path)


#: The smallest context; it doubles as conversations grow.
LEAST_CONTEXT = 512
#: ``GGML_TYPE_F32``, and ``LLAMA_FLASH_ATTN_TYPE_DISABLED``.
_F32, _NO_FLASH_ATTENTION = 0, 0
#: Bytes of an element of keys and values, which llama.cpp keeps in fp16 by default.
_KV_WIDTH = 2
_AGAIN = "Export it again."

Logits = np.ndarray[Any, np.dtype[np.float32]]


def context_bytes(path: Path, tokens: int) -> int:
    """Bytes of the keys and values of a context; 0 for an unknown architecture.

    Args:
        path: The GGUF file of the model.
        tokens: Tokens of the context. Layers with a sliding window keep all of them too.

    Raises:
        UserError: If the file cannot be read.
    """
    header = read_gguf_header(path)
    with suppress(UserError):
        return kv_bytes(read_architecture(header.config("the model"), "the model"), tokens, _KV_WIDTH)
    return 0


class GgufModel:
    """A model of llama.cpp, on the processor.

    Args:
        path: The GGUF file.
        adapter: A GGUF file with a LoRA adapter to put on top.
        exact: Keep keys and values in fp32 and compute attention plainly, for comparisons; otherwise use llama.cpp's
            defaults.
        ask: Called with the tokens of a context before it is allocated; it may raise to refuse.
        progress: Called with the share loaded, from 0 to 1; it may raise to cancel.

    Raises:
        UserError: If the library is missing, or a file is damaged or of an unknown architecture.
    """

    def __init__(
        self,
        path: Path,
        adapter: Path | None = None,
        *,
        exact: bool = False,
        ask: Callable[[int], None] = lambda _: None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        if read_gguf_header(path).metadata.get("general.type") == "adapter":
            raise UserError(
                f"{one_line(str(path))} is an adapter alone.",
                "Take the run that it is from, or export the whole model.",
            )
        header = check_gguf(path)
        self.library: Library = load_library()
        self.path = path
        self._exact, self._ask = exact, ask
        self._ffi, self._lib = self.library.ffi, self.library.lib
        self._context: Any = None
        self._size = 0
        #: Tokens with keys and values in the context.
        self._cached: list[int] = []
        #: The first of them that were read in whole pieces.
        self._whole = 0
        self._adapters: Any = None
        self._model = self._load(path, progress)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._lib.llama_vocab_n_tokens(self._vocabulary))
        self.longest_context = int(self._lib.llama_model_n_ctx_train(self._model)) or LEAST_CONTEXT
        self.templates = {
            key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": value
            for key, value in header.metadata.items()
            if key.startswith("tokenizer.chat_template") and isinstance(value, str)
        }
        if adapter is not None:
            self._add_adapter(adapter)

    def _load(self, path: Path, progress: Callable[[float], None]) -> Any:
        failed: list[BaseException] = []

        def report(share: float, _: Any) -> bool:
            try:
                progress(share)
            except BaseException as error:  # it cannot pass through C, so loading is stopped instead
                failed.append(error)
            return not failed

        parameters = self._lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        callback = self._ffi.callback("bool(float, void *)", report)
        parameters.progress_callback = callback
        model = self._lib.llama_model_load_from_file(as_path(path), parameters)
        if failed:
            raise failed[0]
        if model == self._ffi.NULL:
            raise UserError(f"llama.cpp cannot load {one_line(str(path))}{self.library.failure()}.", _AGAIN)
        return model

    def _add_adapter(self, path: Path) -> None:
        loaded = self._lib.llama_adapter_lora_init(self._model, as_path(path))
        if loaded == self._ffi.NULL:
            raise UserError(
                f"llama.cpp cannot put {one_line(str(path))} on the model{self.library.failure()}.",
                "Take the GGUF file of the base that it was trained on.",
            )
        # The context reads both arrays later.
        self._adapters = (
            self._ffi.new("struct llama_adapter_lora *[]", [loaded]),
            self._ffi.new("float[]", [1.0]),
        )

    def close(self) -> None:
        """Free its memory."""
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None

    # Tokens

    @property
    def specials(self) -> dict[str, str]:
        """The special tokens that llama.cpp passes to chat templates."""
        ids = {
            "bos_token": self._lib.llama_vocab_bos(self._vocabulary),
            "eos_token": self._lib.llama_vocab_eos(self._vocabulary),
        }
        return {name: self.piece(int(token), special=True).decode("utf-8", "replace") for name, token in ids.items()}

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Tokens of a text; special tokens written in it are parsed.

        Args:
            text: The text.
            add_special: Add the tokens that the file asks for around it.
        """
        raw = text.encode("utf-8")
        room = len(raw) + 16
        found = self._ffi.new("llama_token[]", room)
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), found, room, add_special, True)
        if count < 0:
            raise UserError("llama.cpp cannot make tokens of the text.", "Shorten it.")
        return list(self._ffi.unpack(found, count)) if count else []

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a rendered prompt, as in llama.cpp's server.

        It adds the tokens that the file asks for, after removing those that the template has written already.
        """
        specials = self.specials
        if self._lib.llama_vocab_get_add_bos(self._vocabulary) and specials["bos_token"]:
            text = text.removeprefix(specials["bos_token"])
        if self._lib.llama_vocab_get_add_eos(self._vocabulary) and specials["eos_token"]:
            text = text.removesuffix(specials["eos_token"])
        return self.tokenize(text, add_special=True)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Bytes of a token; a special token has none unless ``special`` is set."""
        if token < 0:
            return b""
        room = 256
        while True:
            buffer = self._ffi.new("char[]", room)
            count = int(self._lib.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, special))
            if count >= 0:
                return bytes(self._ffi.buffer(buffer, count))
            room = -count

    def ends_answer(self, token: int) -> bool:
        """True if the file marks a token as the end of an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    # Logits

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[Logits]:
        """Logits after the tokens at some positions: ``(vocabulary,)`` each, in order. A beginning that the previous
        tokens had too is not read again.

        Args:
            tokens: The sequence.
            positions: Places in it, ascending.
        """
        self._whole = 0
        self._prepare(len(tokens))
        before = zip(self._cached, tokens[: min(positions, default=0)], strict=False)
        self._forget(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], before)))
        wanted = frozenset(positions)
        for begin in range(len(self._cached), len(tokens), PIECE_TOKENS):
            piece = list(tokens[begin : begin + PIECE_TOKENS])
            places = [place for place in range(len(piece)) if begin + place in wanted]
            self._decode(piece, begin, places)
            for place in places:
                yield self._read(place)
        self._cached = list(tokens)

    def _read(self, place: int) -> Logits:
        """A copy of the logits at a place of the last batch."""
        address = self._lib.llama_get_logits_ith(self._context, place)
        if address == self._ffi.NULL:
            raise UserError(f"llama.cpp computes nothing with {one_line(str(self.path))}.", _AGAIN)
        view = self._ffi.buffer(address, self.vocabulary_size * 4)
        row: Logits = np.frombuffer(view, dtype=np.float32).copy()
        return row

    def _decode(self, tokens: Sequence[int], begin: int, places: Sequence[int]) -> None:
        """Read tokens after those in the context, with logits at some of their places."""
        status = self.library.decode(self._context, [tokens], begin, frozenset(places))
        if status:
            raise UserError(
                f"llama.cpp cannot compute with {one_line(str(self.path))} (code {status}){self.library.failure()}.",
                "Begin a new conversation, or close what else holds memory.",
            )

    def _forget(self, keep: int = 0) -> None:
        """Drop keys and values after ``keep`` tokens; all of them if the model cannot drop some."""
        memory = self._lib.llama_get_memory(self._context)
        if not keep or not self._lib.llama_memory_seq_rm(memory, 0, keep, -1):
            self._lib.llama_memory_clear(memory, True)
            keep = 0
        self._cached = self._cached[:keep]

    def _prepare(self, needed: int) -> None:
        """Provide a context of at least ``needed`` tokens.

        Raises:
            UserError: If the model reads fewer, the context is refused, or memory is short.
        """
        if needed > self.longest_context:
            raise too_long(needed, self.longest_context)
        if self._context is not None and needed <= self._size:
            return
        size = LEAST_CONTEXT
        while size < needed:
            size *= 2
        size = min(size, self.longest_context)
        if self._context is not None:
            self._lib.llama_free(self._context)
            self._context = None
        self._ask(size)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = size
        parameters.n_batch = parameters.n_ubatch = min(size, PIECE_TOKENS)
        parameters.n_threads = parameters.n_threads_batch = threads()
        if self._exact:
            parameters.type_k = parameters.type_v = _F32
            parameters.flash_attn_type = _NO_FLASH_ATTENTION
        context = self._lib.llama_init_from_model(self._model, parameters)
        if context == self._ffi.NULL:
            raise UserError(
                f"llama.cpp cannot make a context of {size} tokens{self.library.failure()}.",
                "Close what else holds memory, or begin a new conversation.",
            )
        self._context, self._size, self._cached = context, size, []
        if self._adapters is not None:
            adapters, scales = self._adapters
            self._lib.llama_set_adapters_lora(self._context, adapters, 1, scales)

    # Answers

    def generate(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        on_text: Callable[[str], None],
        cancelled: Callable[[], bool],
        *,
        echo: str | None = None,
        budget: int | None = None,
        scores: TokenScores | None = None,
    ) -> dict[str, Any]:
        """Answer a prompt, streaming; keys and values of its common pieces with the previous question are reused.

        Args:
            prompt: Its tokens.
            settings: Length and randomness.
            on_text: Called with each piece of text, whole characters only.
            cancelled: Asked between two tokens, and between two pieces of a long prompt.
            echo: The text that comes before the answer.
            budget: Most tokens of the answer in place of the settings'.
            scores: Receives the log-probabilities of the answer's tokens, and of those of a prompt that is echoed.

        Returns:
            The fields of an answer, without its source; see :class:`core.worker.generate.generate.Generation`.

        Raises:
            UserError: If the prompt is too long for the model, or memory is short.
        """
        began = time.monotonic()
        wanted = settings.max_new_tokens if budget is None else budget
        room = min(wanted, max(self.longest_context - len(prompt), 1))
        self._prepare(len(prompt) + room)
        place = self._take_in(prompt, cancelled, scores if echo is not None else None)
        first = time.monotonic()
        if echo is not None and place is not None:
            on_text(echo)
        # Whole characters only.
        characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stops = StopTexts(settings.stop)

        given = read = 0

        def give(text: str) -> None:
            nonlocal given
            if text:
                given += len(text)
                if scores is not None:
                    scores.release(given)
                on_text(text)

        made, finish = 0, "cancelled" if room or place is None else "length"
        sampler = self._sampler(settings, prompt)
        try:
            while place is not None and room:
                logits = self._finite(place)
                token = int(self._lib.llama_sampler_sample(sampler, self._context, place))
                if not made:
                    first = time.monotonic()
                is_end = self.ends_answer(token)
                if scores is not None and (scores.has_end or not is_end):
                    scores.add(token, *_likeliest(logits, token, scores.count), read)
                if is_end:
                    finish = "stop"
                    break
                made += 1
                text = characters.decode(self.piece(token))
                read += len(text)
                give(stops.push(text))
                if stops.found or made >= room:
                    finish = "stop" if stops.found else "length"
                    break
                if cancelled():
                    break
                self._decode([token], len(self._cached), [0])
                self._cached.append(token)
                place = 0
        finally:
            self._lib.llama_sampler_free(sampler)
        give(stops.push(characters.decode(b"", final=True)) + stops.flush())
        if scores is not None and not stops.found:
            scores.release()
        ended = time.monotonic()
        decoded, seconds = (made - 1, ended - first) if made > 1 else (made, ended - began)
        return {
            "text": stops.text,
            "tokens": made,
            "first_token_seconds": first - began,
            "tokens_per_second": decoded / max(seconds, 1e-9),
            "finish": finish,
            "prompt_tokens": len(prompt),
            "context_limit": self.longest_context,
        }

    def _take_in(
        self, prompt: Sequence[int], cancelled: Callable[[], bool], scores: TokenScores | None = None
    ) -> int | None:
        """Compute the keys and values of a prompt, reusing those of the previous question.

        Args:
            prompt: Its tokens.
            cancelled: Asked between two pieces.
            scores: Receives their log-probabilities; then nothing is reused.

        Returns:
            The place of its last token in the last decoded batch, for its logits; None if cancelled.
        """
        kept, self._whole = self._cached[: self._whole], 0
        self._forget(0 if scores is not None else reusable(kept, prompt))
        place = -1
        if scores is not None:
            scores.add(prompt[0], None, ())
        for begin in range(len(self._cached), len(prompt), PIECE_TOKENS):
            if cancelled():
                return None
            piece = list(prompt[begin : begin + PIECE_TOKENS])
            place = len(piece) - 1
            self._decode(piece, begin, [place] if scores is None else range(len(piece)))
            self._cached += piece
            if scores is not None:
                for at, token in enumerate(prompt[begin + 1 : begin + len(piece) + 1]):
                    scores.add(token, *_likeliest(self._finite(at), token, scores.count))
                scores.release()
        self._whole = whole_pieces(len(prompt))
        return place

    def _finite(self, place: int) -> Logits:
        """The logits at a place of the last batch, if they are numbers."""
        logits = self._read(place)
        if not np.isfinite(logits).all():
            raise UserError(
                f"{one_line(str(self.path))} computes values that are not numbers (NaN or infinite).",
                f"Its weights are damaged. {_AGAIN}",
            )
        return logits

    def _sampler(self, settings: GenerationSettings, prompt: Sequence[int]) -> Any:
        """A chain of llama.cpp's own samplers, in our order: see :class:`GenerationSettings`."""
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        links = []
        if biases := settings.biases(self.vocabulary_size):
            given = self._ffi.new("llama_logit_bias[]", biases)
            links.append(lib.llama_sampler_init_logit_bias(self.vocabulary_size, len(biases), given))
        if settings.repetition_penalty != 1:
            links.append(
                lib.llama_sampler_init_penalties(
                    self.vocabulary_size, self._size, settings.repetition_penalty, 0.0, 0.0
                )
            )
            for token in prompt:
                lib.llama_sampler_accept(links[-1], token)
        if settings.frequency_penalty or settings.presence_penalty:
            # A link of its own, which never hears of the prompt.
            links.append(
                lib.llama_sampler_init_penalties(
                    self.vocabulary_size, self._size, 1.0, settings.frequency_penalty, settings.presence_penalty
                )
            )
        if settings.temperature == 0:
            links.append(lib.llama_sampler_init_greedy())
        else:
            links.append(lib.llama_sampler_init_temp(settings.temperature))
            if settings.top_k:
                links.append(lib.llama_sampler_init_top_k(settings.top_k))
            if settings.top_p < 1:
                links.append(lib.llama_sampler_init_top_p(settings.top_p, 1))
            if settings.min_p:
                links.append(lib.llama_sampler_init_min_p(settings.min_p, 1))
            seed = time.time_ns() & 0x7FFFFFFF if settings.seed is None else settings.seed
            links.append(lib.llama_sampler_init_dist(seed))
        for link in links:
            lib.llama_sampler_chain_add(chain, link)
        return chain


def _likeliest(logits: Logits, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of a token, and the likeliest tokens with theirs."""
    top = logits.max()
    log = logits - top - np.log(np.exp(logits - top, dtype=np.float64).sum())
    # One more than is needed, as none cannot be asked for.
    best = np.argpartition(log, -count - 1)[-count - 1 :].tolist()
    found = [(int(each), float(log[each])) for each in best]
    return float(log[token]), sorted(found, key=lambda each: -each[1])[:count]


class GgufTemplate:
    """The chat template of a file, with the special tokens of its vocabulary.

    Args:
        model: The loaded file.
        now: Time for templates that write the date; None for the present.

    Raises:
        UserError: If the file has none, or an invalid one.
    """

    def __init__(self, model: GgufModel, now: datetime | None = None) -> None:
        source = model.templates.get("default")
        if not source:
            raise UserError(f"{model.path} has no chat template.", "Export it again, with the template of the run.")
        self._template = ChatTemplate(source, model.specials, with_tools=model.templates.get("tool_use"), now=now)
        self._template.check()
        self._stops = any_of(filter(None, [model.specials.get("eos_token")]))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """A conversation as text, ready for the model to answer, or to continue if it ends with an answer.

        Raises:
            RowError: If the template rejects it.
            UserError: If it takes too much time.
        """

        def render(given: Sequence[Mapping[str, Any]], generation_prompt: bool) -> str:
            return self._template.render(given, tools=tools, add_generation_prompt=generation_prompt)

        with growth_limit():
            if messages and messages[-1]["role"] == "assistant":
                return begun_answer(render, [dict(message) for message in messages], self._stops)
            return render(messages, True)

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The same, for a user's conversation.

        Raises:
            QuestionError: If the template rejects it.
            UserError: As :meth:`render`.
        """
        try:
            return self.render(messages, tools)
        except RowError as error:
            raise QuestionError(error.message, "Change the conversation.") from error
