"""Single tensors of a model's weight files, without loading the others."""

from __future__ import annotations

from pathlib import Path

import torch

from core.errors import UserError
from core.models.text_part import text_name
from core.worker.model.decode.checkpoint import Checkpoint


class WeightFiles:
    """The 16-bit weights in the files of a model's directory; quantized ones are decoded. Those of a composite model go
    by the names of its text part.

    Args:
        directory: The directory.
        prefix: What the model puts before the names of its body: ``model``. Files may have them without it.

    Raises:
        UserError: If they cannot be read, or the weights are saved as QLoRA uses them, so that there are no others.
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
        """A tensor by the name of its parameter, as it lies in the file or as it is decoded.

        Args:
            name: ``model.layers.0.self_attn.q_proj.weight``.
            shape: What it must have.

        Raises:
            UserError: If the files have none of this name and shape, as families do that store their layers fused.
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
