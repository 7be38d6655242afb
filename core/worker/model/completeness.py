"""Missing, unexpected and mismatched weights: a model must have those of its architecture, no more and no fewer.

transformers fills what is missing or of another shape with noise, leaves out what it does not know, and goes on; its
report is looked at here.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import text_part
from core.models.tensors import Tensor
from core.models.text_part import is_composite, split_names
from core.text import one_line

#: Names told in one sentence, and the most layers that predict further tokens.
_TOLD, _MOST_FURTHER = 10, 8
#: What to do where weights and description differ.
TAKE_BOTH = "Take config.json and weights from the same model."
#: What old files have beside the weights: tables that are computed.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|position_ids)$")
#: Parts that are not built where the text part alone is, and layers that predict further tokens.
_OTHER_PARTS = re.compile(r"(^|\.)(vision|visual|audio|image|speech|multi_modal|mm_|embed_vision|embed_audio)[^.]*\.")
_FURTHER = re.compile(r"(^|\.)(mtp|nextn)[^.]*\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def tell(names: Iterable[str]) -> str:
    """Names in a sentence: the first ones, and how many there are more."""
    found = sorted(names)
    more = len(found) - _TOLD
    return ", ".join(one_line(name, 120) for name in found[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def check_loaded(
    base: Path,
    model: Any,
    loading: Mapping[str, Any],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    hint: str = TAKE_BOTH,
) -> None:
    """See that a model has got every weight from its files, in its shape, and that nothing was left over.

    Args:
        base: What it was loaded from.
        model: The model.
        loading: What transformers reports of the loading (``output_loading_info``).
        config: The content of ``config.json``.
        tensors: Those in the files.
        hint: What to do about it.

    Raises:
        UserError: If not; the weights are named.
    """
    if missing := loading.get("missing_keys"):
        raise UserError(f"The model in {base} lacks weights of its architecture: {tell(missing)}.", hint)
    wrong = [
        f"{name} ({_shape(there)} in place of {_shape(wanted)})"
        for name, there, wanted in (*(loading.get("mismatched_keys") or ()), *_misquantized(model))
    ]
    if wrong:
        raise UserError(f"The model in {base} has weights of other shapes than its architecture: {tell(wrong)}.", hint)
    towers = frozenset(split_names(tensors).others) if is_composite(config) else frozenset()
    unknown = [
        name
        for name in loading.get("unexpected_keys") or ()
        if name not in towers and not _is_harmless(name, config, tensors.get(name))
    ]
    if unknown:
        raise UserError(
            f"The model in {base} has weights that its architecture does not take: {tell(unknown)}.",
            f"{hint[:-1]}, and upgrade transformers if the model is newer than it.",
        )


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _misquantized(model: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """4-bit weights of another shape than their layer: transformers compares those that are not quantized only."""
    found: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        there, wanted = tuple(state.shape), (int(module.out_features), int(module.in_features))
        if there != wanted:
            found.append((f"{name}.weight", there, wanted))
    return found


def _is_harmless(name: str, config: Mapping[str, Any], tensor: Tensor | None) -> bool:
    """Whether a weight that the architecture does not take changes nothing about the text that it writes."""
    if _COMPUTED.search(name) or _FURTHER.search(name):
        return True
    if tensor is not None and name.endswith(".bias") and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1):
        return True  # which position sees which, as a table
    if _OTHER_PARTS.search(name) and any(key.endswith("_config") for key in config):
        return True
    layer = _LAYER.search(name)
    return layer is not None and int(layer[1]) in _further_layers(config)


def _further_layers(config: Mapping[str, Any]) -> range:
    """The numbers of layers behind the last one that are there to predict further tokens."""
    part = text_part(dict(config))
    depth, further = part.get("num_hidden_layers"), part.get("num_nextn_predict_layers")
    if type(depth) is not int or type(further) is not int:
        return range(0)
    return range(depth, depth + min(further, _MOST_FURTHER))


def check_size(model: Any, base: Path, elements: int) -> None:
    """See that a model is not much larger than its files: what is missing would be made before it is refused.

    Args:
        model: The model without its weights, on the device ``meta``.
        base: What it is to be loaded from.
        elements: Numbers in the files, once decoded.

    Raises:
        UserError: If it is.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    # A head that is tied may be saved all the same.
    if wanted > elements + elements // 4 + 1_000_000:
        raise UserError(
            f"The model in {base} has {elements:,} weights in its files, and is described as one of {wanted:,}.",
            TAKE_BOTH,
        )


def unconverted(error: BaseException) -> list[str]:
    """The weights that transformers could not put together; it tells them in its log only."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        failed = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if isinstance(failed, dict) and failed:
            return sorted(map(str, failed))
    return []
