"""Weight changes that a run has trained: by an adapter, or weights replaced as a whole."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open

from core.errors import UserError
from core.text import one_line
from core.worker.export.layout import ExpertPart, Layout
from core.worker.fused.file_weights import EMBEDDINGS
from core.worker.fused.frozen_weight import merge_exactly
from core.worker.fused.ggml_quant import GgmlType, fake_quantize
from core.worker.model.adapters import PREFIX as _PREFIX
from core.worker.model.adapters import TRAINED, names_in_memory
from core.worker.model.completeness import tell
from core.worker.model.expert_adapters import adapted_matrices
from core.worker.model.experts import expert_count, experts_of
from core.worker.model.safetensors_io import tensor_names

#: Turns a weight, in fp32, into the trained one.
Change = Callable[[torch.Tensor], torch.Tensor]
#: The factors of a plain adapter.
_PLAIN = {"lora_A.weight", "lora_B.weight"}
#: Settings of an adapter that choose layers, which is done here, or are not of a single layer.
_CHOOSING = (
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices"),
    *("target_parameters", "layer_replication"),
)


def weight_changes(path: Path) -> dict[str, Change]:
    """Parameters that were trained themselves, by their names.

    Args:
        path: A checkpoint's safetensors file.

    Raises:
        UserError: If it cannot be read.
    """
    return {own: _replacement(path, name) for own, name in tensor_names(path).items()}


def adapter_changes(layout: Layout, adapter: Path, kind: GgmlType | None = None) -> dict[str, Change]:
    """Parameters that an adapter changes: LoRA, rsLoRA and DoRA of linear layers and embeddings, and layers that are
    saved as a whole.

    Args:
        layout: The base that it is for.
        adapter: A directory in PEFT's format.
        kind: The type of the file whose weights were trained, which the layers then have; None for plain sums.

    Raises:
        UserError: If it cannot be read, has factors of a kind that is not known, or is for another base.
    """
    path = adapter / "adapter_model.safetensors"
    with _reading(path):
        config = PeftConfig.from_pretrained(str(adapter), local_files_only=True)
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
    factors: dict[str, dict[str, str]] = {}
    changes: dict[str, Change] = {}
    unknown = []
    own = names_in_memory(layout.model, {name: name for name in names})
    for inner, name in ((key.removeprefix(_PREFIX), name) for key, name in own.items()):
        module, _, factor = inner.partition(".lora_")
        if factor:
            factors.setdefault(module, {})[f"lora_{factor}"] = name
        elif "token_adapter" in inner or getattr(config, "bias", "none") != "none":
            unknown.append(inner)
        else:
            changes[inner] = _replacement(path, name)
    if unknown:
        raise UserError(
            f"The adapter in {adapter} has weights of a kind that is not merged: {tell(unknown)}.",
            "Export it as an adapter.",
        )
    experts = _matrices_of_experts(layout, config)
    for module, parts in factors.items():
        if (matrix := experts.get(module)) is not None:
            changes[matrix.parameter] = ExpertsChange(matrix, config, path, parts)
            continue
        if kind is not None and set(parts) == _PLAIN:
            changes[f"{module}.weight"] = _Rounded(config, path, parts, kind)
            continue
        changes[f"{module}.weight"] = _Adapted(module, layout.module(module), config, path, parts)
    return changes


def embedding_changes(layout: Layout) -> dict[str, Change]:
    """Embeddings and head as a file has them whose weights were trained; they have no adapters."""
    modules = (layout.model.get_input_embeddings(), layout.model.get_output_embeddings())
    ids = {id(module.weight) for module in modules if module is not None}
    names = [name for name, weight in layout.model.named_parameters(remove_duplicate=False) if id(weight) in ids]
    return dict.fromkeys(names, lambda weight: fake_quantize(weight, EMBEDDINGS))


@dataclass(frozen=True)
class _Matrix:
    """A matrix of the experts of a layer that has an adapter."""

    parameter: str
    experts: int
    transposed: bool
    """Whether it is stored as inputs by outputs."""


def _matrices_of_experts(layout: Layout, config: Any) -> dict[str, _Matrix]:
    """The matrices of experts by the names of the modules that their adapters have in a file: those of a layer are
    nested there, the first one innermost."""
    named = list(getattr(config, "target_parameters", None) or ())
    found = {}
    for name, module in experts_of(layout.model):
        matrices = adapted_matrices(name, module, named)
        for number, matrix in enumerate(matrices):
            inner = ".base_layer" * (len(matrices) - 1 - number)
            found[name + inner] = _Matrix(f"{name}.{matrix}", expert_count(module), bool(module.is_transposed))
    return found


class ExpertsChange:
    """The change of a matrix of the experts of a layer by its adapter.

    Args:
        matrix: Which.
        config: The adapter's configuration.
        path: The file of its factors.
        parts: The factors' names in PEFT's layer to their names in the file.
    """

    def __init__(self, matrix: _Matrix, config: Any, path: Path, parts: dict[str, str]) -> None:
        self._matrix, self._config, self._path, self._parts = matrix, config, path, parts

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """All experts with their adapters: ``(experts, rows, columns)``, as transformers stores them, in fp32.

        Raises:
            UserError: If the factors do not fit it.
        """
        changed = weight.to(torch.float32, copy=True)
        for number in range(self._matrix.experts):
            changed[number] = self._added(changed[number], number)
        return changed

    def part(self, part: ExpertPart, sizes: Sequence[int]) -> Change:
        """The change of a tensor that is a part of one expert's matrix.

        Args:
            part: Which.
            sizes: Rows of the parts of the matrix.
        """
        begin = sum(sizes[: part.place])
        return lambda weight: self._added(weight, part.number, slice(begin, begin + sizes[part.place]))

    def _added(self, weight: torch.Tensor, number: int, rows: slice = slice(None)) -> torch.Tensor:
        down, up = (_read_again(self._path, self._parts[f"lora_{factor}.weight"]).float() for factor in "AB")
        experts = self._matrix.experts
        try:
            downs, ups = down.view(experts, -1, down.shape[1]), up.view(len(up), -1, experts)
            rank = downs.shape[1]
            scale = self._config.lora_alpha / (math.sqrt(rank) if self._config.use_rslora else rank)
            added = scale * (ups[:, :, number] @ downs[number])
            changed: torch.Tensor = weight + (added.T if self._matrix.transposed else added)[rows]
        except RuntimeError as error:
            raise UserError(
                f"The adapter cannot be merged into {one_line(self._matrix.parameter, 120)}: it has other shapes.",
                "Export the adapter.",
            ) from error
        return changed


class _Rounded:
    """The change of a layer's weight by an adapter that was trained with the weights of a file: merged and rounded as
    in training, to the bit.

    Args:
        config: The adapter's configuration.
        path: The file of its factors.
        parts: The factors' names in PEFT's layer to their names in the file.
        kind: The type of the file.
    """

    def __init__(self, config: Any, path: Path, parts: dict[str, str], kind: GgmlType) -> None:
        self._path, self._parts, self._kind = path, parts, kind
        self._scale = float(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as the file has it, in fp32."""
        down, up = (_read(self._path, self._parts[f"lora_{factor}.weight"]).float() for factor in "AB")
        return fake_quantize(merge_exactly(weight, down, up, self._scale), self._kind)


