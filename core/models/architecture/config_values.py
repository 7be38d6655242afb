"""Configuration values: the keys of a ``config.json`` under any of the families' names, checked on access."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from core.text import one_line

#: Largest plausible dimension; a greater one is a mistake.
MOST = 1 << 31
#: Largest plausible number of layers.
MOST_LAYERS = 10_000
_ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads"),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len"),
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
}


class ConfigValues:
    """The content of a ``config.json``.

    Args:
        values: The content.
        where: Name of the model in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def get(self, key: str, default: Any = None) -> Any:
        """A value under any of its names; null counts as missing."""
        for name in (key, *_ALIASES.get(key, ())):
            if self._values.get(name) is not None:
                return self._values[name]
        return default

    def count(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """An integer of at least 1.

        Args:
            key: Its name.
            default: Value if it is missing; None if it is required.
            most: Largest valid value.

        Raises:
            UserError: If it is missing and has no default, or is something else.
        """
        value = self.get(key, default)
        if value is None:
            raise UserError(
                f"{self._where} has no {key}, so the shape of the model cannot be known.",
                "Copy the model's own config.json.",
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < most:
            shown = one_line(repr(value), 40)
            raise UserError(f"{self._where}: {key} is {shown}, not a size.", "Copy the model's own config.json.")
        return value

    def share(self, key: str) -> float:
        """A number from 0 to 1; 0 if missing.

        Raises:
            UserError: If it is something else.
        """
        value = self.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(
                f"{self._where}: {key} is {one_line(repr(value), 40)}, not a share.",
                "Copy the model's own config.json.",
            )
        return float(value)

    def capped(self, key: str, default: bool) -> bool:
        """Whether a cap is set; null means that it is not, a missing key means ``default``."""
        return bool(self._values[key]) if key in self._values else default

    def flag(self, key: str, default: bool) -> bool:
        """A boolean value."""
        return bool(self.get(key, default))
