"""The weights of a model as a GGUF file holds them: adapters merged, matrices quantized.

Matrices with adapters are merged and quantized by their fused layers. Embeddings and head, which have no adapters and
are tied in many models, are replaced by their values after Q8_0: exports store them in it (:data:`EMBEDDINGS`),
whatever the type of the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.errors import UserError
from core.text import one_line
from core.worker.fused.ggml_quant import GgmlType, can_quantize, fake_quantize
from core.worker.fused.lora import FusedLora, can_fuse

#: The type of embeddings and head, whatever that of the other matrices.
EMBEDDINGS: GgmlType = "Q8_0"
_HINT = "Leave method.train_for out."


class FileWeights:
    """A model that can switch between its own weights and those of a file.

    Args:
        model: A ``PeftModel`` with one adapter.
        layers: All its layers with adapters, fused.
        kind: The type of the file.
        stored: The dtype that the base's weights are rounded to before they are merged: that of the training, where the
            model is loaded in another; None for its own.

    Raises:
        UserError: If the file would round weights that no fused layer has, or keep a matrix in another type.
    """

    def __init__(
        self, model: Any, layers: Sequence[FusedLora], kind: GgmlType, stored: torch.dtype | None = None
    ) -> None:
        self.kind = kind
        self.in_use = False
        """True while the model computes with the weights of the file."""
        self._layers, self._stored = layers, stored
        causal = model.get_base_model()
        modules = (causal.get_input_embeddings(), causal.get_output_embeddings())
        found = {id(module.weight): module.weight for module in modules if module is not None}
        self._embeddings: list[torch.Tensor] = list(found.values())
        self._own: list[torch.Tensor] = []
        self._check(model)

    def _check(self, model: Any) -> None:
        known = {id(parameter) for layer in self._layers for parameter in layer.parameters()}
        known |= {id(tensor) for tensor in self._embeddings}
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and id(parameter) not in known:
                raise UserError(
                    f"method.train_for is for models of linear layers with one plain adapter each, and "
                    f"{one_line(name, 120)} is none.",
                    _HINT,
                )
        shapes = [layer.weight.shape for layer in self._layers] + [tensor.shape for tensor in self._embeddings]
        if not all(can_quantize(shape) for shape in shapes):
            raise UserError(f"The model has rows that are not whole blocks of {self.kind}.", _HINT)

    def use(self, in_use: bool, keep: torch.dtype | None = None) -> None:
        """Switch to the weights of the file, or back to the model's own.

        Args:
            in_use: True for the weights of the file.
            keep: The dtype in which merged copies are kept until the adapters change; None to keep copies only where
                dequantized ones are kept already.
        """
        if in_use == self.in_use:
            return
        self.in_use = in_use
        for layer in self._layers:
            layer.weight.train_for(self.kind if in_use else None, self._stored)
            if in_use and keep is not None:
                layer.weight.keep(keep)
        if in_use:
            self._own = [tensor.detach().to("cpu", copy=True) for tensor in self._embeddings]
            self._round_embeddings()
        else:
            self._restore_embeddings()
            self._own = []

    def changed(self) -> None:
        """Drop the merged copies: the adapters have changed."""
        for layer in self._layers:
            layer.weight.forget_merged()

    @contextlib.contextmanager
    def base_alone(self) -> Iterator[None]:
        """Restore the base's own embeddings inside, for answers without adapters; its matrices are restored by
        switching adapters off."""
        if not self.in_use:
            yield
            return
        self._restore_embeddings()
        try:
            yield
        finally:
            self._round_embeddings()

    @torch.no_grad()
    def _round_embeddings(self) -> None:
        for tensor, own in zip(self._embeddings, self._own, strict=True):
            tensor.copy_(fake_quantize(own if self._stored is None else own.to(self._stored), EMBEDDINGS))

    @torch.no_grad()
    def _restore_embeddings(self) -> None:
        for tensor, own in zip(self._embeddings, self._own, strict=True):
            tensor.copy_(own)


def use_file_weights(
    model: Any, adapter: str, kind: GgmlType, stored: torch.dtype | None, keep: torch.dtype
) -> FileWeights:
    """Let a model in evaluation mode compute with the weights of a file.

    Args:
        model: A ``PeftModel`` in evaluation mode, whose adapters do not change.
        adapter: The name of its adapter.
        kind: The type of the file.
        stored: As for :class:`FileWeights`.
        keep: The dtype of the arithmetic, in which merged matrices are kept.

    Raises:
        UserError: As :class:`FileWeights`.
    """
    layers = []
    for module in model.get_base_model().modules():
        if can_fuse(module, adapter):
            module.forward = FusedLora(module, adapter)
            layers.append(module.forward)
    weights = FileWeights(model, layers, kind, stored)
    weights.use(True, keep)
    return weights
