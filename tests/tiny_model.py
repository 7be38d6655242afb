"""A model small enough to be made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: ChatML, as many small models have it, without a default system prompt.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_byte_level(corpus: Sequence[str], specials: Sequence[str], size: int) -> Any:
    """A byte-level BPE tokenizer, as GPT-2's: a ``tokenizers.Tokenizer``.

    Args:
        corpus: Texts that its merges are made from.
        specials: Its special tokens, which have the first ids.
        size: The most tokens that it has.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[AddedToken(token, special=True) for token in specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def write_tiny_model(directory: Path) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and ChatML, as a directory of safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    corpus = ["the ticket area urgency normal high low ref null user assistant system"] * 4
    backend = train_byte_level(corpus, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 320)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    ).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_tiny_adapter(
    base: Path, directory: Path, *, seed: int = 3, rank: int = 4, alpha: int = 64, std: float = 0.2
) -> Path:
    """An adapter with random factors on all linear layers, in PEFT's format, which changes the base's answers.

    Args:
        base: The base model.
        directory: Where it goes.
        seed: The seed of its factors.
        rank: Its rank.
        alpha: Its alpha.
        std: The standard deviation of its factors B, which would be zeros at the beginning of a training.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(str(directory))
    return directory
