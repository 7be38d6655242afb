"""The cost of NF4: loss and Kullback-Leibler divergence of the base in 4 bits against the base in 16 bits, by layer.

A layer's cost is measured directly: the divergence with only this layer in 4 bits. All layers are measured in one pass:
each has a stream of hidden states that branches off the 16-bit stream at its layer and continues in 16 bits.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.directories import Progress
from core.errors import UserError
from core.hardware.cpu import memory
from core.memory.batching import chunk_positions
from core.models.description import read_quantization
from core.quantization.result import Figures, Kept, LayerCost, QuantizationCost, choose_layers
from core.text import one_line
from core.worker.data.batches import collate, supervised_count
from core.worker.data.encode import TokenizedRow
from core.worker.model.device import DTYPES
from core.worker.model.model import decoder_of
from core.worker.process.recorder import peak_rss_bytes
from core.worker.quantization.layers import LayeredModel
from core.worker.quantization.sample import Sample
from core.worker.quantization.streams import EntangledError, Stream, StreamedForward

#: Limits of the hidden states of all streams that wait in host memory at a time: in bytes, and as a share of the free
#: memory.
STREAM_BYTES, STREAM_SHARE = 4 << 30, 0.25


@dataclass(frozen=True)
class Settings:
    """Options for loading the base as in a run.

    Args:
        precision: As ``train.precision``.
        device: As ``hardware.device``.
        keep_16bit: As ``model.keep_16bit``; the layers already in 16 bits.
    """

    precision: str
    device: str
    keep_16bit: Sequence[str] = ()


def measure_cost(
    base: Path,
    sample: Sample,
    settings: Settings,
    progress: Progress,
    *,
    free_bytes: int | None = None,
    tokenizer: Any = None,
) -> QuantizationCost:
    """Measure the cost of four bits.

    Args:
        base: Directory of the base model.
        sample: The rows.
        settings: Options for loading the base.
        progress: Called with each stage.
        free_bytes: Additional bytes available for layers in 16 bits; None where unknown.
        tokenizer: The base's, if already loaded.

    Raises:
        UserError: If the model cannot be loaded, or was saved in 4 bits.
    """
    began = time.monotonic()
    saved = read_quantization(base)
    if saved is not None and saved.is_used_as_saved("qlora"):
        raise UserError(
            f"{one_line(base.name)} was saved quantized ({saved.name}): there are no 16-bit weights to compare with.",
            "Take the model as it was before that.",
        )
    progress("loading the model without its layers", None, None)
    plain, coarse = _load_both(base, settings, tokenizer)
    measured = _Measurement(plain, coarse, sample.rows, progress)
    whole, costs = measured.costs()
    kept = _keep_costliest(measured, costs, whole, free_bytes)
    device = plain.loaded.device
    return QuantizationCost(
        rows=len(sample.rows),
        tokens=sum(map(supervised_count, sample.rows)),
        data=sample.data,
        device=device.type,
        precision=next(name for name, dtype in DTYPES.items() if dtype == plain.loaded.dtype),
        loss_16bit=measured.reference_loss,
        whole=whole,
        layers=tuple(costs),
        kept=kept,
        free_bytes=free_bytes,
        seconds=time.monotonic() - began,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes(),
        keep_16bit=tuple(settings.keep_16bit),
    )


def _load_both(base: Path, settings: Settings, tokenizer: Any) -> tuple[LayeredModel, LayeredModel]:
    """The base in 16 bits and in 4 bits, without their layers; resets the peak of a card's memory."""
    load = functools.partial(LayeredModel, base, precision=settings.precision, device=settings.device)
    plain = load(method="lora", tokenizer=tokenizer)
    if plain.loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plain.loaded.device)
    kept = settings.keep_16bit
    return plain, load(method="qlora", keep_16bit=kept, tokenizer=plain.loaded.tokenizer, beside=plain)


def _keep_costliest(
    measured: _Measurement, costs: Sequence[LayerCost], whole: Figures, free_bytes: int | None
) -> Kept | None:
    """The layers that gain most from 16 bits, with the figures measured with them; None for none."""
    tried: dict[tuple[int, ...], Figures] = {}

    def with_kept(layers: tuple[int, ...]) -> float:
        tried[layers] = measured.with_kept(layers)
        return tried[layers].kl

    chosen = choose_layers(costs, whole.kl, free_bytes, with_kept)
    if not chosen:
        return None
    patterns = tuple(f"{costs[place].name}.*" for place in chosen)
    return Kept(chosen, patterns, sum(costs[place].bytes for place in chosen), tried[chosen])


@dataclass(frozen=True)
class _Ended:
    """A stream after the last layer, and its forward."""

    forward: StreamedForward
    stream: Stream


