"""LoRA adapters: their target layers, initialization, saving and loading.

PiSSA initializes the adapter with a part of the base's weights and subtracts that part from the base. Here the base is
unchanged: a second, frozen adapter, :data:`INITIAL`, holds the initial one with its sign flipped. The sum is the model
of the paper, with three advantages: switching the adapters off gives the untouched base, on 4-bit weights too; the
weights are not rounded a second time; and both together are a plain adapter of twice the rank, which is saved and which
any tool loads onto the original base.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import bitsandbytes as bnb
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModelForCausalLM,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from core.config.schema import MethodSection
from core.config.targets import MAMBA_FUSED, has_patterns, is_read_by_kernels, is_target
from core.errors import UserError
from core.models.check import ADAPTER_WEIGHTS
from core.models.description import KEY_MAPPING, split_names, text_name
from core.text import one_line
from core.worker.model.completeness import first_line, tell
from core.worker.model.decode.checkpoint import Checkpoint
from core.worker.model.expert_adapters import (
    ParamWrapper,
    as_it_is,
    is_linear,
    not_parameters,
    prepare,
    saved,
    target_modules,
    target_parameters,
)
from core.worker.model.experts import bare_experts, experts_of
from core.worker.model.text_part import is_text_part, whole_name

#: Columns beyond the rank, and power iterations, of the randomized decomposition (Halko et al., arXiv 0909.4061).
OVERSAMPLING, ITERATIONS = 16, 4


def best_factors(matrix: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors down, ``(rank, inputs)``, and up, ``(outputs, rank)``, whose product times ``scale`` is the best
    approximation of a matrix at that rank; both have the same share of the singular values.

    For PiSSA (arXiv 2404.02948) the matrix is the weight; for LoftQ (arXiv 2310.08659; one step, rounding kept) the
    error of its rounding.

    Args:
        matrix: ``(outputs, inputs)``, fp32.
        rank: Of the adapter; at most the smaller side.
        scale: Factor of the adapter's output.
    """
    left, values, right = _decompose(matrix, rank)
    roots = (values / scale).sqrt()
    return (roots[:, None] * right.T).contiguous(), (left * roots).contiguous()


