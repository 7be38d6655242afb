"""Random models of many architectures, small enough to be made on the spot, with tokenizers of both kinds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.families.tiny import SHAPE
from tests.tiny_model import CHATML, train_byte_level

#: Text that the tokenizers are made from.
CORPUS = [
    "the ticket area urgency normal high low ref null user assistant system",
    "It's a naïve question: how many tokens are in 1234567 and 3.14?",
    "Größe und Maß, façade, кот, 日本語のテキスト, emoji 🙂",
    "def f(x):\n    return x + 1\n",
] * 8
#: Texts whose tokens are compared, as a template would write them.
TEXTS = (
    "<|im_start|>user\nHello  World, it's naïve: 1234567!<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n  日本語 кот\t🙂\n\n\nx<|im_end|>\n<|im_start|>assistant\nGröße<|im_end|>\n",
)
_SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def save_byte_level(directory: Path) -> None:
    """A byte-level tokenizer, as GPT-2's."""
    _save(directory, train_byte_level(CORPUS, _SPECIALS, 400))


def train_sentencepiece() -> bytes:
    """A tokenizer of SentencePiece, as the content of its ``tokenizer.model``."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=0.99,
        user_defined_symbols=list(_SPECIALS[3:]),
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return written.getvalue()


def save_sentencepiece(directory: Path, model: bytes, *, keep: bool, prefix: bool) -> None:
    """The same as ``tokenizer.json``, which transformers saves.

    Args:
        directory: Where to.
        model: The content of a ``tokenizer.model``.
        keep: Whether that is saved as well.
        prefix: Whether a space comes before each piece of text, as with Llama 2.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    pieces = SentencePieceProcessor(model_proto=model)
    texts = [pieces.id_to_piece(number) for number in range(pieces.vocab_size())]
    numbers = {text: number for number, text in enumerate(texts)}
    merges = [
        (pieces.get_score(number), numbers[text[:cut]], text[:cut], text[cut:])
        for number, text in enumerate(texts)
        if text not in _SPECIALS and not pieces.is_byte(number)
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    ]
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    backend = Tokenizer(
        models.BPE(
            numbers,
            [(first, second) for _, _, first, second in merges],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    blanks = normalizers.Replace(" ", "\u2581")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks]) if prefix else blanks
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIALS])
    _save(directory, backend)
    if keep:
        (directory / "tokenizer.model").write_bytes(model)


def _save(directory: Path, backend: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)


def make_configurations() -> dict[str, Callable[[int], Any]]:
    """Configurations by name, given the size of a vocabulary."""
    import transformers as t

    def base(size: int, **further: Any) -> dict[str, Any]:
        return {**SHAPE, "vocab_size": size, "pad_token_id": 4, **further}

    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    latent = {
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
    }
    routed = {
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
    }
    return {
        "llama": lambda size: t.LlamaConfig(**base(size)),
        "llama3-rope": lambda size: t.LlamaConfig(**base(size), rope_parameters=llama3),
        "mistral": lambda size: t.MistralConfig(**base(size), head_dim=32, sliding_window=256),
        "mixtral": lambda size: t.MixtralConfig(**base(size), num_local_experts=4, num_experts_per_tok=2),
        "qwen2": lambda size: t.Qwen2Config(**base(size), tie_word_embeddings=True),
        "qwen3": lambda size: t.Qwen3Config(**base(size), head_dim=32, tie_word_embeddings=True),
        "qwen3-moe": lambda size: t.Qwen3MoeConfig(
            **base(size),
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            norm_topk_prob=True,
        ),
        "qwen2-moe": lambda size: t.Qwen2MoeConfig(
            **base(size, num_key_value_heads=4),
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
        ),
        "lfm2-moe": lambda size: t.Lfm2MoeConfig(
            **base(size, num_hidden_layers=3),
            layer_types=["conv", "conv", "full_attention"],
            num_dense_layers=1,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        "gpt-oss": lambda size: t.GptOssConfig(
            **base(size), head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=32
        ),
        "deepseek-v2": lambda size: t.DeepseekV2Config(**base(size, num_key_value_heads=4), **latent, **routed),
        "deepseek-v3": lambda size: t.DeepseekV3Config(
            **base(size, num_key_value_heads=4), **latent, **routed, n_group=1, topk_group=1, norm_topk_prob=False
        ),
        "dots1": lambda size: t.Dots1Config(
            **base(size, num_key_value_heads=4), **routed, n_group=1, topk_group=1, norm_topk_prob=True
        ),
        "olmo2": lambda size: t.Olmo2Config(**base(size)),
        "granite": lambda size: t.GraniteConfig(
            **base(size), embedding_multiplier=2.0, logits_scaling=3.0, residual_multiplier=0.5
        ),
        "smollm3": lambda size: t.SmolLM3Config(**base(size)),
        "phi3": lambda size: t.Phi3Config(**base(size)),
        "gemma": lambda size: t.GemmaConfig(**base(size), head_dim=16),
        "gemma2": lambda size: t.Gemma2Config(**base(size), head_dim=16, query_pre_attn_scalar=16, sliding_window=128),
        "gemma3": lambda size: t.Gemma3TextConfig(
            **base(size, num_hidden_layers=6), head_dim=16, query_pre_attn_scalar=16, sliding_window=128
        ),
        "cohere": lambda size: t.CohereConfig(**base(size)),
        "gpt-neox": lambda size: t.GPTNeoXConfig(
            **{name: value for name, value in base(size).items() if name != "num_key_value_heads"}
        ),
        "starcoder2": lambda size: t.Starcoder2Config(**base(size), sliding_window=None),
        "stablelm": lambda size: t.StableLmConfig(**base(size)),
        "olmoe": lambda size: t.OlmoeConfig(**base(size, num_key_value_heads=4), num_experts=4, num_experts_per_tok=2),
        "seed-oss": lambda size: t.SeedOssConfig(**base(size), head_dim=16),
        "lfm2": lambda size: t.Lfm2Config(**base(size), layer_types=["conv", "full_attention"]),
    }


def make_model(config: Any, *, seed: int = 0, spread: float = 0.1) -> Any:
    """A random model in fp32, with norms and biases other than the initial ones.

    Args:
        config: Its configuration.
        seed: Of the weights.
        spread: Of the norms.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(spread * torch.randn_like(weight))
            elif weight.dim() >= 2:
                weight.mul_(3)
            else:
                weight.copy_(0.1 * torch.randn_like(weight))
    return model.eval()


def vocabulary_size(directory: Path) -> int:
    """The tokens of a directory's tokenizer."""
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    numbers: list[int] = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    return max(numbers) + 1
