"""Memory for an answer, checked before it starts, so that a training beside it keeps its memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from core.errors import UserError
from core.hardware.cpu import free_memory
from core.memory.sizes import answer_bytes
from core.models.architecture.architecture import read_architecture
from core.runs.control.devices import runs_on_card, runs_on_cpu
from core.units import format_bytes
from core.worker.generate.generate import Prompt
from core.worker.generate.stops import PIECE_TOKENS
from core.worker.oom.retry import MemoryShortageError, release

#: Factor on an estimate, for the allocator's rounding.
_MARGIN = 1.1


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device; on a card the allocator's unused memory counts too."""
    if device.type != "cuda":
        return free_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def runs_on(device: torch.device) -> list[str]:
    """The runs training on a device."""
    if device.type != "cuda":
        return runs_on_cpu()
    return runs_on_card(f"GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '')}")


def needed_bytes(prompt: Prompt, dtype: torch.dtype, kept: int = 0, copied: int = 0) -> int | None:
    """Peak bytes of an answer beside the model; None where the architecture is unknown.

    Args:
        prompt: The conversation and the longest answer.
        dtype: The model's arithmetic.
        kept: Tokens of the conversation with cached keys and values.
        copied: Tokens whose keys and values are there twice.
    """
    with suppress(UserError):
        model = read_architecture(prompt.network.config.to_dict(), "the model")
        estimate = answer_bytes(
            model,
            prompt=len(prompt.tokens),
            answer=prompt.budget + copied,
            width=dtype.itemsize,
            chunk=PIECE_TOKENS,
            kept=kept,
            sliding=_sliding_layers(prompt.network.config.get_text_config()),
        )
        return int(_MARGIN * estimate)
    return None


def ask_for_room(
    prompt: Prompt,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kept: int = 0,
    copied: int = 0,
    give_up: Callable[[], None] = lambda: None,
    beside: str = "the training",
) -> None:
    """Check that an answer fits beside the model before it starts; caches are dropped where it does not.

    Args:
        prompt: The conversation and the longest answer.
        dtype: The model's arithmetic.
        device: Device of the computation.
        kept: Tokens of the conversation with cached keys and values.
        copied: Tokens whose keys and values are there twice.
        give_up: Drops caches, called where there is no room.
        beside: User of the rest of the memory, for the message.

    Raises:
        MemoryShortageError: If it does not fit.
    """
    needed = needed_bytes(prompt, dtype, kept, copied)
    if needed is None or needed <= free_bytes(device):
        return
    give_up()
    release()
    # The dropped cache has to be computed again.
    needed = needed_bytes(prompt, dtype, copied=copied)
    free = free_bytes(device)
    if needed is not None and needed > free:
        where = "this machine" if device.type == "cpu" else str(device)
        raise MemoryShortageError(
            f"The answer takes up to {format_bytes(needed)}, for {len(prompt.tokens)} tokens of conversation and "
            f"{prompt.budget} of answer, and {format_bytes(free)} are free on {where} beside {beside}.",
            "Begin a new conversation, lower chat.max_new_tokens, or ask when no run is on.",
        )


def _sliding_layers(config: Any) -> int:
    """The number of layers with a sliding window, by the rule of transformers' cache."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return sum(kind == "sliding_attention" for kind in types)
    return int(config.num_hidden_layers) if getattr(config, "sliding_window", None) else 0
