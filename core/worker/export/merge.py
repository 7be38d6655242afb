"""Merging of trained weights into those of the base, one tensor at a time.

The base's files are read tensor by tensor, the trained change is added in fp32, and the sum goes into a file of the
same name: neither the model nor one of its files is ever in memory as a whole.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftConfig, inject_adapter_in_model
from safetensors import SafetensorError, safe_open

from core.config.schema import Config
from core.config.targets import kept_patterns
from core.directories import Progress
from core.errors import UserError
from core.export.plan import MERGING
from core.export.request import Quant
from core.models.description import WEIGHTS_INDEX
from core.models.tensors import Tensor
from core.runs.catalog.trained import TrainedFile, TrainedModel
from core.text import one_line
from core.worker.export.layout import ExpertPart, Layout, read_layout, rounded_layers
from core.worker.fused.file_weights import EMBEDDINGS
from core.worker.fused.frozen_weight import merge_exactly
from core.worker.fused.ggml_quant import GgmlType, fake_quantize
from core.worker.model.adapters import PREFIX as _PREFIX
from core.worker.model.adapters import TRAINED, names_in_memory
from core.worker.model.completeness import first_line, tell
from core.worker.model.device import choose_device, choose_dtype
from core.worker.model.expert_adapters import adapted_matrices
from core.worker.model.experts import expert_count, experts_of
from core.worker.model.nf4 import dequantize_rightly, quantize_quickly
from core.worker.model.safetensors_io import DTYPES, TensorSpec, stream_tensors, tensor_names


class Source:
    """The tensors of a base, read one at a time; quantized ones are decoded.

    Args:
        layout: The layout of its files.
        config: The configuration of the run.
        rounded: Round linear layers to 4 bits and back. Weights that the training used as saved are rounded in any
            case.

    Raises:
        UserError: If a weight's type is unknown.
    """

    def __init__(self, layout: Layout, config: Config, *, rounded: bool) -> None:
        self._checkpoint = layout.checkpoint
        self.files: dict[Path, dict[str, Tensor]] = layout.files
        self._places = {key: path for path, tensors in layout.files.items() for key in tensors}
        quantization = layout.checkpoint.quantization
        self._is_saved = quantization is not None and quantization.is_used_as_saved(config.method.name)
        self._device, self.dtype = _arithmetic(config)
        """Device and dtype of the training, as far as this machine supports them."""
        self._rounded: set[str] = set()
        self._parts: dict[str, ExpertPart] = {}
        if rounded and not self._is_saved:
            names = rounded_layers(layout, kept_patterns(config.model.keep_16bit))
            self._rounded = {layout.keys[name] for name in names if name in layout.keys}
            self._parts = {key: part for key, part in layout.expert_parts.items() if part.parameter in names}
            if self._device.type == "cpu":
                quantize_quickly()
                dequantize_rightly()

    def is_packed(self, key: str) -> bool:
        """True if the training used a tensor in the 4 bits that it is saved in."""
        return self._is_saved and key in self._checkpoint.encoded

    def spec(self, key: str) -> TensorSpec:
        """Dtype and shape of a tensor as returned by :meth:`read`.

        Raises:
            UserError: If its type is unknown.
        """
        found = self.files[self._places[key]][key]
        if found.dtype not in DTYPES:
            raise UserError(
                f"{self._places[key]} has weights of the type {found.dtype}, which are not merged.",
                "Use a base in 16 bit, or export the adapter.",
            )
        return TensorSpec(DTYPES[found.dtype], found.shape)

    def read(self, key: str) -> torch.Tensor:
        """A tensor, on the CPU.

        Raises:
            UserError: If it cannot be read or decoded.
        """
        stored = self._checkpoint.read(key)
        if (part := self._parts.get(key)) is not None:
            together = [stored if name == key else self._checkpoint.read(name) for name in part.parts]
            begin = sum(len(tensor) for tensor in together[: part.place])
            return self._round(torch.cat(together))[begin : begin + len(stored)].clone()
        if key in self._rounded:
            # Experts are rounded one by one.
            return torch.stack([self._round(expert) for expert in stored]) if stored.dim() == 3 else self._round(stored)
        return stored

    def _round(self, weight: torch.Tensor) -> torch.Tensor:
        """A matrix after NF4 with double quantization, in the arithmetic of the training."""
        given = weight.to(self._device, self.dtype)
        packed, state = bnb.functional.quantize_4bit(given, quant_type="nf4", compress_statistics=True)
        restored: torch.Tensor = bnb.functional.dequantize_4bit(packed, state).cpu()
        return restored


def _arithmetic(config: Config) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the training, as far as this machine supports them."""
    try:
        device = choose_device(config.hardware.device)
        return device, choose_dtype(config.train.precision, device, config.method.name)
    except UserError:  # the card is gone
        return torch.device("cpu"), torch.float32


