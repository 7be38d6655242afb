"""The sources of a loaded base: the base itself, and named adapters on it, which answer one at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from transformers.pytorch_utils import Conv1D

from core.chat.engine import ADAPTER_LIMIT
from core.chat.request import BASE, TUNED
from core.errors import UserError
from core.hardware.cpu import memory
from core.models.check import check_adapter
from core.models.fingerprint import BaseFingerprint
from core.text import one_line
from core.worker.fused.file_weights import FileWeights
from core.worker.generate.generate import PrefixCache
from core.worker.model.adapters import TRAINED, add_adapter, switched_off
from core.worker.model.model import LoadedModel

#: Share of the free host memory that the kept weights may take.
_SHARE = 0.5


@torch.no_grad()
def fold(model: Any, name: str) -> Callable[[], None] | None:
    """Fold an adapter into the weights of its base, in fp32, rounded once.

    Args:
        model: A ``PeftModel`` in evaluation mode.
        name: PEFT's name of the adapter.

    Returns:
        A function that restores the base's weights and the adapted layers, bit for bit; None where the adapter cannot
        be folded exactly, or the host has no room for the base's weights.
    """
    base = model.get_base_model()
    found = [
        (parent, child, module)
        for parent in base.modules()
        for child, module in parent.named_children()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
    ]
    layers = [module for _, _, module in found]
    if not layers or not all(_is_plain(layer, name) for layer in layers):
        return None
    weights = [layer.get_base_layer().weight for layer in layers if name in layer.lora_A]
    shared = {base.get_input_embeddings().weight.data_ptr()}
    if any(weight.data_ptr() in shared for weight in weights) or len({w.data_ptr() for w in weights}) < len(weights):
        return None
    used, total = memory()
    if sum(_copy_bytes(layer.get_base_layer()) for layer in layers if name in layer.lora_A) > _SHARE * (total - used):
        return None
    # A layer without a kept weight has its sum in a new layer.
    kept: list[torch.Tensor | None] = []
    for parent, child, layer in found:
        inner, own = layer.get_base_layer(), None
        if name in layer.lora_A:
            if isinstance(inner, bnb.nn.Linear4bit):
                inner = dequantized(inner)
            else:
                own = inner.weight.detach().to("cpu", copy=True)
            inner.weight.data.copy_(inner.weight.float() + layer.get_delta_weight(name).float())
        setattr(parent, child, inner)
        kept.append(own)

    @torch.no_grad()
    def unfold() -> None:
        for (parent, child, layer), own in zip(found, kept, strict=True):
            if own is not None:
                layer.get_base_layer().weight.data.copy_(own)
            setattr(parent, child, layer)

    return unfold


def dequantized(layer: bnb.nn.Linear4bit) -> torch.nn.Linear:
    """A plain linear layer with a 4-bit layer's weights and bias, in its compute dtype."""
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain.eval()


def _copy_bytes(layer: Any) -> int:
    """Bytes that folding a layer takes: a copy of its weights."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return int(layer.in_features * layer.out_features * layer.compute_dtype.itemsize)
    return int(layer.weight.numel() * layer.weight.element_size())


def _is_plain(layer: Any, name: str) -> bool:
    if name in getattr(layer, "lora_variant", {}) or getattr(layer, "lora_bias", {}).get(name, False):
        return False
    inner = layer.get_base_layer()
    if isinstance(inner, bnb.nn.Linear4bit):
        return inner.weight.device.type == "cpu" and inner.compute_dtype is not None
    # Exact types: subclasses may compute with their weights differently.
    return type(inner) in (torch.nn.Linear, Conv1D) and bool(inner.weight.is_floating_point())


@dataclass(frozen=True)
class _Adapter:
    peft_name: str
    said: str
    """Label of its answers."""
    template: str | None
    """The chat template of its training, instead of the model's own."""


