"""Storage format of a run's base: the layers that were in 16 bit when its checkpoint was written.

Which layers of a 4-bit base stay in 16 bit depends on the version that loads it. A checkpoint lists them, so that a
resumed run loads the same base, whatever new runs choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

from core.config.schema import Config
from core.config.targets import ALWAYS, kept_patterns, stays_16bit
from core.errors import UserError
from core.text import one_line
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names


def layers_16bit(model: Any) -> list[str]:
    """Names of the linear layers in 16 bit, the head included, and of the matrices of experts; sorted.

    Args:
        model: A model of transformers, or a ``PeftModel`` around one.
    """
    return sorted(name for name, in_4bit in _stored(model) if not in_4bit)


def layers_4bit(model: Any) -> list[str]:
    """Names of the linear layers in 4 bits, and of the matrices of experts; sorted.

    Args:
        model: As for :func:`layers_16bit`.
    """
    return sorted(name for name, in_4bit in _stored(model) if in_4bit)


def has_4bit_experts(model: Any) -> bool:
    """True if experts of a mixture are in 4 bits.

    Args:
        model: As for :func:`layers_16bit`.
    """
    return any(isinstance(parameter, ExpertsParams4bit) for parameter in model.parameters())


def _stored(model: Any) -> Iterator[tuple[str, bool]]:
    """Names of the layers that could be in 4 bits, without their adapters, and True for those in 4 bits."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in base.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and ".lora_" not in name:
            yield _bare(name), isinstance(module, bnb.nn.Linear4bit)
    for name, module in experts_of(base):
        for matrix in matrix_names(module):
            yield f"{_bare(name)}.{matrix}", isinstance(getattr(module, matrix), ExpertsParams4bit)


def _bare(name: str) -> str:
    return name.replace(".base_layer", "")


#: Manifest key; its value is null if nothing is in 4 bits.
KEY = "layers_16bit"
#: Maximum number of names in a message.
_SHOWN = 3
_ANOTHER_VERSION = (
    "Go on with the version that began the run, or begin a new one; what it has learned can be exported and talked to "
    "as it is."
)
_ANOTHER_PACKAGE = (
    "Put mamba-ssm and transformers back as they were, or begin a new run; what it has learned can be exported and "
    "talked to as it is."
)


@dataclass(frozen=True)
class Storage:
    """Layers that stay in 16 bit when a base is loaded in 4 bits.

    Args:
        keep: Names and patterns that the run keeps in 16 bit.
        always: Names that always stay in 16 bit.
    """

    keep: tuple[str, ...]
    always: tuple[str, ...] = ALWAYS


def storage_of(config: Config, found: Checkpoint | None) -> Storage:
    """Layers of a run's base that are in 16 bit.

    Args:
        config: Of the run.
        found: The checkpoint it continues from; None at its beginning.

    Raises:
        UserError: If the checkpoint's list is invalid.
    """
    keep = kept_patterns(config.model.keep_16bit)
    if found is None or config.method.name != "qlora":
        return Storage(keep)
    if (recorded := _recorded(found)) is not None:
        return Storage(tuple(recorded), ())
    # Not recorded by earlier versions, which had every layer but the head in 4 bits, and experts in 16.
    return Storage(keep) if _is_as_now(config) else Storage((), ())


def storage_facts(config: Config, model: Any) -> dict[str, Any]:
    """Manifest entry about the base.

    Args:
        config: Of the run.
        model: The model in training.
    """
    return {KEY: layers_16bit(model) if config.method.name == "qlora" else None}


def check_storage(found: Checkpoint, config: Config, model: Any) -> str:
    """Refuse a base whose storage differs from a checkpoint's.

    Args:
        found: The checkpoint.
        config: Of the run.
        model: The model as loaded by :func:`storage_of`, with its adapters.

    Returns:
        A description of the difference to the base of a new run; empty if there is none.

    Raises:
        UserError: If it differs.
    """
    if config.method.name != "qlora":
        return ""
    name, quantized, recorded = found.path.name, layers_4bit(model), _recorded(found)
    if recorded is not None:
        before, here = set(recorded), set(layers_16bit(model))
        for others, was, now in ((before - here, "16 bit", "4 bits"), (here - before, "4 bits", "16 bit")):
            if others:
                message = f"{name} was trained on a base with {_tell(sorted(others))} in {was}, now in {now} or gone."
                raise UserError(message, _ANOTHER_PACKAGE)
    elif has_4bit_experts(model) and not _is_as_now(config):
        raise UserError(
            f"{name} does not say that its experts were in 4 bits, as they are now: earlier versions had them in 16.",
            _ANOTHER_VERSION,
        )
    if changed := [layer for layer in quantized if stays_16bit(layer)]:
        return f"As before, {_tell(changed)} are in 4 bits; a new run has them in 16."
    return ""


def _is_as_now(config: Config) -> bool:
    """True if the run uses options that only exist since layers are chosen as now."""
    return bool(kept_patterns(config.model.keep_16bit)) or config.method.target_experts != "auto"


def _recorded(found: Checkpoint) -> list[str] | None:
    """List of layers in a manifest; None if there is none.

    Raises:
        UserError: If it is not a list of names.
    """
    value = found.manifest.get(KEY)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(
            f"{found.path.name}: {KEY} in its manifest is not a list of names.", "Take an earlier checkpoint."
        )
    return value


def _tell(names: Sequence[str]) -> str:
    """Names without their layer numbers, each once: ``linear_attn.in_proj_a``."""
    ends = list(dict.fromkeys(one_line(".".join(name.split(".")[-2:]), 80) for name in names))
    shown = ", ".join(ends[:_SHOWN])
    return shown if len(ends) <= _SHOWN else f"{shown} and {len(ends) - _SHOWN} more"