class _Adapted:
    """The change of a layer's weight by an adapter, computed by PEFT's own layer.

    Args:
        name: The layer's name in the model.
        module: The layer, without weights.
        config: The adapter's configuration.
        path: The file of its factors.
        parts: The factors' names in PEFT's layer to their names in the file.
    """

    def __init__(self, name: str, module: Any, config: PeftConfig, path: Path, parts: dict[str, str]) -> None:
        self._name, self._module, self._path, self._parts = name, module, path, parts
        self._config = copy.copy(config)
        # A layer that stands alone is named in full, for the patterns of ranks and scales.
        self._config.target_modules = [name]
        self._config.init_lora_weights = False
        for setting in _CHOOSING:
            if hasattr(self._config, setting):
                setattr(self._config, setting, None)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the adapter in it, in fp32.

        Raises:
            UserError: If the factors do not fit it, or the sum has numbers that are not finite.
        """
        alone = copy.deepcopy(self._module)
        alone.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        shell = torch.nn.Module()
        *parents, last = self._name.split(".")
        place = shell
        for part in parents:
            place.add_module(part, torch.nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, alone)
        try:
            inject_adapter_in_model(copy.copy(self._config), shell, adapter_name=TRAINED)
            layer: Any = shell.get_submodule(self._name)
            for part, name in self._parts.items():
                _factor(layer, part).data = _read(self._path, name).to(torch.float32)
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError, AttributeError, KeyError) as error:
            first = one_line(str(error).strip().partition("\n")[0], 200).rstrip(".") or type(error).__name__
            raise UserError(
                f"The adapter cannot be merged into {one_line(self._name, 120)}: {first}.", "Export the adapter."
            ) from error
        merged: torch.Tensor = layer.get_base_layer().weight.data
        return merged


def _factor(layer: Any, part: str) -> Any:
    """The parameter of a factor: of ``lora_A.weight``, ``lora_magnitude_vector`` or ``lora_embedding_A``."""
    kind, _, rest = part.partition(".")
    found = getattr(layer, kind)[TRAINED]
    if isinstance(found, torch.nn.Module):
        return getattr(found, rest or "weight")
    return found


def _replacement(path: Path, name: str) -> Change:
    return lambda _weight: _read(path, name)


@functools.lru_cache(maxsize=8)
def _read_again(path: Path, name: str) -> torch.Tensor:
    """Factors that are read for each expert of a layer."""
    return _read(path, name)


def _read(path: Path, name: str) -> torch.Tensor:
    with _reading(path), safe_open(str(path), framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers of a file raise into a sentence."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(str(error), 200)}", "It may be damaged.") from error
