"""Published models that people tune: their configurations, and their numbers of parameters as the hub shows them.

``published/SOURCES.md`` has the source of every file and number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.models.published import find_published

DIRECTORY = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Published:
    """A published model.

    Args:
        parameters: The number of elements that the hub shows for it; None where none was found.
        unloaded: How many of them transformers does not load: layers for multi-token prediction, key and value
            projections of layers that use another layer's, scales of FP8.
        loaded: The number that transformers loads, where no published number was found; agrees with its name.
        text: The number of its text part as transformers builds it, where there are towers for images or sound.
    """

    parameters: int | None = None
    unloaded: int = 0
    loaded: int | None = None
    text: int | None = None

    @property
    def built(self) -> int:
        """Parameters of the model that transformers builds from the configuration."""
        if self.parameters is not None:
            return self.parameters - self.unloaded
        assert self.loaded is not None
        return self.loaded


_NUMBERS = yaml.safe_load((DIRECTORY / "models.yaml").read_text(encoding="utf-8"))
PUBLISHED = {name: Published(**numbers) for name, numbers in _NUMBERS.items()}


def published_config(name: str) -> dict[str, Any]:
    """The configuration of a published model, as far as it decides shapes and positions."""
    found = find_published(f"any/{name}")
    assert found is not None, name
    return found.config