#: Turns an fp32 weight into the trained one.
Change = Callable[[torch.Tensor], torch.Tensor]
#: The factors of a plain adapter.
_PLAIN = {"lora_A.weight", "lora_B.weight"}
#: Settings of an adapter that select layers, which is done here, or do not concern a single layer.
_CHOOSING = (
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "trainable_token_indices"),
    *("target_parameters", "layer_replication"),
)


def weight_changes(path: Path) -> dict[str, Change]:
    """Changes of parameters that were trained themselves, by their names.

    Args:
        path: A checkpoint's safetensors file.

    Raises:
        UserError: If it cannot be read.
    """
    return {own: _replacement(path, name) for own, name in tensor_names(path).items()}


def adapter_changes(layout: Layout, adapter: Path, kind: GgmlType | None = None) -> dict[str, Change]:
    """Changes of parameters by an adapter: LoRA, rsLoRA and DoRA of linear layers and embeddings, and layers saved as a
    whole.

    Args:
        layout: Layout of the base.
        adapter: A directory in PEFT's format.
        kind: The type of the file that the weights were trained for, which the layers then have; None for plain sums.

    Raises:
        UserError: If it cannot be read, has factors of an unknown kind, or belongs to another base.
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
    """Changes of embeddings and head for a file whose weights were trained; they have no adapters."""
    modules = (layout.model.get_input_embeddings(), layout.model.get_output_embeddings())
    ids = {id(module.weight) for module in modules if module is not None}
    names = [name for name, weight in layout.model.named_parameters(remove_duplicate=False) if id(weight) in ids]
    return dict.fromkeys(names, lambda weight: fake_quantize(weight, EMBEDDINGS))


@dataclass(frozen=True)
class _Matrix:
    """A matrix of a layer's experts with an adapter."""

    parameter: str
    experts: int
    transposed: bool
    """True if it is stored as inputs by outputs."""


def _matrices_of_experts(layout: Layout, config: Any) -> dict[str, _Matrix]:
    """The matrices of experts by the module names of their adapters in a file, where the adapters of a layer are
    nested, the first one innermost."""
    named = list(getattr(config, "target_parameters", None) or ())
    found = {}
    for name, module in experts_of(layout.model):
        matrices = adapted_matrices(name, module, named)
        for number, matrix in enumerate(matrices):
            inner = ".base_layer" * (len(matrices) - 1 - number)
            found[name + inner] = _Matrix(f"{name}.{matrix}", expert_count(module), bool(module.is_transposed))
    return found