def _decompose(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular vectors and values: all for a small matrix, the largest by random projection for a large one."""
    wanted = rank + OVERSAMPLING
    if 4 * wanted >= min(matrix.shape):
        left, values, transposed = torch.linalg.svd(matrix, full_matrices=False)
        right = transposed.T
    else:
        left, values, right = torch.svd_lowrank(matrix, wanted, niter=ITERATIONS)
    return left[:, :rank], values[:rank], right[:, :rank]


_T = TypeVar("_T")
#: PEFT's prefix of module names.
PREFIX = "base_model.model."
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def names_in_files(model: Any, state: dict[str, _T]) -> dict[str, _T]:
    """An adapter's tensors by their names in files.

    Args:
        model: The base in memory.
        state: Tensors by PEFT's names.
    """
    if not is_text_part(model):
        return state
    return {PREFIX + whole_name(model, name.removeprefix(PREFIX)): value for name, value in state.items()}


def names_in_memory(model: Any, state: dict[str, _T]) -> dict[str, _T]:
    """An adapter's tensors by their names in memory; tensors on towers are left out.

    Args:
        model: The base in memory.
        state: Tensors by their names in files, of this version or an earlier one.
    """
    if not is_text_part(model):
        return state
    inner = {name.removeprefix(PREFIX): value for name, value in state.items()}
    return {PREFIX + own: inner[name] for name, own in split_names(inner).text.items()}


def targets_in_files(model: Any, adapted: Iterable[str], targets: Any) -> Any:
    """``target_modules`` as they are saved: an expression for the full names in the whole model and in its text part,
    which matches no layer of a tower.

    Args:
        model: The base in memory.
        adapted: Names of the layers with adapters.
        targets: PEFT's own value.
    """
    if not is_text_part(model):
        return targets
    names = set(adapted)
    expression = _expression(model, {_NUMBER.sub("#", name) for name in names})
    everything = {name.replace(".base_layer", "") for name, _ in model.named_modules()}
    if {name for name in everything if re.fullmatch(expression, name)} != names:
        expression = _expression(model, names)
    return expression


def _expression(model: Any, names: Iterable[str]) -> str:
    """A regular expression for names by both their forms, in which ``#`` is any number."""
    body = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    others = {name for name in names if not name.startswith("model.")}
    place = whole_name(model, "model")
    parts = [rf"(?:{re.escape(place)}|model)\.(?:{_any(body)})"] if body else []
    return "|".join([*parts, *(_any({name, whole_name(model, name)}) for name in sorted(others))])


def _any(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\#", r"\d+").replace("#", r"\d+") for name in sorted(names))


def targets_in_memory(model: Any, targets: Any) -> Any:
    """``target_modules`` of a saved adapter for the base in memory: full names are mapped from the whole model, and an
    expression becomes the modules that it matches by either name."""
    if not is_text_part(model) or not targets or targets == "all-linear":
        return targets
    if isinstance(targets, str):
        expression = re.compile(targets)
        found = [
            name
            for name, _ in model.named_modules()
            if expression.fullmatch(name) or expression.fullmatch(whole_name(model, name))
        ]
        return found or targets
    own = split_names(targets).text
    return sorted({own.get(name, name) for name in targets})


class WeightFiles:
    """The 16-bit weights in the files of a model's directory, decoded where they are quantized; a composite model's by
    the names of its text part.

    Args:
        directory: The directory.
        prefix: The model's prefix for the names of its body: ``model``. Files may lack it.

    Raises:
        UserError: If they cannot be read, or are stored only in the 4 bits that QLoRA uses.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory = directory
        self._prefix = f"{prefix}."
        self._checkpoint = Checkpoint(directory)
        quantization = self._checkpoint.quantization
        if quantization is not None and quantization.is_used_as_saved("qlora"):
            raise UserError(
                f"{directory} was saved quantized ({quantization.name}), and LoftQ needs its weights in 16 bit.",
                "Set method.init = default or pissa, or use the model as it was before it was quantized.",
            )
        self._stored = {text_name(name): name for name in self._checkpoint}

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor by the name of its parameter, as stored or decoded.

        Args:
            name: ``model.layers.0.self_attn.q_proj.weight``.
            shape: The expected shape.

        Raises:
            UserError: If the files have no tensor of this name and shape, as in families with fused layers.
        """
        for known in (name, name.removeprefix(self._prefix)):
            stored = self._stored.get(known)
            if stored is not None and self._checkpoint.tensor(stored).shape == shape:
                return self._checkpoint.read(stored)
        raise UserError(
            f"The weight files in {self._directory} have no {name} of {' x '.join(map(str, shape))}, which LoftQ needs "
            "in 16 bit: this model stores its layers in another way.",
            "Set method.init = default or pissa.",
        )


#: PEFT's names of the trained adapter, and of the adapter that subtracts its initial value.
TRAINED, INITIAL = "default", "initial"

#: Families in which PEFT refuses adapters on the output projection of Mamba.
_MAMBA = frozenset(["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"])

Progress = Callable[[int, int], None]


def attach_adapters(
    model: Any,
    method: MethodSection,
    *,
    seed: int,
    base: Path | None = None,
    fresh: bool = True,
    progress: Progress = lambda _done, _total: None,
) -> Any:
    """Put fp32 LoRA adapters on a frozen base.

    Norms, embeddings and head keep the dtype they were loaded in.

    Args:
        model: The base model, frozen.
        method: Rank, scale, dropout, target modules, initialization and variant.
        seed: Seed of the adapters' initialization.
        base: The directory that the model was loaded from; needed for LoftQ, which reads the weights in 16 bit.
        fresh: Initialize them; False where :func:`load_state` follows, which saves computing values only to overwrite
            them.
        progress: Called with the number of initialized layers and their total, where that takes a while.

    Returns:
        A ``PeftModel`` in training mode.

    Raises:
        UserError: If no module matches ``method.target_modules``, or a layer cannot be initialized by ``method.init``.
    """
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha if method.alpha != int(method.alpha) else int(method.alpha),
        lora_dropout=method.dropout,
        target_modules=_targets(model, method.target_modules),
        target_parameters=target_parameters(model, method) or None,
        use_dora=method.dora,
        use_rslora=method.rslora,
        exclude_modules=_excluded(model, method.target_modules) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    prepare(config, model)
    torch.manual_seed(seed)
    try:
        with as_it_is():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise _no_target(model, method, error) from error
    if method.init == "pissa":
        _add_initial(adapted, config)
    if fresh and method.init != "default":
        _begin(adapted, method, base, progress)
    adapted.train()
    return adapted


def _targets(model: Any, targets: str | list[str]) -> str | list[str]:
    """Target modules for PEFT: patterns expanded to the full names of matching linear layers, without the head.

    For a mixture names are always expanded, since PEFT would take experts and routers for some of them.
    """
    if any(True for _ in experts_of(model)) or bare_experts(model):
        return target_modules(model, targets) or (targets if isinstance(targets, list) else [targets])
    if not has_patterns(targets):
        return targets
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    # Where nothing matches, the names go to PEFT, whose error is then explained.
    return [name for name in linear if any(is_target(name, entry) for entry in targets)] or list(targets)


def _excluded(model: Any, targets: str | list[str]) -> list[str]:
    """Full names of layers that get no adapter whatever the targets, as kernels bypass their forward.

    PEFT rejects some layers in some families; the error reaches the user only where the layers are named.
    """
    refused = model.config.model_type in _MAMBA and (isinstance(targets, str) or has_patterns(targets))
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and (is_read_by_kernels(name) or (refused and any(is_target(name, entry) for entry in MAMBA_FUSED[::3])))
    ]


def _no_target(model: Any, method: MethodSection, error: ValueError) -> UserError:
    if "not found" not in str(error) and "No modules were targeted" not in str(error):
        return UserError(
            f"method.target_modules cannot be taken for this model: {one_line(str(error), 300).rstrip('.')}.",
            "Set it to all-linear, or name other layers.",
        )
    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)})
    return UserError(
        f"method.target_modules matches no layer of this model: {method.target_modules}.",
        f"Its linear layers are {', '.join(names)}; or use all-linear.",
    )


