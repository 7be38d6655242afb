"""Measurement of the trained model as the reference for its exports.

It computes in fp32 where that fits, with the weights of the training: the base in 4 bits if it was trained on in 4
bits, with the adapter unmerged; or both as in the file that the run was trained for.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch

from core.config.schema import Config
from core.config.targets import kept_patterns
from core.data.conversation import Example, RowError
from core.directories import Progress
from core.errors import UserError
from core.export.plan import (
    ANSWERING,
    LOADING_PLAIN,
    LOADING_TRAINED,
    MEASURING_BASE,
    MEASURING_PLAIN,
    MEASURING_TRAINED,
)
from core.hardware.cpu import memory
from core.models.check import check_adapter
from core.models.tensors import read_decoded
from core.runs.catalog.trained import TrainedModel
from core.template.builtin import named_or_file
from core.template.settings import mask_settings
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow, as_model_tokenizer, stop_token_ids
from core.worker.export.verify.compare import LogitsFile, Proof, ProofRow, places_kept, require_room
from core.worker.export.verify.kept import KeptAnswers
from core.worker.generate.generate import answer_tokens, answering_as
from core.worker.generate.room import runs_on
from core.worker.generate.sources import dequantized
from core.worker.model.device import DTYPES, choose_device
from core.worker.model.full_weights import put_weights
from core.worker.model.model import LoadedModel, answer_with_file, load_model, load_tokenizer
from core.worker.model.support import load_generation_config, resolve_base, vocabulary_size

#: Characters of plain text whose tokens are compared.
_TEXT_CHARACTERS = 4000


def make_encoder(
    config: Config, base: Path, tokenizer: Any, stop_ids: list[int], template: str | None, now: Any
) -> Encoder:
    """The encoder of the training."""
    return Encoder(tokenizer, stop_ids, template, settings=mask_settings(config, str(base)), now=now)


def choose_rows(
    config: Config, encoder: Encoder, vocabulary: int, count: int, progress: Callable[[int], None]
) -> tuple[list[ProofRow], str]:
    """Rows that were not trained on, as far as possible: from ``data.eval``, else from the held-out share.

    Args:
        config: The configuration of the run.
        encoder: The encoder of its training.
        vocabulary: Size of the model's vocabulary.
        count: Number of rows.
        progress: Called with the number of rows read; may raise to cancel.

    Returns:
        The rows and their source: ``eval``, ``held_out`` or ``training``.

    Raises:
        UserError: If the files can no longer be read.
    """
    loader = Loader(config, encoder, vocabulary=vocabulary, progress=progress)
    data, dataset = "training", None
    if config.data.eval is not None:
        data, dataset = "eval", loader.load(config.data.eval, limit=count)
    elif config.data.eval_share:
        _, dataset = loader.training()
        data = "held_out"
    if dataset is None or not dataset.rows:
        data, dataset = "training", loader.load(config.data.train, limit=count)
    chosen = _spread(dataset, count)
    most = places_kept(len(chosen), vocabulary)
    return [_proof_row(example, row, encoder, most) for example, row in chosen], data


def _spread(dataset: Dataset, count: int) -> list[tuple[Example, TokenizedRow]]:
    """Evenly spaced rows; of an example with several rows, one."""
    single = {id(example): (example, row) for example, row in zip(dataset.examples, dataset.rows, strict=True)}
    pairs = list(single.values())
    if len(pairs) <= count:
        return pairs
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _proof_row(example: Example, row: TokenizedRow, encoder: Encoder, most: int) -> ProofRow:
    learned = [int(place) - 1 for place in row.supervised.nonzero()[0] if place > 0][:most]
    messages = [message.fields() for message in example.prompt] if example.messages else []
    tools = [dict(tool) for tool in example.tools]
    text = example.text[:_TEXT_CHARACTERS] if not messages else ""
    prompt: list[int] = []
    if messages:
        try:
            prompt = encoder.prompt_ids(messages, tools)
        except RowError:
            messages = []  # the template takes this history only as part of a whole row
    elif text:
        prompt = as_model_tokenizer(encoder.tokenizer, ()).encode([text])[0]
    ids = row.input_ids[: learned[-1] + 1].tolist() if learned else row.input_ids[:1].tolist()
    return ProofRow(messages, tools, text, prompt, ids, learned)


#: Longest greedy answer in tokens, and margin beyond the longest expected one.
GREEDY_TOKENS, GREEDY_MARGIN = 64, 16
#: Factor for a model's memory beside its weights.
_ROOM = 1.3
#: Bytes per weight in fp32, and in a 4-bit model including its fp32 embeddings.
_WHOLE, _QUANTIZED = 4.0, 1.2


@dataclass(frozen=True)
class _Way:
    """Precision and device of a measurement."""

    precision: str
    device: str


@dataclass(frozen=True)
class _Asked:
    """The rows that all models are measured on."""

    rows: list[ProofRow]
    data: str
    """Their source: ``eval``, ``held_out`` or ``training``."""
    vocabulary: int
    """Logits per place: the rows of the base's embedding."""
    stops: frozenset[int]
    """Stop tokens."""