class ExpertsChange:
    """The change of a matrix of a layer's experts by its adapter.

    Args:
        matrix: The matrix.
        config: The adapter's configuration.
        path: The file of its factors.
        parts: The factors' names in PEFT's layer to their names in the file.
    """

    def __init__(self, matrix: _Matrix, config: Any, path: Path, parts: dict[str, str]) -> None:
        self._matrix, self._config, self._path, self._parts = matrix, config, path, parts

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """All experts with their adapters: ``(experts, rows, columns)``, in transformers' layout, in fp32.

        Raises:
            UserError: If the factors do not fit it.
        """
        changed = weight.to(torch.float32, copy=True)
        for number in range(self._matrix.experts):
            changed[number] = self._added(changed[number], number)
        return changed

    def part(self, part: ExpertPart, sizes: Sequence[int]) -> Change:
        """The change of a tensor that is a part of a single expert's matrix.

        Args:
            part: The part.
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
    in training, bit for bit.

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
        """The weight as in the file, in fp32."""
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
        # With its full name, the layer matches the patterns of ranks and scales.
        self._config.target_modules = [name]
        self._config.init_lora_weights = False
        for setting in _CHOOSING:
            if hasattr(self._config, setting):
                setattr(self._config, setting, None)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the adapter merged, in fp32.

        Raises:
            UserError: If the factors do not fit it, or the sum is not finite.
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
            raise UserError(
                f"The adapter cannot be merged into {one_line(self._name, 120)}: {first_line(error)}.",
                "Export the adapter.",
            ) from error
        merged: torch.Tensor = layer.get_base_layer().weight.data
        return merged


def _factor(layer: Any, part: str) -> Any:
    """The parameter of a factor: ``lora_A.weight``, ``lora_magnitude_vector`` or ``lora_embedding_A``."""
    kind, _, rest = part.partition(".")
    found = getattr(layer, kind)[TRAINED]
    if isinstance(found, torch.nn.Module):
        return getattr(found, rest or "weight")
    return found


def _replacement(path: Path, name: str) -> Change:
    return lambda _weight: _read(path, name)


@functools.lru_cache(maxsize=8)
def _read_again(path: Path, name: str) -> torch.Tensor:
    """Factors, cached because each expert of a layer reads them."""
    return _read(path, name)


def _read(path: Path, name: str) -> torch.Tensor:
    with _reading(path), safe_open(str(path), framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a file reader's errors into a ``UserError``."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(str(error), 200)}", "It may be damaged.") from error


MERGED_DTYPES: dict[Quant, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class BeyondRangeError(UserError):
    """A weight exceeds the range of the written type."""


@dataclass(frozen=True)
class _Entry:
    """A tensor to be written."""

    key: str
    """The base's tensor that it is made from."""
    change: Change | None
    """Its trained change; None without one."""
    spec: TensorSpec