def adapted_layers(model: Any) -> dict[str, int]:
    """Counts of adapted layers by the last part of their names; for experts by matrix."""
    return dict(
        Counter(
            f"experts.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else name.rpartition(".")[2]
            for name, layer in _adapted(model)
        )
    )


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and TRAINED in module.lora_A:
            yield name, module


# Initialization.


def _add_initial(model: Any, config: LoraConfig) -> None:
    """Put the frozen adapter beside the trained one, without dropout, which is for trained weights.

    It comes first in the sum: the remainder of the base's output is small, and loses little to rounding.
    """
    frozen = copy.deepcopy(config)
    frozen.lora_dropout = 0.0
    with as_it_is():
        model.add_adapter(INITIAL, frozen)
    model.base_model.set_adapter([INITIAL, TRAINED])
    for name, parameter in model.named_parameters():
        if f".{INITIAL}." in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def _begin(model: Any, method: MethodSection, base: Path | None, progress: Progress) -> None:
    layers = list(_adapted(model))
    files = WeightFiles(base, model.get_base_model().base_model_prefix) if method.init == "loftq" and base else None
    rounded = any(map(_is_rounded, (layer for _, layer in layers)))
    for done, (name, layer) in enumerate(layers):
        progress(done, len(layers))
        if method.init == "loftq" and rounded and not _is_rounded(layer):
            continue  # in 16 bits among others in 4: there is no rounding to compensate
        matrix = weight = _dense_weight(name, layer, method)
        if method.init == "loftq":
            matrix = _stored(name, layer, weight, files) - weight
        down, up = best_factors(matrix, method.rank, float(layer.scaling[TRAINED]))
        layer.lora_A[TRAINED].weight.copy_(down)
        layer.lora_B[TRAINED].weight.copy_(up)
        if method.init == "pissa":
            layer.lora_A[INITIAL].weight.copy_(down)
            layer.lora_B[INITIAL].weight.copy_(-up)
    progress(len(layers), len(layers))


def _dense_weight(name: str, layer: Any, method: MethodSection) -> torch.Tensor:
    """A layer's matrix, ``(outputs, inputs)`` in fp32, as forward uses it.

    Raises:
        UserError: If it is not a plain linear layer, or smaller than the rank.
    """
    base = layer.get_base_layer()
    if not is_linear(base):
        raise UserError(
            f"method.init = {method.init} works on linear layers only, and {name} is none.",
            "Name the linear layers in method.target_modules, or set method.init = default.",
        )
    weight: torch.Tensor = base.weight
    if isinstance(weight, bnb.nn.Params4bit):
        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    weight = weight.detach().to(torch.float32)
    if layer.fan_in_fan_out:
        weight = weight.T
    if method.rank > min(weight.shape):
        raise UserError(
            f"method.init = {method.init} at rank {method.rank} needs layers of that rank at least, and {name} is "
            f"{weight.shape[0]} x {weight.shape[1]}.",
            f"Set method.rank to {min(weight.shape)} or less, or method.init = default.",
        )
    return weight


