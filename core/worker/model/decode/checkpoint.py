"""The weight files of a model, read tensor by tensor, decoded where they are quantized.

Everything that reads weights uses it: loading, LoftQ, merging. It presents the names, shapes and values of the 16-bit
model. Nothing is cached, so a caller that reads tensors in turn holds one at a time. Experts stored fused, as in
gpt-oss, are a single tensor per layer.

:func:`weights_source` lets ``from_pretrained`` load a quantized checkpoint as if its files were 16 bit, from tensors
that decode themselves on access. transformers reads them one by one and puts each into the model before the next, with
QLoRA through the quantizer, so the whole 16-bit model exists only where it was asked for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.errors import UserError
from core.models.description import read_quantization
from core.models.tensors import Encoded, Tensor, read_decoded, read_header, weight_files
from core.text import one_line
from core.worker.model.completeness import reading_in_turn
from core.worker.model.decode.formats import DECODERS, decode_mxfp4_experts
from core.worker.model.safetensors_io import DTYPES
from core.worker.model.support import load_generation_config


class Checkpoint:
    """The tensors of a model's weight files.

    Args:
        directory: The model's.
        device: Device on which tensors are decoded; stored parts are moved there first.

    Raises:
        UserError: If its files are missing or damaged, or quantized in an unsupported way.
    """

    def __init__(self, directory: Path, device: torch.device | None = None) -> None:
        self.directory = directory
        self._device = device
        self.quantization = read_quantization(directory)
        weights = read_decoded(directory)
        #: Quantized tensors, by their names.
        self.encoded = weights.encoded
        self._places = {name: path for path in weight_files(directory) for name in read_header(path)}
        #: The decoded model's tensors in each file; a decoded tensor belongs to the file of its elements.
        self.files: dict[Path, dict[str, Tensor]] = {path: {} for path in weight_files(directory)}
        for name, tensor in weights.tensors.items():
            self.files[self._place(name)][name] = tensor
        self._open: dict[Path, Any] = {}

    def _place(self, name: str) -> Path:
        encoded = self.encoded.get(name)
        return self._places[name if encoded is None else encoded.parts["weight"]]

    def __contains__(self, name: object) -> bool:
        return name in self.encoded or (isinstance(name, str) and name in self._places)

    def __iter__(self) -> Iterator[str]:
        return (name for tensors in self.files.values() for name in tensors)

    def tensor(self, name: str) -> Tensor:
        """Dtype and shape of a tensor once decoded."""
        return self.files[self._place(name)][name]

    def read(self, name: str) -> torch.Tensor:
        """A tensor: a stored one on the CPU, a decoded one in 16 bits on the device of its decoding.

        Raises:
            UserError: If it cannot be read or decoded.
        """
        encoded = self.encoded.get(name)
        if encoded is None:
            return self._load(name)
        try:
            decoded = self._decode(encoded)
        except (RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:
            raise self._undecodable(name, str(error)) from error
        if tuple(decoded.shape) != encoded.tensor.shape:
            raise self._undecodable(name, f"it comes out as {' x '.join(map(str, decoded.shape))}")
        if decoded.dtype == torch.float16 and not bool(decoded.isfinite().all()):
            raise self._undecodable(name, "it has numbers beyond the range of float16")
        return decoded

    def _decode(self, encoded: Encoded) -> torch.Tensor:
        dtype = DTYPES[encoded.tensor.dtype]
        parts = encoded.parts
        if encoded.codec == "mxfp4":
            return decode_mxfp4_experts(
                lambda number: (self._slice(parts["weight"], number), self._slice(parts["scale"], number)),
                encoded.tensor.shape,
                dtype,
            )
        loaded = {role: self._there(self._load(part)) for role, part in parts.items()}
        return DECODERS[encoded.codec](encoded, loaded, dtype)

    def _load(self, part: str) -> torch.Tensor:
        try:
            found: torch.Tensor = self._file(part).get_tensor(part)
        except (OSError, SafetensorError) as error:
            raise self._unreadable(part, error) from error
        return found

    def _there(self, part: torch.Tensor) -> torch.Tensor:
        return part if self._device is None else part.to(self._device)

    def _slice(self, part: str, number: int) -> torch.Tensor:
        try:
            found: torch.Tensor = self._file(part).get_slice(part)[number]
        except (OSError, SafetensorError) as error:
            raise self._unreadable(part, error) from error
        return self._there(found)

    def _file(self, part: str) -> Any:
        """The file of a part, opened once: a header with thousands of experts takes a while to read."""
        path = self._places[part]
        if path not in self._open:
            self._open[path] = safe_open(str(path), framework="pt")
        return self._open[path]

    def _unreadable(self, part: str, error: Exception) -> UserError:
        return UserError(f"{self._places[part]} cannot be read: {error}", "Check that the directory is whole.")

    def _undecodable(self, name: str, why: str) -> UserError:
        method = self.quantization.name if self.quantization is not None else "quantized"
        why = one_line(why.strip().partition("\n")[0], 200).rstrip(".")
        return UserError(
            f"{one_line(name, 120)} in {self.directory} cannot be decoded ({method}): {why}.",
            "Copy or fetch the weights again, or take the model as it was before it was quantized.",
        )


# Loading by transformers.


@dataclass(frozen=True)
class _Slice:
    """A tensor of a checkpoint that is read when it is indexed, as safetensors' own slices are."""

    checkpoint: Checkpoint
    name: str

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.checkpoint.read(self.name)[index]

    def get_shape(self) -> list[int]:
        """Its dimensions."""
        return list(self.checkpoint.tensor(self.name).shape)

    def get_dtype(self) -> str:
        """Its dtype, in the names of safetensors."""
        return self.checkpoint.tensor(self.name).dtype


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
