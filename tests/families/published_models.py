"""Published models that people tune: their configurations, and their numbers of parameters as the hub shows them.

``published/SOURCES.md`` has the source of every file and number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Published:
    """A published model.

    Args:
        parameters: The number of elements that the hub shows for it; None where none was found.
        unloaded: How many of them transformers does not load: layers for multi-token prediction, key and value
            projections of layers that use another layer's, scales of FP8.
        loaded: The number that transformers loads, where no published number was found; agrees with its name.
        text: The number of its text part as transformers builds it, where there are towers for images or sound.
    """

    parameters: int | None
    unloaded: int = 0
    loaded: int | None = None
    text: int | None = None

    @property
    def built(self) -> int:
        """Parameters of the model that transformers builds from the configuration."""
        if self.parameters is not None:
            return self.parameters - self.unloaded
        assert self.loaded is not None
        return self.loaded


PUBLISHED: dict[str, Published] = {
    "Qwen3.5-4B": Published(4_659_865_088, 120_599_552, text=4_205_751_296),
    "Qwen3.5-9B": Published(9_653_104_368, 243_290_624, text=8_953_803_264),
    "Qwen3.5-27B": Published(27_781_427_952, 424_699_392, text=26_895_998_464),
    "Qwen3.6-27B": Published(27_781_427_952, 424_699_392, text=26_895_998_464),
    "Qwen3.5-35B-A3B": Published(35_951_822_704, 844_640_768, text=34_660_610_688),
    "Qwen3.6-35B-A3B": Published(35_951_822_704, 844_640_768, text=34_660_610_688),
    "Qwen3-30B-A3B": Published(30_532_122_624),
    "Qwen3-4B": Published(4_022_468_096),
    "Qwen3-8B": Published(8_190_735_360),
    "Qwen3-14B": Published(None, loaded=14_768_307_200),
    "Qwen3-32B": Published(32_762_123_264),
    "Gemma-4-E2B": Published(5_123_178_051, 18_880_512, text=4_628_569_379),
    "Gemma-4-E4B": Published(7_996_156_490, 55_055_616, text=7_463_013_418),
    "Gemma-4-12B": Published(11_959_730_224, text=11_907_350_320),
    "Gemma-4-31B": Published(31_273_088_876, text=30_697_345_340),
    "Gemma-4-26B-A4B": Published(25_805_936_206, text=25_233_141_790),
    "Gemma-3-4B": Published(4_300_079_472, text=3_880_263_168),
    "Gemma-3-12B": Published(12_187_325_040, text=11_766_034_176),
    "Gemma-3-27B": Published(27_432_406_640, text=27_009_346_304),
    "gpt-oss-20b": Published(20_914_757_184),
    "Ministral-3-3B": Published(3_849_090_048, text=3_429_006_336),
    "Ministral-3-8B": Published(8_918_026_716, 476, text=8_489_553_920),
    "Ministral-3-14B": Published(13_945_032_240, 560, text=13_506_073_600),
    "Mistral-Small-3.2-24B": Published(24_011_361_280, text=23_572_403_200),
    "GLM-4.7-Flash": Published(None, loaded=29_943_393_920),
    "Llama-3.1-8B": Published(8_030_261_248),
    "Llama-3.2-1B": Published(1_235_814_400),
    "Llama-3.2-3B": Published(3_212_749_824),
    "Phi-4": Published(14_659_507_200),
    "Phi-4-mini": Published(3_836_021_760),
    "SmolLM3-3B": Published(3_075_098_624),
    "LFM2-1.2B": Published(None, loaded=1_170_340_608),
    "LFM2-2.6B": Published(2_569_272_320),
    "LFM2-8B-A1B": Published(None, loaded=8_339_930_560),
    "Olmo-3-7B": Published(7_298_011_136),
    "Olmo-3-32B": Published(32_233_522_176),
    "Granite-3.3-2B": Published(2_533_539_840),
    "Granite-3.3-8B": Published(8_170_864_640),
    "Granite-4.0-Micro": Published(3_402_836_480),
    "Granite-4.0-H-Tiny": Published(None, loaded=6_939_037_248),
    "Granite-4.0-H-Small": Published(None, loaded=32_207_337_984),
}


def published_config(name: str) -> dict[str, Any]:
    """The configuration of a published model, as far as it decides shapes and positions."""
    config: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return config