def _stored(name: str, layer: Any, weight: torch.Tensor, files: WeightFiles | None) -> torch.Tensor:
    """The weight of a layer before it was rounded to 4 bits."""
    if not _is_rounded(layer):
        raise UserError(
            "method.init = loftq makes up for the rounding to 4 bits, and this base is not rounded.",
            "Set method.name = qlora, or method.init = pissa.",
        )
    if files is None:
        raise ValueError("LoftQ needs the directory of the base model")
    return files.read(f"{name}.weight", tuple(weight.shape)).to(weight)


def _is_rounded(layer: Any) -> bool:
    return isinstance(layer.get_base_layer().weight, bnb.nn.Params4bit)


# Saving and loading.


def adapter_state(model: Any) -> tuple[dict[str, torch.Tensor], PeftConfig]:
    """An adapter as it is saved, for the original base: tensors by PEFT's names, and the configuration.

    With PiSSA the frozen initial adapter is included: twice the rank, the second half frozen.

    Args:
        model: The ``PeftModel``.
    """
    state = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
    config = saved(copy.copy(model.peft_config[TRAINED]), model.get_base_model())
    if INITIAL in model.peft_config:
        initial = get_peft_model_state_dict(model, adapter_name=INITIAL, save_embedding_layers=False)
        state = {
            name: torch.cat([tensor.cpu(), initial[name].cpu()], dim=_joint(name)) for name, tensor in state.items()
        }
        scale = float(next(_adapted(model))[1].scaling[TRAINED])
        config.r *= 2
        config.lora_alpha = scale * config.r
        config.use_rslora = False
    base = model.get_base_model()
    modules = [name for name, layer in _adapted(model) if not isinstance(layer, ParamWrapper)]
    config.target_modules = targets_in_files(base, not_parameters(config, modules), config.target_modules)
    return names_in_files(base, state), config


def load_state(model: Any, state: dict[str, torch.Tensor]) -> list[str]:
    """Load the result of :func:`adapter_state` into a model with adapters of the same kind.

    Returns:
        Names of missing and unexpected tensors; empty where all fits.

    Raises:
        RuntimeError: If a tensor has another shape.
    """
    state = names_in_memory(model.get_base_model(), state)
    parts = {TRAINED: state}
    if INITIAL in model.peft_config:
        halves = {name: _halves(tensor, _joint(name)) for name, tensor in state.items()}
        parts = {
            which: {name: both[place] for name, both in halves.items()}
            for place, which in enumerate((TRAINED, INITIAL))
        }
    wrong: list[str] = []
    for which, part in parts.items():
        result = set_peft_model_state_dict(model, part, adapter_name=which)
        wrong += [name for name in result.missing_keys if ".lora_" in name and f".{which}" in name]
        wrong += result.unexpected_keys
    return wrong


