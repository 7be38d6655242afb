"""Skeleton of a model: its modules with fake tensors (torch's ``FakeTensorMode``), which have shapes but no values.

It is built from ``config.json`` alone and prepared for training as in a run: layers in 4 bits, adapters attached, fused
functions installed. A model of 100 billion parameters takes some megabytes.

Fake tensors are on the CPU, where autograd needs no card. For a run on a card, torch's CUDA kernels are called by name,
and the differences in autocast and dropout are emulated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, masking_utils
from transformers.initialization import no_init_weights
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from core.config.schema import WEIGHT_METHODS, Config
from core.config.targets import kept_patterns
from core.memory.sizes import NF4_BLOCK, NF4_OUTER_BLOCK, Arithmetic
from core.worker.fused.attention import drop_masks
from core.worker.fused.attention_kernels import FLASH_HEAD, repeated
from core.worker.fused.ggml_quant import can_quantize, ggml_type
from core.worker.fused.install import fuse
from core.worker.model.adapters import TRAINED, attach_adapters
from core.worker.model.experts import ExpertsParams4bit, ExpertsQuantState
from core.worker.model.experts_implementation import without_values as experts_without_values
from core.worker.model.full_weights import choose_weights
from core.worker.model.model import keep_gradients
from core.worker.model.quantizer import FourBitQuantizer, four_bit_config
from core.worker.model.text_part import CausalLM, cannot_be_built

#: Name of the attention for ``set_attn_implementation``.
CARD_ATTENTION = "localtune_card"
#: Operations that autocast runs in fp32 on CUDA and in 16 bits on a CPU (torch's documentation of ``torch.amp``).
_POINTWISE = ("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "reciprocal", "rsqrt", "softplus")
_REDUCTIONS = ("layer_norm", "group_norm", "norm", "cumsum", "cumprod", "prod", "sum", "softmax", "log_softmax")
_IN_FP32 = frozenset(_POINTWISE + _REDUCTIONS)


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
    # The mask has a byte per element; the CPU's has the width of the input.
    made: torch.Tensor = torch.native_dropout(x, p, True)[0]
    return made


def register(how: Arithmetic) -> None:
    """Register attention as a card runs it, by the kernel that torch would choose there.

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
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        aten = torch.ops.aten
        if how.autocast:
            # DoRA's queries and keys are in fp32; autocast runs attention in 16 bits.
            query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
        heads, grouped = query.shape[1], query.shape[1] != key.shape[1]
        causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True)
        half = query.dtype in (torch.bfloat16, torch.float16)
        same = query.shape[-1] == value.shape[-1]
        if attention_mask is None and how.flash and half and same and query.shape[-1] <= FLASH_HEAD:
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scaling)[0]
        elif grouped and attention_mask is None and not how.fused_attention:
            # Neither flash nor memory-efficient attention supports it: the scores are allocated.
            out = aten._scaled_dot_product_attention_math(
                query, key, value, None, dropout, causal, None, scale=scaling, enable_gqa=True
            )[0]
        else:
            key, value, bias = repeated(key, heads), repeated(value, heads), None
            if attention_mask is not None:
                bias = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
                bias = bias.masked_fill_(~attention_mask, float("-inf"))
                bias = bias.expand(query.shape[0], heads, query.shape[2], key.shape[2])
            out = aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, True, dropout, causal, scale=scaling
            )[0]
        return out.transpose(1, 2).contiguous(), None

    def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        # Variable-length attention takes sliding windows without a mask.
        size = kwargs.get("local_size")
        slides = size is not None and getattr(kwargs.get("config"), "sliding_window", None) == size
        if slides and how.fused_attention and how.flash:
            return None
        made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
        return made

    AttentionInterface.register(CARD_ATTENTION, attend)
    AttentionMaskInterface.register(CARD_ATTENTION, mask)


