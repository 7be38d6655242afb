"""Gradient checkpointing and activation offloading, from the keys of the other tools."""

from __future__ import annotations

import dataclasses

from core.importers.rules import OFF, Choice, is_one_of
from core.importers.translation import Translation

ACTIVATION_OPTIONS = ("memory.gradient_checkpointing", "memory.activation_offload")

_BOTH = "Activations are recomputed, and what that starts from is kept in the machine's memory."
_NO_DISK = "What recomputing starts from is kept in the machine's memory, not on a disk."
_AXOLOTL = Choice(
    "memory.gradient_checkpointing",
    same={True: "on", False: "off", "true": "on", "false": "off"},
    otherwise=("auto", "No such way of checkpointing: it is decided by what fits."),
)
_UNSLOTH = dataclasses.replace(_AXOLOTL, same={"true": "on", True: "on", "none": "off", "false": "off", False: "off"})
_LLAMA_FACTORY = Choice(
    "memory.gradient_checkpointing",
    same={True: "off", False: "on", "true": "off", "false": "on"},
    otherwise=("auto", "It may be true or false: it is decided by what fits."),
)


def axolotl_activations(work: Translation) -> None:
    """Axolotl: ``activation_offloading``, and the values of ``gradient_checkpointing`` that mean the same."""
    _axolotl_offloading(work)
    way = work.values.get("gradient_checkpointing")
    moved = "memory.activation_offload" in work.settings
    if is_one_of(way, ("offload", "unsloth")):
        _move(work, "gradient_checkpointing")
    elif is_one_of(way, ("offload_disk",)):
        _move(work, "gradient_checkpointing", _NO_DISK)
    elif moved and is_one_of(way, (False, "false")):
        work.drop("gradient_checkpointing", "activation_offloading has activations recomputed here.")
    else:
        work.choose("gradient_checkpointing", _AXOLOTL)


def _axolotl_offloading(work: Translation) -> None:
    key = "activation_offloading"
    if not work.has(key):
        return
    value = work.values[key]
    if is_one_of(value, (*OFF, "false")):
        work.carry(key, None, reason="Moved only where a run would not fit otherwise.")
    elif is_one_of(value, (True, "true", "hidden_states")):
        _move(work, key)
    elif is_one_of(value, ("legacy",)):
        # It offloads every saved activation, recomputed or not.
        _move(work, key, _BOTH)
    elif is_one_of(value, ("disk",)):
        _move(work, key, _NO_DISK)
    else:
        work.drop(key, "No such way of offloading: it is decided by what fits.")


def unsloth_activations(work: Translation) -> None:
    """Unsloth: the value ``unsloth`` is checkpointing with the layers' inputs offloaded to host memory."""
    key = "training.gradient_checkpointing"
    if is_one_of(work.values.get(key), ("unsloth",)):
        _move(work, key)
    else:
        work.choose(key, _UNSLOTH)


def llama_factory_activations(work: Translation) -> None:
    """LLaMA-Factory: ``use_unsloth_gc`` is a kind of gradient checkpointing, unless that is disabled."""
    disabled, key = work.values.get("disable_gradient_checkpointing"), "use_unsloth_gc"
    if work.has(key):
        if not work.boolean(key):
            work.carry(key, None, reason="Moved only where a run would not fit otherwise.")
        elif is_one_of(disabled, (True, "true")):
            work.drop(key, "disable_gradient_checkpointing leaves nothing to recompute.")
        else:
            _move(work, key)
    for asked in ("gradient_checkpointing", "activation_checkpointing"):
        if not work.boolean(asked):
            if work.has(asked):
                work.carry(asked, None, reason="It is disable_gradient_checkpointing that turns it off.")
        elif is_one_of(disabled, (True, "true")):
            work.drop(asked, "disable_gradient_checkpointing is given too, and counts.")
        else:
            work.carry(asked, "memory.gradient_checkpointing", "on")
    work.choose("disable_gradient_checkpointing", _LLAMA_FACTORY)


def _move(work: Translation, key: str, differs: str = "") -> None:
    work.put("memory.gradient_checkpointing", "on")
    if differs:
        work.change(key, "memory.activation_offload", "on", differs)
    else:
        work.carry(key, "memory.activation_offload", "on", _BOTH)
