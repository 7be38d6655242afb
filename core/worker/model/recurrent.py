"""Recurrent layers of hybrid models, which carry a state from token to token instead of attending to each.

Mamba, gated delta nets, short convolutions, linear attention: the state leaks into the next row of a packed batch, it
cannot be cut at a token, and not every model's code resumes from one in the middle of a text.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from core.worker.model.model import decoder_layers

#: Class names of stateful modules in transformers' families. Most have a convolution as well.
_NAMED = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|ShortConv|LinearAttention|LightningAttention|Recurrent|Rwkv|Retention|xLSTM"
)

#: Their names for users, by a part of the class name.
_WORDS = (
    (re.compile(r"Mamba"), "Mamba layers"),
    (re.compile(r"DeltaNet|DeltaAttention"), "gated delta nets"),
    (re.compile(r"ShortConv"), "short convolutions"),
    (re.compile(r"LinearAttention|LightningAttention"), "layers of linear attention"),
)


def describe_kind(kind: str) -> str:
    """Plural name for modules of a class: ``short convolutions`` for ``Lfm2ShortConv``."""
    return next((words for pattern, words in _WORDS if pattern.search(kind)), "recurrent layers")


def recurrent_kinds(model: Any) -> tuple[str, ...]:
    """Class names of the stateful modules in a model's decoder layers; empty where every layer attends.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one.
    """
    convolving: dict[str, None] = {}
    named: dict[str, None] = {}
    for layer in decoder_layers(model):
        for module in layer.modules():
            kind = type(module).__name__
            if any(isinstance(child, torch.nn.Conv1d) for child in module.children()):
                convolving.setdefault(kind)
            elif _NAMED.search(kind):
                named.setdefault(kind)
    return tuple(convolving or named)
