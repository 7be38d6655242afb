"""Small trained models to export: bases of several shapes, and adapters that change their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.config.schema import Config, DataSection, HardwareSection, MethodSection, ModelSection, TrainSection
from core.runs.catalog.trained import TrainedModel
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import save_adapter
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import load_model
from tests.families.tiny import SHAPE

IDS = torch.arange(3, 51).reshape(2, 24)
_SIZES = {**SHAPE, "vocab_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}


def write_base(directory: Path, family: str = "llama", *, shard: str = "5GB", **settings: Any) -> Path:
    """A random base model without a tokenizer, in bf16."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **_SIZES | settings)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def make_config(base: Path, **method: Any) -> Config:
    """The configuration of a run on a base."""
    return Config(
        model=ModelSection(base=str(base)),
        data=DataSection(train="/nowhere/rows.jsonl"),
        method=MethodSection(**{"name": "lora", "rank": 4, "alpha": 8, **method}),
        train=TrainSection(precision="fp32"),
        hardware=HardwareSection(device="cpu"),
    )


def trained_model(
    config: Config, base: Path, *, adapter: Path | None = None, weights: Path | None = None
) -> TrainedModel:
    """The trained model of a run with a configuration."""
    return TrainedModel(
        run=Run(base.parent / "20261126-120000-tickets"),
        config=config,
        step=None,
        base=str(base),
        adapter=adapter,
        weights=weights,
        template=None,
        base_sha256=None,
    )


def train_adapter(base: Path, directory: Path, **method: Any) -> tuple[TrainedModel, torch.Tensor]:
    """An adapter as a run saves it, far from its beginning; and the logits of the trained model, in fp32."""
    config = make_config(base, **method)
    loaded = load_model(base, method=config.method.name, precision="fp32", device="cpu", tokenizer=object())
    model = attach_adapters(loaded.model, config.method, seed=1, base=base)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if parameter.requires_grad and "magnitude" in name:
            parameter.data *= 1.3
    save_adapter(model, directory)
    return trained_model(config, base, adapter=directory), logits(model)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """The logits of a model."""
    found: torch.Tensor = model.eval()(IDS % model.config.get_text_config().vocab_size).logits
    return found


def read_plainly(directory: Path) -> Any:
    """A model as plain transformers reads it, in fp32; it must have every weight, and no other."""
    model, loading = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not {name: keys for name, keys in loading.items() if keys}
    return model
