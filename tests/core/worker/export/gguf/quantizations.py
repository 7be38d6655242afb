"""Quantizations in a process of their own: ``python -m …quantizations DIRECTORY CONVERTER``.

A random model with uneven channels, as in trained models, is quantized to every type, and to the coarse types with
an importance matrix as well; each result is a line of JSON.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from core.export.llama_cpp import gguf_bytes
from core.export.request import CONVERTED, QUANTS, Quant
from core.jobs.process import Answers
from core.models.architecture.gguf_header import read_gguf_header
from core.models.architecture.measuring import load_architecture
from core.worker.export.gguf.convert import convert
from core.worker.export.gguf.quantize import compute_importance, quantize
from core.worker.export.gguf.write import GgufOptions, conversion_job, stage
from core.worker.export.llama.model import GgufModel
from core.worker.export.verify.compare import Figures, Place
from tests.core.worker.export.gguf import random_models

#: The types that an importance matrix is tried with.
WEIGHED = ("Q4_K_M", "Q4_0")


def make_rows(size: int, count: int, seed: int) -> list[list[int]]:
    """Rows of tokens, some of which are far more frequent than others."""
    draw = np.random.default_rng(seed)
    return [[int(token) for token in np.minimum(draw.zipf(1.3, 96) + 5, size - 1)] for _ in range(count)]


def save_model(directory: Path, name: str, **more: Any) -> Any:
    """A random model of an architecture with a byte-level tokenizer."""
    random_models.save_byte_level(directory)
    size = random_models.vocabulary_size(directory)
    model = random_models.make_model(random_models.make_configuration(name, size, **more))
    model.save_pretrained(directory)
    return model


def convert_to(directory: Path, target: Path, quant: Quant, converter: Path, report: Answers) -> None:
    """Write a model as a GGUF file of a type that the converter writes itself."""
    staged = directory.with_name(f"{directory.name}-staged")
    if not staged.exists():
        staged.mkdir()
        stage(directory, GgufOptions(), staged)
    convert(conversion_job(staged, target, quant, GgufOptions(), converter), report)


def make_uneven_model(directory: Path) -> Any:
    """A model whose channels are driven unevenly, with sizes that K-quants take whole."""
    import torch

    model = save_model(directory, "llama", hidden_size=256, intermediate_size=512)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.exp(torch.randn_like(weight)))
            elif "lm_head" not in name and "embed" not in name:
                weight.mul_(0.5)
    model.save_pretrained(directory)
    return model


def expected_importance(model: Any, rows: list[list[int]]) -> dict[str, Any]:
    """The same as llama.cpp's callbacks count, by hooks of torch."""
    import gguf  # the converter's, which has been imported
    import torch

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(model.model.layers))
    sums: dict[str, Any] = {}
    for path, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, torch.nn.Linear):

            def add(_: Any, inputs: Any, key: str = f"{names.get_name(path)}.weight") -> None:
                sums[key] = sums.get(key, 0) + inputs[0].double().square().sum(dim=(0, 1))

            module.register_forward_pre_hook(add)
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    tokens = sum(map(len, rows))
    return {name: (values / tokens).numpy() for name, values in sums.items()}


def weigh_experts(directory: Path, converter: Path, report: Answers) -> dict[str, Any]:
    """A mixture of experts: each expert's activations are counted apart, and the quantizer takes them."""
    save_model(directory / "experts", "mixtral", hidden_size=256, intermediate_size=256)
    source, importance, target = (directory / f"experts{end}" for end in (".gguf", ".npz", "-q.gguf"))
    convert_to(directory / "experts", source, "F32", converter, report)
    job = {"source": str(source), "embeddings": None}
    # Longer than a batch.
    compute_importance({**job, "target": str(importance), "rows": [[*range(5, 300)] * 2]}, report)
    with np.load(importance) as found:
        sizes = {name: int(found[name].size) for name in found.files}
        is_positive = all(bool((found[name] > 0).all()) for name in found.files)
    asked = {"quant": "Q4_K_M", "target": str(target), "expected": 1, "importance": str(importance), "rows": 1}
    quantize({**job, **asked}, report)
    return {"quant": "experts", "weighed": True, "sizes": sizes, "positive": is_positive}


#: Of models with rows that are no multiples of 256: hidden size, intermediate size, heads, and whether they are tied.
SHAPES = ((288, 512, 9, True), (256, 480, 4, False), (320, 352, 4, False))


