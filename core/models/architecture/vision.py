"""Vision tower of a multimodal model, loaded but never run here: SigLIP, as in Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.architecture.architecture import Linear, Tower
from core.models.architecture.config_values import MOST_LAYERS, ConfigValues


def read_siglip(config: Mapping[str, Any], hidden: int, where: str) -> Tower:
    """Read SigLIP and Gemma 3's projection of it.

    Args:
        config: The ``vision_config``; omitted keys have the defaults of transformers.
        hidden: Hidden size of the language model.
        where: Name of the model in messages.

    Raises:
        UserError: If a dimension is not a valid size.
    """
    values = ConfigValues(config, f"{where}, vision_config")
    width, inner = values.count("hidden_size", 768), values.count("intermediate_size", 3072)
    patch, channels = values.count("patch_size", 16), values.count("num_channels", 3)
    patches = (values.count("image_size", 224) // patch) ** 2
    depth, norm = values.count("num_hidden_layers", 12, most=MOST_LAYERS), 2 * width
    network = (Linear("mlp.fc1", width, inner, True), Linear("mlp.fc2", inner, width, True))
    projections = tuple(
        Linear(f"self_attn.{name}", width, width, True) for name in ("k_proj", "v_proj", "q_proj", "out_proj")
    )
    linears = {f"encoder.layers.{number}": (*projections, *network) for number in range(depth)}
    # Patch and position embeddings, the norms, and the projection with its own norm.
    other = (channels * patch**2 + 1 + patches) * width + (2 * depth + 1) * norm + width * hidden + width
    if values.flag("vision_use_head", True):
        linears["head"] = (Linear("attention.out_proj", width, width, True), *network)
        # The probe, a norm, and queries, keys and values in one matrix that is not a linear layer.
        other += width + norm + 3 * (width * width + width)
    return Tower(
        "model.vision_tower",
        tuple(
            Linear(f"{place}.{linear.name}", linear.inputs, linear.outputs, linear.bias)
            for place, group in linears.items()
            for linear in group
        ),
        other,
    )
