"""Names of models in Ollama: ``NAME:TAG``, made from the id of a run."""

from __future__ import annotations

import re

from core.errors import UserError
from core.text import one_line

#: Longest name and tag.
_LONGEST = 80
_OTHER = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?", re.ASCII)


def model_name(run: str, *, step: int | None = None, quant: str | None = None) -> str:
    """The name of an exported run, ``20260314-101502-faq:step-120-q8_0``; another run or step has another one.

    Args:
        run: The run's id.
        step: The step of a checkpoint; None for the result.
        quant: The type of the weights.
    """
    tag = "-".join(filter(None, (None if step is None else f"step-{step}", quant and quant.lower())))
    name = _part(run) or "localtune"
    return f"{name}:{_part(tag)}" if tag else name


def check_name(name: str) -> None:
    """Check that Ollama takes a name.

    Raises:
        UserError: If it does not. Names with an owner or a registry are refused as well: nothing is published.
    """
    if _NAME.fullmatch(name) is None or ".." in name:
        raise UserError(
            f"{one_line(name, 80)!r} is no name of a model in Ollama.",
            "Use letters, digits, '_', '-' and '.', with a tag after ':' if you like.",
        )


def _part(text: str) -> str:
    plain = re.sub(r"\.{2,}", ".", _OTHER.sub("-", text)).strip("-.")
    return plain[:_LONGEST].rstrip("-.")
