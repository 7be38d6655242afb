"""Round trips in a process of their own: ``python -m …round_trips DIRECTORY CONVERTER NAME…``.

A random model of each architecture goes through transformers, the converter and llama.cpp; a line of JSON tells what
came out. In one process, as most of the time would go to imports.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.jobs.process import Answers
from core.worker.export.gguf.adapter import convert_adapter
from core.worker.export.gguf.convert import convert
from core.worker.export.gguf.converter import check_model
from core.worker.export.gguf.write import GgufOptions, conversion_job, own_templates, stage
from core.worker.export.llama.model import GgufModel
from core.worker.export.verify.compare import Figures, Place
from tests.core.worker.export.gguf import random_models

#: Architectures with a tokenizer of SentencePiece's kind; whether its ``tokenizer.model`` is with the model, with the
#: base, or nowhere.
SENTENCEPIECE = {"mistral": "model", "phi3": "base", "gemma": "base", "gemma2": "nowhere", "gemma3": "nowhere"}


PREFIXED = ("mistral", "phi3")
#: Architectures with an adapter, and PEFT's settings for it.
ADAPTERS: dict[str, dict[str, Any]] = {
    "llama": {"use_rslora": True},
    "qwen3": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "mistral": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "phi3": {"use_rslora": True, "rank_pattern": {"qkv_proj": 8}},
    "gpt-neox": {"target_modules": ["query_key_value", "dense_h_to_4h"]},
}


def largest_difference(wanted: Iterable[Any], found: Iterable[Any]) -> float:
    """Between logits at the same places."""
    figures = Figures()
    for first, second in zip(wanted, found, strict=True):
        figures.add(Place(first), Place(second))
    return figures.delta


def adapter_deltas(
    model: Any,
    directory: Path,
    target: Path,
    converter: Path,
    ids: list[int],
    settings: dict[str, Any],
    report: Answers,
) -> dict[str, float]:
    """How far llama.cpp is from PEFT with an adapter, and PEFT from the base."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    with torch.no_grad():
        base = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
        reference = adapted(input_ids=torch.tensor([ids])).logits[0].numpy()
    adapted.save_pretrained(directory / "adapter")
    written = directory / "adapter.gguf"
    job = {"converter": str(converter), "adapter": str(directory / "adapter"), "target": str(written)}
    convert_adapter({**job, "base": str(directory / "staged")}, report)
    found = GgufModel(target, written, exact=True).logits(ids, range(len(ids)))
    return {
        "adapter_delta": largest_difference(reference, found),
        "adapter_effect": largest_difference(reference, base),
    }


def round_trip(name: str, directory: Path, converter: Path, pieces: bytes, report: Answers) -> dict[str, Any]:
    """The result for an architecture."""
    import torch
    from tokenizers import Tokenizer

    model_directory, base = directory / "model", directory / "base"
    base.mkdir(parents=True)
    if place := SENTENCEPIECE.get(name):
        random_models.save_sentencepiece(model_directory, pieces, keep=place == "model", prefix=name in PREFIXED)
        if place == "base":
            (base / "tokenizer.model").write_bytes(pieces)
    else:
        random_models.save_byte_level(model_directory)
    size = random_models.vocabulary_size(model_directory)
    model = random_models.make_model(random_models.make_configuration(name, size))
    model.save_pretrained(model_directory)
    check_model(model_directory, converter)
    template, _ = own_templates(model_directory)
    options = GgufOptions(template=template, stops=(4,), base=base)
    staged, target = directory / "staged", directory / "model.gguf"
    staged.mkdir()
    stage(model_directory, options, staged)
    convert(conversion_job(staged, target, "F32", options, converter), report)
    tokenizer = Tokenizer.from_file(str(model_directory / "tokenizer.json"))
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in random_models.TEXTS]
    with torch.no_grad():
        reference = model(input_ids=torch.tensor([wanted[0]])).logits[0].numpy()
    reader = GgufModel(target, exact=True)
    result = {
        "delta": largest_difference(reference, reader.logits(wanted[0], range(len(wanted[0])))),
        "spread": float(reference.std()),
        "tokens": wanted == [reader.tokenize(text, add_special=False) for text in random_models.TEXTS],
        "with_special": wanted == [reader.tokenize(text, add_special=True) for text in random_models.TEXTS],
        "template": reader.templates == {"default": template},
        "context": reader.longest_context,
        "ends": [token for token in range(size) if reader.ends_answer(token)],
    }
    reader.close()
    if (settings := ADAPTERS.get(name)) is not None:
        result |= adapter_deltas(model, directory, target, converter, wanted[0], settings, report)
    return result


def from_gguf(directory: Path, converter: Path, report: Answers) -> dict[str, Any]:
    """A model whose base was a GGUF file, with a tokenizer that the converter does not know: refused, and copied."""
    source, model = directory / "model.gguf", directory / "model"
    content = json.loads((model / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation"}, content["pre_tokenizer"]],
    }
    (model / "tokenizer.json").write_text(json.dumps(content))
    results: dict[str, Any] = {}
    for name, base in (("refused", None), ("copied", source)):
        staged, target = directory / f"staged-{name}", directory / f"{name}.gguf"
        staged.mkdir()
        options = GgufOptions(template="{{ messages[0].content }}", base_gguf=base)
        stage(model, options, staged)
        try:
            convert(conversion_job(staged, target, "F32", options, converter), report)
        except UserError as error:
            results[name] = str(error)
            continue
        before, after = GgufModel(source), GgufModel(target)
        tokens = [[reader.prompt_ids(text) for text in random_models.TEXTS] for reader in (before, after)]
        results |= {"tokens": tokens[0] == tokens[1], "templates": after.templates, "specials": after.specials}
    return results


def main(arguments: list[str]) -> int:
    """Make the round trips."""
    directory, converter, *names = arguments
    report = Answers(io.BytesIO())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pieces = random_models.train_sentencepiece()
    for name in names:
        try:
            result = round_trip(name, Path(directory) / name, Path(converter), pieces, report)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps({"name": name, **result}) + "\n")
        answers.flush()
    if "llama" in names:
        result = from_gguf(Path(directory) / "llama", Path(converter), report)
        answers.write(json.dumps({"name": "from-gguf", **result}) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
