"""Loading of a quantized checkpoint as if its files were 16 bit: ``from_pretrained`` gets tensors that decode
themselves on access.

transformers reads them one by one and puts each into the model before the next, with QLoRA through the quantizer, so
the whole 16-bit model exists only where it was asked for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from core.models.quantization_config import read_quantization
from core.models.tensors import Tensor
from core.worker.model.completeness import reading_in_turn
from core.worker.model.decode.checkpoint import Checkpoint
from core.worker.model.support import load_generation_config


class _Slice:
    """A tensor of a checkpoint that is read when it is indexed, as safetensors' own slices are.

    Args:
        checkpoint: The files.
        name: The tensor's.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint = checkpoint
        self._name = name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._checkpoint.read(self._name)[index]

    def get_shape(self) -> list[int]:
        """Its dimensions."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Its dtype, in the names of safetensors."""
        return self._tensor.dtype

    @property
    def _tensor(self) -> Tensor:
        return self._checkpoint.tensor(self._name)


def is_decoded(base: Path, method: str) -> bool:
    """True if a base's weights are decoded for a method, rather than read as they are.

    Args:
        base: The directory.
        method: As ``method.name``.
    """
    quantization = read_quantization(base)
    return quantization is not None and quantization.is_decoded and not quantization.is_used_as_saved(method)


def without_quantization(config: Any) -> Any:
    """A copy of a transformers configuration without its quantization.

    Args:
        config: A ``PretrainedConfig``.
    """
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return plain


@contextlib.contextmanager
def weights_source(
    base: Path, config: Any, method: str, device: torch.device | None = None
) -> Iterator[dict[str, Any]]:
    """The arguments by which ``from_pretrained`` loads a base decoded; to be called inside the context.

    Args:
        base: The directory.
        config: Its configuration, for the class that is loaded.
        method: As ``method.name``.
        device: Device of the weights and their decoding; None for the CPU.

    Yields:
        ``pretrained_model_name_or_path``, which is None, ``config``, ``state_dict``, and ``generation_config``, which
        transformers reads from directories only; an empty dictionary where the files are read as they are.

    Raises:
        UserError: If the weights cannot be decoded.
    """
    if not is_decoded(base, method):
        yield {}
        return
    checkpoint = Checkpoint(base, device)
    with reading_in_turn():
        yield {
            "pretrained_model_name_or_path": None,
            "config": without_quantization(config),
            "state_dict": {name: _Slice(checkpoint, name) for name in checkpoint},
            "generation_config": load_generation_config(base),
        }


def concrete_class(loader: Any, config: Any) -> Any:
    """The model class that a transformers ``Auto`` class resolves to; the ``Auto`` class itself needs a directory.

    Args:
        loader: ``AutoModelForCausalLM`` or another ``Auto`` class.
        config: The model's configuration.
    """
    with torch.device("meta"):
        return type(loader.from_config(config, trust_remote_code=False))
