"""Quantizations in a process of their own: ``python -m …quantizations DIRECTORY CONVERTER``.

A random model whose channels differ, as those of trained models do, is quantized to everything that there is, and to
the coarse types with an importance matrix as well; a line of JSON tells what came out of each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from core.export.gguf.options import GgufOptions
from core.export.gguf.staging import stage
from core.export.gguf.write import conversion_job
from core.export.kinds import CONVERTED, QUANTS
from core.models.architecture.gguf_header import read_gguf_header
from core.worker.export.gguf.convert import convert
from core.worker.export.gguf.importance import compute_importance
from core.worker.export.gguf.job import Report
from core.worker.export.gguf.quantize import quantize
from tests.core.worker.export.gguf import random_models
from tests.core.worker.export.gguf.reader import Reader, mean_divergence

#: The types that an importance matrix is tried with.
WEIGHED = ("Q4_K_M", "Q4_0")


def make_rows(size: int, count: int, seed: int) -> list[list[int]]:
    """Rows of tokens, some of which are far more frequent than others."""
    draw = np.random.default_rng(seed)
    return [[int(token) for token in np.minimum(draw.zipf(1.3, 96) + 5, size - 1)] for _ in range(count)]


def make_uneven_model(directory: Path) -> tuple[Any, int]:
    """A model whose channels are driven unevenly, with sizes that K-quants take whole."""
    import torch
    from transformers import LlamaConfig

    random_models.save_byte_level(directory)
    size = random_models.vocabulary_size(directory)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = random_models.make_model(config)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.exp(torch.randn_like(weight)))
            elif "lm_head" not in name and "embed" not in name:
                weight.mul_(0.5)
    model.save_pretrained(directory)
    return model, size


def main(arguments: list[str]) -> int:
    """Quantize."""
    import torch

    directory, converter = map(Path, arguments)
    report = Report(os.open(os.devnull, os.O_WRONLY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model_directory, staged, source = directory / "model", directory / "staged", directory / "F32.gguf"
    model, size = make_uneven_model(model_directory)
    staged.mkdir()
    stage(model_directory, GgufOptions(), staged)
    importance = directory / "importance.npz"
    job = {"source": str(source), "threads": 1}
    held_out = make_rows(size, 4, seed=2)
    with torch.no_grad():
        references = [model(input_ids=torch.tensor([row])).logits[0].numpy() for row in held_out]
    for quant in QUANTS:
        target = directory / f"{quant}.gguf"
        if quant in CONVERTED:
            convert(conversion_job(staged, target, quant, GgufOptions(), converter), report)
    compute_importance({**job, "target": str(importance), "rows": make_rows(size, 16, seed=1)}, report)
    for quant in QUANTS:
        for weighed in (False, True) if quant in WEIGHED else (False,):
            target = directory / f"{quant}{'-weighed' if weighed else ''}.gguf"
            if quant not in CONVERTED:
                asked = {"quant": quant, "target": str(target), "expected": 1, "importance": str(importance)}
                quantize({**job, **asked, "importance": str(importance) if weighed else None}, report)
            with Reader(target) as reader:
                found = [reader.logits(row) for row in held_out]
            pairs = list(zip(references, found, strict=True))
            result = {
                "quant": quant,
                "weighed": weighed,
                "bytes": target.stat().st_size,
                "types": sorted({tensor.type_name for tensor in read_gguf_header(target).tensors.values()}),
                "divergence": float(np.mean([mean_divergence(first, second) for first, second in pairs])),
                "top1": float(np.mean([(first.argmax(-1) == second.argmax(-1)).mean() for first, second in pairs])),
            }
            answers.write(json.dumps(result) + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
