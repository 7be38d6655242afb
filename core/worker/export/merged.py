"""A merged model: a directory in transformers' format, with weights that answer as the trained model does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import paths
from core.directories import Progress
from core.export.request import MergeFrom, Quant
from core.export.result import Agreement
from core.models.description import read_quantization
from core.runs.catalog.trained import TrainedModel
from core.units import format_number
from core.worker.export.beside import Conversation, copy_tokenizer, write_configs
from core.worker.export.merge import merge_weights

Way = Literal["base", "quantized"]
#: Compares the merged model in a directory with the trained one.
Compare = Callable[[Path], Agreement]


@dataclass(frozen=True)
class Merge:
    """A written merged model."""

    way: Way | None
    """The weights that the adapter was merged into; None without an adapter."""
    agreement: Agreement | None
    """Its measured agreement; None where there was no choice to make."""
    notes: tuple[str, ...] = ()


def write_merged(
    base: Path,
    trained: TrainedModel,
    directory: Path,
    quant: Quant,
    way: MergeFrom,
    conversation: Conversation,
    compare: Compare,
    progress: Progress,
) -> Merge:
    """Write a merged model.

    Args:
        base: The directory of the base, or of the result if all weights are in it.
        trained: The trained model.
        directory: An empty directory.
        quant: The type of the weights.
        way: The weights that an adapter is merged into. ``auto`` merges into both kinds if the adapter was trained on
            rounded weights, compares both with the trained model, and keeps the better one.
        conversation: Template and stop tokens.
        compare: Compares it with the trained model.
        progress: Called with each stage.

    Raises:
        UserError: If it cannot be merged or compared.
        OSError: If it cannot be written.
    """

    def write(place: Path, chosen: Way) -> None:
        untied = merge_weights(base, trained, place, quant, rounded=chosen == "quantized", progress=progress)
        copy_tokenizer(base, place, conversation)
        write_configs(base, place, quant, conversation, untied=untied)

    ways = ways_to_merge(base, trained, way)
    if len(ways) == 1:
        write(directory, ways[0])
        return Merge(ways[0] if trained.adapter is not None else None, None)
    found: dict[Way, Agreement] = {}
    for chosen in ways:
        place = directory / f".{chosen}"
        place.mkdir(mode=paths.DIRECTORY_MODE)
        write(place, chosen)
        found[chosen] = compare(place)
    better = min(ways, key=lambda chosen: _distance(found[chosen]))
    for chosen in ways:
        place = directory / f".{chosen}"
        if chosen == better:
            for path in sorted(place.iterdir()):
                path.rename(directory / path.name)
        shutil.rmtree(place)
    return Merge(better, found[better], (_told(better, found),))


def ways_to_merge(base: Path, trained: TrainedModel, way: MergeFrom) -> tuple[Way, ...]:
    """The weights to merge an adapter into, among the requested ones."""
    if trained.adapter is None:
        return ("base",)
    quantization = read_quantization(base)
    if quantization is not None and quantization.is_used_as_saved(trained.config.method.name):
        return ("quantized",)  # the files have no others
    if trained.file is not None:  # the training merged already
        return ("quantized",) if trained.config.method.name == "qlora" else ("base",)
    if way == "auto":
        return ("quantized", "base") if trained.config.method.name == "qlora" else ("base",)
    return (way,)


def _distance(agreement: Agreement) -> float:
    return float("inf") if agreement.mean_kl is None else agreement.mean_kl


def _told(better: Way, found: dict[Way, Agreement]) -> str:
    words = {"base": "the base's own weights", "quantized": "weights rounded to 4 bit as in training"}
    other: Way = "base" if better == "quantized" else "quantized"
    return (
        f"Merged into {words[better]}, it diverges by {format_number(found[better].mean_kl)} nats from the trained "
        f"model; into {words[other]}, by {format_number(found[other].mean_kl)}."
    )