@dataclass(frozen=True)
class Skeleton:
    """A model without values, ready to be trained.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` around one.
        causal: The causal language model.
        mode: The fake tensor mode of its tensors.
        dtype: Dtype of its hidden states.
        how: The arithmetic.
    """

    model: Any
    causal: Any
    mode: contextlib.AbstractContextManager[Any]
    dtype: torch.dtype
    how: Arithmetic

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The context of a forward pass: autocast, as accelerate sets it up, and a card's operations."""
        with torch.autocast("cpu", self.dtype, enabled=self.how.autocast), self.operations():
            yield

    def operations(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a card's operations, if the run is on one."""
        if not self.how.cuda:
            return contextlib.nullcontext()
        return CardOperations(self.dtype if self.how.autocast else None)


def build_bare(causal: CausalLM, dtype: torch.dtype, where: str) -> Any:
    """A causal language model on torch's meta device, frozen.

    Raises:
        UserError: If transformers cannot build it.
    """
    try:
        with no_init_weights():
            model = causal.build(dtype)
        # Left out with the initialization.
        model.tie_weights()
    except Exception as error:  # a configuration from outside fails in any way
        raise cannot_be_built(where, str(causal.config.model_type), error) from error
    # Parameters that transformers loads in fp32 whatever the dtype.
    plan = model._get_dtype_plan(dtype)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_floating_point() and any(f".{entry}" in f".{name}" for entry in plan):
            owner, _, own = name.rpartition(".")
            wide = torch.nn.Parameter(parameter.detach().to(torch.float32), requires_grad=False)
            model.get_submodule(owner)._parameters[own] = wide
    model.requires_grad_(False)
    return model


def _dequantized(layer: Any) -> torch.Tensor:
    """PEFT's ``dequantize_module_weight``, also for 4-bit weights that have no values."""
    weight: torch.Tensor
    if not isinstance(layer, bnb.nn.Linear4bit):
        weight = dequantize_module_weight(layer)
    elif (state := getattr(layer.weight, "quant_state", None)) is None:
        weight = torch.empty(layer.out_features, layer.in_features, device=layer.weight.device)
    else:
        weight = bnb.functional.dequantize_4bit(layer.weight.data, state)
    return weight


# DoRA takes norms of whole weights.
dora.dequantize_module_weight = _dequantized


def build_skeleton(model: Any, config: Config, how: Arithmetic) -> Skeleton:
    """Prepare a bare model for training as in a run; it is changed.

    Args:
        model: As of :func:`build_bare`.
        config: Configuration of the run: method and fast paths.
        how: Its arithmetic.

    Raises:
        UserError: If nothing is trained.
    """
    dtype = next(iter(model.get_input_embeddings().parameters())).dtype
    experts: set[int] = set()
    if how.quantized:
        keep = kept_patterns(config.model.keep_16bit)
        quantizer = FourBitQuantizer(four_bit_config(dtype, keep), pre_quantized=False)
        experts = {id(model.get_parameter(name)) for name in quantizer.prepare(model)}
        model.requires_grad_(False)
    trained: Any = model
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if config.method.name in WEIGHT_METHODS:
            trained = choose_weights(model, config.method, seed=0)
        else:
            trained = attach_adapters(model, config.method, seed=0, fresh=False)
    mode = FakeTensorMode()
    # The cache of core.worker.measure.tracker costs less.
    mode.cache_enabled = False
    _give_storage(trained, mode, dtype, experts)
    if how.quantized:
        keep_gradients(trained)
    if how.fused_layers or how.fused_attention:
        fused = fuse(trained, TRAINED, attention_alone=not how.fused_layers)
        if config.method.train_for is not None:
            kind = ggml_type(config.method.train_for)
            for layer in fused.lora:
                # A run refuses other shapes.
                if can_quantize(layer.weight.shape):
                    layer.weight.train_for(kind)
        if how.dequantized:
            with mode:
                fused.keep_weights(dtype)
    if how.cuda:
        register(how)
        if model.config._attn_implementation != "eager":
            model.set_attn_implementation(CARD_ATTENTION)
    return Skeleton(trained, model, mode, dtype, how)


def _give_storage(model: Any, mode: FakeTensorMode, dtype: torch.dtype, experts: Set[int]) -> None:
    """Replace parameters and buffers on the meta device by fake tensors on the CPU; tied ones stay tied, and parameters
    in ``experts``, by ``id``, become 4-bit.
    """
    made: dict[int, torch.nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) in experts:
                    made[id(parameter)] = _four_bit_experts(parameter.shape, dtype)
                elif id(parameter) not in made:
                    made[id(parameter)] = _parameter(module, name, parameter, dtype)
                module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
            # Some modules refer to a buffer by a second name.
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and value.is_meta:
                    setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device="cpu"))


def _parameter(module: Any, name: str, parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    if isinstance(parameter, bnb.nn.Params4bit) and name == "weight":
        return _four_bits(module, dtype)
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    return torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)


def _four_bits(module: Any, dtype: torch.dtype) -> torch.nn.Parameter:
    """The weight of a layer in 4 bits, with its quantization state."""
    elements = module.in_features * module.out_features
    blocks = math.ceil(elements / NF4_BLOCK)
    inner = bnb.functional.QuantState(
        absmax=torch.empty(math.ceil(blocks / NF4_OUTER_BLOCK), device="cpu"),
        code=torch.empty(256, device="cpu"),
        blocksize=NF4_OUTER_BLOCK,
        dtype=torch.float32,
    )
    weight: Any = torch.nn.Parameter(
        torch.empty(math.ceil(elements / 2), 1, dtype=torch.uint8, device="cpu"), requires_grad=False
    )
    weight.quant_state = bnb.functional.QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8, device="cpu"),
        shape=torch.Size((module.out_features, module.in_features)),
        code=torch.empty(16, device="cpu"),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty((), device="cpu"),
        state2=inner,
    )
    kept: torch.nn.Parameter = weight
    return kept


class _FakeExperts(ExpertsParams4bit, FakeTensor):
    """Experts in 4 bits without values."""


def _four_bit_experts(shape: torch.Size, dtype: torch.dtype) -> torch.nn.Parameter:
    """The weights of the experts of a layer in 4 bits; see
    :func:`core.worker.model.experts.quantize_experts`."""
    experts, elements = shape[0], shape[1:].numel()
    blocks = math.ceil(elements / NF4_BLOCK)
    weight: Any = torch.empty(experts, math.ceil(elements / 2), dtype=torch.uint8, device="cpu")
    # Only its mode can make a fake tensor.
    weight.__class__ = _FakeExperts
    weight.quant_state = ExpertsQuantState(
        shape=shape,
        dtype=dtype,
        absmax=torch.empty(experts, blocks, dtype=torch.uint8, device="cpu"),
        offset=torch.empty(experts, device="cpu"),
        nested_absmax=torch.empty(experts, math.ceil(blocks / NF4_OUTER_BLOCK), device="cpu"),
        code=torch.empty(16, device="cpu"),
        nested_code=torch.empty(256, device="cpu"),
    )
    kept: torch.nn.Parameter = weight
    return kept


@contextlib.contextmanager
def without_values(how: Arithmetic) -> Iterator[None]:
    """A context in which no code reads values, which fake tensors lack: batches have no left padding or packing, and
    experts are chosen evenly.

    Args:
        how: The arithmetic of the run.
    """
    usual = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda _positions: None
    drop_masks()
    try:
        with experts_without_values(grouped=how.cuda):
            yield
    finally:
        # Masks made meanwhile have no values.
        drop_masks()
        masking_utils.find_packed_sequence_indices = usual
