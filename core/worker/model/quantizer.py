"""The quantizer for 4-bit models: bitsandbytes' own in transformers, with our choice of the layers that stay in 16 bit.

It replaces transformers' class in its table of quantizers, so that ``from_pretrained``, PEFT and everything else that
asks a model for its quantization see bitsandbytes as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from core.config.sixteen_bit import stays_16bit


def four_bit_config(dtype: torch.dtype, keep: Sequence[str] = ()) -> BitsAndBytesConfig:
    """Configuration for NF4 with double quantization.

    Args:
        dtype: Of the arithmetic.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(keep) or None,
    )


class FourBitQuantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Quantizer for NF4; entries of ``llm_int8_skip_modules`` are patterns as of ``method.target_modules``."""

    def get_modules_to_not_convert(
        self, model: Any, skip_modules: list[str] | None = None, keep_in_fp32_modules: list[str] | None = None
    ) -> list[str]:
        """Names of the modules that stay as they are: head and tied embeddings, routers, and those asked for."""
        if self.pre_quantized:
            # The saved configuration names the layers that were left out, in transformers' own way.
            return list(super().get_modules_to_not_convert(model, skip_modules, keep_in_fp32_modules))
        kept = [
            name
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and stays_16bit(name, skip_modules or ())
        ]
        return sorted({*get_keys_to_not_convert(model), *kept, *(keep_in_fp32_modules or ())})


def install() -> None:
    """Have transformers quantize with :class:`FourBitQuantizer` from now on."""
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = FourBitQuantizer
