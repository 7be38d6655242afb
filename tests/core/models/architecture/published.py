"""Published models: their ``config.json``, as far as it decides shapes, and their numbers of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def __getattr__(name: str) -> dict[str, Any]:
    """A model's ``config.json`` as an attribute: ``LLAMA_3_8B``."""
    try:
        return _CONFIGS[name]
    except KeyError:
        raise AttributeError(name) from None


#: The exact number of parameters, as the models' cards or checkpoints have it.
PARAMETERS: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3-8B": (_CONFIGS["LLAMA_3_8B"], 8_030_261_248),
    "Llama-2-7B": (_CONFIGS["LLAMA_2_7B"], 6_738_415_616),
    "Llama-2-13B": (_CONFIGS["LLAMA_2_13B"], 13_015_864_320),
    "Qwen2.5-0.5B": (_CONFIGS["QWEN_2_5_05B"], 494_032_768),
    "Qwen2.5-7B": (_CONFIGS["QWEN_2_5_7B"], 7_615_616_512),
    "Qwen2.5-14B": (_CONFIGS["QWEN_2_5_14B"], 14_770_033_664),
    "Qwen2.5-32B": (_CONFIGS["QWEN_2_5_32B"], 32_763_876_352),
    "Qwen3-4B": (_CONFIGS["QWEN_3_4B"], 4_022_468_096),
    "Qwen3-8B": (_CONFIGS["QWEN_3_8B"], 8_190_735_360),
    "Qwen3-30B-A3B": (_CONFIGS["QWEN_3_30B_A3B"], 30_532_122_624),
    "Qwen1.5-MoE-A2.7B": (_CONFIGS["QWEN_1_5_MOE"], 14_315_784_192),
    "Mistral-7B": (_CONFIGS["MISTRAL_7B"], 7_241_732_096),
    "Mixtral-8x7B": (_CONFIGS["MIXTRAL_8X7B"], 46_702_792_704),
    "Gemma-2-9B": (_CONFIGS["GEMMA_2_9B"], 9_241_705_984),
    "Gemma-3-4B": (_CONFIGS["GEMMA_3_4B"], 3_880_263_168),
    "Gemma-3-4B, terse": (_CONFIGS["GEMMA_3_4B_TERSE"], 3_880_263_168),
    "Gemma-3-4B, text": (_CONFIGS["GEMMA_3_4B"]["text_config"], 3_880_263_168),
    "Gemma-3-1B": (_CONFIGS["GEMMA_3_1B"], 999_885_952),
    "Phi-3-mini": (_CONFIGS["PHI_3_MINI"], 3_821_079_552),
    "Phi-4": (_CONFIGS["PHI_4"], 14_659_507_200),
    "Phi-4-mini": (_CONFIGS["PHI_4_MINI"], 3_836_021_760),
    "Llama-3.2-1B": (_CONFIGS["LLAMA_3_2_1B"], 1_235_814_400),
    "Qwen2-7B": (_CONFIGS["QWEN_2_7B"], 7_615_616_512),
    "gpt-oss-20b": (_CONFIGS["GPT_OSS_20B"], 20_914_757_184),
    "DeepSeek-V2-Lite": (_CONFIGS["DEEPSEEK_V2_LITE"], 15_706_484_224),
    "DeepSeek-V3": (_CONFIGS["DEEPSEEK_V3"], 671_026_419_200),
    "SmolLM3-3B": (_CONFIGS["SMOLLM3_3B"], 3_075_098_624),
    "SmolLM2-135M": (_CONFIGS["SMOLLM2_135M"], 134_515_008),
    "GPT-2": (_CONFIGS["GPT_2"], 124_439_808),
    "GPT-NeoX-20B": (_CONFIGS["GPT_NEOX_20B"], 20_554_567_680),
    "Pythia-160M": (_CONFIGS["PYTHIA_160M"], 162_322_944),
}
