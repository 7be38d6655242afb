"""Random models of many architectures, small enough to be made on the spot, with tokenizers of both kinds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import yaml

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


def make_configuration(name: str, size: int, **more: Any) -> Any:
    """The configuration of an architecture, for a vocabulary of a size, with some other fields."""
    from transformers import AutoConfig

    architectures = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))
    values = {**SHAPE, "vocab_size": size, "pad_token_id": 4, **architectures[name], **more}
    values.pop(values.pop("without", ""), None)
    return AutoConfig.for_model(values.pop("type"), **values)


def make_model(config: Any) -> Any:
    """A random model in fp32, with norms and biases other than the initial ones."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.1 * torch.randn_like(weight))
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
