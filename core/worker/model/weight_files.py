"""Single tensors of a model's weight files, without loading the others."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from core.errors import UserError
from core.models.text_part import text_name


class WeightFiles:
    """The safetensors files of a model's directory, one or many; of a composite model by the names of its text part.

    Args:
        directory: The directory.
        prefix: What the model puts before the names of its body: ``model``. Files may have them without it.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory = directory
        self._prefix = f"{prefix}."
        self._files: dict[str, tuple[Path, str]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(str(path), framework="pt") as file:
                self._files |= {text_name(name): (path, name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor by the name of its parameter, as it lies in the file.

        Args:
            name: ``model.layers.0.self_attn.q_proj.weight``.
            shape: What it must have.

        Raises:
            UserError: If the files have none of this name and shape, as families do that store their layers fused.
        """
        for known in (name, name.removeprefix(self._prefix)):
            if known not in self._files:
                continue
            path, stored = self._files[known]
            try:
                with safe_open(str(path), framework="pt") as file:
                    tensor: torch.Tensor = file.get_tensor(stored)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} cannot be read: {error}", "Copy or fetch the weights again.") from error
            if tuple(tensor.shape) == shape:
                return tensor
        raise UserError(
            f"The weight files in {self._directory} have no {name} of {' x '.join(map(str, shape))}, which LoftQ needs "
            "in 16 bit: this model stores its layers in another way.",
            "Set method.init = default or pissa.",
        )