#: Ways to quantize: whether with an importance matrix, and the type of the embeddings, if it is another.
WAYS = ((False, None), (True, None), (False, "Q8_0"))


def forecast_sizes(directory: Path, converter: Path, report: Answers) -> dict[str, Any]:
    """Bytes of the tensors written by the quantizer, and their forecast, by model, type and way."""
    sizes = {}
    for hidden, intermediate, heads, tied in SHAPES:
        name = f"{hidden}-{intermediate}"
        shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 9}
        more = {"num_attention_heads": heads, "num_key_value_heads": 1, "tie_word_embeddings": tied}
        save_model(directory / name, "llama", **shape, **more)
        architecture = load_architecture(directory / name)
        source, importance = directory / f"{name}-F32.gguf", directory / f"{name}.npz"
        convert_to(directory / name, source, "F32", converter, report)
        job = {"source": str(source), "rows": [list(range(5, 60))]}
        compute_importance({**job, "target": str(importance)}, report)
        for quant in QUANTS:
            for weighed, embeddings in WAYS[:1] if quant in CONVERTED else WAYS:
                target = directory / f"{name}-{quant}-{weighed}-{embeddings}.gguf"
                if quant in CONVERTED:
                    convert_to(directory / name, target, quant, converter, report)
                else:
                    asked = {"quant": quant, "target": str(target), "expected": 1, "rows": 1, "embeddings": embeddings}
                    quantize({**job, **asked, "importance": str(importance) if weighed else None}, report)
                written = sum(tensor.size or 0 for tensor in read_gguf_header(target).tensors.values())
                forecast = gguf_bytes(
                    architecture.parameters, architecture, quant, has_imatrix=weighed, embeddings=embeddings
                )
                sizes[f"{name} {quant} {weighed} {embeddings}"] = (written, forecast)
    return {"quant": "sizes", "weighed": True, "sizes": sizes}


def main(arguments: list[str]) -> int:
    """Quantize."""
    import torch

    directory, converter = map(Path, arguments)
    report = Answers(io.BytesIO())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    source = directory / "F32.gguf"
    model = make_uneven_model(directory / "model")
    size = model.config.vocab_size
    importance = directory / "importance.npz"
    job = {"source": str(source), "embeddings": None}
    held_out = make_rows(size, 4, seed=2)
    with torch.no_grad():
        references = [model(input_ids=torch.tensor([row])).logits[0].numpy() for row in held_out]
    for quant in QUANTS:
        if quant in CONVERTED:
            convert_to(directory / "model", directory / f"{quant}.gguf", quant, converter, report)
    compute_importance({**job, "target": str(importance), "rows": make_rows(size, 16, seed=1)}, report)
    wanted = expected_importance(model, make_rows(size, 16, seed=1))
    with np.load(importance) as found_importance:
        differences = {
            name: float(np.abs(found_importance[name] / (values + 1e-4 * values.mean()) - 1).max())
            for name, values in wanted.items()
        }
        result: dict[str, Any] = {"quant": "importance", "weighed": True, "differences": differences}
        result["names"] = sorted(found_importance.files)
    answers.write(json.dumps(result) + "\n")
    answers.write(json.dumps(weigh_experts(directory, converter, report)) + "\n")
    answers.write(json.dumps(forecast_sizes(directory, converter, report)) + "\n")
    for quant in QUANTS:
        for weighed in (False, True) if quant in WEIGHED else (False,):
            target = directory / f"{quant}{'-weighed' if weighed else ''}.gguf"
            if quant not in CONVERTED:
                asked = {"quant": quant, "target": str(target), "expected": 1, "rows": 16}
                quantize({**job, **asked, "importance": str(importance) if weighed else None}, report)
            reader = GgufModel(target, exact=True)
            figures = Figures()
            for row, reference in zip(held_out, references, strict=True):
                for wanted_logits, found in zip(reference, reader.logits(row, range(len(row))), strict=True):
                    figures.add(Place(wanted_logits), Place(found))
            reader.close()
            result = {
                "quant": quant,
                "weighed": weighed,
                "bytes": target.stat().st_size,
                "types": sorted({tensor.type_name for tensor in read_gguf_header(target).tensors.values()}),
                "divergence": figures.to_dict()["mean_kl"],
            }
            answers.write(json.dumps(result) + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
