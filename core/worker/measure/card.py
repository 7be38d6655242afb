"""Operations as a card's kernels allocate them, on tensors that have no device.

Fake tensors are on the CPU, where autograd needs no card; torch's kernels for a card are called by name, and what
autocast and dropout do there is done by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from core.memory.steps import Arithmetic
from core.worker.fused.attention_kernels import FLASH_HEAD, repeated

#: Name of the attention for ``set_attn_implementation``.
CARD_ATTENTION = "localtune_card"
#: Operations that autocast runs in fp32 on CUDA and in 16 bit on a CPU (torch's documentation of ``torch.amp``).
_IN_FP32 = frozenset(
    (
        "exp",
        "expm1",
        "log",
        "log10",
        "log1p",
        "log2",
        "pow",
        "reciprocal",
        "rsqrt",
        "softplus",
        "layer_norm",
        "group_norm",
        "norm",
        "cumsum",
        "cumprod",
        "prod",
        "sum",
        "softmax",
        "log_softmax",
    )
)


class CardOperations(TorchFunctionMode):
    """Runs operations as autocast and torch's kernels run them on a card.

    Args:
        dtype: Dtype of autocast; None without it.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "dropout" and args and isinstance(args[0], torch.Tensor):
            return _dropout(*args, **kwargs)
        if self._dtype is not None and name in _IN_FP32 and kwargs.get("dtype") is None:
            args = tuple(_wide(arg) for arg in args)
            kwargs = {key: _wide(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: ARG001
    if not training or not p:
        return x
    # One byte of the mask for each element; the CPU's has the width of the input.
    made: torch.Tensor = torch.native_dropout(x, p, True)[0]
    return made


def register(how: Arithmetic) -> None:
    """Register attention as a card runs it.

    Args:
        how: The arithmetic of the run: flash attention, and the worker's own function.
    """

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        window = kwargs.get("sliding_window") if how.fused_attention and not dropout else None
        out = _attend(module, query, key, value, attention_mask, dropout, scaling, window, how)
        return out.transpose(1, 2).contiguous(), None

    def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        # Variable-length attention knows sliding windows without a mask.
        size = kwargs.get("local_size")
        slides = size is not None and getattr(kwargs.get("config"), "sliding_window", None) == size
        if slides and how.fused_attention and how.flash:
            return None
        made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
        return made

    AttentionInterface.register(CARD_ATTENTION, attend)
    AttentionMaskInterface.register(CARD_ATTENTION, mask)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    window: int | None,  # noqa: ARG001 - the kernel with a window allocates as that without
    how: Arithmetic,
) -> torch.Tensor:
    """Attention by the kernel that torch would choose: ``(rows, heads, queries, value)``."""
    aten = torch.ops.aten
    heads, grouped = query.shape[1], query.shape[1] != key.shape[1]
    causal = mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True)
    half = query.dtype in (torch.bfloat16, torch.float16)
    same = query.shape[-1] == value.shape[-1]
    if mask is None and how.flash and half and same and query.shape[-1] <= FLASH_HEAD:
        made = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scaling)
        flash: torch.Tensor = made[0]
        return flash
    if grouped and mask is None and not how.fused_attention:
        # Neither flash nor memory-efficient attention serves: the scores are made.
        made = aten._scaled_dot_product_attention_math(
            query, key, value, None, dropout, causal, None, scale=scaling, enable_gqa=True
        )
        plain: torch.Tensor = made[0]
        return plain
    key, value = repeated(key, heads), repeated(value, heads)
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, float("-inf"))
        bias = bias.expand(query.shape[0], heads, query.shape[2], key.shape[2])
    made = aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout, causal, scale=scaling)
    efficient: torch.Tensor = made[0]
    return efficient
