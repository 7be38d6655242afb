"""Loading of models trained with the weights of a file (``method.train_for``), for inference with these weights."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb

from core.models.quantization_config import read_quantization
from core.runs.catalog.trained import TrainedFile
from core.worker.fused.file_weights import FileWeights, use_file_weights
from core.worker.model.adapters import TRAINED
from core.worker.model.model import DTYPES, LoadedModel


def answer_with_file(loaded: LoadedModel, base: Path, file: TrainedFile) -> FileWeights:
    """Let a loaded model with its adapter compute with the weights of the file that it was trained for.

    Args:
        loaded: The model, in any dtype.
        base: The directory of its base.
        file: The file.

    Raises:
        UserError: If the adapter was not trained so.
    """
    trained_in = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}.get(file.dtype or "")
    # Weights saved in 4 bits are dequantized to their saved dtype, whatever the training computes in.
    method = "qlora" if any(isinstance(module, bnb.nn.Linear4bit) for module in loaded.model.modules()) else "lora"
    quantization = read_quantization(base)
    is_saved = quantization is not None and quantization.is_used_as_saved(method)
    stored = None if is_saved else trained_in
    return use_file_weights(loaded.model, TRAINED, file.type, stored, loaded.dtype)