def begin_from(model: Any, adapter: Path) -> None:
    """Give adapters the weights of a saved adapter of the same kind.

    Raises:
        UserError: If it is damaged, or is on other layers or of another rank.
    """
    try:
        wrong = load_state(model, load_file(adapter / ADAPTER_WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: a weight of another shape
        wrong = [first_line(error)]
    if wrong:
        raise UserError(
            f"The adapter in {adapter} has other layers or ranks than this run: {tell(wrong)}.",
            "Set model.base, method.rank and method.target_modules as they were in its training.",
        )


def _joint(name: str) -> int:
    """The dimension of the rank: rows of A, columns of B."""
    return 0 if ".lora_A." in name else 1


def _halves(tensor: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    if tensor.shape[dim] % 2:
        raise RuntimeError(f"a rank of {tensor.shape[dim]} cannot be halved")
    first, second = tensor.chunk(2, dim)
    return first.contiguous(), second.contiguous()


def initial_parameters(model: Any) -> int:
    """Elements of the frozen adapter, which is saved with the trained one; 0 where there is none."""
    return sum(int(parameter.numel()) for name, parameter in model.named_parameters() if f".{INITIAL}." in name)


def load_adapter(model: Any, adapter: Path, *, trainable: bool) -> Any:
    """Put a saved adapter on a base.

    Raises:
        UserError: If it does not fit, lacks factors that its configuration names, or has unexpected ones.
    """
    return _put_on(model, adapter, TRAINED, trainable=trainable)


def add_adapter(model: Any, adapter: Path, name: str) -> Any:
    """Load a saved adapter under a name, beside the existing ones; it is not trained, and not switched on.

    Args:
        model: A base, or a ``PeftModel`` around one.
        adapter: A directory in PEFT's format.
        name: PEFT's name of it; :data:`TRAINED` for the first one.

    Returns:
        The ``PeftModel``.

    Raises:
        UserError: As :func:`load_adapter`; the existing adapters are untouched.
    """
    if not isinstance(model, PeftModelForCausalLM):
        return load_adapter(model, adapter, trainable=False)
    try:
        return _put_on(model, adapter, name, trainable=False)
    except UserError:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise


def _put_on(model: Any, adapter: Path, name: str, *, trainable: bool) -> Any:
    """The ``PeftModel`` with a saved adapter, the first one or a further one."""
    is_first = not isinstance(model, PeftModelForCausalLM)
    base = model if is_first else model.get_base_model()
    with _misfit_explained(adapter):
        config = _read_config(base, adapter)
        config.inference_mode = not trainable
        with as_it_is() if prepare(config, base) else contextlib.nullcontext():
            if is_first:
                model = PeftModelForCausalLM(model, config)
            else:
                model.add_adapter(name, config)
        read = _read_into(model, adapter, name, trainable=trainable)
    _check_read(read, adapter)
    return model


def _read_config(base: Any, adapter: Path) -> Any:
    """A saved adapter's configuration, for the modules of the base in memory."""
    config = PeftConfig.from_pretrained(str(adapter), local_files_only=True)
    config.target_modules = targets_in_memory(base, getattr(config, "target_modules", None))
    return config


def _read_into(adapted: Any, adapter: Path, name: str, *, trainable: bool) -> Any:
    base = adapted.get_base_model()
    renamed = KEY_MAPPING if is_text_part(base) else getattr(base, "_checkpoint_conversion_mapping", None) or {}
    read = adapted.load_adapter(str(adapter), name, is_trainable=trainable, key_mapping=renamed, local_files_only=True)
    if is_text_part(base):
        # Adapters on towers, which earlier versions wrote; the text part has no place for them.
        with safe_open(str(adapter / ADAPTER_WEIGHTS), framework="pt") as file:
            others = split_names(key.removeprefix(PREFIX) for key in file.keys()).others  # noqa: SIM118
        towers = {_module(key) for key in others}
        read.unexpected_keys[:] = [key for key in read.unexpected_keys if _module(key) not in towers]
    return read


def _module(key: str) -> str:
    return key.removeprefix(PREFIX).partition(".lora_")[0]


@contextlib.contextmanager
def _misfit_explained(adapter: Path) -> Iterator[None]:
    """Turn PEFT's errors for an adapter that does not fit into a ``UserError``."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"The adapter in {adapter} does not fit this model: {first_line(error)}.",
            "Choose the base it was trained on.",
        ) from error


def _check_read(read: Any, adapter: Path) -> None:
    """Reject an incomplete adapter: PEFT leaves missing factors at their random values, and drops unexpected ones."""
    for names, what in (
        (read.missing_keys, "lacks factors that its configuration asks for"),
        (read.unexpected_keys, "has factors that it has no place for"),
    ):
        if names:
            raise UserError(
                f"The adapter in {adapter} {what}: {tell(names)}.", "Take both files from the same adapter, whole."
            )


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """A context with all adapters off; ``requires_grad`` flags are restored after.

    PEFT makes everything trainable when it switches adapters back on, the frozen one too.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


# Parameter groups of the optimizer.


def parameter_groups(model: Any, ratio: float | None) -> list[torch.nn.Parameter] | list[dict[str, Any]]:
    """The trained parameters; with a ratio in two groups, marked by ``lr_ratio`` (LoRA+).

    The second group is the second matrix of each adapter, B, which starts at zero; DoRA's magnitudes stay in the first
    group.

    Args:
        model: The model.
        ratio: Learning rate of the second group by that of the first; None for one rate and no groups.

    Source: LoRA+, arXiv 2402.12354.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if ratio is None:
        return [parameter for _, parameter in trained]
    up = [parameter for name, parameter in trained if ".lora_B." in name]
    rest = [parameter for name, parameter in trained if ".lora_B." not in name]
    return [{"params": rest, "lr_ratio": 1.0}, {"params": up, "lr_ratio": ratio}]
