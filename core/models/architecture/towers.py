"""Towers of a composite model, for images and sound: not loaded, as rows are text, and told by what they would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Keys of a part's size in configurations, each under the names that it has there.
_WIDTH, _DEPTH = ("hidden_size", "embed_dim", "d_model"), ("num_hidden_layers", "depth", "encoder_layers", "num_layers")
_INNER = ("intermediate_size", "encoder_ffn_dim", "conf_ff_dim")
#: Largest plausible value of one of them.
_MOST = 1 << 20


@dataclass(frozen=True)
class Towers:
    """The parts of a composite model beside its language model.

    Args:
        kinds: What they are for, as their configurations are named: ``vision``, ``audio``.
        bytes: What they take in 16 bit, or in the files where these are there.
        is_exact: Whether it is counted in the files, not estimated by the configuration.
    """

    kinds: tuple[str, ...]
    bytes: int
    is_exact: bool = False


def read_towers(config: Mapping[str, Any]) -> Towers:
    """Estimate the towers of a composite model by its ``config.json``: attention and a feed-forward network a layer."""
    kinds, parameters = [], 0
    for key, part in config.items():
        if not key.endswith("_config") or key == "text_config" or not isinstance(part, Mapping):
            continue
        kinds.append(key.removesuffix("_config"))
        width, depth, inner = (_first(part, names) for names in (_WIDTH, _DEPTH, _INNER))
        if width and depth:
            parameters += depth * (4 * width * width + 2 * width * (inner or 4 * width))
    return Towers(tuple(kinds), 2 * parameters)


def _first(part: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (part.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 < value < _MOST), None)
