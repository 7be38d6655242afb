"""Published models by name: their shapes, for plans of models that are not on this machine.

``published.jsonl`` has a model a line: its hub ids, and the values of its ``config.json`` that decide its shape.
``tests/families/published/SOURCES.md`` names their sources.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.find import locate_model, model_entry

#: Parts of names that change no shape: training after the base, dates, formats and quantizations of re-uploads.
_WITHOUT_SHAPE = re.compile(
    r"base|pt|it|instruct|chat|think|thinking|reasoning|hf|meta|unsloth|bnb|qat|awq|gptq|gguf|mlx|dynamic"
    r"|bf16|fp?16|fp8|(?:nv|mx)fp4|int[48]|[48]bit|\d{4}"
)


@dataclass(frozen=True)
class Published:
    """A published model.

    Args:
        id: Its hub id.
        config: The values of its ``config.json``.
        name: The name that it was found by.
    """

    id: str
    config: dict[str, Any]
    name: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def note(self) -> str:
        """The origin of a plan for it, a sentence."""
        return f"The model is not on this machine: the plan is by the published shape of {self.id}."


def find_published(name: str) -> Published | None:
    """The published model of a hub id, of its variants and of re-uploads; None for other names and unknown models."""
    entry = model_entry(name)
    found = None if entry is None else _published().get(_shape_name(entry.repository))
    return None if found is None else replace(found, name=name)


def locate_shape(name: str, relative_to: Path | None = None) -> Path | Published:
    """The path of a model on this machine, else its published shape; see :func:`core.models.find.locate_model`.

    Raises:
        UserError: If the model is not on this machine, and its shape is unknown.
    """
    try:
        return locate_model(name, relative_to)
    except UserError:
        if (found := find_published(name)) is not None:
            return found
        raise


def _shape_name(repository: str) -> str:
    """The name of a model without its owner and what changes no shape: ``qwen3-8b``."""
    parts = re.split(r"[-_]", repository.rpartition("/")[2].lower())
    return "-".join(part for part in parts if not _WITHOUT_SHAPE.fullmatch(part))


@functools.cache
def _published() -> dict[str, Published]:
    """The published models by name."""
    found: dict[str, Published] = {}
    for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
        model = json.loads(line)
        found |= {_shape_name(name): Published(name, model["config"]) for name in model["ids"]}
    return found
