"""Adapter directory checks: an adapter in PEFT's format must be safe to load and fit its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import PICKLES, read_description, refuse_foreign
from core.models.quantization_config import read_quantization
from core.models.quantized_weights import read_decoded
from core.models.shapes import LAYER_NAME, by_layer, of_text_part
from core.models.tensors import Tensor, read_header
from core.models.text_part import is_composite, split_names
from core.text import one_line

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Ranks up to this are accepted whatever the factors have, as they cost little: a default that patterns override.
_ANY_RANK = 256
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


def wanted_base(config: Mapping[str, Any] | None) -> str | None:
    """Base model that an adapter was trained on, as in its ``adapter_config.json``."""
    name = (config or {}).get("base_model_name_or_path")
    return one_line(name, 200) if isinstance(name, str) and name else None


def not_a_model(directory: Path, config: Mapping[str, Any] | None) -> UserError:
    """The error for an adapter in place of a model."""
    base = wanted_base(config)
    return UserError(
        f"{directory} holds an adapter{f' for {base}' if base else ''}, not a model.",
        f"Give {base or 'the model that the adapter was trained on'}.",
    )


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that an adapter is complete, not a pickle, needs no foreign code, and fits a base by its shapes.

    Names do not decide: a base may be moved and renamed.

    Args:
        adapter: Its directory.
        base: Directory of the base model.

    Raises:
        UserError: If not.
    """
    config = read_description(adapter / CONFIG)
    if config is None:
        raise UserError(f"{adapter} has no {CONFIG}, so it is no adapter.", "Give a directory in PEFT's format.")
    if not (adapter / WEIGHTS).is_file():
        if adapter.is_dir() and any(path.suffix in PICKLES for path in adapter.iterdir()):
            raise UserError(
                f"{adapter} has its weights as pickles only, which run code when they are loaded.",
                f"Use a version of the adapter that has {WEIGHTS}.",
            )
        raise UserError(f"{adapter} has no {WEIGHTS}.", "Copy it there.")
    refuse_foreign(config, adapter / CONFIG)
    if config.get("peft_type") not in (None, "LORA"):
        kind = one_line(str(config.get("peft_type")), 40)
        raise UserError(f"{adapter} holds an adapter of a kind that is not known here ({kind}).", "Use a LoRA adapter.")
    for key in ("layer_replication", "megatron_config"):
        if config.get(key):
            raise UserError(
                f"{adapter / CONFIG} has {key}, which builds another model than the base.", "Use another adapter."
            )
    factors = read_header(adapter / WEIGHTS)
    _check_ranks(config, factors, adapter)
    model = read_description(base / "config.json") or {}
    quantization = read_quantization(base, model)
    if quantization is not None and not quantization.is_decoded:
        return  # packed weights do not show their shapes
    if is_composite(model):
        inner = {name.removeprefix(_PREFIX): factor for name, factor in factors.items()}
        factors = {_PREFIX + own: inner[name] for name, own in split_names(inner).text.items()}
    weights = of_text_part(model, read_decoded(base, model).tensors)
    _check_factors(factors, weights, adapter, base, wanted_base(config))


def _check_ranks(config: Mapping[str, Any], factors: Mapping[str, Tensor], adapter: Path) -> None:
    """Check the ranks against the factors: PEFT allocates by rank before the factors are read.

    Raises:
        UserError: If there are no factors, or a rank is none or larger than any factor has.
    """
    found = [
        factor.shape[0] if match[2] == "A" else factor.shape[-1]
        for name, factor in factors.items()
        if (match := _FACTOR.fullmatch(name)) and factor.shape
    ]
    if not any("lora_" in name for name in factors):
        raise UserError(f"{adapter / WEIGHTS} has no LoRA factors.", "Use another version of the adapter.")
    pattern = config.get("rank_pattern")
    ranks = [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if type(rank) is not int or not 0 < rank <= max([_ANY_RANK, *found]):
            raise UserError(
                f"{adapter / CONFIG} says that a rank is {one_line(str(rank), 20)}, and the factors in {WEIGHTS} have "
                f"{max(found, default=0)} at most.",
                "Take both from the same adapter.",
            )


def _check_factors(
    factors: Mapping[str, Tensor], weights: Mapping[str, Tensor], adapter: Path, base: Path, wanted: str | None
) -> None:
    trained_on = f" It was trained on {wanted}." if wanted else ""
    hint = f"Choose the base that the adapter was trained on.{trained_on}"
    matched = 0
    layers = by_layer(weights)
    for name, factor in factors.items():
        match = _FACTOR.fullmatch(name)
        # By layer, as the prefix before it may be omitted on disk.
        place = LAYER_NAME.search(match[1]) if match is not None else None
        weight = layers.get(int(place[1]), {}).get(f"{place[2]}.weight") if place is not None else None
        if match is None or weight is None or len(weight.shape) != 2 or len(factor.shape) != 2:
            continue
        matched += 1
        features = factor.shape[1] if match[2] == "A" else factor.shape[0]
        # GPT-2 stores its matrices transposed.
        expected = {weight.shape[1], weight.shape[0]} if ".h." in name else {weight.shape[1 if match[2] == "A" else 0]}
        if features not in expected:
            side = "inputs" if match[2] == "A" else "outputs"
            raise UserError(
                f"The adapter in {adapter} is for another base than {base}: "
                f"{one_line(match[1], 120)} is {weight} there, and the adapter has {features} {side}.",
                hint,
            )
    named = [match[1] for name in factors if (match := _FACTOR.fullmatch(name)) and LAYER_NAME.search(match[1])]
    if named and not matched:
        raise UserError(
            f"The adapter in {adapter} is for another base than {base}, which has no {one_line(named[0], 120)}.", hint
        )
