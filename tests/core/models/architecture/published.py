"""Published models: their ``config.json``, as far as it decides shapes, and their numbers of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_CONFIGS["GEMMA_3_4B_TEXT"] = _CONFIGS["GEMMA_3_4B"]["text_config"]
_PARAMETERS = json.loads(Path(__file__).with_name("parameters.json").read_text(encoding="utf-8"))

#: The exact number of parameters, as the models' cards or checkpoints have it.
PARAMETERS: dict[str, tuple[dict[str, Any], int]] = {
    name: (_CONFIGS[config], parameters) for name, (config, parameters) in _PARAMETERS.items()
}


def __getattr__(name: str) -> dict[str, Any]:
    """A model's ``config.json`` as an attribute: ``LLAMA_3_8B``."""
    try:
        return _CONFIGS[name]
    except KeyError:
        raise AttributeError(name) from None
