"""Adapters on the experts of a mixture: LoRA on fused parameters, as PEFT's ``target_parameters`` saves them.

PEFT adds the adapters' product to the whole tensor of experts in every pass, which takes a 16-bit copy as large as the
layer, and keeps it for backward. :class:`ParamWrapper` instead hands the two low-rank matrices to
:func:`core.worker.model.experts_implementation.experts_forward`, which multiplies the rows of each expert by its own.
Saved names and shapes are PEFT's, so PEFT loads the adapter on the 16-bit model by itself.

PEFT also rewrites the target modules of some families: ``gate_proj``, ``up_proj`` and ``down_proj`` become adapters on
experts, shared experts and dense layers included. Here :mod:`core.config.targets` decides which layers get adapters,
for plan and run alike; the saved configuration lists layers that PEFT would rewrite as parameters, which it leaves
alone: ``shared_expert.gate_proj.weight``. The adapter has the same names and shapes either way."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import peft.utils.transformers_weight_conversion as conversion
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper as PeftParamWrapper
from transformers.pytorch_utils import Conv1D

from core.config.schema import MethodSection
from core.config.targets import adapts_experts, adapts_linear, without_adapters
from core.worker.model.experts import expert_count, experts_of, matrix_names, matrix_shapes, stored_shape
from core.worker.model.experts_implementation import ADAPTERS, ExpertAdapter, use_own_experts

_WEIGHT = ".weight"


class ParamWrapper(PeftParamWrapper):  # type: ignore[misc]
    """LoRA layer around the experts of a layer, for one of their matrices.

    The wrappers of both matrices are nested, as in PEFT, and the class has the name that PEFT looks for. Dropout, which
    PEFT's wrapper lacks, drops inputs of the adapter.
    """

    def __init__(
        self, base_layer: Any, adapter_name: str, parameter_name: str, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Same arguments as PEFT's wrapper."""
        super().__init__(base_layer, adapter_name, parameter_name, config=_without_dropout(config), **kwargs)
        self._drop(adapter_name, config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Create the matrices of an adapter."""
        super().update_layer(adapter_name, r, lora_alpha, config=_without_dropout(config), **kwargs)
        self._drop(adapter_name, config)

    def _drop(self, adapter_name: str, config: LoraConfig) -> None:
        if config.lora_dropout:
            self.lora_dropout[adapter_name] = torch.nn.Dropout(config.lora_dropout)

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:  # noqa: ARG002
        shape = stored_shape(self.get_param())
        self.num_experts, self._param_ndim = int(shape[0]), 3
        return int(shape[1]), int(shape[2])

    @contextlib.contextmanager
    def _activate_lora(self, active_adapters: Sequence[str]) -> Iterator[None]:
        experts = self.get_base_layer()
        held = getattr(experts, ADAPTERS, {})
        in_use = [self._adapter(name) for name in active_adapters if name in self.lora_A]
        setattr(experts, ADAPTERS, {**held, self.parameter_name: in_use})
        try:
            yield
        finally:
            setattr(experts, ADAPTERS, held)

    def _adapter(self, name: str) -> ExpertAdapter:
        drop = self.lora_dropout[name]
        return ExpertAdapter(
            down=self.lora_A[name].weight,
            up=self.lora_B[name].weight,
            scale=float(self.scaling[name]),
            dropout=float(getattr(drop, "p", 0.0)) if self.training else 0.0,
        )


def _without_dropout(config: LoraConfig) -> LoraConfig:
    """A copy without dropout, which PEFT's wrapper rejects."""
    plain = copy.copy(config)
    plain.lora_dropout = 0.0
    return plain


# Target layers.


def target_parameters(model: Any, method: MethodSection) -> list[str]:
    """Names of the matrices of experts that get adapters, shortened as far as they stay unambiguous to PEFT.

    Args:
        model: The base model.
        method: The method.
    """
    wanted: list[str] = []
    left: list[str] = []
    for name, module in experts_of(model):
        adapted = adapts_experts(method, name, matrix_shapes(module))
        (wanted if adapted else left).extend(f"{name}.{matrix}" for matrix in matrix_names(module))
    return _shortest(wanted, left)


def _shortest(wanted: Sequence[str], left: Sequence[str]) -> list[str]:
    """The last two parts of names, or the full name where a left-out name ends the same."""
    short = {name: ".".join(name.split(".")[-2:]) for name in wanted}
    ambiguous = {end for end in set(short.values()) if any(_is_called(name, end) for name in left)}
    return sorted({name if end in ambiguous else end for name, end in short.items()})


def target_modules(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers of a mixture that get adapters.

    Args:
        model: The base model.
        targets: As ``method.target_modules``.
    """
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and adapts_linear(name, targets)
    ]


def _linear_names(model: Any) -> list[str]:
    """Names of the linear layers, with or without adapters."""
    return [_bare(name) for name, module in model.named_modules() if is_linear(module) and ".lora_" not in name]


def _bare(name: str) -> str:
    """A module's name in the base, without PEFT's wrappers."""
    return name.replace(".base_layer", "")


def is_linear(module: Any) -> bool:
    """True for linear layers of torch and transformers."""
    return isinstance(module, (torch.nn.Linear, Conv1D))


def left_out(model: Any, method: MethodSection) -> str | None:
    """Reason that the experts of a model have no adapters; None where they have, or where that was asked for.

    Args:
        model: A model of transformers, without adapters or beneath them.
        method: The method.
    """
    found = [module for _, module in experts_of(model)]
    if not found:
        return None
    return without_adapters(method, matrix_shapes(found[0]), sum(map(expert_count, found)))


# Configurations of PEFT.


def prepare(config: Any, model: Any) -> bool:
    """Adapt a PEFT configuration so that it uses our adapters on the experts of a model.

    Args:
        config: The configuration, changed in place: layers that :func:`saved` listed as parameters become modules.
        model: The base model, perhaps with adapters; its experts are computed by us if the configuration adapts some.

    Returns:
        True if PEFT must be kept from rewriting it; see :func:`as_it_is`.
    """
    experts = dict(experts_of(model))
    named = list(getattr(config, "target_parameters", None) or ())
    if not experts or not named:
        return False
    linear = _linear_names(model)
    layers = {
        name
        for name in named
        if name.endswith(_WEIGHT) and any(_is_called(layer, name.removesuffix(_WEIGHT)) for layer in linear)
    }
    matrices = [f"{_bare(name)}.{matrix}" for name, module in experts.items() for matrix in matrix_names(module)]
    if any(_is_called(matrix, name) for matrix in matrices for name in named):
        use_own_experts(model)
        config._register_custom_module({type(module): ParamWrapper for module in experts.values()})
    if not layers:
        return False
    config.target_parameters = [name for name in named if name not in layers] or None
    modules = config.target_modules
    added = {name.removesuffix(_WEIGHT) for name in layers}
    config.target_modules = sorted({*([] if modules is None else modules), *added})
    return True


def adapted_matrices(name: str, module: Any, named: Sequence[str]) -> list[str]:
    """Names of the matrices of experts that a PEFT configuration adapts, in PEFT's nesting order: the innermost first.

    Args:
        name: The name of the module of experts in the model.
        module: The module.
        named: As ``target_parameters`` of the configuration.
    """
    wanted = [matrix for matrix in matrix_names(module) if any(_is_called(f"{name}.{matrix}", end) for end in named)]
    # PEFT iterates over the module's parameters in their order.
    return [parameter for parameter in module._parameters if parameter in wanted]


def _is_called(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Keep PEFT from rewriting target modules inside."""
    own = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = own


def saved(config: Any, model: Any) -> Any:
    """A configuration as it is saved, so that PEFT alone reads it with the same meaning.

    Args:
        config: The configuration of the adapters in the model.
        model: The base model.
    """
    if not any(True for _ in experts_of(model)):
        return config
    made = copy.copy(config)
    modules = config.target_modules
    rewritten = {name for name in ([] if isinstance(modules, str) else modules or []) if _is_rewritten(name, model)}
    if rewritten:
        linear = _linear_names(model)
        full = [name for name in linear if any(_is_called(name, end) for end in rewritten)]
        short = _shortest(full, [name for name in linear if name not in full])
        made.target_modules = {name for name in modules if name not in rewritten} or None
        made.target_parameters = sorted([*(config.target_parameters or []), *(f"{name}{_WEIGHT}" for name in short)])
    if made.target_parameters:
        made.lora_dropout = 0.0  # PEFT rejects dropout there, and inference drops nothing
    return made


def not_parameters(config: Any, modules: Iterable[str]) -> list[str]:
    """Adapted modules that a configuration does not list as parameters; see :func:`saved`.

    Args:
        config: Result of :func:`saved`.
        modules: Names of modules in the model.
    """
    named = [name.removesuffix(_WEIGHT) for name in config.target_parameters or () if name.endswith(_WEIGHT)]
    return [module for module in modules if not any(_is_called(module, name) for name in named)]


def _is_rewritten(name: str, model: Any) -> bool:
    """True if PEFT takes a target module for one of a family's experts."""
    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(getattr(model.config, "model_type", None))
    return name.rpartition(".")[2] in conversion._MOE_TARGET_MODULE_MAPPING.get(family, {})
