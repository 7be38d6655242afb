"""Tiny models with recurrent layers, of every such family that transformers has in more than one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.tiny import FAMILIES

_MORE: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["families"]

#: Families that people fine-tune, and families with other kinds of code.
HYBRIDS = (*(name for name, family in FAMILIES.items() if family.hybrid), *_MORE)


def make_hybrid(name: str) -> Any:
    """A random fp32 model of a family, with weights large enough for its states to matter."""
    if name in FAMILIES:
        config = FAMILIES[name].config().get_text_config()
    else:
        config = AutoConfig.for_model(name, **_MORE[name])
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
