"""The part of a model that sees images, loaded beside the text's but never run here: SigLIP, as Gemma 3 has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.architecture.architecture import Linear, Tower
from core.models.architecture.config_values import MOST_LAYERS, ConfigValues


def read_siglip(config: Mapping[str, Any], hidden: int, where: str) -> Tower:
    """SigLIP and Gemma 3's projection of it.

    Args:
        config: The ``vision_config``; what it leaves out is the default of transformers.
        hidden: Features between the layers of the text's part.
        where: What to call it in messages.

    Raises:
        UserError: If a dimension is no size.
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
    # Patches and their places, the norms, and the projection with its own norm.
    other = (channels * patch**2 + 1 + patches) * width + (2 * depth + 1) * norm + width * hidden + width
    if values.flag("vision_use_head", True):
        linears["head"] = (Linear("attention.out_proj", width, width, True), *network)
        # The probe, a norm, and queries, keys and values in one matrix that is no linear layer.
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
