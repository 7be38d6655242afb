"""Structure of a model for the memory plan: its parameters and layers, read off its modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from core.models.architecture.architecture import Architecture, Attention, Experts, Layer, Linear
from core.worker.measure.layers import WITHOUT_SCORES, layer_kinds, layer_type
from core.worker.model.expert_adapters import is_linear
from core.worker.model.experts import bare_experts, expert_count, experts_of, matrix_shapes
from core.worker.model.model import decoder_layers

#: Names of the option for the number of experts per token.
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")


def read_structure(causal: Any, description: str) -> Architecture:
    """The structure of a causal language model of transformers.

    Args:
        causal: The model, on the meta device.
        description: Content of its ``config.json``.
    """
    config = causal.config
    layers, kinds = decoder_layers(causal), layer_kinds(causal)
    names = {id(module): name for name, module in causal.named_modules()}
    embeddings, head = causal.get_input_embeddings().weight, causal.get_output_embeddings()
    tied = head is None or head.weight is embeddings or bool(getattr(config, "tie_word_embeddings", False))
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = tuple(
        _linear(name, module)
        for name, module in causal.named_modules()
        if is_linear(module) and module is not head and id(module) not in inside
    )
    found = [
        _layer(layers[run[0]], config, run[0], len(run))
        for run in (list(group) for _, group in itertools.groupby(range(len(layers)), key=kinds.__getitem__))
    ]
    parameters = {id(parameter): parameter for parameter in causal.parameters()}
    if tied and head is not None:
        parameters.pop(id(head.weight), None)
        parameters[id(embeddings)] = embeddings
    parameters |= {id(buffer): buffer for buffer in _saved_buffers(causal)}
    total = sum(parameter.numel() for parameter in parameters.values())
    vocabulary, hidden = embeddings.shape
    bias = getattr(head, "bias", None) is not None
    dtype = embeddings.dtype
    made = Architecture(
        family=str(config.model_type),
        hidden=int(hidden),
        vocabulary=int(vocabulary),
        tied=tied,
        layers=tuple(found),
        prefix=names[id(layers[0])].rpartition(".")[0] if layers else "model.layers",
        positions=_size(config, "max_position_embeddings"),
        softcap=bool(getattr(config, "final_logit_softcapping", None)),
        head_bias=bias,
        linears=outside,
        wide=sum(one.numel() for one in parameters.values() if one.dtype != dtype and one.dtype == torch.float32),
        description=description,
    )
    return replace(made, other=total - made.parameters)


def _saved_buffers(module: Any) -> Iterator[torch.Tensor]:
    """Buffers saved with a model, which count as parameters: corrections of routers, scales of layers."""
    for inner in module.modules():
        for name, buffer in inner._buffers.items():
            if buffer is not None and name not in inner._non_persistent_buffers_set:
                yield buffer


def _linear(name: str, module: Any) -> Linear:
    rows, columns = module.weight.shape
    inputs, outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
    return Linear(name, int(inputs), int(outputs), module.bias is not None)


def _layer(layer: Any, config: Any, number: int, count: int) -> Layer:
    linears = [_linear(name, module) for name, module in layer.named_modules() if is_linear(module)]
    experts, router = _experts(layer, config)
    linears = [linear for linear in linears if linear.name != router]
    total = sum(tensor.numel() for tensor in itertools.chain(layer.parameters(), _saved_buffers(layer)))
    explained = sum(linear.parameters for linear in linears) + (experts.weights if experts is not None else 0)
    return Layer(
        count,
        tuple(linears),
        _attention(layer, config, number),
        width=_size(config, "intermediate_size") or 0,
        norms=0,
        experts=experts,
        other=total - explained,
        bare_experts=bare_experts(layer),
    )


def _experts(layer: Any, config: Any) -> tuple[Experts | None, str]:
    """The experts of a layer that can be quantized to 4 bits, and the name of the router."""
    name, module = next(experts_of(layer), ("", None))
    if module is None:
        return None, ""
    count, (_, (hidden, width)) = expert_count(module), matrix_shapes(module)
    active = next((size for key in _ACTIVE if (size := _size(config, key)) is not None), count)
    inputs = config.hidden_size
    router = next(
        (
            key
            for key, parameter in layer.named_parameters()
            if tuple(parameter.shape) == (count, inputs) and not key.startswith(f"{name}.")
        ),
        "",
    )
    return Experts(count, active, hidden, width, bool(module.has_gate), name), router.removesuffix(".weight")


def _attention(layer: Any, config: Any, number: int) -> Attention:
    kind = layer_type(config, number)
    # Layers may differ, as Gemma 4's in key and value heads; the model's own configuration then raises.
    differing = getattr(config, "per_layer_config", None)
    config = differing[number] if differing else config
    window = _size(config, "sliding_window") if kind.startswith("sliding") or not kind else None
    heads = _size(config, "num_attention_heads") or 0
    if kind in WITHOUT_SCORES or not heads:
        return Attention(0, 0, 0)
    own = [size for module in layer.modules() if isinstance(size := getattr(module, "head_dim", None), int)]
    head_dim = own[0] if own else _size(config, "head_dim") or max(config.hidden_size // heads, 1)
    return Attention(
        heads,
        _size(config, "num_key_value_heads") or heads,
        head_dim,
        kernel="eager" if config._attn_implementation == "eager" else "sdpa",
        window=window,
    )


def _size(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
