"""Installation of the fused layers into a model, where they compute the same as its own."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from core.worker.fused import attention, rotary
from core.worker.fused.gated_networks import fuse_gated
from core.worker.fused.kernels import norm_function, rotation_of
from core.worker.fused.lora import FusedLora, SharedInput, can_fuse
from core.worker.fused.mode import apply, is_fused
from core.worker.fused.rms_norm import RmsNormFunction

#: Largest relative difference of a norm's values from its module's: the last bit of 16-bit types, the noise of fp32.
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-5}
#: Names of layers that have one input, in the modeling files of transformers: of attention, latent attention, linear
#: attention and feed-forward networks.
ONE_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("q_proj", "q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkvz", "in_proj_qkv", "in_proj_ba", "in_proj_z", "in_proj_b", "in_proj_a"),
    ("gate_proj", "up_proj"),
)
#: Features of a head in the comparison of rotary embeddings.
ROTARY_TRIAL = 8


@dataclass(frozen=True)
class Fused:
    """The fused layers of a model."""

    lora: tuple[FusedLora, ...]
    norms: int
    rotary: bool
    attention: bool
    """True if packing is possible; see :mod:`core.worker.data.packing`."""
    gated: int = 0
    """Feed-forward networks whose wide tensors are recomputed in backward."""
    sharing: int = 0
    """Modules that make the outputs of layers of one input by one function."""

    def keep_weights(self, dtype: torch.dtype) -> None:
        """Dequantize every 4-bit matrix once and keep the copies.

        Args:
            dtype: The dtype of the arithmetic.
        """
        for layer in self.lora:
            layer.weight.keep(dtype)

    @property
    def keeps_weights(self) -> bool:
        """True if copies of :meth:`keep_weights` exist."""
        return any(layer.weight.is_kept for layer in self.lora)

    def drop_weights(self) -> bool:
        """Drop the copies of :meth:`keep_weights`; returns whether there were any."""
        kept = self.keeps_weights
        for layer in self.lora:
            layer.weight.drop()
        return kept


def fuse(model: Any, adapter: str, *, attention_alone: bool = False) -> Fused:
    """Fuse the recognized layers of a model, with adapters attached.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one.
        adapter: The name of the trained adapter.
        attention_alone: Leave all other layers as they are.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    if attention_alone:
        return Fused((), 0, False, _fuse_attention(causal))
    layers: dict[Any, FusedLora] = {}
    norms: Counter[type] = Counter()
    for module in causal.modules():
        if can_fuse(module, adapter):
            module.forward = layers[module] = FusedLora(module, adapter)
        elif _is_rms_norm(module):
            weight = module.weight
            function = norm_function(weight.device, weight.dtype, len(weight), learned=weight.requires_grad)
            module.forward = functools.partial(_normalize, module, function)
            norms[type(module)] += 1
    gated = fuse_gated(causal, layers, causal.get_input_embeddings().weight.dtype)
    sharing = _share_inputs(causal, layers)
    adapted = tuple(layers.values())
    return Fused(adapted, norms.total(), _fuse_rotary(causal), _fuse_attention(causal), gated, sharing)


def _share_inputs(causal: Any, layers: Mapping[Any, FusedLora]) -> int:
    """Replace the forward of modules that have several fused layers of one input; returns their number."""
    count = 0
    for module in causal.modules():
        for names in ONE_INPUT:
            found = [layers[layer] for name in names if (layer := module._modules.get(name)) in layers]
            members = [layer for layer in found if layer.weight.shape[1] == found[0].weight.shape[1]]
            if len(members) > 1:
                module.forward = SharedInput(module.forward, members)
                count += 1
                break
    return count


# Norms.


def _epsilon(module: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _is_rms_norm(module: Any) -> bool:
    """True if a module is an RMS norm by name and trial; some families add 1 to the weight, or weigh in fp32."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.nn.Parameter):
        return False
    epsilon = _epsilon(module)
    if epsilon is None or weight.dim() != 1 or weight.dtype not in TOLERANCE:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(weight, FakeTensor | DTensor):
        module, weight = _with_values(module)
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator, device=weight.device, dtype=torch.float32).to(weight.dtype)
    with torch.no_grad():
        wanted, found = module(x), apply(RmsNormFunction, x, weight, epsilon)
    # Compared value by value: next to the few large weights of trained norms, an added one would not show.
    return wanted.dtype == found.dtype and torch.allclose(found, wanted, rtol=TOLERANCE[weight.dtype], atol=1e-6)


def _with_values(module: Any) -> tuple[Any, torch.Tensor]:
    """A copy of a norm with a weight of its own, for a model on fake tensors or with sharded weights."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(len(module.weight), generator=generator).to(module.weight.dtype)
    filled = copy.copy(module)
    filled._parameters = {**module._parameters, "weight": torch.nn.Parameter(weight, requires_grad=False)}
    return filled, weight


def _normalize(module: Any, function: type[torch.autograd.Function], hidden_states: torch.Tensor) -> torch.Tensor:
    if hidden_states.dtype != module.weight.dtype or not is_fused():
        usual: torch.Tensor = type(module).forward(module, hidden_states)
        return usual
    return apply(function, hidden_states, module.weight, _epsilon(module))


# Rotary embedding.


def _fuse_rotary(causal: Any) -> bool:
    """Replace the function in the model's modeling file. All models of the family in this process share it, and it
    computes the same for each of them."""
    file, weights = sys.modules[type(causal).__module__], causal.get_input_embeddings().weight
    rotary.choose(weights.device, weights.dtype, rotation_of(weights.device, weights.dtype))
    usual = getattr(file, "apply_rotary_pos_emb", None)
    if usual is None:
        return False
    if usual is rotary.apply_rotary_pos_emb:
        return True
    try:
        same = _rotates_alike(usual, turned=ROTARY_TRIAL)
    except (TypeError, ValueError, RuntimeError):
        return False
    # With angles for a part of the features only, the function of many families fails: it is never called that way.
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        same = same and _rotates_alike(usual, turned=ROTARY_TRIAL // 2)
    if not same:
        return False
    file.apply_rotary_pos_emb = rotary.apply_rotary_pos_emb  # type: ignore[attr-defined]
    return True


def _rotates_alike(usual: Any, *, turned: int) -> bool:
    """True if a function rotates ``turned`` of the features as ours does."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 3, ROTARY_TRIAL, generator=generator) for heads in (4, 2))
    angles = torch.randn(1, 3, turned // 2, generator=generator).repeat(1, 1, 2)
    wanted = usual(q, k, angles.cos(), angles.sin())
    found = rotary.apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, found, strict=True))


# Attention.


def _fuse_attention(causal: Any) -> bool:
    if causal.config._attn_implementation not in ("sdpa", attention.NAME):
        return False
    attention.register()
    causal.set_attn_implementation(attention.NAME)
    # Some families do not support the switch and stay as they are.
    return bool(causal.config._attn_implementation == attention.NAME)