def measure_reference(
    trained: TrainedModel,
    directory: Path,
    count: int,
    progress: Progress,
    *,
    plain_base: bool,
    as_file: bool = True,
    base_sha256: str | None = None,
) -> Proof:
    """Measure the trained model on rows of the user's data, and write the answers into a directory. Its base is known
    to be that of the training.

    The base alone is measured too, to recognize an export without the adapter; and if the base was in 4 bits and
    ``plain_base`` is set, so is the adapter on the base in 16 bits, the expected result of a merge into that base.

    Args:
        trained: The trained model.
        directory: Directory for the files.
        count: Number of rows.
        progress: Called with each stage; it may raise to cancel.
        plain_base: Recognize a merge with the base in 16 bits; not needed for a model trained with the weights of a
            file, which is merged already.
        as_file: Measure such a model with the weights of its file; else with its adapter beside the base.
        base_sha256: The fingerprint of the base, if the answers are kept for further exports, or taken from an earlier
            one.

    Raises:
        UserError: If the base is missing, the rows cannot be read, or disk or memory are short.
    """
    config = trained.config
    base = resolve_base(trained.base, progress)
    method = config.method.name
    if trained.adapter is not None:
        check_adapter(trained.adapter, base)
    tokenizer = load_tokenizer(base)
    asked = _ask(trained, base, tokenizer, count, progress)
    elements = read_decoded(base).elements
    file = trained.file if as_file else None
    second = plain_base and method == "qlora" and trained.adapter is not None and file is None
    kept = None
    if base_sha256 is not None:
        options = {"asked": repr(asked), "file": repr(file), "second": second}
        kept = KeptAnswers(trained, base_sha256, options)
        if kept.take(directory):
            return Proof.read(directory)
    require_room(directory, asked.rows, asked.vocabulary, 3 if second else 2)
    way = choose_way(config, elements * (_QUANTIZED if method == "qlora" else _WHOLE))
    progress(LOADING_TRAINED, None, None)
    loaded = _load(trained, base, method, way, tokenizer)
    arithmetic = next(name for name, dtype in DTYPES.items() if dtype == loaded.dtype)
    weights = None if file is None else answer_with_file(loaded, base, file)
    measured = _Measurement(loaded, asked, directory, progress)
    measured.write("trained", MEASURING_TRAINED)
    if trained.adapter is not None:
        own = contextlib.nullcontext() if weights is None else weights.base_alone()
        with own, answering_as(loaded.model, "base"):
            measured.write("base", MEASURING_BASE, half=True)
    greedy = measured.greedy()
    del measured, loaded, weights
    gc.collect()
    if second and (plain := choose_way(config, elements * _WHOLE)).precision == "fp32":
        progress(LOADING_PLAIN, None, None)
        loaded = _load(trained, base, "lora", plain, tokenizer)
        _Measurement(loaded, asked, directory, progress).write("plain", MEASURING_PLAIN)
        del loaded
    date = trained.run.created.isoformat() if trained.run.created else ""
    proof = Proof(directory, asked.rows, greedy, asked.vocabulary, asked.data, date, arithmetic)
    proof.write()
    # With more free memory the next measurement would be a better one.
    if kept is not None and arithmetic == "fp32" and (not second or proof.logits("plain") is not None):
        kept.keep(directory)
    return proof


