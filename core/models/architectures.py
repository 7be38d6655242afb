"""Model classes: whether a ``config.json`` describes a causal language model.

``model_type`` does not suffice: transformers builds a decoder from a BERT on request, with an untrained head. The class
that the weights were saved from decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import one_line

_ENCODERS = frozenset(
    [
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2"),
        *("distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "funnel", "ibert", "layoutlm"),
        *("layoutlmv2", "layoutlmv3", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert"),
        *("mpnet", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
        *("squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod", "nomic_bert"),
    ]
)
_ENCODER_DECODERS = frozenset(
    [
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led"),
        *("longt5", "m2m_100", "marian", "mbart", "mt5", "nllb-moe", "pegasus", "pegasus_x", "plbart"),
        *("prophetnet", "seamless_m4t", "seamless_m4t_v2", "speech_to_text", "switch_transformers", "t5"),
        *("t5gemma", "udop", "umt5", "whisper"),
    ]
)
_VISION = (
    *("beit", "convnext", "convnextv2", "deit", "detr", "dinov2", "efficientnet", "mobilevit", "resnet", "sam"),
    *("segformer", "swin", "swinv2", "vit", "vit_mae", "yolos"),
)
_CAPTIONS = ("align", "blip", "chinese_clip", "clip", "clipseg", "siglip", "siglip2")
_AUDIO = ("audio-spectrogram-transformer", "hubert", "unispeech", "wav2vec2", "wav2vec2-bert", "wavlm")
_OTHERS = {
    **dict.fromkeys(_VISION, "a vision model"),
    **dict.fromkeys(_CAPTIONS, "a model of images and their captions"),
    **dict.fromkeys(_AUDIO, "an audio model"),
}
#: Suffixes of class names, to the task of such a model instead of generating text.
_HEADS = {
    "ForMaskedLM": "it fills in masked words",
    "ForPreTraining": "it fills in masked words",
    "ForSequenceClassification": "it classifies texts",
    "ForTokenClassification": "it labels tokens",
    "ForQuestionAnswering": "it marks answers in texts",
    "ForMultipleChoice": "it chooses among answers",
    "ForImageClassification": "it classifies images",
    "ForObjectDetection": "it finds objects in images",
    "ForSemanticSegmentation": "it segments images",
    "ForAudioClassification": "it classifies sound",
    "ForCTC": "it transcribes sound",
    "ForMaskedImageModeling": "it fills in images",
}
_CHOOSE = "Choose a causal language model: one whose config.json names an architecture that ends with ForCausalLM."


def check_architecture(config: Mapping[str, Any], directory: Path) -> None:
    """Check that a ``config.json`` describes a causal language model, as far as it says so itself.

    Args:
        config: Its content.
        directory: Name of the model in messages.

    Raises:
        UserError: If not.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise UserError(
            f"{directory / 'config.json'} has no model_type, so its architecture is not known.",
            "Copy the model's own config.json; those of other formats (Mistral's params.json, GGML) do not do.",
        )
    named = config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    shown = f"{directory} is {{}} ({one_line(names[0] if names else family, 60)}), not a causal language model{{}}."
    if config.get("is_encoder_decoder") is True or (family in _ENCODER_DECODERS and not writes):
        raise UserError(shown.format("an encoder-decoder", ""), _CHOOSE)
    if family in _OTHERS:
        raise UserError(shown.format(_OTHERS[family], ""), _CHOOSE)
    if family in _ENCODERS and not (writes and config.get("is_decoder") is True):
        raise UserError(shown.format("an encoder", ""), _CHOOSE)
    does = next((does for name in names for end, does in _HEADS.items() if name.endswith(end)), None)
    # GPT-2's class for pretraining is the one that generates text.
    if does is not None and not writes and not (family.startswith("gpt") and names[0].endswith("ForPreTraining")):
        raise UserError(shown.format(f"a {one_line(family, 40)} with another head", f": {does}"), _CHOOSE)
