"""Loading checked: a model must have exactly the weights of its architecture.

transformers fills missing weights and weights of another shape with noise, skips unknown ones, and continues; here its
report is checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import is_composite, split_names, text_part
from core.models.tensors import Tensor
from core.text import one_line

#: Names in an error message, and the most layers that predict further tokens.
_TOLD, _MOST_FURTHER = 10, 8
#: Hint for weights that differ from the description.
TAKE_BOTH = "Take config.json and weights from the same model."
#: Computed tables, which old files store with the weights.
_COMPUTED = re.compile(r"(^|\.)(inv_freq|cos_cached|sin_cached|masked_bias|causal_mask|position_ids)$")
#: Parts that are not built for the text part alone, and layers that predict further tokens.
_OTHER_PARTS = re.compile(r"(^|\.)(vision|visual|audio|image|speech|multi_modal|mm_|embed_vision|embed_audio)[^.]*\.")
_FURTHER = re.compile(r"(^|\.)(mtp|nextn)[^.]*\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a period at its end; its type where it has none."""
    return one_line(str(error).strip().partition("\n")[0], 300).rstrip(".") or type(error).__name__


def tell(names: Iterable[str]) -> str:
    """Names for an error message: the first ones, and the number of further ones."""
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
    """Check that every weight of a model came from its files, in its shape, and that no weight was left over.

    Args:
        base: The directory.
        model: The model.
        loading: transformers' report of the loading (``output_loading_info``).
        config: The content of ``config.json``.
        tensors: The tensors in the files.
        hint: Advice for the message.

    Raises:
        UserError: If not; it names the weights.
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
    """4-bit weights of another shape than their layer: transformers compares only unquantized ones."""
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
    """True if an unexpected weight has no effect on the text that the model writes."""
    if _COMPUTED.search(name) or _FURTHER.search(name):
        return True
    if tensor is not None and name.endswith(".bias") and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1):
        return True  # a causal mask as a table
    if _OTHER_PARTS.search(name) and any(key.endswith("_config") for key in config):
        return True
    layer = _LAYER.search(name)
    return layer is not None and int(layer[1]) in _further_layers(config)


def _further_layers(config: Mapping[str, Any]) -> range:
    """The numbers of the layers after the last one, which predict further tokens."""
    part = text_part(dict(config))
    depth, further = part.get("num_hidden_layers"), part.get("num_nextn_predict_layers")
    if type(depth) is not int or type(further) is not int:
        return range(0)
    return range(depth, depth + min(further, _MOST_FURTHER))


def check_size(model: Any, base: Path, elements: int) -> None:
    """Check that a model is not much larger than its files, before memory for the missing weights is allocated.

    Args:
        model: The model without its weights, on the device ``meta``.
        base: Its directory.
        elements: Numbers in the files, once decoded.

    Raises:
        UserError: If it is.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    # A tied head may be saved all the same.
    if wanted > elements + elements // 4 + 1_000_000:
        raise UserError(
            f"The model in {base} has {elements:,} weights in its files, and is described as one of {wanted:,}.",
            TAKE_BOTH,
        )


def unconverted(error: BaseException) -> list[str]:
    """The weights that transformers failed to convert; it reports them in its log only."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        failed = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if isinstance(failed, dict) and failed:
            return sorted(map(str, failed))
    return []


@contextlib.contextmanager
def reading_in_turn() -> Iterator[None]:
    """Inside, transformers reads tensors one by one; its threads would read far ahead of the loading, and so decode."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