def _ask(trained: TrainedModel, base: Path, tokenizer: Any, count: int, progress: Progress) -> _Asked:
    """Choose the rows, encoded as in training."""
    config = trained.config
    template = named_or_file(trained.template)
    stops = stop_token_ids(load_generation_config(base), tokenizer, template)
    encoder = make_encoder(config, base, tokenizer, stops, template, trained.run.created)
    vocabulary = vocabulary_size(base)
    rows, data = choose_rows(config, encoder, vocabulary, count, lambda read: progress("reading the rows", read, None))
    return _Asked(rows, data, vocabulary, frozenset(stops))


def choose_way(config: Config, needed: float) -> _Way:
    """fp32 on the card if no run trains there and it fits, else on the CPU; else as in training.

    Args:
        config: The configuration of the run.
        needed: Bytes of the weights in fp32.
    """
    device = choose_device(config.hardware.device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if not runs_on(device) and free >= needed * _ROOM:
            return _Way("fp32", config.hardware.device)
    used, total = memory()
    if total - used >= needed * _ROOM:
        return _Way("fp32", "cpu")
    return _Way(config.train.precision, config.hardware.device)


def _load(trained: TrainedModel, base: Path, method: str, way: _Way, tokenizer: Any) -> LoadedModel:
    loaded = load_model(
        base,
        method=method,
        precision=way.precision,
        device=way.device,
        adapter=trained.adapter,
        tokenizer=tokenizer,
        keep_16bit=kept_patterns(trained.config.model.keep_16bit),
    )
    if trained.weights is not None:
        put_weights(loaded.model, trained.weights, method)
    loaded.model.eval()
    if way == _Way("fp32", "cpu"):
        _unpack(loaded.model)
    return loaded


def _unpack(model: Any) -> None:
    """Hold weights of 4 bits in fp32, where that fits: the numbers are the same, and each pass is several times
    faster."""
    layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, bnb.nn.Linear4bit) and layer.compute_dtype == torch.float32
    ]
    used, total = memory()
    if _ROOM * _WHOLE * sum(layer.in_features * layer.out_features for _, _, layer in layers) < total - used:
        for parent, name, layer in layers:
            setattr(parent, name, dequantized(layer))


class _Measurement:
    """Passes of a loaded model over the rows."""

    def __init__(self, loaded: LoadedModel, asked: _Asked, directory: Path, progress: Progress) -> None:
        model = loaded.model
        self._network = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._rows, self._vocabulary, self._stops = asked.rows, asked.vocabulary, asked.stops
        self._directory = directory
        self._progress = progress

    @torch.no_grad()
    def write(self, name: str, activity: str, *, half: bool = False) -> None:
        """Measure the logits of every row, and store them under a model name."""
        file = LogitsFile(self._directory / f"{name}.{'f16' if half else 'f32'}", self._vocabulary)
        for done, row in enumerate(self._rows):
            self._progress(activity, done, len(self._rows))
            if row.positions:
                logits = logits_at(self._network, row.input_ids, row.positions)
                if not torch.isfinite(logits).all():
                    raise UserError(
                        "The trained model computes values that are not numbers (NaN or infinite).",
                        "Its training has diverged: export an earlier checkpoint.",
                    )
                file.append(logits[:, : self._vocabulary].numpy())
        self._progress(activity, len(self._rows), len(self._rows))

    @torch.no_grad()
    def greedy(self) -> list[list[int]]:
        """Greedy answers to the prompts, including stop tokens."""
        longest = max((len(row.positions) for row in self._rows), default=0)
        limit = min(GREEDY_TOKENS, longest + GREEDY_MARGIN)
        asked = [row.prompt_ids for row in self._rows if row.messages]
        found = iter(answer_tokens(self._network, asked, self._stops, limit, partial(self._progress, ANSWERING)))
        return [next(found) if row.messages else [] for row in self._rows]


def logits_at(network: Any, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """Logits after some tokens of a sequence, ``(places, vocabulary)`` in fp32 on the host.

    Args:
        network: A causal language model of transformers.
        tokens: The sequence.
        positions: Places in it, one at least.
    """
    device = network.get_input_embeddings().weight.device
    ids = torch.tensor([list(tokens)], device=device)
    places = torch.tensor(list(positions), device=device)
    found: torch.Tensor = network(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
    if len(found) != len(places):  # the model ignores the argument and returns all
        found = found[places]
    return found.float().cpu()