class _Measurement:
    """Passes of the two models over the sample.

    Args:
        plain: The base in 16 bits.
        coarse: The base in 4 bits.
        rows: The sample.
        progress: Called with the layers and rows.
    """

    def __init__(
        self, plain: LayeredModel, coarse: LayeredModel, rows: Sequence[TokenizedRow], progress: Progress
    ) -> None:
        self._plain, self._coarse, self._progress = plain, coarse, progress
        model, device = plain.loaded.model, plain.loaded.device
        self._input_ids, supervised = collate(rows, plain.loaded.pad_id, device)
        self._places = [row[1:].nonzero()[:, 0] for row in supervised]
        """For each row the places whose next token is supervised."""
        # Log-probabilities of both models exist at once, in fp32.
        self._chunk = chunk_positions(model.get_output_embeddings().weight.shape[0], 8, device.type)
        self._all = frozenset(range(len(plain.layers)))
        self._sizes: dict[tuple[int, bool], int] = {}
        self._reference: _Ended | None = None
        self.reference_loss = 0.0

    def costs(self) -> tuple[Figures, list[LayerCost]]:
        """Figures with all layers in 4 bits, and the cost of each layer alone."""
        whole = Stream(self._all)
        # Where anything outside the layers is in 4 bits, the 4-bit base needs its own forward.
        apart = self._coarse.quantizes_outside
        streams = [*([] if apart else [whole]), *(Stream(frozenset({place})) for place in sorted(self._all))]
        used, total = memory()
        room = min(STREAM_BYTES, int((total - used) * STREAM_SHARE))
        loaded = self._plain.loaded
        width = int(loaded.model.config.get_text_config().hidden_size)
        most = max(room // (int(self._input_ids.numel()) * width * loaded.dtype.itemsize), 1)
        figures: list[Figures] = []
        for start in range(0, len(streams), most):
            reference, *ended = self._pass(self._plain, [Stream(frozenset()), *streams[start : start + most]])
            self._reference = self._reference or reference
            figures += self._compare(ended)
        if apart:
            figures = self._compare(self._pass(self._coarse, [whole])) + figures
        names = self._plain.names
        more = [self._sizes[place, False] - self._sizes[place, True] for place in sorted(self._all)]
        alone = zip(names, figures[1:], more, strict=True)
        return figures[0], [LayerCost(name, each.kl, size) for name, each, size in alone]

    def with_kept(self, kept: Sequence[int]) -> Figures:
        """Figures with all layers except some in 4 bits."""
        driver = self._coarse if self._coarse.quantizes_outside else self._plain
        return self._compare(self._pass(driver, [Stream(self._all - set(kept))]))[0]

    def _pass(self, driver: LayeredModel, streams: Sequence[Stream]) -> list[_Ended]:
        """Pass streams through all layers."""
        depth = len(driver.layers)
        forward = StreamedForward(
            driver,
            self._plain,
            self._coarse,
            streams,
            lambda place: self._progress("layer by layer", place + 1, depth),
            self._sizes,
        )
        decoder = decoder_of(driver.loaded.model)
        try:
            forward.run(lambda: decoder(input_ids=self._input_ids, use_cache=False))
        except EntangledError:
            return [ended for each in streams for ended in self._pass(driver, [Stream(each.quantized)])]
        return [_Ended(forward, each) for each in streams]

    def _compare(self, ended: Sequence[_Ended]) -> list[Figures]:
        """Figures of streams against the reference."""
        sums = np.zeros((len(ended), 3))
        loss, tokens = 0.0, 0
        for done, (row, targets, places) in enumerate(self._chunks()):
            self._progress("comparing the answers", done, None)
            wanted = self._log_shares(self._reference, row, places)
            loss += _negative(wanted, targets)
            tokens += len(places)
            for place, each in enumerate(ended):
                found = self._log_shares(each, row, places)
                same = int((wanted.argmax(dim=-1) == found.argmax(dim=-1)).sum())
                sums[place] += (_negative(found, targets), float((wanted.exp() * (wanted - found)).sum()), same)
        self.reference_loss = loss / tokens
        return [Figures(float(a), max(float(b), 0.0), float(c)) for a, b, c in sums / tokens]

    def _chunks(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Chunks of places of each row in turn: the row, the next tokens, and the places."""
        for row, learned in enumerate(self._places):
            for places in learned.split(self._chunk):
                yield row, self._input_ids[row][places + 1], places

    @torch.no_grad()
    def _log_shares(self, ended: _Ended | None, row: int, places: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the next tokens at some places of a row, ``(places, vocabulary)`` in fp32."""
        if ended is None:
            raise ValueError("there is nothing to compare with")
        model, ids = ended.forward.driver.loaded.model, self._input_ids[row : row + 1]
        logits: torch.Tensor = ended.forward.end(
            ended.stream, row, lambda: model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
        )
        if len(logits) != len(places):  # the model ignores the argument and returns all
            logits = logits[places]
        return logits.float().log_softmax(dim=-1)


def _negative(log_shares: torch.Tensor, targets: torch.Tensor) -> float:
    """Summed negative log-likelihood of the targets."""
    return -float(log_shares.gather(1, targets[:, None]).sum())
