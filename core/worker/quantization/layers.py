"""A causal language model whose decoder layers are read from its files on demand, one at a time."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)

from core.errors import UserError
from core.worker.model.completeness import reading_in_turn
from core.worker.model.model import LoadedModel, decoder_layers, keep_gradients, load_model

#: Place of the tensors outside the decoder layers.
OUTSIDE = -1


class LayeredModel:
    """A base model as :func:`core.worker.model.model.load_model` loads it, without its decoder layers.

    Everything outside the layers (embeddings, norms, head) is on the device. The weights of a layer are read, converted
    and quantized by transformers' own loader, as in a whole model.

    Args:
        base: Directory of the model.
        method: ``qlora`` for layers in 4 bits, ``lora`` for layers in 16 bits.
        precision: As ``train.precision``.
        device: As ``hardware.device``.
        keep_16bit: As ``model.keep_16bit``.
        tokenizer: Its tokenizer, if already loaded.
        beside: The same model in 16 bits, whose equal tensors outside the layers are shared.

    Raises:
        UserError: If it cannot be loaded.
    """

    def __init__(
        self,
        base: Path,
        *,
        method: str,
        precision: str,
        device: str,
        keep_16bit: Sequence[str] = (),
        tokenizer: Any = None,
        beside: LayeredModel | None = None,
    ) -> None:
        self._base = base
        with _layers_left_out(None if beside is None else beside.loaded.model) as sources:
            self.loaded: LoadedModel = load_model(
                base,
                method=method,
                precision=precision,
                device=device,
                tokenizer=tokenizer,
                keep_16bit=keep_16bit,
                # A single layer's experts fit on the device.
                host_experts=False,
            )
        if len(sources) != 1:
            raise UserError(
                f"The model in {base} is not loaded from weight files of its own.",
                "Take a checkpoint with its weights as safetensors.",
            )
        (self._source,) = sources
        #: True if anything outside the layers is in 4 bits.
        self.quantizes_outside: bool = self._source.quantizes_outside
        self.layers: list[Any] = self._source.layers
        # Copied before hooks are added to the model's layers.
        self._blank = [_copy(layer) for layer in self.layers]

    @property
    def names(self) -> list[str]:
        """The names of the decoder layers in the model: ``model.layers.0``."""
        return self._source.names

    def materialize(self, index: int) -> Any:
        """Read a layer. Its weights are on the device as long as the result is referenced.

        Args:
            index: Its place among the decoder layers.

        Raises:
            UserError: If the files lack some of its weights, or cannot be read.
        """
        layer = _copy(self._blank[index])
        standing = self.layers[index]
        self._put(index, layer)
        try:
            self._source.load(index)
        finally:
            self._put(index, standing)
        missing = [name for name, tensor in _tensors(layer) if tensor.is_meta]
        if missing:
            raise UserError(
                f"The model in {self._base} has no weights for {self.names[index]}.{missing[0]}.",
                "Check that the directory is whole.",
            )
        keep_gradients(layer)
        return layer.requires_grad_(False).eval()

    def _put(self, index: int, layer: Any) -> None:
        parent, _, name = self.names[index].rpartition(".")
        setattr(self.loaded.model.get_submodule(parent), name, layer)


def held_bytes(module: Any) -> int:
    """Bytes of a module's tensors, including the scales of 4-bit ones."""
    return sum(tensor.nbytes + _tables_bytes(tensor) for _, tensor in _tensors(module))


def _tables_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a packed tensor's quantization state, and of the nested state of its scales."""
    state = getattr(tensor, "quant_state", None)
    total = 0
    while state is not None:
        total += sum(each.nbytes for each in vars(state).values() if isinstance(each, torch.Tensor))
        state = getattr(state, "state2", None)
    return total


def _copy(layer: Any) -> Any:
    """A copy of a layer's modules with shared tensors: loading replaces tensors, and changes none."""
    return copy.deepcopy(layer, {id(tensor): tensor for _, tensor in _tensors(layer)})