@torch.no_grad()
def merge_weights(
    base: Path, trained: TrainedModel, directory: Path, quant: Quant, *, rounded: bool, progress: Progress
) -> bool:
    """Write the weights of a trained model as safetensors, in files of the base's names.

    Args:
        base: The directory of the base, or of the result if all weights are in it.
        trained: The trained model.
        directory: Directory for the files.
        quant: Their type: ``BF16``, ``F16`` or ``F32``. Weights that the base keeps in more bits than most stay as they
            are, and so do towers of a composite model.
        rounded: Merge an adapter into weights rounded to 4 bits, as in training, instead of the base's own.
        progress: Called after every tensor, in bytes.

    Returns:
        True if head and embeddings, tied in the base, are two tensors now.

    Raises:
        UserError: If the base's files hold a trained weight in an unsupported form, or a weight exceeds the range of
            the type.
        OSError: If they cannot be written.
    """
    layout = read_layout(base)
    source = Source(layout, trained.config, rounded=rounded)
    arrangement = _Arrangement(layout, trained)
    usual = _usual_dtype(source)
    stored = None if trained.file is None else _trained_dtype(trained.file, source)
    size = done = 0
    total = sum(source.spec(key).bytes for path in layout.files for key in source.files[path])
    places: dict[str, str] = {}
    last = next(reversed(layout.files))
    for path in layout.files:
        entries = arrangement.entries(
            list(source.files[path]), is_last=path == last, source=source, usual=usual, quant=quant
        )
        # Wide types first, so that each tensor is aligned to its width.
        ordered = dict(sorted(entries.items(), key=lambda item: -item[1].spec.dtype.itemsize))

        def read(name: str, entries: Mapping[str, _Entry] = ordered) -> torch.Tensor:
            nonlocal done
            entry = entries[name]
            tensor = source.read(entry.key)
            done += source.spec(entry.key).bytes
            progress(MERGING, min(done, total), total)
            if entry.key in layout.others:
                return tensor
            if stored is not None and tensor.is_floating_point() and not source.is_packed(entry.key):
                tensor = tensor.to(stored)
            if entry.change is not None:
                tensor = entry.change(tensor.to(torch.float32))
            return _cast(name, tensor, entry.spec.dtype)

        stream_tensors(directory / path.name, {name: entry.spec for name, entry in ordered.items()}, read)
        places |= dict.fromkeys(ordered, path.name)
        size += sum(entry.spec.bytes for entry in ordered.values())
    if len(layout.files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (directory / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return arrangement.is_untied


class _Arrangement:
    """For each written tensor, the base's tensor that it is made from, and its trained change."""

    def __init__(self, layout: Layout, trained: TrainedModel) -> None:
        self._layout = layout
        has_adapter, file = trained.adapter is not None, trained.file
        if trained.adapter is not None:
            changes = adapter_changes(layout, trained.adapter, None if file is None else file.type)
        else:
            changes = {} if trained.weights is None else weight_changes(trained.weights)
        self._check(changes)
        tied = {name: other for name, other in layout.tied.items() if other in layout.keys}
        # Tied weights that were trained stay tied; an adapter of the head leaves the embeddings alone.
        self.is_untied = has_adapter and any(name in changes or other in changes for name, other in tied.items())
        if file is not None:
            changes = embedding_changes(layout) | changes
        self._made: dict[str, tuple[str, Change | None]] = {
            key: (key, changes.get(name)) for name, key in layout.keys.items()
        }
        tensors = layout.tensors
        for key, part in layout.expert_parts.items():
            whole = changes.get(part.parameter)
            sizes = [tensors[name].shape[0] for name in part.parts]
            self._made[key] = (key, whole.part(part, sizes) if isinstance(whole, ExpertsChange) else None)
        self._added: dict[str, tuple[str, Change | None]] = {}
        for name, other in tied.items():
            of_other = layout.keys[other]
            made = (of_other, changes.get(name if self.is_untied else other))
            if name in layout.keys:
                self._made[layout.keys[name]] = made
            elif self.is_untied:
                self._added[name] = made

    def _check(self, changes: Mapping[str, Change]) -> None:
        """Reject trained weights that the files hold in another form.

        Raises:
            UserError: If there are any.
        """
        known = {*self._layout.keys, *self._layout.tied}
        stacked = {part.parameter for part in self._layout.expert_parts.values()}
        known |= {name for name in stacked if isinstance(changes.get(name), ExpertsChange)}
        if missing := [name for name in changes if name not in known]:
            raise UserError(
                f"The weight files in {self._layout.directory} hold {tell(missing)} in another form than the program, "
                "which cannot be merged.",
                "Export the adapter.",
            )

    def entries(
        self, keys: Sequence[str], *, is_last: bool, source: Source, usual: torch.dtype, quant: Quant
    ) -> dict[str, _Entry]:
        """The tensors of a written file, by their names there."""
        made = {key: self._made.get(key, (key, None)) for key in keys} | (self._added if is_last else {})
        found = {}
        for name, (key, change) in made.items():
            spec = source.spec(key)
            if key not in self._layout.others:
                spec = TensorSpec(_target(spec.dtype, usual, MERGED_DTYPES[quant]), spec.shape)
            found[name] = _Entry(key, change, spec)
        return found


def _trained_dtype(file: TrainedFile, source: Source) -> torch.dtype:
    """The dtype of the weights in training, which are merged in it for a file."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in MERGED_DTYPES.values()}
    return names.get(file.dtype or "", source.dtype)


def _usual_dtype(source: Source) -> torch.dtype:
    """The floating-point dtype of most weights."""
    counts: Counter[torch.dtype] = Counter()
    for path in source.files:
        for key in source.files[path]:
            spec = source.spec(key)
            if spec.dtype.is_floating_point:
                counts[spec.dtype] += spec.bytes // spec.dtype.itemsize
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _target(stored: torch.dtype, usual: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    if not stored.is_floating_point:
        return stored
    is_kept = stored.itemsize > usual.itemsize and stored.itemsize > wanted.itemsize
    return stored if is_kept else wanted


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and not bool(cast.isfinite().all()):
        raise BeyondRangeError(f"{one_line(name, 120)} has weights beyond the range of F16.", "Take BF16 or F32.")
    return cast