class Sources:
    """A loaded base with its adapters.

    Args:
        loaded: The model, with or without an adapter.
        base: Its directory.
        said: Label of :data:`~core.chat.request.TUNED`: the adapter, or the trained weights.
        has_adapter: True if an adapter is loaded; else the model answers for either source.
        template: The chat template instead of the model's own.
        fingerprint: The base's fingerprint, if computed.
        file_weights: The weights of a file that the adapter was trained for.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        base: Path,
        *,
        said: str,
        has_adapter: bool,
        template: str | None,
        fingerprint: BaseFingerprint | None = None,
        file_weights: FileWeights | None = None,
    ) -> None:
        self.loaded = loaded
        self.kept = PrefixCache()
        """Keys and values of earlier turns."""
        self._model = loaded.model
        self._base, self._fingerprint, self._template = base, fingerprint, template
        self._adapters = {TUNED: _Adapter(TRAINED, said, template)} if has_adapter else {}
        # A model without an adapter is its own base, unless its weights were trained; then it has a name.
        self._said_of_base = BASE if has_adapter or said == "adapter" else said
        self._numbers = itertools.count(1)
        self._unfold_weights: Callable[[], None] | None = None
        self._file_weights = file_weights

    def fold(self) -> None:
        """Fold a single adapter into the weights where possible: decoding is then as fast as the base's. The first
        request for another source unfolds it for good, so that switching costs nothing."""
        is_single = len(self._adapters) == 1 and len(self._model.peft_config) == 1
        if is_single and self._unfold_weights is None and self._file_weights is None:
            self._unfold_weights = fold(self._model, next(iter(self._adapters.values())).peft_name)
            self.kept.forget()

    def said_of(self, source: str) -> str:
        """The label of a source's answers.

        Raises:
            UserError: If there is no such source.
        """
        adapter = self._find(source)
        return adapter.said if adapter is not None else self._said_of_base

    def template_of(self, source: str) -> str | None:
        """The chat template of a source."""
        adapter = self._find(source)
        return adapter.template if adapter is not None else self._template

    def add(self, name: str, directory: Path, *, said: str, template: str | None, base_sha256: str | None) -> None:
        """Load a further adapter onto the base.

        Args:
            name: Name of the new source.
            directory: In PEFT's format.
            said: Label of its answers.
            template: The chat template of its training.
            base_sha256: The fingerprint of the base that it was trained on; None where unknown.

        Raises:
            UserError: If it is for another base, does not fit, or there are too many.
        """
        if name in self._adapters:
            return
        if len(self._adapters) >= ADAPTER_LIMIT:
            raise UserError(f"{ADAPTER_LIMIT} adapters are loaded on this base.", "Open it by itself.")
        if self._said_of_base != BASE:
            raise UserError(
                f"The weights of {self._said_of_base} were trained themselves, so no adapter of another run fits them.",
                "Open the other one by itself.",
            )
        check_adapter(directory, self._base)
        if base_sha256 is not None:
            self._fingerprint = self._fingerprint or BaseFingerprint(self._base)
            self._fingerprint.settle()
            if not self._fingerprint.matches(base_sha256):
                raise UserError(
                    f"{one_line(name, 200)} was trained on another base model than {self._base.name}, or that has "
                    "changed since.",
                    "Open it by itself, on its own base.",
                )
        self._unfold()
        peft_name = f"source_{next(self._numbers)}" if hasattr(self._model, "peft_config") else TRAINED
        self._model = add_adapter(self._model, directory, peft_name)
        self._model.eval()
        # Loading repacks 4-bit weights on some CPUs, which then compute slightly differently.
        self.kept.forget()
        self._adapters[name] = _Adapter(peft_name, said, template)

    def remove(self, name: str) -> None:
        """Unload an adapter; the model's first one stays."""
        if name == TUNED or name not in self._adapters:
            return
        self._unfold()
        self.kept.forget(name)
        if len(self._adapters) == 1:
            # PEFT keeps at least one adapter; it costs little, and is no longer reachable by name.
            del self._adapters[name]
            return
        adapter = self._adapters.pop(name)
        self._model.set_adapter(next(iter(self._adapters.values())).peft_name)
        self._model.delete_adapter(adapter.peft_name)

    @contextlib.contextmanager
    def answering(self, source: str) -> Iterator[Any]:
        """The model answers as a source inside.

        Yields:
            The model.

        Raises:
            UserError: If there is no such source.
        """
        adapter = self._find(source)
        if not hasattr(self._model, "disable_adapter"):
            yield self._model
        elif adapter is None:
            self._unfold()
            with self._weights_of(source), switched_off(self._model):
                yield self._model
        else:
            if self._model.active_adapters != [adapter.peft_name]:
                self._model.set_adapter(adapter.peft_name)
            with self._weights_of(source):
                yield self._model

    def _weights_of(self, source: str) -> contextlib.AbstractContextManager[None]:
        """The weights of the file for the adapter trained with them, the base's own for all others."""
        if self._file_weights is None or (source == TUNED and TUNED in self._adapters):
            return contextlib.nullcontext()
        return self._file_weights.base_alone()

    def _unfold(self) -> None:
        if self._unfold_weights is not None:
            self._unfold_weights()
            self._unfold_weights = None
            self.kept.forget()

    def _find(self, source: str) -> _Adapter | None:
        """The adapter of a source; None for the base."""
        if source == BASE or (source == TUNED and TUNED not in self._adapters):
            return None
        if source not in self._adapters:
            raise UserError(
                f"There is no source {one_line(source, 120)} here.", f"There are {', '.join([BASE, *self._adapters])}."
            )
        return self._adapters[source]