def _tensors(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


class _Source:
    """The files of a model, and their loading by transformers.

    Args:
        model: The model, its tensors on the meta device.
        files: Its weight files.
        state: Its tensors by name, where they are decoded ones.
        config: ``LoadStateDictConfig`` of transformers.
        donor: The same model, loaded in 16 bits; None for none.
    """

    def __init__(self, model: Any, files: Sequence[str], state: dict[str, Any] | None, config: Any, donor: Any) -> None:
        self._model, self._state, self._config = model, state, config
        self.layers = decoder_layers(model)
        by_id = {id(module): name for name, module in model.named_modules()}
        self.names = [by_id[id(layer)] for layer in self.layers]
        self._own = model.state_dict()
        self.quantizes_outside = any(
            self.place(name) == OUTSIDE and self._is_quantized(name) for name, _ in model.named_parameters()
        )
        self._taken = set() if donor is None else self._take(donor)
        self._keys: dict[int, dict[str, str]] = defaultdict(dict)
        """Place to the keys of its tensors, each with its file."""
        for key, file in self._files_of(files).items():
            target = self._target(key)
            if target not in self._taken:
                self._keys[self.place(target)][key] = file

    def place(self, name: str) -> int:
        """The layer of a tensor, or :data:`OUTSIDE`."""
        for index, prefix in enumerate(self.names):
            if name.startswith(f"{prefix}."):
                return index
        return OUTSIDE

    def load(self, place: int) -> Any:
        """Load the tensors of a layer, or those outside, into the model; returns transformers' ``LoadStateDictInfo``.

        Raises:
            UserError: If a file cannot be read, or tensors do not fit.
        """
        with contextlib.ExitStack() as opened:
            if self._state is not None:
                opened.enter_context(reading_in_turn())
            tensors: dict[str, Any] = {}
            files: dict[str, Any] = {}
            for key, path in self._keys[place].items():
                if self._state is not None:
                    tensors[key] = self._state[key]
                    continue
                if path not in files:
                    files[path] = opened.enter_context(_open(path))
                tensors[key] = files[path].get_slice(key)
            found, _ = convert_and_load_state_dict_in_model(
                model=self._model, state_dict=tensors, load_config=self._config
            )
        if place != OUTSIDE and (wrong := [name for name, *_ in found.mismatched_keys] or [*found.conversion_errors]):
            raise UserError(
                f"The weights {sorted(map(str, wrong))[0]} do not fit into the model.",
                "Check that the files are whole.",
            )
        found.missing_keys = {
            name for name in found.missing_keys if self.place(name) == OUTSIDE and name not in self._taken
        }
        return found

    def _files_of(self, files: Sequence[str]) -> dict[str, str]:
        if self._state is not None:
            return dict.fromkeys(self._state, "")
        found: dict[str, str] = {}
        for path in files:
            with _open(path) as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def _target(self, key: str) -> str:
        """The name in the model for a tensor of the files; the first where it is split into several."""
        mapping = self._config.weight_mapping or []
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        prefix = self._model.base_model_prefix
        name, _ = rename_source_key(key, renamings, converters, prefix, self._own)
        if name not in self._own and key in self._own:
            name, _ = rename_source_key(key, [], [], prefix, self._own)
        return str(name)

    def _is_quantized(self, name: str) -> bool:
        quantizer = self._config.hf_quantizer
        return quantizer is not None and bool(quantizer.param_needs_quantization(self._model, name))

    def _take(self, donor: Any) -> set[str]:
        """Share the donor's tensors outside the layers; returns their names."""
        taken = set()
        for name, tensor in donor.state_dict(keep_vars=True).items():
            own = self._own.get(name)
            if own is None or self.place(name) != OUTSIDE or self._is_quantized(name) or own.shape != tensor.shape:
                continue
            module, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(module), leaf, tensor)
            taken.add(name)
        return taken


def _open(path: str) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Check that the directory is whole.") from error


@contextlib.contextmanager
def _layers_left_out(donor: Any) -> Iterator[list[_Source]]:
    """Inside, transformers loads only the tensors outside a model's decoder layers.

    ``from_pretrained`` decides on class, names and quantization as usual; only its last step, which reads the files, is
    replaced.
    """
    found: list[_Source] = []
    whole: Callable[..., Any] = PreTrainedModel._load_pretrained_model

    def load(
        model: Any, state_dict: dict[str, Any] | None, checkpoint_files: Sequence[str] | None, load_config: Any, *_: Any
    ) -> tuple[Any, None]:
        source = _Source(model, checkpoint_files or (), state_dict, load_config, donor)
        found.append(source)
        return source.load(OUTSIDE), None

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield found
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(whole)
