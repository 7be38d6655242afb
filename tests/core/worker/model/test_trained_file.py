"""Models that answer with the weights of the file that they were trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.config.schema import MethodSection
from core.errors import UserError
from core.runs.catalog.trained import TrainedFile, TrainedModel, find_trained
from core.worker.export.model_directory import read_conversation, way_to_merge, write_merged
from core.worker.fused.file_weights import FileWeights
from core.worker.fused.install import fuse
from core.worker.generate.generate import answering_as
from core.worker.model.adapters import TRAINED, attach_adapters
from core.worker.model.model import LoadedModel, answer_with_file, load_model
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.progress import quiet

Q4_0 = TrainedFile("Q4_0", "bfloat16")
IDS = torch.arange(5, 40)[None]


def load(trained: TrainedModel, method: str = "lora") -> LoadedModel:
    loaded = load_model(Path(trained.base), method=method, precision="fp32", device="cpu", adapter=trained.adapter)
    loaded.model.eval()
    return loaded


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_it_answers_as_the_merged_export_does(
    tmp_path: Path, tiny_model_dir: Path, method: Literal["lora", "qlora"]
) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), method=method)
    trained = replace(find_trained(run), file=replace(Q4_0, dtype="float32"))
    loaded = load(trained, method)
    plain = logits(loaded.model)
    with answering_as(loaded.model, "base"):
        base = logits(loaded.model)
    assert trained.file is not None
    weights = answer_with_file(loaded, tiny_model_dir, trained.file)
    found = logits(loaded.model)
    assert not torch.allclose(found, plain, atol=1e-2)
    with weights.base_alone(), answering_as(loaded.model, "base"):
        torch.testing.assert_close(logits(loaded.model), base)
    assert torch.equal(logits(loaded.model), found)

    place = tmp_path / "merged"
    place.mkdir()
    conversation = read_conversation(tiny_model_dir, trained)
    way = way_to_merge(tiny_model_dir, trained, "auto")
    assert way == ("quantized" if method == "qlora" else "base")
    write_merged(tiny_model_dir, trained, place, "F32", way, conversation, quiet)
    merged = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    assert merged.config.tie_word_embeddings
    torch.testing.assert_close(found, logits(merged), atol=1e-4, rtol=1e-4)


def test_weights_are_rounded_as_the_training_had_them_first(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"))
    trained = find_trained(run)
    found = []
    for file in (Q4_0, replace(Q4_0, dtype="float16"), replace(Q4_0, dtype=None)):
        loaded = load(trained)
        answer_with_file(loaded, tiny_model_dir, file)
        found.append(logits(loaded.model))
    # The base is in bfloat16, which fp16 does not hold to the bit.
    assert torch.equal(found[0], found[2])


def test_switching_back_leaves_every_weight_as_it_was(tiny_model_dir: Path) -> None:
    loaded = load_model(tiny_model_dir, method="qlora", precision="fp32", device="cpu", for_training=True)
    model = attach_adapters(loaded.model, MethodSection(rank=4), seed=1)
    model.eval()
    before, embeddings = logits(model), model.get_input_embeddings().weight.clone()
    weights = FileWeights(model, fuse(model, TRAINED).lora, "Q8_0")
    weights.use(True, torch.float32)
    assert weights.in_use
    assert not torch.equal(model.get_input_embeddings().weight, embeddings)
    weights.use(False)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    torch.testing.assert_close(logits(model), before)


def test_layers_that_the_file_rounds_and_nothing_trains_are_refused(tiny_model_dir: Path) -> None:
    loaded = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu", for_training=True)
    model = attach_adapters(loaded.model, MethodSection(rank=4, target_modules=["q_proj"]), seed=1)
    with pytest.raises(UserError, match=r"one plain adapter each, and .*k_proj\.weight is none"):
        FileWeights(model, fuse(model, TRAINED).lora, "Q4_0")
