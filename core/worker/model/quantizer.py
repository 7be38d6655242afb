"""The quantizer for 4-bit models: transformers' bitsandbytes quantizer with our choice of 16-bit layers, extended to
the experts of mixtures, which bitsandbytes leaves alone.

It replaces transformers' class in its table of quantizers, so that ``from_pretrained``, PEFT and others still see
bitsandbytes.

Memory during loading: transformers reads one tensor at a time where it quantizes. Experts stored one by one are read,
merged and quantized one by one, so a single expert is in 16 bits at a time; fused experts are read as one tensor per
layer, which is then the peak. Neither grows with the number of layers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import MergeModulelist, WeightConverter, log_conversion_errors
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from core.config.targets import ALWAYS, experts_stay_16bit, stays_16bit
from core.worker.model.expert_offload import ExpertOffload
from core.worker.model.experts import ExpertsParams4bit, experts_of, matrix_names, quantize_experts, stored_shape
from core.worker.model.experts_implementation import use_own_experts

_OFFLOAD: ContextVar[ExpertOffload | None] = ContextVar("offload", default=None)
_STAGED: ContextVar[bool] = ContextVar("staged", default=False)


def four_bit_config(dtype: torch.dtype, keep: Sequence[str] = (), always: Sequence[str] = ALWAYS) -> BitsAndBytesConfig:
    """Configuration for NF4 with double quantization.

    Args:
        dtype: Dtype of the arithmetic.
        keep: Names and patterns of layers that stay in 16 bits, as ``model.keep_16bit``.
        always: Layers that stay so in every model.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*keep, *always] or None,
    )


def quantized_experts(model: Any, keep: Sequence[str]) -> dict[str, torch.Size]:
    """Quantized matrices of experts: their names in the model, and their shapes.

    Args:
        model: A model of transformers, without adapters.
        keep: Names and patterns of all layers that stay in 16 bits.
    """
    return {
        f"{name}.{matrix}": stored_shape(getattr(module, matrix))
        for name, module in experts_of(model)
        for matrix in matrix_names(module)
        if not experts_stay_16bit(name, matrix, keep, always=())
    }


class FourBitQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Quantizer for NF4; entries of ``llm_int8_skip_modules`` are patterns as in ``method.target_modules``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Same arguments as transformers' class."""
        super().__init__(*args, **kwargs)
        self._offload = _OFFLOAD.get()
        #: Shapes of the quantized matrices of experts, by their names in the model.
        self.expert_shapes: dict[str, torch.Size] = {}

    def _process_model_before_weight_loading(self, model: Any, device_map: Any, **kwargs: Any) -> None:
        keep = self.quantization_config.llm_int8_skip_modules or ()
        if not self.pre_quantized:
            self.expert_shapes = quantized_experts(model, keep)
        super()._process_model_before_weight_loading(model, device_map, **kwargs)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.expert_shapes:
            use_own_experts(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def prepare(self, model: Any) -> dict[str, torch.Size]:
        """Replace the layers of a model as loading does, without loading weights.

        Args:
            model: A model of transformers, as built from its configuration.

        Returns:
            The matrices of experts that loading quantizes: their names in the model, and their shapes.
        """
        self._process_model_before_weight_loading(model, None)
        self._process_model_after_weight_loading(model)
        return self.expert_shapes

    def quantize_experts(self, name: str, matrices: Iterable[torch.Tensor]) -> ExpertsParams4bit:
        """Quantize the experts of a layer; inside :func:`weights_on_host` they go to the host.

        Args:
            name: Name of the parameter in the model.
            matrices: Their matrices in order; see :func:`core.worker.model.experts.quantize_experts`.
        """
        parameter = quantize_experts(matrices, self.expert_shapes[name])
        if self._offload is not None:
            self._offload.take(name, parameter)
        return parameter

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """True if a parameter is quantized: the weight of a linear layer, or a matrix of experts."""
        return param_name in self.expert_shapes or super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> Any:
        """The operation that quantizes a parameter."""
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """The model's converters, with merging of experts replaced by ours, which takes them one by one."""
        found = super().update_weight_conversions(weight_conversions, model)
        return [_ExpertConverter.of(entry) if _merges_experts(entry) else entry for entry in found]

    def get_modules_to_not_convert(
        self, model: Any, skip_modules: list[str] | None = None, keep_in_fp32_modules: list[str] | None = None
    ) -> list[str]:
        """Names of the modules that stay as they are: head and tied embeddings, routers, and requested ones."""
        if self.pre_quantized:
            # The saved configuration names the excluded layers, in transformers' own format.
            return list(super().get_modules_to_not_convert(model, skip_modules, keep_in_fp32_modules))
        kept = [
            name
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and stays_16bit(name, skip_modules or (), always=())
        ]
        return sorted({*get_keys_to_not_convert(model), *kept, *(keep_in_fp32_modules or ())})


class _Quantize(Bnb4bitQuantize):  # type: ignore[misc]
    """Quantization of a parameter: experts by :func:`quantize_experts`, linear layers by bitsandbytes."""

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        shapes = self.hf_quantizer.expert_shapes
        if not any(name in shapes for name in input_dict):
            return _staged(dict(super().convert(input_dict, *args, **kwargs)))
        found: dict[str, Any] = {}
        for name, value in input_dict.items():
            fused = value[0] if isinstance(value, list) else value
            done = isinstance(fused, ExpertsParams4bit)
            found[name] = fused if done else self.hf_quantizer.quantize_experts(name, fused)
        return found


def _merges_experts(entry: Any) -> bool:
    """True if a converter of transformers merges experts that a checkpoint stores one by one."""
    return (
        type(entry) is WeightConverter
        and len(entry.target_patterns) == 1
        and isinstance(entry.operations[0], MergeModulelist)
        and entry.operations[0].dim == 0
    )


class _ExpertConverter(WeightConverter):  # type: ignore[misc]
    """Converter that merges and quantizes experts one by one.

    The operations of the model's own converter run for each expert as if the layer had only this one.
    """

    __slots__ = ()

    @classmethod
    def of(cls, entry: Any) -> Any:
        """Our version of a transformers converter."""
        made = entry.copy(
            list(entry._original_source_patterns), list(entry._original_target_patterns), operations=entry.operations
        )
        made.__class__ = cls
        return made

    def convert(
        self, layer_name: str, model: Any = None, config: Any = None, hf_quantizer: Any = None, loading_info: Any = None
    ) -> Any:
        """The parameter by its name; an unquantized one is merged by transformers."""
        shape = hf_quantizer.expert_shapes.get(layer_name) if hf_quantizer is not None else None
        sources: dict[str, list[Any]] = self.collected_tensors
        if shape is None or any(len(readers) != shape[0] or not callable(readers[0]) for readers in sources.values()):
            return super().convert(layer_name, model, config, hf_quantizer, loading_info)

        def merged() -> Iterator[torch.Tensor]:
            for number in range(shape[0]):
                one = copy.copy(self)
                one.collected_tensors = {pattern: [readers[number]] for pattern, readers in sources.items()}
                one.quantization_operation = None
                (matrix,) = WeightConverter.convert(one, layer_name, model, config, None, loading_info).values()
                yield matrix[0]

        with log_conversion_errors(layer_name, loading_info, (len(sources), layer_name), self.quantization_operation):
            parameter = hf_quantizer.quantize_experts(layer_name, merged())
        sources.clear()
        return {layer_name: parameter}


def _staged(found: dict[str, Any]) -> dict[str, Any]:
    """Quantized weights, moved to the host inside :func:`weights_on_host`; their scales stay on the device."""
    if _STAGED.get():
        for parameter in found.values():
            parameter.data = parameter.data.cpu()
    return found


@contextlib.contextmanager
def weights_on_host(offload: ExpertOffload | None, *, staged: bool) -> Iterator[None]:
    """Put 4-bit weights of models loaded inside into host memory as soon as each is quantized.

    Args:
        offload: Receives the experts; None leaves them on the device.
        staged: Move the other weights too; they are sharded from there, as one device could not hold all of them.
    """
    tokens = _OFFLOAD.set(offload), _STAGED.set(staged)
    try:
        yield
    finally:
        _OFFLOAD.reset(tokens[0])
        _STAGED.reset(tokens[1])


def install() -> None:
    """Make transformers quantize with :class:`FourBitQuantizer` from now on."""
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = FourBitQuantizer
