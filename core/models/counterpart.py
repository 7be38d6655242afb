"""The unquantized counterpart of a quantized model: by what its own files say, else by its name."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from core.errors import UserError
from core.hub_uri import is_hub_id
from core.models.description import read_description
from core.small_files import read_small
from core.text import one_line

_CARD, _CARD_LIMIT = "README.md", 1 << 20
_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?['\"]?([\w.-]+/[\w.-]+)", re.MULTILINE)
#: What is put behind the name of a model that has been quantized.
_SUFFIX = re.compile(
    r"([-_.](quantized|unsloth|bnb|GPTQ|AWQ|AQLM|HQQ|VPTQ|SpQR|QuIP|EXL[23]|AutoRound|quanto|torchao|NF4|w\d+a\d+|"
    r"(NV|MX)?FP[48]([-_](dynamic|static|block))?|int[2348]|[2348]-?bits?|g(32|64|128)))+$",
    re.IGNORECASE,
)


def find_counterpart(directory: Path) -> str:
    """The name of the model that a quantized one was made from; empty where nothing tells.

    Args:
        directory: The quantized model's: its card's ``base_model`` decides, then its name without a suffix like
            ``-FP8`` or ``-GPTQ-Int4``.

    Returns:
        ``Qwen/Qwen3-8B``, or ``the model as it was before, which may be named Qwen3-8B`` where it is a guess.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        front = _FRONT.match(read_small(directory / _CARD, _CARD_LIMIT).decode("utf-8"))
        named = _BASE_MODEL.search(front[1]) if front else None
        if named is not None and is_hub_id(named[1]):
            return one_line(named[1], 120)
    names = [_own_name(directory), _cached_name(directory), directory.name]
    for name in names:
        if name and (shorter := _SUFFIX.sub("", name)) != name and shorter:
            return f"the model as it was before, which may be named {one_line(shorter, 120)}"
    return ""


def _own_name(directory: Path) -> str:
    with contextlib.suppress(UserError):
        name = (read_description(directory / "config.json") or {}).get("_name_or_path")
        if isinstance(name, str) and is_hub_id(name):
            return name
    return ""


def _cached_name(directory: Path) -> str:
    """The hub id of a model in the Hugging Face cache: ``models--owner--name/snapshots/revision``."""
    place = directory.parent.parent.name
    return place.removeprefix("models--").replace("--", "/", 1) if place.startswith("models--") else ""
